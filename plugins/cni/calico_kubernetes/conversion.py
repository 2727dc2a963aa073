"""NetworkPolicy → policy record. Pure. Source: NetworkPolicy v1 of the Kubernetes API reference.

Rules only allow, so their order means nothing. What cannot be understood narrows a policy, never widens it: a peer or
a port that matches nothing gives no rule, which is not the same as none being given.

A port's name means the number that each pod gives it. Endpoints carry a label for every named port they have, and a
rule is written for every number seen, which holds for the endpoints of that label alone: a pod that brings a new
number is closed on it until the rule is there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec
from netaddr import IPNetwork

from calico_core.errors import CalicoError, InvalidRequest
from calico_core.model.addresses import parse_network
from calico_core.model.kubernetes import NamedPort, Pod, named_ports
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule
from calico_kubernetes.objects import IpBlock, NetworkPolicy, NetworkPolicySpec, Peer, PodsOfSpec, Port
from calico_kubernetes.selectors import pods_in, pods_of

ORDER = 1000.0
"""Policies of an operator may come before (a lower number) or after."""
_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
_MAX_PORT = 65535

Direction = Literal["ingress", "egress"]
Numbers = Callable[[str, str], Iterable[NamedPort]]
"""The ports of a name and a protocol."""


class PortNames:
    """What the names of ports mean in the pods that are there."""

    def __init__(self, pods: Iterable[Pod] = ()) -> None:
        self._everywhere: defaultdict[tuple[str, str], set[NamedPort]] = defaultdict(set)
        self._in_namespace: defaultdict[tuple[str, str, str], set[NamedPort]] = defaultdict(set)
        for pod in pods:
            for port in named_ports(pod):
                self._everywhere[port.name, port.protocol].add(port)
                self._in_namespace[pod.metadata.namespace, port.name, port.protocol].add(port)

    def everywhere(self, name: str, protocol: str) -> tuple[NamedPort, ...]:
        return tuple(sorted(self._everywhere.get((name, protocol), ())))

    def in_namespace(self, namespace: str) -> Numbers:
        return lambda name, protocol: tuple(sorted(self._in_namespace.get((namespace, name, protocol), ())))


def policy_record(policy: NetworkPolicy, names: PortNames) -> Policy:
    """:raises InvalidRequest: something in it has a meaning that we do not know."""
    try:
        return _converted(policy.metadata.namespace, msgspec.json.decode(policy.spec, type=NetworkPolicySpec), names)
    except ValueError as error:
        raise InvalidRequest("spec", str(error)) from error


def _converted(namespace: str, spec: NetworkPolicySpec, names: PortNames) -> Policy:
    types = _types(spec)
    inbound: list[Rule] = []
    outbound: list[Rule] = []
    if "ingress" in types:
        # the ports are those of the pods that the policy is for
        own = names.in_namespace(namespace)
        for ingress in spec.ingress or ():
            inbound += _rules("ingress", namespace, ingress.peers, ingress.ports, own)
    if "egress" in types:
        for egress in spec.egress or ():
            outbound += _rules("egress", namespace, egress.peers, egress.ports, names.everywhere)
    return Policy(
        selector=pods_of(namespace, spec.pod_selector),
        order=ORDER,
        inbound_rules=tuple(dict.fromkeys(inbound)),
        outbound_rules=tuple(dict.fromkeys(outbound)),
        types=types,
    )


def closed_policy(policy: NetworkPolicy) -> Policy:
    """In place of one that does not convert: nothing goes in or out of its pods, or of the whole namespace if these
    cannot be told."""
    namespace = policy.metadata.namespace
    try:
        selected = msgspec.json.decode(policy.spec, type=PodsOfSpec).pod_selector
        return closed(pods_of(namespace, selected))
    except (CalicoError, ValueError):
        return closed(pods_of(namespace, None))


def closed(selector: str) -> Policy:
    """No rule of its own; other policies may still allow."""
    return Policy(selector=selector, order=ORDER, types=("ingress", "egress"))


def _types(spec: NetworkPolicySpec) -> tuple[Direction, ...]:
    """The server fills the field in; by the same rule where it did not."""
    given = spec.policy_types or ("Ingress", *(("Egress",) if spec.egress else ()))
    unknown = set(given) - {"Ingress", "Egress"}
    if unknown:
        raise InvalidRequest("policyTypes", f"{', '.join(sorted(unknown))}: not Ingress or Egress")
    both: tuple[tuple[str, Direction], ...] = (("Ingress", "ingress"), ("Egress", "egress"))
    return tuple(ours for theirs, ours in both if theirs in given)


class _Side(NamedTuple):
    """Who is on the other side: by a selector or by networks; all None: anybody."""

    selector: str | None = None
    nets: tuple[IPNetwork, ...] | None = None
    not_nets: tuple[IPNetwork, ...] | None = None


class _Ports(NamedTuple):
    """``owner``: the selector of the endpoints whose ports these are, None: any."""

    protocol: str | None = None
    ports: tuple[int | str, ...] | None = None
    owner: str | None = None


def _rules(
    direction: Direction,
    namespace: str,
    peers: tuple[Peer, ...] | None,
    ports: tuple[Port, ...] | None,
    numbers: Numbers,
) -> Iterator[Rule]:
    """One list of peers by one list of ports. Absent or empty lists do not narrow."""
    sides = _sides(namespace, peers) if peers else [_Side()]
    groups = list(_port_groups(ports, numbers)) if ports else [_Ports()]
    for side in sides:
        for group in groups:
            yield _ingress(side, group) if direction == "ingress" else _egress(side, group)


def _ingress(side: _Side, group: _Ports) -> Rule:
    return Rule(
        action="allow",
        protocol=group.protocol,
        src_selector=side.selector,
        src_nets=side.nets,
        not_src_nets=side.not_nets,
        dst_selector=group.owner,
        dst_ports=group.ports,
    )


def _egress(side: _Side, group: _Ports) -> Rule:
    both = [text for text in (side.selector, group.owner) if text is not None]
    return Rule(
        action="allow",
        protocol=group.protocol,
        dst_selector=" && ".join(both) or None,
        dst_nets=side.nets,
        not_dst_nets=side.not_nets,
        dst_ports=group.ports,
    )


def _sides(namespace: str, peers: tuple[Peer, ...]) -> list[_Side]:
    """All blocks without exceptions are one side: people list them by the hundred."""
    sides: list[_Side] = []
    nets: dict[IPNetwork, None] = {}
    for peer in peers:
        side = _side(namespace, peer)
        if side.nets is not None and side.not_nets is None:
            nets.update(dict.fromkeys(side.nets))
        else:
            sides.append(side)
    return [*sides, _Side(nets=tuple(nets))] if nets else sides


def _side(namespace: str, peer: Peer) -> _Side:
    if peer.ip_block is not None:
        if peer.pod_selector is not None or peer.namespace_selector is not None:
            raise InvalidRequest("ipBlock", "stands beside a selector in one peer")
        return _networks(peer.ip_block)
    if peer.namespace_selector is not None:
        return _Side(pods_in(peer.namespace_selector, peer.pod_selector))
    if peer.pod_selector is not None:
        return _Side(pods_of(namespace, peer.pod_selector))
    raise InvalidRequest("peer", "has none of podSelector, namespaceSelector and ipBlock")


def _networks(block: IpBlock) -> _Side:
    excepted = tuple(parse_network(text, field="ipBlock.except") for text in block.excepted or ())
    return _Side(nets=(parse_network(block.cidr, field="ipBlock.cidr"),), not_nets=excepted or None)


def _port_groups(ports: tuple[Port, ...], numbers: Numbers) -> Iterator[_Ports]:
    """A group a protocol, and one for each number that a name stands for."""
    by_protocol: dict[str, list[int | str] | None] = {}
    named: list[_Ports] = []
    for port in ports:
        protocol = _protocol(port)
        if port.port is None:
            if port.end_port is not None:
                raise InvalidRequest("ports.endPort", "stands without a port")
            by_protocol[protocol] = None
        elif isinstance(port.port, str):
            if port.end_port is not None:
                raise InvalidRequest("ports.endPort", f"stands beside the name {port.port!r}")
            found = numbers(port.port, protocol)
            named += [_Ports(protocol, (each.number,), f"has({each.label})") for each in found]
        else:
            listed = by_protocol.setdefault(protocol, [])
            if listed is not None:
                listed.append(_number_or_range(port.port, port.end_port))
    for protocol, listed in sorted(by_protocol.items()):
        yield _Ports(protocol, None if listed is None else tuple(dict.fromkeys(listed)))
    yield from named


def _protocol(port: Port) -> str:
    protocol = _PROTOCOLS.get(port.protocol or "TCP")
    if protocol is None:
        raise InvalidRequest("ports.protocol", f"{port.protocol!r} is not one of {', '.join(_PROTOCOLS)}")
    return protocol


def _number_or_range(port: int, end_port: int | None) -> int | str:
    last = port if end_port is None else end_port
    if not 0 < port <= last <= _MAX_PORT:
        raise InvalidRequest("ports", f"{port} to {last} is not a range of ports")
    return port if last == port else f"{port}:{last}"
