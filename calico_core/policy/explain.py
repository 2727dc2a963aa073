"""Why a packet passes or not: the host's desired state evaluated by hand, with the chain of reasons.

Evaluates exactly what the dataplane was told: tiers in order, then profiles, then drop, on the sender's side and on
the receiver's. Established connections are not its business. Source: felix specification 4.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec
from netaddr import IPAddress

from calico_core.model.addresses import contains
from calico_core.model.hoststate import (
    AddressSet,
    HostRule,
    HostState,
    HostWorkload,
    PolicyList,
    PortMember,
    RulesId,
    SetId,
    TierPolicies,
)
from calico_core.model.keys import HostEndpointKey, WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.model.rules import PortRange
from calico_core.policy.policy_lists import Hook

Direction = Literal["inbound", "outbound"]
Outcome = Literal["allow", "deny", "pass"]


class Packet(Value, frozen=True):
    """The first packet of a flow. Ports only where the protocol has them; ``icmp`` is (type, code)."""

    src: IPAddress
    dst: IPAddress
    protocol: int
    src_port: int | None = None
    dst_port: int | None = None
    icmp: tuple[int, int] | None = None


class Step(Value, frozen=True):
    """One decision on the way. ``rules`` and ``rule`` (from 0) name what decided; ``rules`` None: an end was reached,
    of the tier if one is named, else of the endpoint's list. ``log`` rules make no step. ``is_rejected``: a denial
    that is told to the sender."""

    endpoint: WorkloadEndpointKey | HostEndpointKey
    direction: Direction
    outcome: Outcome
    reason: str
    hook: Hook = "normal"
    tier: str | None = None
    rules: RulesId | None = None
    rule: int | None = None
    is_rejected: bool = False


class Verdict(Value, frozen=True):
    """``unaffected``: neither address belongs to a workload of this host."""

    outcome: Literal["allow", "deny", "unaffected"]
    steps: tuple[Step, ...] = ()


def explain(state: HostState, packet: Packet) -> Verdict:
    """The sender's outbound side first, then the receiver's inbound side. Floating addresses of this host are
    translated before either is asked."""
    seen = translated(state, packet)
    return both_sides(
        holder(state.workloads.values(), seen.src),
        holder(state.workloads.values(), seen.dst),
        lambda workload, direction: explain_side(state, workload, direction, seen),
    )


def both_sides(
    sender: HostWorkload | None,
    receiver: HostWorkload | None,
    ask: Callable[[HostWorkload, Direction], list[Step]],
) -> Verdict:
    """Up to the first that denies."""
    steps: list[Step] = []
    sides: tuple[tuple[Direction, HostWorkload | None], ...] = (("outbound", sender), ("inbound", receiver))
    for direction, workload in sides:
        if workload is None:
            continue
        steps += ask(workload, direction)
        if steps[-1].outcome == "deny":
            return Verdict(outcome="deny", steps=tuple(steps))
    return Verdict(outcome="allow" if steps else "unaffected", steps=tuple(steps))


def translated(state: HostState, packet: Packet) -> Packet:
    """As policy sees it: a floating address of a workload of this host is translated before, if the workload has the
    address that it stands for."""
    for workload in state.workloads.values():
        for nat in workload.nats:
            if nat.external == packet.dst and holder(state.workloads.values(), nat.internal) is workload:
                return msgspec.structs.replace(packet, dst=nat.internal)
    return packet


def explain_side(state: HostState, workload: HostWorkload, direction: Direction, packet: Packet) -> list[Step]:
    """One direction of one workload. The last step is ``allow`` or ``deny``."""
    if not workload.is_active:
        reason = "the endpoint is inactive"
        return [Step(endpoint=workload.key, direction=direction, outcome="deny", reason=reason)]
    policies = workload.inbound if direction == "inbound" else workload.outbound
    return walk(state, workload.key, "normal", direction, policies, packet)


def walk(
    state: HostState,
    endpoint: WorkloadEndpointKey | HostEndpointKey,
    hook: Hook,
    direction: Direction,
    policies: PolicyList,
    packet: Packet,
) -> list[Step]:
    """Tiers, then profiles. At the ordinary hook the last step is ``allow`` or ``deny``; at the others it may be
    ``pass``, and there is none where no policy applies."""
    steps: list[Step] = []
    for tier in policies.tiers:
        step = _tier(state, endpoint, hook, direction, tier, packet)
        steps.append(step)
        if step.outcome != "pass":
            return steps
    if hook != "normal":
        return steps
    for rules_id in policies.profiles:
        found = _decide(state, rules_id, direction, packet)
        if found is not None:
            return [*steps, decided(endpoint, hook, direction, None, rules_id, found)]
    return [*steps, undecided(endpoint, hook, direction, policies)]


def _tier(
    state: HostState,
    endpoint: WorkloadEndpointKey | HostEndpointKey,
    hook: Hook,
    direction: Direction,
    tier: TierPolicies,
    packet: Packet,
) -> Step:
    for rules_id in tier.policies:
        found = _decide(state, rules_id, direction, packet)
        if found is not None:
            return decided(endpoint, hook, direction, tier.tier, rules_id, found)
    return undecided(endpoint, hook, direction, tier)


def undecided(
    endpoint: WorkloadEndpointKey | HostEndpointKey,
    hook: Hook,
    direction: Direction,
    end: TierPolicies | PolicyList,
) -> Step:
    """The end of a tier, or of a whole list."""
    if isinstance(end, PolicyList):
        reason = "no profile decides" if end.profiles else "no policy or profile applies"
        return Step(endpoint=endpoint, direction=direction, outcome="deny", reason=reason)
    return Step(
        endpoint=endpoint,
        direction=direction,
        hook=hook,
        outcome=end.default_action,
        reason="no policy of the tier decides",
        tier=end.tier,
    )


def decided(
    endpoint: WorkloadEndpointKey | HostEndpointKey,
    hook: Hook,
    direction: Direction,
    tier: str | None,
    rules_id: RulesId,
    found: tuple[HostRule, int],
) -> Step:
    rule, index = found
    outcome: Outcome = "allow"
    if rule.action in {"deny", "reject"}:
        outcome = "deny"
    elif rule.action == "pass" and tier is not None:
        outcome = "pass"
    reason = "a rule of a profile decides" if tier is None else "a rule of a policy decides"
    return Step(
        endpoint=endpoint,
        direction=direction,
        hook=hook,
        outcome=outcome,
        reason="a rule passes on to the next tier" if outcome == "pass" else reason,
        tier=tier,
        rules=rules_id,
        rule=index,
        is_rejected=rule.action == "reject",
    )


def holder(workloads: Iterable[HostWorkload], address: IPAddress) -> HostWorkload | None:
    """Who has it: of several, of which one at most gets its packets and may send from it, the first active one by its
    key. Source: felix specification 6.8 and 6.9."""
    found = [each for each in workloads if any(contains(net, address) for net in each.nets)]
    return min(found, key=lambda each: (not each.is_active, each.key.path), default=None)


def _decide(state: HostState, rules_id: RulesId, direction: Direction, packet: Packet) -> tuple[HostRule, int] | None:
    """The first rule that matches and does more than log; none of a staged policy does."""
    rules = state.rules[rules_id]
    if rules.is_staged:
        return None
    for index, rule in enumerate(rules.inbound if direction == "inbound" else rules.outbound):
        if rule_matches(state, rule, packet) and rule.action != "log":
            return rule, index
    return None


def rule_matches(state: HostState, rule: HostRule, packet: Packet) -> bool:
    """What is cheap and most often fails is asked first: nearly all rules of a long walk end in the first loops."""
    if rule.protocol is not None and rule.protocol != packet.protocol:
        return False
    if rule.dst_ports or rule.dst_port_sets:
        port = packet.dst_port
        for low, high in rule.dst_ports:
            if port is not None and low <= port <= high:
                break
        else:
            if not _is_offered(state, packet, packet.dst, port, rule.dst_port_sets):
                return False
    if rule.src_ports or rule.src_port_sets:
        port = packet.src_port
        for low, high in rule.src_ports:
            if port is not None and low <= port <= high:
                break
        else:
            if not _is_offered(state, packet, packet.src, port, rule.src_port_sets):
                return False
    return _rest_matches(state, rule, packet)


def _rest_matches(state: HostState, rule: HostRule, packet: Packet) -> bool:
    """All but the protocol and the ports that are wanted."""
    if rule.ip_version is not None and rule.ip_version != packet.src.version:
        return False
    if rule.not_protocol is not None and rule.not_protocol == packet.protocol:
        return False
    if rule.src_nets and not any(contains(net, packet.src) for net in rule.src_nets):
        return False
    if rule.dst_nets and not any(contains(net, packet.dst) for net in rule.dst_nets):
        return False
    if rule.not_src_nets and any(contains(net, packet.src) for net in rule.not_src_nets):
        return False
    if rule.not_dst_nets and any(contains(net, packet.dst) for net in rule.not_dst_nets):
        return False
    if (rule.not_src_ports or rule.not_src_port_sets) and not _is_other_port(
        state, packet, packet.src, packet.src_port, rule.not_src_ports, rule.not_src_port_sets
    ):
        return False
    if (rule.not_dst_ports or rule.not_dst_port_sets) and not _is_other_port(
        state, packet, packet.dst, packet.dst_port, rule.not_dst_ports, rule.not_dst_port_sets
    ):
        return False
    return _icmp_matches(rule, packet) and _sets_match(state.sets, rule, packet)


def _is_offered(
    state: HostState, packet: Packet, address: IPAddress, port: int | None, sets: tuple[SetId, ...]
) -> bool:
    """Whether the port is one by a name that one of the sets stands for."""
    if not sets or port is None:
        return False
    member = PortMember(address.version, int(address), packet.protocol, port)
    return any(member in state.port_sets[each] for each in sets)


def _is_other_port(
    state: HostState,
    packet: Packet,
    address: IPAddress,
    port: int | None,
    ranges: tuple[PortRange, ...],
    sets: tuple[SetId, ...],
) -> bool:
    """What a negated match asks: a port, and none of its own."""
    if port is None or any(low <= port <= high for low, high in ranges):
        return False
    return not _is_offered(state, packet, address, port, sets)


def _icmp_matches(rule: HostRule, packet: Packet) -> bool:
    if rule.icmp is None and rule.not_icmp is None:
        return True
    if packet.icmp is None:
        return False
    if rule.icmp is not None and not _is_icmp(rule.icmp, packet.icmp):
        return False
    return rule.not_icmp is None or not _is_icmp(rule.not_icmp, packet.icmp)


def _is_icmp(wanted: tuple[int, int | None], is_: tuple[int, int]) -> bool:
    return wanted[0] == is_[0] and (wanted[1] is None or wanted[1] == is_[1])


def _sets_match(sets: dict[SetId, AddressSet], rule: HostRule, packet: Packet) -> bool:
    # plain loops: most rules name no set, and a generator costs as much as a look into one
    for each in rule.src_sets:
        if not in_set(sets[each], packet.src):
            return False
    for each in rule.dst_sets:
        if not in_set(sets[each], packet.dst):
            return False
    for each in rule.not_src_sets:
        if in_set(sets[each], packet.src):
            return False
    for each in rule.not_dst_sets:  # noqa: SIM110
        if in_set(sets[each], packet.dst):
            return False
    return True


def in_set(members: AddressSet, address: IPAddress) -> bool:
    if int(address) in (members.v4 if address.version == 4 else members.v6):
        return True
    return any(contains(net, address) for net in members.nets)
