"""What is the same on every host: the address pools, the addresses of the hosts, and who may send encapsulated packets.
Source: felix specification 6.7 and 6.10."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from netaddr import IPAddress

from calico_core.errors import InvalidRequest
from calico_core.log import get_logger
from calico_core.model.addresses import parse_address
from calico_core.model.hoststate import HostPeers, HostPools
from calico_core.model.keys import BgpHostAddressKey, HostIpKey, PoolKey
from calico_core.model.pools import Pool
from calico_core.policy.tunnel_routes import encapsulation

log = get_logger(__name__)

HostAddressKey = HostIpKey | BgpHostAddressKey


class ClusterWide:
    """``take`` what the datastore says; ``changed`` tells what is other than it told before."""

    def __init__(self) -> None:
        self._pools: dict[PoolKey, Pool] = {}
        self._addresses: dict[HostAddressKey, IPAddress] = {}
        self._host_pools: HostPools | None = None
        self._host_peers: HostPeers | None = None
        self._is_dirty = True

    def take(
        self, pools: Iterable[tuple[PoolKey, Pool | None]], addresses: Iterable[tuple[HostAddressKey, Any]]
    ) -> None:
        """The latest value of each key. None, and the empty text of an address: there is none."""
        for pool_key, pool in pools:
            self._is_dirty = True
            if pool is None:
                self._pools.pop(pool_key, None)
            else:
                self._pools[pool_key] = pool
        for key, text in addresses:
            self._is_dirty = True
            address = host_address(key, text)
            if address is None:
                self._addresses.pop(key, None)
            else:
                self._addresses[key] = address

    def changed(self) -> tuple[HostPools | None, HostPeers | None]:
        """None: as before."""
        if not self._is_dirty:
            return None, None
        self._is_dirty = False
        addresses = tuple(sorted(set(self._addresses.values())))
        before = self._host_pools, self._host_peers
        self._host_pools, self._host_peers = self._as_pools(addresses), self._as_peers(addresses)
        return (
            self._host_pools if self._host_pools != before[0] else None,
            self._host_peers if self._host_peers != before[1] else None,
        )

    def _as_pools(self, addresses: tuple[IPAddress, ...]) -> HostPools:
        masquerade = tuple(sorted(key.cidr for key, pool in self._pools.items() if pool.masquerade))
        return HostPools(
            all=tuple(sorted(key.cidr for key in self._pools)),
            masquerade=masquerade,
            hosts=addresses if masquerade else (),
        )

    def _as_peers(self, addresses: tuple[IPAddress, ...]) -> HostPeers:
        ways = map(encapsulation, self._pools.values())
        kinds = {way[0].kind for way in ways if way is not None}
        if not kinds:
            return HostPeers()
        return HostPeers(addresses=addresses, is_ipip="ipip" in kinds, is_vxlan="vxlan" in kinds)


def host_address(key: HostAddressKey, text: Any) -> IPAddress | None:
    """None: it has none. What is no address counts as none, and the log says so: it must not stop other hosts."""
    if not text:
        return None
    try:
        return parse_address(text, version=4 if isinstance(key, HostIpKey) else key.version)
    except InvalidRequest as error:
        log.warning("host_address.ignored", host=key.host, reason=error.reason)
        return None
