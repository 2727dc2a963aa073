"""The addresses of all hosts, and who may send encapsulated packets to this one. Source: felix specification 6.10."""

from __future__ import annotations

from typing import Any

from netaddr import IPAddress

from calico_core.errors import InvalidRequest
from calico_core.log import get_logger
from calico_core.model.addresses import parse_address
from calico_core.model.hoststate import HostPeers
from calico_core.model.keys import BgpHostAddressKey, HostIpKey, PoolKey
from calico_core.model.pools import Pool
from calico_core.policy.tunnel_routes import encapsulation

log = get_logger(__name__)


class Peers:
    """The addresses of all hosts × the encapsulation of pools."""

    def __init__(self) -> None:
        self._addresses: dict[HostIpKey | BgpHostAddressKey, IPAddress] = {}
        self._kinds: dict[PoolKey, str] = {}
        self._sorted: tuple[IPAddress, ...] | None = None

    def set_address(self, key: HostIpKey | BgpHostAddressKey, text: Any) -> None:
        """Empty: none of that family."""
        try:
            address = parse_address(text, version=4 if isinstance(key, HostIpKey) else key.version) if text else None
        except InvalidRequest as error:
            log.warning("host_address.ignored", host=key.host, reason=error.reason)
            address = None
        if address == self._addresses.get(key):
            return
        self._sorted = None
        if address is None:
            self._addresses.pop(key, None)
        else:
            self._addresses[key] = address

    def set_pool(self, key: PoolKey, pool: Pool | None) -> None:
        found = None if pool is None else encapsulation(pool)
        if found is None:
            self._kinds.pop(key, None)
        else:
            self._kinds[key] = found[0].kind

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Of every host, each once."""
        if self._sorted is None:
            self._sorted = tuple(sorted(set(self._addresses.values())))
        return self._sorted

    def state(self) -> HostPeers:
        kinds = set(self._kinds.values())
        if not kinds:
            return HostPeers()
        return HostPeers(addresses=self.addresses, is_ipip="ipip" in kinds, is_vxlan="vxlan" in kinds)
