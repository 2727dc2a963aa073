"""Why a packet passes or not: the host's desired state evaluated by hand, with the chain of reasons.

Evaluates exactly what the dataplane was told: tiers in order, then profiles, then drop, on the sender's side and on
the receiver's. Established connections are not its business. Source: felix specification 4.5.
"""

from __future__ import annotations

from typing import Literal

from netaddr import IPAddress

from calico_core.model.addresses import contains
from calico_core.model.hoststate import (
    AddressSet,
    HostRule,
    HostState,
    HostWorkload,
    PolicyList,
    RulesId,
    SetId,
    TierPolicies,
)
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.record import Value

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
    of the tier if one is named, else of the endpoint's list. ``log`` rules make no step."""

    workload: WorkloadEndpointKey
    direction: Direction
    outcome: Outcome
    reason: str
    tier: str | None = None
    rules: RulesId | None = None
    rule: int | None = None


class Verdict(Value, frozen=True):
    """``unaffected``: neither address belongs to a workload of this host."""

    outcome: Literal["allow", "deny", "unaffected"]
    steps: tuple[Step, ...] = ()


def explain(state: HostState, packet: Packet) -> Verdict:
    """The sender's outbound side first, then the receiver's inbound side. Where several local workloads carry an
    address, all of them must allow."""
    steps: list[Step] = []
    sides: tuple[tuple[Direction, IPAddress], ...] = (("outbound", packet.src), ("inbound", packet.dst))
    for direction, address in sides:
        for workload in _carriers(state, address):
            steps += explain_side(state, workload, direction, packet)
            if steps[-1].outcome == "deny":
                return Verdict(outcome="deny", steps=tuple(steps))
    return Verdict(outcome="allow" if steps else "unaffected", steps=tuple(steps))


def explain_side(state: HostState, workload: HostWorkload, direction: Direction, packet: Packet) -> list[Step]:
    """One direction of one workload. The last step is ``allow`` or ``deny``."""
    key = workload.key
    if not workload.is_active:
        return [Step(workload=key, direction=direction, outcome="deny", reason="the endpoint is inactive")]
    policies: PolicyList = workload.inbound if direction == "inbound" else workload.outbound
    steps: list[Step] = []
    for tier in policies.tiers:
        step = _tier(state, key, direction, tier, packet)
        steps.append(step)
        if step.outcome != "pass":
            return steps
    for rules_id in policies.profiles:
        found = _decide(state, rules_id, direction, packet)
        if found is None:
            continue
        rule, index = found
        steps.append(
            Step(
                workload=key,
                direction=direction,
                outcome="deny" if rule.action in {"deny", "reject"} else "allow",
                reason="a rule of a profile decides",
                rules=rules_id,
                rule=index,
            )
        )
        return steps
    reason = "no profile decides" if policies.profiles else "no policy or profile applies"
    steps.append(Step(workload=key, direction=direction, outcome="deny", reason=reason))
    return steps


def _tier(state: HostState, key: WorkloadEndpointKey, direction: Direction, tier: TierPolicies, packet: Packet) -> Step:
    for rules_id in tier.policies:
        found = _decide(state, rules_id, direction, packet)
        if found is None:
            continue
        rule, index = found
        assert rule.action != "log"
        outcome: Outcome = "deny" if rule.action == "reject" else rule.action
        reason = "a rule of a policy decides" if rule.action != "pass" else "a rule passes on to the next tier"
        return Step(
            workload=key,
            direction=direction,
            outcome=outcome,
            reason=reason,
            tier=tier.tier,
            rules=rules_id,
            rule=index,
        )
    return Step(
        workload=key,
        direction=direction,
        outcome=tier.default_action,
        reason="no policy of the tier decides",
        tier=tier.tier,
    )


def _carriers(state: HostState, address: IPAddress) -> list[HostWorkload]:
    found = [each for each in state.workloads.values() if any(contains(net, address) for net in each.nets)]
    return sorted(found, key=lambda each: each.key.path)


def _decide(state: HostState, rules_id: RulesId, direction: Direction, packet: Packet) -> tuple[HostRule, int] | None:
    """The first rule that matches and does more than log."""
    rules = state.rules[rules_id]
    for index, rule in enumerate(rules.inbound if direction == "inbound" else rules.outbound):
        if rule.action != "log" and rule_matches(state, rule, packet):
            return rule, index
    return None


def rule_matches(state: HostState, rule: HostRule, packet: Packet) -> bool:
    version = packet.src.version
    if rule.ip_version is not None and rule.ip_version != version:
        return False
    if rule.protocol is not None and rule.protocol != packet.protocol:
        return False
    if rule.not_protocol is not None and rule.not_protocol == packet.protocol:
        return False
    if rule.src_nets and not any(contains(net, packet.src) for net in rule.src_nets):
        return False
    if any(contains(net, packet.src) for net in rule.not_src_nets):
        return False
    if rule.dst_nets and not any(contains(net, packet.dst) for net in rule.dst_nets):
        return False
    if any(contains(net, packet.dst) for net in rule.not_dst_nets):
        return False
    return _ports_match(rule, packet) and _icmp_matches(rule, packet) and _sets_match(state.sets, rule, packet)


def _ports_match(rule: HostRule, packet: Packet) -> bool:
    sides = (
        (packet.src_port, rule.src_ports, rule.not_src_ports),
        (packet.dst_port, rule.dst_ports, rule.not_dst_ports),
    )
    for port, ranges, not_ranges in sides:
        if not ranges and not not_ranges:
            continue
        if port is None:
            return False
        if ranges and not any(low <= port <= high for low, high in ranges):
            return False
        if any(low <= port <= high for low, high in not_ranges):
            return False
    return True


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
    return (
        all(in_set(sets[each], packet.src) for each in rule.src_sets)
        and not any(in_set(sets[each], packet.src) for each in rule.not_src_sets)
        and all(in_set(sets[each], packet.dst) for each in rule.dst_sets)
        and not any(in_set(sets[each], packet.dst) for each in rule.not_dst_sets)
    )


def in_set(members: AddressSet, address: IPAddress) -> bool:
    if int(address) in (members.v4 if address.version == 4 else members.v6):
        return True
    return any(contains(net, address) for net in members.nets)
