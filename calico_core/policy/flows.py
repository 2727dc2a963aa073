"""Why a flow passes or not, from end to end: both ends' hosts evaluated on one snapshot of the datastore.

:mod:`explain` answers for what one host was told; here the state of each host on the way is calculated from the records
as its agent would, and every step is led back to the record and the rule that people wrote. Used by ``calicoctl
explain``. Pure. Sources: felix specification 4.5 and 6.5, calicoctl specification 5.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from netaddr import IPAddress

from calico_core.model.addresses import contains, parse_address
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import HostState, HostWorkload, RulesId
from calico_core.model.ids import unescape
from calico_core.model.keys import (
    BgpHostAddressKey,
    GlobalConfigKey,
    HostConfigKey,
    HostIpKey,
    Key,
    PolicyKey,
    PoolKey,
    ProfileRulesKey,
    WorkloadEndpointKey,
)
from calico_core.model.record import Value
from calico_core.model.rules import Rule
from calico_core.policy.explain import Direction, Outcome, Packet, Step, explain_side
from calico_core.policy.mismatch import first_mismatch
from calico_core.policy.resolver import PolicyResolver
from calico_core.policy.rules import stored_position

Place = Literal["workload", "host", "outside", "unknown"]
_TO_HOST = "DefaultEndpointToHostAction"
_DNS, _UDP = 53, 17


class RuleStep(Value, frozen=True):
    """One decision. ``kind`` and ``name`` tell the record, ``position`` (from 1) and ``rule`` the rule in it; without
    them an end was reached and the drop is an implied one."""

    outcome: Outcome
    reason: str
    tier: str | None = None
    kind: Literal["policy", "profile"] | None = None
    name: str | None = None
    position: int | None = None
    rule: Rule | None = None


class PassedOver(Value, frozen=True):
    """A rule that was asked before the decision; ``field``: the first of its matches that fails."""

    kind: Literal["policy", "profile"]
    name: str
    position: int
    rule: Rule
    field: str
    tier: str | None = None


class Side(Value, frozen=True):
    """One end. ``unknown``: no endpoint has the address, though it lies in a pool. ``outcome`` None: policy has no say
    there, ``reason`` says why."""

    direction: Direction
    address: IPAddress
    place: Place
    outcome: Literal["allow", "deny"] | None
    reason: str = ""
    host: str | None = None
    workload: WorkloadEndpointKey | None = None
    steps: tuple[RuleStep, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()


class FlowVerdict(Value, frozen=True):
    """``unaffected``: no end is a workload."""

    outcome: Literal["allow", "deny", "unaffected"]
    packet: Packet
    sides: tuple[Side, ...]


class Cluster:
    """A snapshot: every host's records. ``bad`` maps the paths of records that do not decode to the reason.
    ``endpoint_to_host`` is what hosts do whose configuration names nothing."""

    def __init__(
        self,
        records: Iterable[tuple[Key, Any]],
        *,
        bad: Mapping[str, str] | None = None,
        endpoint_to_host: str = "RETURN",
    ) -> None:
        self._records = dict(records)
        self._bad = bad or {}
        self._endpoint_to_host = endpoint_to_host
        self._states: dict[str, HostState] = {}
        self.endpoints: dict[WorkloadEndpointKey, WorkloadEndpoint] = {}
        self.hosts: dict[IPAddress, str] = {}
        for key, record in self._records.items():
            if isinstance(key, WorkloadEndpointKey):
                self.endpoints[key] = record
            elif isinstance(key, HostIpKey | BgpHostAddressKey) and record:
                self.hosts[parse_address(record)] = key.host

    def explain(
        self,
        packet: Packet,
        *,
        source: WorkloadEndpointKey | None = None,
        destination: WorkloadEndpointKey | None = None,
    ) -> FlowVerdict:
        """Where several workloads carry an address and none of them is named, all must allow."""
        senders = [source] if source is not None else self._carriers(packet.src)
        receivers = [destination] if destination is not None else self._carriers(packet.dst)
        sides = [self._of_workload(key, "outbound", packet) for key in senders]
        if senders and senders == receivers:
            same = "the endpoint talks to itself: nothing leaves it"
            sides = [Side(direction="outbound", address=packet.src, place="workload", outcome=None, reason=same,
                          host=key.host, workload=key) for key in senders]  # fmt: skip
        else:
            own_host = self.hosts.get(packet.dst)
            if own_host is not None and not receivers:
                sides = [side if side.host != own_host else self._to_host(side, packet) for side in sides]
            sides += [self._received(key, packet) for key in receivers]
        sides = sides if senders else [self._elsewhere(packet.src, "outbound"), *sides]
        sides = sides if receivers else [*sides, self._elsewhere(packet.dst, "inbound")]
        outcome: Literal["allow", "deny", "unaffected"] = "allow" if senders or receivers else "unaffected"
        if any(side.outcome == "deny" for side in sides):
            outcome = "deny"
        return FlowVerdict(outcome=outcome, packet=packet, sides=tuple(sides))

    def asks_for_port(self, packet: Packet, *parties: WorkloadEndpointKey | None) -> bool:
        """Whether policy of an end looks at the destination port of packets of this protocol."""
        keys = {*self._carriers(packet.src), *self._carriers(packet.dst), *filter(None, parties)}
        for key in keys:
            state = self.state(key.host)
            workload = state.workloads[key]
            for policies in (workload.inbound, workload.outbound):
                lists = [*(each for tier in policies.tiers for each in tier.policies), *policies.profiles]
                for rules in (state.rules[each] for each in lists):
                    for rule in (*rules.inbound, *rules.outbound):
                        if (rule.dst_ports or rule.not_dst_ports) and rule.protocol == packet.protocol:
                            return True
        return False

    def state(self, host: str) -> HostState:
        """What the agent of ``host`` would tell its dataplane."""
        found = self._states.get(host)
        if found is None:
            resolver = PolicyResolver(host)
            resolver.apply(self._records.items())
            resolver.in_sync()
            found = self._states[host] = HostState()
            found.update(resolver.flush())
        return found

    # --- one end -------------------------------------------------------------------------------------

    def _of_workload(self, key: WorkloadEndpointKey, direction: Direction, packet: Packet) -> Side:
        state = self.state(key.host)
        steps = explain_side(state, state.workloads[key], direction, packet)
        last = steps[-1].outcome
        return Side(
            direction=direction,
            address=packet.src if direction == "outbound" else packet.dst,
            place="workload",
            outcome="allow" if last == "allow" else "deny",
            host=key.host,
            workload=key,
            steps=tuple(self._lead_back(step) for step in steps),
            passed_over=tuple(self._passed_over(state, state.workloads[key], direction, packet, steps)),
        )

    def _passed_over(
        self, state: HostState, workload: HostWorkload, direction: Direction, packet: Packet, steps: list[Step]
    ) -> Iterator[PassedOver]:
        """In the order in which they were asked. Each tier made one step, and all profiles together one."""
        policies = workload.inbound if direction == "inbound" else workload.outbound
        groups = [(tier.tier, tier.policies) for tier in policies.tiers]
        for (tier, lists), step in zip([*groups, (None, policies.profiles)], steps, strict=False):
            for rules_id in lists:
                rules = state.rules[rules_id]
                for index, rule in enumerate(rules.inbound if direction == "inbound" else rules.outbound):
                    if (rules_id, index) == (step.rules, step.rule):
                        break
                    field = first_mismatch(state, rule, packet)
                    stored = self._stored(rules_id, direction, index)
                    if field is not None and stored is not None:
                        yield PassedOver(tier=tier, field=field, **stored)
                if rules_id == step.rules:
                    break

    def _received(self, key: WorkloadEndpointKey, packet: Packet) -> Side:
        if self.hosts.get(packet.src) == key.host:
            reason = "a host reaches its own workloads whatever policy says"
            return Side(direction="inbound", address=packet.dst, place="workload", outcome=None, reason=reason,
                        host=key.host, workload=key)  # fmt: skip
        return self._of_workload(key, "inbound", packet)

    def _to_host(self, side: Side, packet: Packet) -> Side:
        """From a workload to the host it runs on."""
        if packet.protocol == _UDP and packet.dst_port == _DNS:
            reason = "DNS to the workload's own host always passes"
            return _without_steps(side, None, reason)
        action = self._config(side.host or "", _TO_HOST)
        if action == "DROP":
            return _without_steps(side, "deny", f"{_TO_HOST} is DROP: nothing passes from workloads to their host")
        return side

    def _elsewhere(self, address: IPAddress, direction: Direction) -> Side:
        host = self.hosts.get(address)
        if host is not None:
            reason = "an address of the host: what its own firewall says is not asked here"
            return Side(direction=direction, address=address, place="host", outcome=None, reason=reason, host=host)
        pool = next(
            (key.cidr for key in self._records if isinstance(key, PoolKey) and contains(key.cidr, address)), None
        )
        if pool is None:
            reason = "outside: no endpoint has the address and no pool holds it"
            return Side(direction=direction, address=address, place="outside", outcome=None, reason=reason)
        reason = f"unknown endpoint: the address is of pool {pool}, but no endpoint has it"
        return Side(direction=direction, address=address, place="unknown", outcome="deny", reason=reason)

    def _carriers(self, address: IPAddress) -> list[WorkloadEndpointKey]:
        found = [
            key for key, endpoint in self.endpoints.items() if any(contains(net, address) for net in endpoint.nets)
        ]
        return sorted(found, key=lambda key: key.path)

    def _config(self, host: str, name: str) -> str:
        found = self._records.get(HostConfigKey(host, name)) or self._records.get(GlobalConfigKey(name))
        return str(found or self._endpoint_to_host).strip().upper()

    # --- back to the records -------------------------------------------------------------------------

    def _lead_back(self, step: Step) -> RuleStep:
        if step.rules is None or step.rule is None:
            return RuleStep(outcome=step.outcome, reason=_implied(step), tier=step.tier)
        stored = self._stored(step.rules, step.direction, step.rule)
        if stored is not None:
            return RuleStep(outcome=step.outcome, reason=step.reason, tier=step.tier, **stored)
        key = _record_key(step.rules)
        kind, name = _kind_and_name(key)
        why = self._bad.get(key.path)
        reason = f"invalid {kind}: {why}" if why else f"missing {kind}: nothing is stored under its name"
        return RuleStep(outcome=step.outcome, reason=reason, tier=step.tier, kind=kind, name=name)

    def _stored(self, rules_id: RulesId, direction: Direction, index: int) -> dict[str, Any] | None:
        """What names the rule that a host knows as number ``index``; None: no record stands behind it."""
        key = _record_key(rules_id)
        lists = self._records.get(key)
        if lists is None:
            return None
        rules: tuple[Rule, ...] = lists.inbound_rules if direction == "inbound" else lists.outbound_rules
        kind, name = _kind_and_name(key)
        position = stored_position(rules, index, of_profile=kind == "profile")
        return {"kind": kind, "name": name, "position": position + 1, "rule": rules[position]}


def _kind_and_name(key: PolicyKey | ProfileRulesKey) -> tuple[Literal["policy", "profile"], str]:
    return ("profile", key.profile) if isinstance(key, ProfileRulesKey) else ("policy", key.name)


def _record_key(rules_id: RulesId) -> PolicyKey | ProfileRulesKey:
    kind, _, rest = rules_id.partition("/")
    if kind == "profile":
        return ProfileRulesKey(rest)
    tier, _, name = rest.partition("/")
    return PolicyKey(unescape(tier), unescape(name))


def _implied(step: Step) -> str:
    """Names the drop nobody wrote."""
    if step.tier is not None:
        return f"end of tier: none of its policies that apply decides, its default is {step.outcome}"
    return step.reason


def _without_steps(side: Side, outcome: Literal["deny"] | None, reason: str) -> Side:
    return Side(
        direction=side.direction,
        address=side.address,
        place=side.place,
        outcome=outcome,
        reason=reason,
        host=side.host,
        workload=side.workload,
    )
