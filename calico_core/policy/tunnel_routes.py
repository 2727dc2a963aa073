"""Which tunnel devices, peers and routes a host needs, from pools, hosts' addresses and IPAM blocks.

Pure: the node's tunnel thread feeds it batches and hands the state to the kernel. Level-triggered: the latest record a
key counts, whatever the order. A block goes to its owner; an address in it that another host holds goes to that host.
Tunnel addresses are read from the blocks, where they are assigned, not from where they are published: they cannot
disagree. Source: node specification 2.2, rows on IPIP, VXLAN and cross-subnet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar

from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.log import get_logger
from calico_core.model.addresses import WIDTH, contains, host_network, parse_address
from calico_core.model.blocks import Block
from calico_core.model.keys import BgpHostAddressKey, BlockKey, Key, PoolKey
from calico_core.model.pools import Pool
from calico_core.model.tunnels import (
    HostTunnels,
    TunnelDevice,
    TunnelId,
    TunnelPeer,
    TunnelRoute,
    tunnel_of_handle,
)

log = get_logger(__name__)

_K = TypeVar("_K")
_V = TypeVar("_V")
Mode = Literal["always", "cross-subnet"]


def encapsulation(pool: Pool) -> tuple[TunnelId, Mode] | None:
    """How the pool's traffic between hosts travels; None: plainly. A pool with ``ipip`` alone is of the first format
    and means always."""
    if pool.vxlan_mode:
        return TunnelId(kind="vxlan", version=4 if pool.cidr.version == 4 else 6), pool.vxlan_mode
    if pool.ipip or pool.ipip_mode:
        return TunnelId(kind="ipip", version=4), pool.ipip_mode or "always"
    return None


class _BlockView(NamedTuple):
    """What of a block matters here. ``elsewhere``: addresses held by a host that is not the owner."""

    owner: str | None
    elsewhere: tuple[tuple[IPAddress, str], ...]
    tunnels: tuple[tuple[TunnelId, str, IPAddress], ...]


class TunnelTable:
    """What is known for ``host``, whose own ``addresses`` are given: one a family. A key of another kind is ignored; a
    record of None is a deletion."""

    def __init__(self, host: str, addresses: Iterable[IPAddress]) -> None:
        self.host = host
        self._own = {address.version: address for address in addresses}
        self._pools: dict[IPNetwork, Pool] = {}
        self._addresses: dict[tuple[str, int], IPAddress] = {}
        self._blocks: dict[IPNetwork, _BlockView] = {}

    def apply(self, updates: Iterable[tuple[Key, object | None]]) -> bool:
        """Whether anything changed that matters here: most writes of a block give or take a workload of its owner."""
        has_changed = False
        for key, record in updates:
            match key:
                case PoolKey():
                    has_changed |= _put(self._pools, key.cidr, record if isinstance(record, Pool) else None)
                case BlockKey():
                    view = _view(record) if isinstance(record, Block) and not record.deleted else None
                    has_changed |= _put(self._blocks, key.cidr, view)
                case BgpHostAddressKey():
                    has_changed |= _put(self._addresses, (key.host, key.version), _address(key, record))
        return has_changed

    @property
    def pools(self) -> tuple[Pool, ...]:
        return tuple(self._pools[cidr] for cidr in sorted(self._pools))

    def encapsulated_pools(self) -> dict[TunnelId, tuple[Pool, ...]]:
        """Pools that need a tunnel, by which; each host has one tunnel address from one of them."""
        found: dict[TunnelId, tuple[Pool, ...]] = {}
        for pool in self.pools:
            how = encapsulation(pool)
            if how is not None:
                found[how[0]] = (*found.get(how[0], ()), pool)
        return found

    def tunnel_address(self, tunnel: TunnelId, host: str) -> IPAddress | None:
        return self._tunnel_addresses().get((tunnel, host))

    def state(self, subnets: Iterable[IPNetwork] = ()) -> HostTunnels:
        """``subnets`` are those of the uplinks: what a cross-subnet pool reaches without a tunnel."""
        ways = {pool.cidr: how for pool in self.pools if (how := encapsulation(pool)) is not None}
        own = self._own
        used = {tunnel for tunnel, _mode in ways.values() if tunnel.version in own}
        addresses = self._tunnel_addresses()
        routes = _Routes(self.host, self._addresses, addresses, tuple(subnets))
        for cidr, block in self._blocks.items():
            way = next((how for pool, how in ways.items() if _covers(pool, cidr)), None)
            if way is not None and way[0] in used:
                routes.add_block(cidr, block, *way)
        return HostTunnels(
            locals=tuple(own[version] for version in sorted(own)),
            devices=tuple(
                TunnelDevice(
                    tunnel=tunnel,
                    local=own[tunnel.version],
                    address=addresses.get((tunnel, self.host)),
                    mac=tunnel.mac(self.host),
                )
                for tunnel in sorted(used, key=lambda tunnel: tunnel.device)
            ),
            peers=tuple(sorted(self._peers(used, addresses), key=lambda peer: (peer.device, peer.address))),
            routes=tuple(routes.found[cidr] for cidr in sorted(routes.found)),
        )

    def _peers(self, used: set[TunnelId], addresses: dict[tuple[TunnelId, str], IPAddress]) -> Iterator[TunnelPeer]:
        for (tunnel, host), address in addresses.items():
            mac, host_address = tunnel.mac(host), self._addresses.get((host, tunnel.version))
            if host != self.host and tunnel in used and mac is not None and host_address is not None:
                yield TunnelPeer(device=tunnel.device, address=address, mac=mac, host_address=host_address)

    def _tunnel_addresses(self) -> dict[tuple[TunnelId, str], IPAddress]:
        """The lowest, if a host came to hold several."""
        found: dict[tuple[TunnelId, str], IPAddress] = {}
        for block in self._blocks.values():
            for tunnel, host, address in block.tunnels:
                known = found.get((tunnel, host))
                found[tunnel, host] = address if known is None else min(known, address)
        return found


class _Routes:
    """Gathers the routes of one state."""

    def __init__(
        self,
        host: str,
        hosts: dict[tuple[str, int], IPAddress],
        tunnel_addresses: dict[tuple[TunnelId, str], IPAddress],
        subnets: tuple[IPNetwork, ...],
    ) -> None:
        self._host, self._hosts, self._subnets = host, hosts, subnets
        self._tunnel_addresses = tunnel_addresses
        self.found: dict[IPNetwork, TunnelRoute] = {}

    def add_block(self, cidr: IPNetwork, block: _BlockView, tunnel: TunnelId, mode: Mode) -> None:
        if block.owner == self._host:
            # a block of one address is its workload's route already; a blackhole would only compete with it
            if cidr.prefixlen < WIDTH[cidr.version]:
                self.found[cidr] = TunnelRoute(destination=cidr)
        elif block.owner is not None:
            self._add(cidr, block.owner, tunnel, mode)
        for address, holder in block.elsewhere:
            if holder != self._host:
                self._add(host_network(address), holder, tunnel, mode)

    def _add(self, destination: IPNetwork, host: str, tunnel: TunnelId, mode: Mode) -> None:
        remote = self._hosts.get((host, tunnel.version))
        if remote is None:
            return
        if mode == "cross-subnet" and any(contains(subnet, remote) for subnet in self._subnets):
            self.found[destination] = TunnelRoute(destination=destination, gateway=remote)
            return
        gateway = remote if tunnel.kind == "ipip" else self._tunnel_addresses.get((tunnel, host))
        if gateway is not None:  # otherwise it has no tunnel address yet: it will come with its block
            self.found[destination] = TunnelRoute(destination=destination, device=tunnel.device, gateway=gateway)


def _put(table: dict[_K, _V], key: _K, value: _V | None) -> bool:
    """Whether that made a difference. None removes."""
    if table.get(key) == value:
        return False
    if value is None:
        del table[key]
    else:
        table[key] = value
    return True


def _view(block: Block) -> _BlockView:
    """Looks at each holder once, and at addresses only of those that matter: this runs for every write of a block."""
    holders: dict[int, str] = {}
    handles: dict[int, tuple[TunnelId, str]] = {}
    for index, held in enumerate(block.attributes):
        if held.cooling_since is not None:
            continue
        holder = (held.secondary or {}).get("node")
        if isinstance(holder, str) and holder and holder != block.owner:
            holders[index] = holder
        tunnel = tunnel_of_handle(held.handle_id or "")
        if tunnel is not None and tunnel[0].version == block.cidr.version:
            handles[index] = tunnel
    elsewhere: list[tuple[IPAddress, str]] = []
    tunnels: list[tuple[TunnelId, str, IPAddress]] = []
    for ordinal, index_of in enumerate(block.allocations if holders or handles else ()):
        if index_of not in holders and index_of not in handles:
            continue
        address = IPAddress(block.cidr.first + ordinal, block.cidr.version)
        if index_of in holders:
            elsewhere.append((address, holders[index_of]))
        if index_of in handles:
            tunnels.append((*handles[index_of], address))
    return _BlockView(block.owner, tuple(elsewhere), tuple(tunnels))


def _covers(pool: IPNetwork, block: IPNetwork) -> bool:
    return bool(pool.version == block.version and pool.first <= block.first and block.last <= pool.last)


def _address(key: BgpHostAddressKey, record: object | None) -> IPAddress | None:
    text = record.strip() if isinstance(record, str) else ""
    if not text:
        return None
    try:
        return parse_address(text, version=key.version)
    except InvalidRequest as error:
        log.warning("tunnels.record_ignored", key=key.path, reason=str(error))
        return None
