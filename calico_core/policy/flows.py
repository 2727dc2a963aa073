"""Why a flow passes or not, from end to end: both ends' hosts evaluated on one snapshot of the datastore.

:mod:`explain` answers for what one host was told; here the state of each host on the way is calculated from the records
as its agent would, and every step is led back to the record and the rule that people wrote. Used by ``calicoctl
explain``. Pure. Sources: felix specification 4.5 and 6.5, calicoctl specification 5.6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from netaddr import IPAddress

from calico_core.errors import InvalidRequest
from calico_core.model.addresses import contains, parse_address
from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.failsafe import DEFAULT_INBOUND, DEFAULT_OUTBOUND, Failsafe, parse_failsafe_ports
from calico_core.model.hoststate import HostInterface, HostRules, HostState, PolicyList, RulesId
from calico_core.model.keys import (
    BgpHostAddressKey,
    GlobalConfigKey,
    HostConfigKey,
    HostEndpointKey,
    HostIpKey,
    Key,
    PoolKey,
    WorkloadEndpointKey,
)
from calico_core.model.rules import PORT_PROTOCOLS, Rule
from calico_core.policy.effective_labels import effective_labels
from calico_core.policy.explain import Direction, Packet, Step, explain_side, holder, translated
from calico_core.policy.explain_host import HookSteps, explain_interface
from calico_core.policy.mismatch import first_mismatch
from calico_core.policy.policy_lists import Hook
from calico_core.policy.resolver import PolicyResolver
from calico_core.policy.rules import stored_position
from calico_core.policy.spoofing import is_spoofed
from calico_core.policy.tunnel_routes import encapsulation
from calico_core.policy.verdicts import (
    FlowVerdict,
    PassedOver,
    RuleStep,
    Side,
    implied_drop,
    kind_and_name,
    record_key,
    without_steps,
)

__all__ = ["Cluster", "FlowVerdict", "PassedOver", "RuleStep", "Side"]

_TO_HOST = "DefaultEndpointToHostAction"
_SPOOFING = "WorkloadSourceSpoofing"
_FAILSAFE: dict[Direction, str] = {"inbound": "FailsafeInboundHostPorts", "outbound": "FailsafeOutboundHostPorts"}
_DNS, _UDP = 53, 17


class Cluster:
    """A snapshot: every host's records. ``bad`` maps the paths of records that do not decode to the reason.
    ``endpoint_to_host`` is what hosts do whose configuration names nothing, and so are ``source_spoofing`` and
    ``failsafe_…``: the ports that no host endpoint closes, as settings write them.

    Which addresses an interface has, only its host knows: a host endpoint with a name is taken to be on the packet's
    way unless another is expected to have the address."""

    def __init__(
        self,
        records: Iterable[tuple[Key, Any]],
        *,
        bad: Mapping[str, str] | None = None,
        endpoint_to_host: str = "RETURN",
        source_spoofing: str = "Disabled",
        failsafe_inbound: str = DEFAULT_INBOUND,
        failsafe_outbound: str = DEFAULT_OUTBOUND,
    ) -> None:
        self._records = dict(records)
        self._bad = bad or {}
        self._endpoint_to_host, self._source_spoofing = endpoint_to_host, source_spoofing
        self._failsafe: dict[Direction, str] = {"inbound": failsafe_inbound, "outbound": failsafe_outbound}
        self._states: dict[str, HostState] = {}
        self.host_endpoints: dict[HostEndpointKey, HostEndpoint] = {}
        self.endpoints: dict[WorkloadEndpointKey, WorkloadEndpoint] = {}
        self.hosts: dict[IPAddress, str] = {}
        for key, record in self._records.items():
            if isinstance(key, WorkloadEndpointKey):
                self.endpoints[key] = record
            elif isinstance(key, HostIpKey | BgpHostAddressKey) and record:
                self.hosts[parse_address(record)] = key.host
            elif isinstance(key, HostEndpointKey):
                self.host_endpoints[key] = record
        for host_key, host_endpoint in self.host_endpoints.items():
            for address in host_endpoint.addresses:
                self.hosts.setdefault(address, host_key.host)

    def explain(
        self,
        packet: Packet,
        *,
        source: WorkloadEndpointKey | None = None,
        destination: WorkloadEndpointKey | None = None,
    ) -> FlowVerdict:
        """Where workloads of several hosts have an address and none of them is named, all must allow. A ``source``
        that does not have the packet's address is not let send it."""
        receiver_host, inner = self._translated(packet, destination)
        senders = [source] if source is not None else self.holders(packet.src)
        receivers = [destination] if destination is not None else self.holders(inner.dst)
        if senders and senders == receivers and inner == packet:
            same = "the endpoint talks to itself: nothing leaves it"
            sides = [Side(direction="outbound", address=packet.src, place="workload", outcome=None, reason=same,
                          host=key.host, workload=key) for key in senders]  # fmt: skip
            return FlowVerdict(outcome="allow", packet=packet, sides=tuple(sides))
        sides = [self._sent(key, inner if key.host == receiver_host else packet) for key in senders]
        own_host = self.hosts.get(packet.dst)
        if own_host is not None and not receivers:
            sides = [side if side.host != own_host else self._to_host(side, packet) for side in sides]
        starts: set[str | None] = {key.host for key in senders} or {self.hosts.get(packet.src)}
        ends: set[str | None] = {key.host for key in receivers} or {self.hosts.get(inner.dst)}
        if not senders:
            sides += self._elsewhere(packet.src, "outbound", packet, packet, others=ends)
        is_tunnelled = bool(receivers) and starts != {None} and self._is_tunnelled(inner.dst)
        if not is_tunnelled:
            for key in senders:
                sides += self._forwarded(key.host, "outbound", packet, packet, others=ends)
            for key in receivers:
                sides += self._forwarded(key.host, "inbound", inner, packet, others=starts)
        sides += [self._received(key, inner) for key in receivers]
        if not receivers:
            sides += self._elsewhere(inner.dst, "inbound", inner, packet, others=starts)
        is_asked = senders or receivers or any(side.host_endpoint is not None for side in sides)
        outcome: Literal["allow", "deny", "unaffected"] = "allow" if is_asked else "unaffected"
        if any(side.outcome == "deny" for side in sides):
            outcome = "deny"
        return FlowVerdict(outcome=outcome, packet=packet, sides=tuple(sides))

    def labels(self, key: WorkloadEndpointKey) -> dict[str, str]:
        """Those that policy sees on it."""
        return effective_labels(self.endpoints[key], self._records)

    def lacks_port(self, packet: Packet, *parties: WorkloadEndpointKey | None) -> bool:
        """Whether the packet names no destination port, and policy on its way looks at one."""
        is_bare = packet.protocol in PORT_PROTOCOLS and packet.dst_port is None
        return is_bare and self.asks_for_port(packet, *parties)

    def asks_for_port(self, packet: Packet, *parties: WorkloadEndpointKey | None) -> bool:
        """Whether policy of an end looks at the destination port of packets of this protocol."""
        keys = {*self.carriers(packet.src), *self.carriers(packet.dst), *filter(None, parties)}
        lists: list[tuple[HostState, PolicyList]] = []
        for key in keys:
            state = self.state(key.host)
            lists += [(state, each) for each in (state.workloads[key].inbound, state.workloads[key].outbound)]
        hosts = {*(key.host for key in keys), self.hosts.get(packet.src), self.hosts.get(packet.dst)}
        for host in {key.host for key in self.host_endpoints} & hosts:
            state = self.state(host)
            for interface in state.interfaces.values():
                values = (getattr(interface, field) for field in interface.__struct_fields__)
                lists += [(state, value) for value in values if isinstance(value, PolicyList)]
        return any(
            _looks_at_port(state.rules[rules_id], packet.protocol)
            for state, policies in lists
            for rules_id in (*(each for tier in policies.tiers for each in tier.policies), *policies.profiles)
        )

    def state(self, host: str) -> HostState:
        """What the agent of ``host`` would tell its dataplane."""
        found = self._states.get(host)
        if found is None:
            resolver = PolicyResolver(host, lets_spoof=self.lets_spoof(host))
            resolver.apply(self._records.items())
            for key, record in self.host_endpoints.items():
                if key.host == host and record.name is None:  # one that has what is expected stands for the real one
                    resolver.set_interface(_unnamed(record), frozenset(record.addresses))
            resolver.in_sync()
            found = self._states[host] = HostState()
            found.update(resolver.flush())
        return found

    def lets_spoof(self, host: str) -> bool:
        """Whether workloads of the host may send from the prefixes that their records allow."""
        return (self._config(host, _SPOOFING) or self._source_spoofing).strip().lower() == "any"

    # --- one end -------------------------------------------------------------------------------------

    def _of_workload(self, key: WorkloadEndpointKey, direction: Direction, packet: Packet) -> Side:
        state = self.state(key.host)
        workload = state.workloads[key]
        steps = explain_side(state, workload, direction, packet)
        last = steps[-1].outcome
        policies = workload.inbound if direction == "inbound" else workload.outbound
        return Side(
            direction=direction,
            address=packet.src if direction == "outbound" else packet.dst,
            place="workload",
            outcome="allow" if last == "allow" else "deny",
            host=key.host,
            workload=key,
            steps=tuple(self._lead_back(step) for step in steps),
            passed_over=tuple(self._passed_over(state, policies, direction, packet, steps)),
        )

    def _passed_over(
        self,
        state: HostState,
        policies: PolicyList,
        direction: Direction,
        packet: Packet,
        steps: Sequence[Step],
        hook: Hook = "normal",
    ) -> Iterator[PassedOver]:
        """In the order in which they were asked. Each tier made one step, and all profiles together one."""
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
                        yield PassedOver(tier=tier, field=field, hook=hook, **stored)
                if rules_id == step.rules:
                    break

    def _sent(self, key: WorkloadEndpointKey, packet: Packet) -> Side:
        side = self._of_workload(key, "outbound", packet)
        reason = self._why_spoofed(key, packet)
        return side if reason is None else without_steps(side, "deny", f"spoofed source: {reason}")

    def _why_spoofed(self, key: WorkloadEndpointKey, packet: Packet) -> str | None:
        """None: it may send from there."""
        if not self._is_active(key):
            return None
        workload = self.state(key.host).workloads[key]
        if is_spoofed(workload, packet):
            prefixes = self.endpoints[key].allowed_source_prefixes
            if any(contains(net, packet.src) for net in prefixes) and not self.lets_spoof(key.host):
                return f"{packet.src} is in a prefix of the endpoint, and {_SPOOFING} is Disabled"
            return f"{packet.src} is no address of the endpoint, whatever policy says"
        owner = holder(self.state(key.host).workloads.values(), packet.src)
        is_let = any(contains(net, packet.src) for net in workload.allowed_source_prefixes)
        if owner is not None and owner.key != key and not is_let:
            return f"{packet.src} is had by endpoint {owner.key.endpoint} of the host, the first that names it"
        return None

    def _received(self, key: WorkloadEndpointKey, packet: Packet) -> Side:
        if self.hosts.get(packet.src) == key.host and self._is_active(key):
            reason = "a host reaches its own workloads whatever policy says"
            return Side(direction="inbound", address=packet.dst, place="workload", outcome=None, reason=reason,
                        host=key.host, workload=key)  # fmt: skip
        return self._of_workload(key, "inbound", packet)

    def _to_host(self, side: Side, packet: Packet) -> Side:
        """From a workload to the host it runs on."""
        if side.workload is not None and (
            not self._is_active(side.workload) or self._why_spoofed(side.workload, packet) is not None
        ):
            return side
        if packet.protocol == _UDP and packet.dst_port == _DNS:
            reason = "DNS to the workload's own host always passes"
            return without_steps(side, None, reason)
        action = (self._config(side.host or "", _TO_HOST) or self._endpoint_to_host).strip().upper()
        if action == "DROP":
            return without_steps(side, "deny", f"{_TO_HOST} is DROP: nothing passes from workloads to their host")
        return side

    def _is_active(self, key: WorkloadEndpointKey) -> bool:
        return self.endpoints[key].state == "active"

    def _elsewhere(
        self,
        address: IPAddress,
        direction: Direction,
        packet: Packet,
        original: Packet,
        *,
        others: Collection[str | None],
    ) -> list[Side]:
        """An end that is no workload. ``others``: the hosts at the other end."""
        host = self.hosts.get(address)
        if host is not None:
            if host not in others:
                found = self._at_interfaces(host, direction, packet, original, is_forwarded=False)
                if found:
                    return found
            reason = "an address of the host: what its own firewall says is not asked here"
            return [Side(direction=direction, address=address, place="host", outcome=None, reason=reason, host=host)]
        pool = next(
            (key.cidr for key in self._records if isinstance(key, PoolKey) and contains(key.cidr, address)), None
        )
        if pool is None:
            reason = "outside: no endpoint has the address and no pool holds it"
            return [Side(direction=direction, address=address, place="outside", outcome=None, reason=reason)]
        reason = f"unknown endpoint: the address is of pool {pool}, but no endpoint has it"
        return [Side(direction=direction, address=address, place="unknown", outcome="deny", reason=reason)]

    # --- interfaces of hosts -------------------------------------------------------------------------

    def _forwarded(
        self, host: str, direction: Direction, packet: Packet, original: Packet, *, others: Collection[str | None]
    ) -> list[Side]:
        """Out of a workload's host or into it; between workloads of one host nothing leaves."""
        if host in others:
            return []
        return self._at_interfaces(host, direction, packet, original, is_forwarded=True)

    def _at_interfaces(
        self, host: str, direction: Direction, packet: Packet, original: Packet, *, is_forwarded: bool
    ) -> list[Side]:
        """Each that may be on the way, if it has a say."""
        if not any(key.host == host for key in self.host_endpoints):
            return []
        state = self.state(host)
        address = packet.src if direction == "outbound" else packet.dst
        found, is_certain = list(state.interfaces.values()), False
        if not is_forwarded:
            expecting = [each for each in found if address in self.host_endpoints[each.key].addresses]
            found, is_certain = expecting or found, bool(expecting)
        sides: list[Side] = []
        for interface in found:
            hooks = explain_interface(
                state,
                interface,
                direction,
                packet,
                is_forwarded=is_forwarded,
                original=original,
                failsafe=self._failsafe_ports(host, direction),
            )
            if any(each.steps for each in hooks):
                side = self._at_interface(state, interface, direction, hooks, is_forwarded=is_forwarded)
                sides.append(msgspec.structs.replace(side, is_interface_certain=is_certain))
        return sides

    def _at_interface(
        self,
        state: HostState,
        interface: HostInterface,
        direction: Direction,
        hooks: list[HookSteps],
        *,
        is_forwarded: bool,
    ) -> Side:
        packet = hooks[-1].packet
        last = hooks[-1].steps[-1].outcome if hooks[-1].steps else "pass"
        reason = "" if last != "pass" else "what no policy of the interface decides is forwarded"
        return Side(
            direction=direction,
            address=packet.src if direction == "outbound" else packet.dst,
            place="interface" if is_forwarded else "host",
            outcome="deny" if last == "deny" else "allow",
            reason=reason,
            host=interface.key.host,
            host_endpoint=interface.key,
            interface=interface.interface,
            steps=tuple(self._lead_back(step) for each in hooks for step in each.steps),
            passed_over=tuple(
                found
                for each in hooks
                for found in self._passed_over(state, each.policies, direction, each.packet, each.steps, each.hook)
            ),
        )

    def _translated(self, packet: Packet, destination: WorkloadEndpointKey | None) -> tuple[str | None, Packet]:
        """A floating address leads to a workload's own, on the workload's host: which host, and the packet there."""
        for key in sorted(self.endpoints, key=lambda key: key.path) if destination is None else [destination]:
            endpoint = self.endpoints[key]
            if any(nat.ext_ip == packet.dst for nat in endpoint.ipv4_nat + endpoint.ipv6_nat):
                inner = translated(self.state(key.host), packet)
                if inner != packet:
                    return key.host, inner
        return None, packet

    def _is_tunnelled(self, address: IPAddress) -> bool:
        """Whether it always goes from host to host inside another packet, past the policy of interfaces."""
        pools = (record for key, record in self._records.items() if isinstance(key, PoolKey))
        ways = (encapsulation(pool) for pool in pools if contains(pool.cidr, address))
        return any(way is not None and way[1] == "always" for way in ways)

    def holders(self, address: IPAddress) -> list[WorkloadEndpointKey]:
        """Who has the address: of each host one endpoint at most."""
        hosts = sorted({key.host for key in self.carriers(address)})
        found = [holder(self.state(host).workloads.values(), address) for host in hosts]
        return [each.key for each in found if each is not None]

    def carriers(self, address: IPAddress) -> list[WorkloadEndpointKey]:
        """Who is said to have it."""
        found = [
            key for key, endpoint in self.endpoints.items() if any(contains(net, address) for net in endpoint.nets)
        ]
        return sorted(found, key=lambda key: key.path)

    def _config(self, host: str, name: str) -> str | None:
        found = self._records.get(HostConfigKey(host, name))
        return found if found is not None else self._records.get(GlobalConfigKey(name))

    def _failsafe_ports(self, host: str, direction: Direction) -> tuple[Failsafe, ...]:
        """An agent that cannot read its setting does not start: what it last knew, most likely the default, holds."""
        name = _FAILSAFE[direction]
        text = self._config(host, name)
        try:
            return parse_failsafe_ports(self._failsafe[direction] if text is None else text, field=name)
        except InvalidRequest:
            return parse_failsafe_ports(self._failsafe[direction], field=name)

    # --- back to the records -------------------------------------------------------------------------

    def _lead_back(self, step: Step) -> RuleStep:
        if step.rules is None or step.rule is None:
            return RuleStep(outcome=step.outcome, reason=implied_drop(step), tier=step.tier, hook=step.hook)
        stored = self._stored(step.rules, step.direction, step.rule)
        if stored is not None:
            return RuleStep(
                outcome=step.outcome,
                reason=step.reason,
                tier=step.tier,
                hook=step.hook,
                is_rejected=step.is_rejected,
                **stored,
            )
        key = record_key(step.rules)
        kind, name = kind_and_name(key)
        why = self._bad.get(key.path)
        reason = f"invalid {kind}: {why}" if why else f"missing {kind}: nothing is stored under its name"
        return RuleStep(outcome=step.outcome, reason=reason, tier=step.tier, kind=kind, name=name, hook=step.hook)

    def rules_of(
        self, rules_id: RulesId, direction: Direction
    ) -> tuple[Literal["policy", "profile"], str, tuple[Rule, ...] | None]:
        """Kind and name of the record, and its rules as they are stored; None: no record stands behind it."""
        key = record_key(rules_id)
        lists = self._records.get(key)
        kind, name = kind_and_name(key)
        if lists is None:
            return kind, name, None
        return kind, name, lists.inbound_rules if direction == "inbound" else lists.outbound_rules

    def _stored(self, rules_id: RulesId, direction: Direction, index: int) -> dict[str, Any] | None:
        """What names the rule that a host knows as number ``index``; None: no record stands behind it."""
        kind, name, rules = self.rules_of(rules_id, direction)
        if rules is None:
            return None
        position = stored_position(rules, index, of_profile=kind == "profile")
        return {"kind": kind, "name": name, "position": position + 1, "rule": rules[position]}


def _looks_at_port(rules: HostRules, protocol: int) -> bool:
    return any(
        rule.protocol == protocol
        and (rule.dst_ports or rule.not_dst_ports or rule.dst_port_sets or rule.not_dst_port_sets)
        for rule in rules.inbound + rules.outbound
    )


def _unnamed(record: HostEndpoint) -> str:
    return f"with {record.addresses[0]}"
