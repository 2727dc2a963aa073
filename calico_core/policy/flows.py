"""Why a flow passes or not, from end to end: both ends' hosts evaluated on one snapshot of the datastore.

:mod:`explain` answers for what one host was told; here the state of each host on the way is calculated from the records
as its agent would, and every step is led back to the record and the rule that people wrote. Used by ``calicoctl
explain``. Pure. Sources: felix specification 4.5 and 6.5, calicoctl specification 5.6.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
from netaddr import IPAddress

from calico_core.model.addresses import LOOPBACK, contains
from calico_core.model.hoststate import HostInterface, HostState
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.policy.explain import Direction, Packet, explain_side, translated
from calico_core.policy.explain_host import HookSteps, explain_interface
from calico_core.policy.host_settings import ENDPOINT_TO_HOST, IPV6_SUPPORT, SOURCE_SPOOFING
from calico_core.policy.led_back import lead_back, passed_over
from calico_core.policy.masquerade import is_masqueraded
from calico_core.policy.own_host import always_passes, is_to_metadata, tunnel_kind
from calico_core.policy.snapshot import Snapshot
from calico_core.policy.spoofing import is_spoofed
from calico_core.policy.verdicts import FlowVerdict, PassedOver, RuleStep, Side, without_steps

__all__ = ["Cluster", "FlowVerdict", "PassedOver", "RuleStep", "Side"]

_TCP = 6
_NO_IPV6 = f"IPv6 is off: {IPV6_SUPPORT} of the host is false"


class Cluster(Snapshot):
    """A snapshot that can be asked about packets.

    Which addresses an interface has, only its host knows: a host endpoint with a name is taken to be on the packet's
    way unless another is expected to have the address."""

    def explain(
        self,
        packet: Packet,
        *,
        source: WorkloadEndpointKey | None = None,
        destination: WorkloadEndpointKey | None = None,
    ) -> FlowVerdict:
        """Where workloads of several hosts have an address and none of them is named, all must allow. A ``source``
        that does not have the packet's address is not let send it."""
        senders = [source] if source is not None else self.holders(packet.src)
        if senders and destination is None and is_to_metadata(packet):
            leads_to = self.metadata(senders[0].host)
            if leads_to is not None and leads_to != (packet.dst, packet.dst_port):
                return self._to_metadata(packet, senders, leads_to)
        receiver_host, inner = self._translated(packet, destination)
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
        arrives, original = self._as_it_left(packet, senders, inner, packet)
        starts: set[str | None] = {key.host for key in senders} or {self.hosts.get(packet.src)}
        ends: set[str | None] = {key.host for key in receivers} or {self.hosts.get(inner.dst)}
        if not senders:
            sides += self._elsewhere(packet.src, "outbound", packet, packet, others=ends)
        is_tunnelled = bool(receivers) and starts != {None} and self.is_tunnelled(packet.dst)
        received: list[Side] = []
        for key in [] if is_tunnelled else senders:
            sides += self._forwarded(key.host, "outbound", packet, packet, others=ends)
        for key in receivers:
            entered = [] if is_tunnelled else self._forwarded(key.host, "inbound", arrives, original, others=starts)
            sides += entered
            received += self._received_as(key, inner if key.host in starts else arrives, original, entered)
        sides += received
        if not receivers:
            sides += self._elsewhere(inner.dst, "inbound", arrives, original, others=starts)
        if arrives.src != packet.src:
            sides = [self._with_source(side, packet, arrives, starts) for side in sides]
        is_asked = senders or receivers or any(side.host_endpoint is not None for side in sides)
        outcome: Literal["allow", "deny", "unaffected"] = "allow" if is_asked else "unaffected"
        if any(side.outcome == "deny" for side in sides):
            outcome = "deny"
        return FlowVerdict(outcome=outcome, packet=packet, sides=tuple(sides))

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
            steps=tuple(lead_back(self, step) for step in steps),
            passed_over=tuple(passed_over(self, state, policies, direction, packet, steps)),
        )

    def _sent(self, key: WorkloadEndpointKey, packet: Packet) -> Side:
        side = self._of_workload(key, "outbound", packet)
        reason = self._why_not_sent(key, packet)
        return side if reason is None else without_steps(side, "deny", reason)

    def _why_not_sent(self, key: WorkloadEndpointKey, packet: Packet) -> str | None:
        """Whatever policy says. None: it may send it."""
        if not self._is_active(key):
            return None
        reason = self.why_not_in_force(key)
        if reason is not None:
            return reason
        tunnel = tunnel_kind(packet)
        if tunnel is not None and not self.lets_tunnel(key.host, tunnel):
            return f"{tunnel} from a workload: it could come out of the hosts' tunnels, beyond all policy"
        if self._is_without(key.host, packet):
            return f"{_NO_IPV6}, and its workloads have none"
        if contains(LOOPBACK, packet.dst):
            return f"{packet.dst} is a loopback address: a host takes such packets from no workload"
        reason = self._why_spoofed(key, packet)
        return None if reason is None else f"spoofed source: {reason}"

    def _why_spoofed(self, key: WorkloadEndpointKey, packet: Packet) -> str | None:
        """None: it may send from there."""
        workload = self.state(key.host).workloads[key]
        if is_spoofed(workload, packet):
            prefixes = self.endpoints[key].allowed_source_prefixes
            if any(contains(net, packet.src) for net in prefixes) and not self.lets_spoof(key.host):
                return f"{packet.src} is in a prefix of the endpoint, and {SOURCE_SPOOFING} is Disabled"
            return f"{packet.src} is no address of the endpoint, whatever policy says"
        owner = self.holder(key.host, packet.src)
        is_let = any(contains(net, packet.src) for net in workload.allowed_source_prefixes)
        if owner is not None and owner.key != key and not is_let:
            return f"{packet.src} is had by endpoint {owner.key.endpoint} of the host, the first that names it"
        return None

    def _received_as(
        self, key: WorkloadEndpointKey, packet: Packet, original: Packet, entered: Sequence[Side]
    ) -> list[Side]:
        """What has come to a floating address is translated, but where untracked policy of the interface has let it
        in; of interfaces that differ only the host knows which it is."""
        untracked = [side for side in entered if _is_untracked(side)]
        if packet == original or not untracked:
            return [self._received(key, packet)]
        found = [] if len(untracked) == len(entered) else [self._received(key, packet)]
        side = self._received(key, original)
        return [*found, _with_reason(side, f"let in untracked, so not translated: arrives as to {original.dst}")]

    def _received(self, key: WorkloadEndpointKey, packet: Packet) -> Side:
        reason = self.why_not_in_force(key)
        if reason is None and self._is_without(key.host, packet) and self._is_active(key):
            reason = f"{_NO_IPV6}, and its workloads have none"
        if reason is not None:
            return Side(direction="inbound", address=packet.dst, place="workload", outcome="deny", reason=reason,
                        host=key.host, workload=key)  # fmt: skip
        if self.hosts.get(packet.src) == key.host and self._is_active(key):
            reason = "a host reaches its own workloads whatever policy says"
            return Side(direction="inbound", address=packet.dst, place="workload", outcome=None, reason=reason,
                        host=key.host, workload=key)  # fmt: skip
        return self._of_workload(key, "inbound", packet)

    def _to_host(self, side: Side, packet: Packet) -> Side:
        """From a workload to the host it runs on."""
        host = side.host or ""
        is_metadata = packet.protocol == _TCP and self.metadata(host) == (packet.dst, packet.dst_port)
        what = "the metadata service" if is_metadata else always_passes(packet)
        if what is not None:
            return self._unless_refused(side, packet, f"{what} of the workload's own host always passes")
        if self.action_to_host(host) == "DROP":
            reason = f"{ENDPOINT_TO_HOST} is DROP: nothing passes from workloads to their host"
            return self._unless_refused(side, packet, reason, "deny")
        return side

    def _unless_refused(self, side: Side, packet: Packet, reason: str, outcome: Literal["deny"] | None = None) -> Side:
        """``outcome`` in the place of what policy says, of a workload that may send the packet at all."""
        key = side.workload
        is_refused = key is not None and (not self._is_active(key) or self._why_not_sent(key, packet) is not None)
        return side if is_refused else without_steps(side, outcome, reason)

    def _to_metadata(
        self, packet: Packet, senders: Sequence[WorkloadEndpointKey], leads_to: tuple[IPAddress | str, int]
    ) -> FlowVerdict:
        """The host of a workload leads its packet there before policy is asked."""
        address, port = leads_to
        reason = f"the metadata address: led to {address} port {port}"
        if isinstance(address, IPAddress) and not contains(LOOPBACK, address):
            there = msgspec.structs.replace(packet, dst=address, dst_port=port)
            verdict = self.explain(there, source=senders[0] if len(senders) == 1 else None)
            sides = [_with_reason(side, reason) if side.workload in senders else side for side in verdict.sides]
            return FlowVerdict(outcome=verdict.outcome, packet=packet, sides=tuple(sides))
        passes = "which always passes" if isinstance(address, IPAddress) else "a name that only the host can resolve"
        sides = [self._unless_refused(self._sent(key, packet), packet, f"{reason}, {passes}") for key in senders]
        is_denied = any(side.outcome == "deny" for side in sides)
        return FlowVerdict(outcome="deny" if is_denied else "allow", packet=packet, sides=tuple(sides))

    def _is_without(self, host: str, packet: Packet) -> bool:
        """Whether the host knows nothing of the packet's family."""
        return packet.src.version == 6 and not self.has_ipv6(host)

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
            side = Side(direction=direction, address=address, place="host", outcome=None, host=host)
            tunnel, other = self._tunnel_of(host, packet), packet.src if direction == "inbound" else packet.dst
            is_of_hosts = tunnel is not None and self._is_peer(host, other)
            if direction == "inbound" and tunnel is not None and not is_of_hosts:
                reason = f"{tunnel} from no host of ours: what is in it would be believed"
                return [msgspec.structs.replace(side, outcome="deny", reason=reason)]
            if host not in others:
                found = self._at_interfaces(
                    host, direction, packet, original, is_forwarded=False, is_encapsulated=is_of_hosts
                )
                if found:
                    return found
            reason = "an address of the host: what its own firewall and its services make of it is not asked here"
            return [msgspec.structs.replace(side, reason=reason)]
        pool = self.pool_of(address)
        if pool is None:
            reason = "outside: no endpoint has the address and no pool holds it"
            return [Side(direction=direction, address=address, place="outside", outcome=None, reason=reason)]
        reason = f"unknown endpoint: the address is of pool {pool}, but no endpoint has it"
        return [Side(direction=direction, address=address, place="unknown", outcome="deny", reason=reason)]

    def _tunnel_of(self, host: str, packet: Packet) -> str | None:
        """The kind of tunnel of the host that the packet belongs to."""
        kind = tunnel_kind(packet)
        if kind is None or self._is_without(host, packet):
            return None
        peers = self.state(host).peers
        is_used = peers.is_vxlan if kind == "VXLAN" else peers.is_ipip and packet.src.version == 4
        return kind if is_used else None

    def _is_peer(self, host: str, address: IPAddress) -> bool:
        """Whether the host takes what comes from there out of its tunnels."""
        return address in self.state(host).peers.addresses or self.is_external_node(host, address)

    # --- interfaces of hosts -------------------------------------------------------------------------

    def _forwarded(
        self, host: str, direction: Direction, packet: Packet, original: Packet, *, others: Collection[str | None]
    ) -> list[Side]:
        """Out of a workload's host or into it; between workloads of one host nothing leaves."""
        if host in others:
            return []
        return self._at_interfaces(host, direction, packet, original, is_forwarded=True)

    def _at_interfaces(
        self,
        host: str,
        direction: Direction,
        packet: Packet,
        original: Packet,
        *,
        is_forwarded: bool,
        is_encapsulated: bool = False,
    ) -> list[Side]:
        """Each that may be on the way, if it has a say. ``is_encapsulated``: by one host for another, which only early
        policy is asked about."""
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
                failsafe=self.failsafe_ports(host, direction),
                why_closed=f"{_NO_IPV6}; fail-safe ports pass alone" if self._is_without(host, packet) else "",
            )
            if is_encapsulated:
                hooks = [each for each in hooks if each.hook != "normal"]
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
            steps=tuple(lead_back(self, step) for each in hooks for step in each.steps),
            passed_over=tuple(
                found
                for each in hooks
                for found in passed_over(self, state, each.policies, direction, each.packet, each.steps, each.hook)
            ),
        )

    def _translated(self, packet: Packet, destination: WorkloadEndpointKey | None) -> tuple[str | None, Packet]:
        """A floating address leads to a workload's own, on the workload's host: which host, and the packet there."""
        for key in sorted(self.endpoints, key=lambda key: key.path) if destination is None else [destination]:
            endpoint = self.endpoints[key]
            if self._is_without(key.host, packet):
                continue
            if any(nat.ext_ip == packet.dst for nat in endpoint.ipv4_nat + endpoint.ipv6_nat):
                inner = translated(self.state(key.host), packet)
                if inner != packet:
                    return key.host, inner
        return None, packet

    def _as_it_left(self, packet: Packet, senders: Sequence[WorkloadEndpointKey], *seen: Packet) -> tuple[Packet, ...]:
        """``seen`` as other hosts see them."""
        if not senders:
            return seen
        host, version = senders[0].host, packet.src.version
        address = self.nat_address(host, version) or self.address_of(host, version)
        is_spared = self.nat_spares_hosts(host) and packet.dst in self.hosts
        if address is None or is_spared or not is_masqueraded(packet, self.pools()):
            return seen
        return tuple(msgspec.structs.replace(each, src=address) for each in seen)

    def _with_source(self, side: Side, packet: Packet, arrives: Packet, starts: Collection[str | None]) -> Side:
        if side.direction == "outbound" or side.host in {None, *starts} or not side.steps:
            return side
        return _with_reason(side, f"comes as from {arrives.src}: the pool of {packet.src} is masqueraded")


def _with_reason(side: Side, reason: str) -> Side:
    return msgspec.structs.replace(side, reason="; ".join(filter(None, (reason, side.reason))))


def _is_untracked(side: Side) -> bool:
    """Whether policy of the interface has kept the packet from being tracked."""
    return bool(side.steps) and (side.steps[-1].hook, side.steps[-1].outcome) == ("untracked", "allow")
