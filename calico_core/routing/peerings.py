"""Which BGP sessions, blocks and pools one host has, from the records of the datastore.

Pure: the node's routing thread feeds it batches and hands the state to a ``Routing`` driver. Level-triggered: the
latest record a key counts, whatever the order. Source: datastore specification 2.2, node specification 2.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, TypeVar

from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.interfaces.routing import Peer, RoutingState
from calico_core.log import get_logger
from calico_core.model.addresses import WIDTH, not_reachable, parse_address
from calico_core.model.bgp import DEFAULT_AS, BgpPeer, NodeMesh, parse_as_number
from calico_core.model.blocks import Affinity
from calico_core.model.keys import (
    AffinityKey,
    BgpGlobalAsKey,
    BgpGlobalLogLevelKey,
    BgpGlobalPeerKey,
    BgpHostAddressKey,
    BgpHostAsKey,
    BgpHostLogLevelKey,
    BgpHostPeerKey,
    BgpMeshKey,
    Key,
    PoolKey,
)
from calico_core.model.pools import Pool

LogLevel = Literal["none", "info", "debug"]
_K = TypeVar("_K")
_V = TypeVar("_V")

log = get_logger(__name__)


class PeeringTable:
    """What is known for ``host``. A key of another kind is ignored; a record of None is a deletion."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._addresses: dict[tuple[str, int], IPAddress] = {}
        self._as_numbers: dict[str, int] = {}
        self._global_as = DEFAULT_AS
        self._is_mesh = True
        self._global_peers: dict[IPAddress, int] = {}
        self._node_peers: dict[IPAddress, int] = {}
        self._log_levels: dict[Literal["global", "host"], LogLevel] = {}
        self._pools: dict[IPNetwork, Pool] = {}
        self._blocks: set[IPNetwork] = set()
        self._overlaps: frozenset[tuple[str, str, str]] = frozenset()

    def apply(self, updates: Iterable[tuple[Key, object | None]]) -> None:
        """Take records in. One that makes no sense counts as absent and is named in the log."""
        for key, record in updates:
            self._apply_one(key, record)

    def state(self) -> RoutingState | None:
        """Everything a driver needs, sorted; None until the host has an address of its own."""
        ipv4, ipv6 = self._addresses.get((self.host, 4)), self._addresses.get((self.host, 6))
        if ipv4 is None and ipv6 is None:
            return None
        exported = [cidr for cidr, pool in self._pools.items() if not pool.disable_bgp_export]
        return RoutingState(
            host=self.host,
            as_number=self._as_of(self.host),
            ipv4=ipv4,
            ipv6=ipv6,
            router_id=ipv4 if ipv4 is not None else _router_id(self.host),
            peers=self._peers({4: ipv4, 6: ipv6}),
            blocks=_sorted_networks(self._blocks),
            pools=_sorted_networks(exported),
            encapsulated=_sorted_networks(cidr for cidr, pool in self._pools.items() if pool.is_encapsulated),
            unexported=_sorted_networks(cidr for cidr, pool in self._pools.items() if pool.disable_bgp_export),
            log_level=self._log_levels.get("host") or self._log_levels.get("global") or "info",
        )

    def _apply_one(self, key: Key, record: object | None) -> None:
        match key:
            case BgpHostAddressKey():
                _put(self._addresses, (key.host, key.version), _address(key, record))
            case BgpHostAsKey():
                _put(self._as_numbers, key.host, _as_number(key, record))
            case BgpGlobalAsKey():
                self._global_as = _as_number(key, record) or DEFAULT_AS
            case BgpMeshKey():
                self._is_mesh = record.enabled if isinstance(record, NodeMesh) else True
            case BgpGlobalPeerKey():
                _put(self._global_peers, key.ip, _peer_as(key, record))
            case BgpHostPeerKey() if key.host == self.host:
                _put(self._node_peers, key.ip, _peer_as(key, record))
            case BgpGlobalLogLevelKey():
                _put(self._log_levels, "global", _log_level(key, record))
            case BgpHostLogLevelKey() if key.host == self.host:
                _put(self._log_levels, "host", _log_level(key, record))
            case PoolKey():
                _put(self._pools, key.cidr, record if isinstance(record, Pool) else None)
            case AffinityKey() if key.host == self.host:
                self._apply_affinity(key.cidr, record)

    def _apply_affinity(self, cidr: IPNetwork, record: object | None) -> None:
        is_own = isinstance(record, Affinity) and record.state == "confirmed" and not record.deleted
        # a block of one address is its workload's route already; a blackhole would only compete with it
        if is_own and cidr.prefixlen < WIDTH[cidr.version]:
            self._blocks.add(cidr)
        else:
            self._blocks.discard(cidr)

    def _as_of(self, host: str) -> int:
        return self._as_numbers.get(host, self._global_as)

    def _peers(self, own: dict[int, IPAddress | None]) -> tuple[Peer, ...]:
        """Sessions by address, the most specific reason winning: node, global, mesh.

        A peer of ours that is our own address stays listed, for status; drivers open no session to it.
        """
        overlaps: set[tuple[str, str, str]] = set()
        peers: dict[IPAddress, Peer] = {}
        for peer in [*self._mesh_peers(own, overlaps), *self._given_peers(own)]:
            loser = peers.get(peer.ip)
            if loser is not None:
                overlaps.add((str(peer.ip), peer.origin, loser.origin))
            peers[peer.ip] = peer
        self._report(frozenset(overlaps))
        return tuple(sorted(peers.values(), key=lambda peer: (peer.ip.version, int(peer.ip))))

    def _given_peers(self, own: dict[int, IPAddress | None]) -> Iterable[Peer]:
        for ip, number in self._global_peers.items():
            if own[ip.version] is not None:
                yield Peer(ip=ip, as_number=number, origin="global")
        for ip, number in self._node_peers.items():
            if own[ip.version] is not None:
                yield Peer(ip=ip, as_number=number, origin="node")

    def _mesh_peers(self, own: dict[int, IPAddress | None], overlaps: set[tuple[str, str, str]]) -> Iterable[Peer]:
        """One session a foreign address. Of two hosts with one address the first by name counts."""
        if not self._is_mesh:
            return
        holders = {address: self.host for address in own.values() if address is not None}
        for (host, version), ip in sorted(self._addresses.items(), key=lambda item: item[0]):
            own_ip = own[version]
            if host == self.host or own_ip is None:
                continue
            if ip in holders:
                overlaps.add((str(ip), holders[ip], host))
                continue
            holders[ip] = host
            # the greater address dials; compared as numbers both ends agree, and no two connections collide
            is_passive = int(ip) > int(own_ip)
            yield Peer(ip=ip, as_number=self._as_of(host), origin="mesh", description=host, is_passive=is_passive)

    def _report(self, overlaps: frozenset[tuple[str, str, str]]) -> None:
        """Name each new overlap once, not once a batch."""
        for ip, wins, loses in sorted(overlaps - self._overlaps):
            log.warning("routing.peer_twice", ip=ip, wins=wins, loses=loses)
        self._overlaps = overlaps


