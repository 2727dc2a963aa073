"""Many flows put to the same policy: each list of policies as sets of rules, so that a flow meets only those rules that
its protocol and ports can match.

The answers are those of :func:`calico_core.policy.explain.walk`, step by step; the rules that are left are asked by the
one evaluator. To compile a list costs as much as a few flows that walk all through it.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec
from netaddr import IPNetwork
from pyroaring import BitMap

from calico_core.model.addresses import host_network
from calico_core.model.hoststate import HostRule, HostState, HostWorkload, PolicyList, RulesId
from calico_core.model.keys import HostEndpointKey, WorkloadEndpointKey
from calico_core.model.rules import PortRange
from calico_core.policy.explain import (
    Direction,
    Packet,
    Step,
    Verdict,
    both_sides,
    decided,
    explain_side,
    rule_matches,
    undecided,
    walk,
)
from calico_core.policy.policy_lists import Hook

_Ports = tuple[PortRange, ...]
ASKED_ONE_BY_ONE = 3
"""Of each tier so many rules are asked as they come: that costs less than one operation on the sets."""


class _PortIndex:
    """Rules by the ranges they ask of a port. Names of ports are left to the evaluator."""

    def __init__(self) -> None:
        self._by_ranges: defaultdict[_Ports, BitMap] = defaultdict(BitMap)
        self._any = BitMap()
        self._matching: dict[int | None, BitMap] = {}

    def add(self, number: int, ranges: _Ports, *, has_sets: bool) -> None:
        if ranges and not has_sets:
            self._by_ranges[ranges].add(number)
        else:
            self._any.add(number)

    def matching(self, port: int | None) -> BitMap:
        found = self._matching.get(port)
        if found is None:
            fitting = [
                rules
                for ranges, rules in self._by_ranges.items()
                if port is not None and any(low <= port <= high for low, high in ranges)
            ]
            found = self._matching[port] = BitMap.union(self._any, *fitting)
        return found


class CompiledList:
    """One direction of one list. The rules of all its policies and profiles are numbered through, without those that
    only log and those of staged policies."""

    def __init__(self, state: HostState, policies: PolicyList, direction: Direction) -> None:
        self._state = state
        self._policies = policies
        self._direction = direction
        self._rules: list[tuple[HostRule, RulesId, int]] = []
        self._by_protocol: defaultdict[int | None, BitMap] = defaultdict(BitMap)
        self._src_ports, self._dst_ports = _PortIndex(), _PortIndex()
        self._last: tuple[object, BitMap] = (None, BitMap())
        self._tier_ends = [self._take(tier.policies) for tier in policies.tiers]
        self._end = self._take(policies.profiles)

    def _take(self, lists: tuple[RulesId, ...]) -> int:
        for rules_id in lists:
            found = self._state.rules[rules_id]
            if found.is_staged:
                continue
            for index, rule in enumerate(found.inbound if self._direction == "inbound" else found.outbound):
                if rule.action == "log":
                    continue
                number = len(self._rules)
                self._rules.append((rule, rules_id, index))
                self._by_protocol[rule.protocol].add(number)
                self._src_ports.add(number, rule.src_ports, has_sets=bool(rule.src_port_sets))
                self._dst_ports.add(number, rule.dst_ports, has_sets=bool(rule.dst_port_sets))
        return len(self._rules)

    def walk(self, endpoint: WorkloadEndpointKey | HostEndpointKey, hook: Hook, packet: Packet) -> list[Step]:
        """As :func:`calico_core.policy.explain.walk`."""
        steps: list[Step] = []
        start = 0
        for tier, end in zip(self._policies.tiers, self._tier_ends, strict=True):
            found = self._first(start, end, packet)
            if found is None:
                step = undecided(endpoint, hook, self._direction, tier)
            else:
                rule, rules_id, index = found
                step = decided(endpoint, hook, self._direction, tier.tier, rules_id, (rule, index))
            steps.append(step)
            if step.outcome != "pass":
                return steps
            start = end
        if hook != "normal":
            return steps
        found = self._first(start, self._end, packet)
        if found is None:
            return [*steps, undecided(endpoint, hook, self._direction, self._policies)]
        rule, rules_id, index = found
        return [*steps, decided(endpoint, hook, self._direction, None, rules_id, (rule, index))]

    def _candidates(self, packet: Packet) -> BitMap:
        """All that match are among them. The last answer is kept: the tiers of a list ask alike, and so do many flows
        to one port."""
        asked = packet.protocol, packet.src_port, packet.dst_port
        known, found = self._last
        if known != asked:
            found = self._src_ports.matching(packet.src_port) & self._dst_ports.matching(packet.dst_port)
            if found:
                found &= self._by_protocol[packet.protocol] | self._by_protocol[None]
            self._last = asked, found
        return found

    def _first(self, start: int, end: int, packet: Packet) -> tuple[HostRule, RulesId, int] | None:
        few = min(start + ASKED_ONE_BY_ONE, end)
        for number in range(start, few):
            if rule_matches(self._state, self._rules[number][0], packet):
                return self._rules[number]
        candidates = self._candidates(packet) if few < end else None
        if not candidates:
            return None
        for number in candidates.iter_equal_or_larger(few):
            if number >= end:
                return None
            if rule_matches(self._state, self._rules[number][0], packet):
                return self._rules[number]
        return None


class Evaluator:
    """Of one state, as long as that does not change. A list is compiled when it is asked for the second time."""

    def __init__(self, state: HostState, down: frozenset[str] = frozenset()) -> None:
        """``down``: interfaces that are not up; who has one has no address that another one has too."""
        self._state = state
        self._holders: dict[IPNetwork, HostWorkload] = {}
        workloads = sorted(
            state.workloads.values(), key=lambda each: (not each.is_active, each.interface in down, each.key.path)
        )
        for workload in workloads:
            for net in workload.nets:
                self._holders.setdefault(net, workload)
        self._floating = {
            nat.external: nat.internal
            for workload in workloads
            for nat in workload.nats
            if self._holders.get(host_network(nat.internal)) is workload
        }
        # by identity, so each list is held from the first time on; to hash one is to look at all of its names
        self._lists: dict[tuple[int, Direction], CompiledList] = {}
        self._asked: dict[tuple[int, Direction], PolicyList] = {}

    def holder(self, net: IPNetwork) -> HostWorkload | None:
        """As :func:`calico_core.policy.explain.holder`, of a net that a record names."""
        return self._holders.get(net)

    def explain(self, packet: Packet) -> Verdict:
        """As :func:`calico_core.policy.explain.explain`."""
        internal = self._floating.get(packet.dst)
        seen = packet if internal is None else msgspec.structs.replace(packet, dst=internal)
        return both_sides(
            self._holders.get(host_network(seen.src)),
            self._holders.get(host_network(seen.dst)),
            lambda workload, direction: self.explain_side(workload, direction, seen),
        )

    def explain_side(self, workload: HostWorkload, direction: Direction, packet: Packet) -> list[Step]:
        """As :func:`calico_core.policy.explain.explain_side`."""
        if not workload.is_active:
            return explain_side(self._state, workload, direction, packet)
        policies = workload.inbound if direction == "inbound" else workload.outbound
        return self.walk(workload.key, "normal", direction, policies, packet)

    def walk(
        self,
        endpoint: WorkloadEndpointKey | HostEndpointKey,
        hook: Hook,
        direction: Direction,
        policies: PolicyList,
        packet: Packet,
    ) -> list[Step]:
        key = id(policies), direction
        found = self._lists.get(key)
        if found is None:
            if key not in self._asked:
                self._asked[key] = policies
                return walk(self._state, endpoint, hook, direction, policies, packet)
            found = self._lists[key] = CompiledList(self._state, policies, direction)
        return found.walk(endpoint, hook, packet)
