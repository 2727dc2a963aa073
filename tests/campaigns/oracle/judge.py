"""What becomes of a packet in the town, by the naive reading and by the product's evaluator."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from netaddr import IPAddress

from calico_core.model.hoststate import HostState
from calico_core.model.keys import Key
from calico_core.policy.explain import Packet, explain
from tests.campaigns.oracle import town
from tests.campaigns.oracle.cases import HERE
from tests.campaigns.oracle.flows import ICMP, ICMPV6, TCP, UDP, Flow
from tests.campaigns.oracle.naive import Outcome, holder_of, workload_says

_DNS = 53
_ECHO = {(ICMP, 8), (ICMPV6, 128)}
Answer = Literal["reply", "unreachable", "prohibited", "whatever"]


class Fate(NamedTuple):
    """``place``: where the packet must arrive, None: nowhere. ``answer``: what must come back; None: nothing may."""

    outcome: Outcome
    place: str | None
    answer: Answer | None


def place_of(records: dict[Key, Any], address: IPAddress) -> str | None:
    """None: nothing routes there."""
    if address in town.HOST_ADDRESSES:
        return town.HOST
    if address in town.STRANGERS or any(address in each for each in town.REMOTE.values()):
        return town.NEIGHBOUR
    endpoint = holder_of(records, HERE, address)
    if endpoint is None or endpoint.state != "active":
        return None
    return next(name for name, interface in town.INTERFACES.items() if interface == endpoint.name)


def naive_fate(records: dict[Key, Any], flow: Flow) -> Fate:
    place = place_of(records, flow.dst)
    if place is None:
        return Fate("deny", None, "whatever")  # a router on the way may say so
    if flow.sender in town.WORKLOADS:
        sender = holder_of(records, HERE, flow.src)
        is_own = sender is not None and sender.name == town.INTERFACES[flow.sender]
        if sender is None or not is_own or sender.state != "active":
            return Fate("deny", None, None)  # a source that is not its own
        if not (place == town.HOST and flow.protocol == UDP and flow.dst_port == _DNS):
            outcome = workload_says(records, sender, "outbound", flow)
            if outcome != "allow":
                return _refused(outcome)
    if place in town.WORKLOADS and flow.sender != town.HOST:
        receiver = holder_of(records, HERE, flow.dst)
        assert receiver is not None
        outcome = workload_says(records, receiver, "inbound", flow)
        if outcome != "allow":
            return _refused(outcome)
    return Fate("allow", place, _answer(flow, place))


def _refused(outcome: Outcome) -> Fate:
    return Fate(outcome, None, "prohibited" if outcome == "reject" else None)


def _answer(flow: Flow, place: str) -> Answer | None:
    """Nobody listens anywhere in the town: TCP is reset, an echo comes back, the rest is unreachable. On the host the
    capture itself listens for protocols without ports of the kernel's own."""
    if flow.protocol == TCP:
        return "reply"
    if flow.icmp is not None:
        return "reply" if (flow.protocol, flow.icmp[0]) in _ECHO else None
    return None if place == town.HOST and flow.protocol != UDP else "unreachable"


def evaluators_verdict(state: HostState, flow: Flow) -> str:
    """``allow``, ``deny`` or ``unaffected`` of ``policy.explain``."""
    has_ports = flow.icmp is None and flow.protocol != town.OTHER_PROTOCOL
    return explain(
        state,
        Packet(
            src=flow.src,
            dst=flow.dst,
            protocol=flow.protocol,
            src_port=flow.src_port if has_ports else None,
            dst_port=flow.dst_port if has_ports else None,
            icmp=flow.icmp,
        ),
    ).outcome


def is_evaluators_business(records: dict[Key, Any], flow: Flow) -> bool:
    """Not asked of it: sources that are not the sender's own, addresses that nothing routes, what a host always lets
    pass."""
    if flow.sender == town.HOST or place_of(records, flow.dst) is None:
        return False
    if flow.sender in town.WORKLOADS:
        sender = holder_of(records, HERE, flow.src)
        if sender is None or sender.name != town.INTERFACES[flow.sender]:
            return False
    return not (flow.dst in town.HOST_ADDRESSES and flow.protocol == UDP and flow.dst_port == _DNS)
