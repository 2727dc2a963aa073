"""Tunnels of one host to the others: what its kernel is to have for the pools that are encapsulated.

Source: felix specification 6.10, node specification 2.2. MAC and names are those of the reference system, so that
hosts of both understand each other's packets.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from netaddr import EUI, IPAddress, IPNetwork

from calico_core.model.addresses import mac_from_bytes
from calico_core.model.keys import HostConfigKey
from calico_core.model.record import Value

TunnelKind = Literal["vxlan", "ipip"]

VXLAN_VNI = 4096
VXLAN_PORT = 4789
IPIP_PROTOCOL = 4
OVERHEAD_BYTES: dict[tuple[TunnelKind, int], int] = {("vxlan", 4): 50, ("vxlan", 6): 70, ("ipip", 4): 20}
"""What a tunnel takes of the uplink's MTU, by kind and version of the outer packet."""
DEVICE_NAMES: dict[tuple[TunnelKind, int], str] = {
    ("vxlan", 4): "vxlan.calico",
    ("vxlan", 6): "vxlan-v6.calico",
    ("ipip", 4): "tunl0",
}
_HANDLES: dict[tuple[TunnelKind, int], str] = {
    ("vxlan", 4): "vxlan-tunnel-addr-",
    ("vxlan", 6): "vxlan-v6-tunnel-addr-",
    ("ipip", 4): "ipip-tunnel-addr-",
}
_ADDRESS_CONFIG: dict[tuple[TunnelKind, int], str] = {
    ("vxlan", 4): "IPv4VXLANTunnelAddr",
    ("vxlan", 6): "IPv6VXLANTunnelAddr",
    ("ipip", 4): "IpInIpTunnelAddr",
}
_MAC_CONFIG = {4: "VXLANTunnelMACAddr", 6: "VXLANTunnelMACAddrV6"}
_MAC_FIRST_BYTE = b"f"  # 0x66: unicast, locally administered


class TunnelId(Value, frozen=True):
    """One kind of tunnel in one address family; a host has at most one device of each."""

    kind: TunnelKind
    version: Literal[4, 6]

    @property
    def device(self) -> str:
        return DEVICE_NAMES[self.kind, self.version]

    @property
    def overhead_bytes(self) -> int:
        return OVERHEAD_BYTES[self.kind, self.version]

    def handle(self, host: str) -> str:
        """Under which IPAM keeps the host's tunnel address."""
        return f"{_HANDLES[self.kind, self.version]}{host}"

    def address_key(self, host: str) -> HostConfigKey:
        """Where the tunnel address is published."""
        return HostConfigKey(host, _ADDRESS_CONFIG[self.kind, self.version])

    def mac_key(self, host: str) -> HostConfigKey | None:
        """Where the device's MAC is published; None for tunnels without one."""
        return HostConfigKey(host, _MAC_CONFIG[self.version]) if self.kind == "vxlan" else None

    def mac(self, host: str) -> EUI | None:
        """Derived from the host's name, so that it outlives every restart and nobody needs to ask for it."""
        if self.kind != "vxlan":
            return None
        name = host if self.version == 4 else f"{host}-v6"
        digest = hashlib.sha1(name.encode(), usedforsecurity=False).digest()
        return mac_from_bytes(_MAC_FIRST_BYTE + digest[:5])


TUNNELS: tuple[TunnelId, ...] = tuple(TunnelId(kind=kind, version=4 if v == 4 else 6) for kind, v in DEVICE_NAMES)


def tunnel_of_handle(handle: str) -> tuple[TunnelId, str] | None:
    """The tunnel and the host whose address a handle holds; None for a workload's."""
    for tunnel in TUNNELS:
        prefix = _HANDLES[tunnel.kind, tunnel.version]
        if handle.startswith(prefix):
            return tunnel, handle.removeprefix(prefix)
    return None


class TunnelDevice(Value, frozen=True):
    """``local`` is the host's own address, outer source of what goes through. ``address`` None: none is assigned
    yet."""

    tunnel: TunnelId
    local: IPAddress
    address: IPAddress | None = None
    mac: EUI | None = None

    @property
    def name(self) -> str:
        return self.tunnel.device


class TunnelPeer(Value, frozen=True):
    """Another host behind a VXLAN device: its tunnel address has this MAC, and the MAC lives at ``host_address``."""

    device: str
    address: IPAddress
    mac: EUI
    host_address: IPAddress


class TunnelRoute(Value, frozen=True):
    """``device`` empty: through the uplink, unencapsulated. ``gateway`` None: a blackhole."""

    destination: IPNetwork
    device: str = ""
    gateway: IPAddress | None = None


class HostTunnels(Value, frozen=True):
    """All of it, sorted, so that equal states compare equal. ``locals`` are the host's own addresses: they tell the
    uplinks."""

    locals: tuple[IPAddress, ...] = ()
    devices: tuple[TunnelDevice, ...] = ()
    peers: tuple[TunnelPeer, ...] = ()
    routes: tuple[TunnelRoute, ...] = ()