def _put(table: dict[_K, _V], key: _K, value: _V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _address(key: BgpHostAddressKey, record: object | None) -> IPAddress | None:
    """An empty text means no session of that family."""
    text = record.strip() if isinstance(record, str) else ""
    if not text:
        return None
    try:
        return _check_reachable(parse_address(text, version=key.version))
    except InvalidRequest as error:
        log.warning("routing.record_ignored", key=key.path, reason=str(error))
        return None


def _as_number(key: Key, record: object | None) -> int | None:
    text = record.strip() if isinstance(record, str) else ""
    if not text:
        return None
    try:
        return parse_as_number(text)
    except InvalidRequest as error:
        log.warning("routing.record_ignored", key=key.path, reason=str(error))
        return None


def _peer_as(key: BgpGlobalPeerKey | BgpHostPeerKey, record: object | None) -> int | None:
    if not isinstance(record, BgpPeer):
        return None
    try:
        _check_reachable(key.ip)
    except InvalidRequest as error:
        log.warning("routing.record_ignored", key=key.path, reason=str(error))
        return None
    return parse_as_number(record.as_num)


def _check_reachable(address: IPAddress) -> IPAddress:
    """BIRD refuses the whole configuration for one neighbour that it cannot have. IPv4 knows link-local ones without
    their interface: routers of clouds are peers by such."""
    kind = not_reachable(address)
    if kind and not (address.version == 4 and address.is_link_local()):
        raise InvalidRequest("address", f"{address} is {kind}: no host or router is reached by it")
    return address


def _log_level(key: Key, record: object | None) -> LogLevel | None:
    match record.strip().lower() if isinstance(record, str) else "":
        case "none":
            return "none"
        case "info":
            return "info"
        case "debug":
            return "debug"
        case "":
            return None
        case other:
            log.warning("routing.record_ignored", key=key.path, reason=f"{other!r} is not none, info or debug")
            return None


def _router_id(host: str) -> IPAddress:
    """32 bits of the host name's hash, for hosts without IPv4; never 0.0.0.0 (RFC 6286)."""
    number = int.from_bytes(hashlib.sha256(host.encode()).digest()[:4], "big")
    return IPAddress(number or 1, 4)


def _sorted_networks(networks: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    return tuple(sorted(networks, key=lambda cidr: (cidr.version, cidr.first, cidr.prefixlen)))
