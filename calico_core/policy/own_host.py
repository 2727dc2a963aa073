"""Packets of workloads that their host handles itself, whatever policy says: what it always lets them ask, what it
leads elsewhere, what it never lets out. Pure. Sources: felix specification 2.3, 6.5 and 6.7."""

from __future__ import annotations

from typing import Literal

from netaddr import IPAddress

from calico_core.model.rules import PROTOCOLS
from calico_core.model.tunnels import VXLAN_PORT
from calico_core.policy.explain import Packet

METADATA = IPAddress("169.254.169.254")
_METADATA_PORT = 80
_TCP, _UDP, _IPIP = 6, 17, 4
_DNS = 53
_DHCP = {4: (68, 67), 6: (546, 547)}
_NEIGHBOURS = {130, 131, 132, 133, 135, 136, 143}


def always_passes(packet: Packet) -> str | None:
    """Between a workload and the host that it runs on: in words, what it is. None: nothing of the kind."""
    if packet.protocol == _UDP and packet.dst_port == _DNS:
        return "DNS"
    if packet.protocol == _UDP and (packet.src_port, packet.dst_port) == _DHCP[packet.src.version]:
        return "DHCP"
    is_neighbour = packet.protocol == PROTOCOLS["icmpv6"] and packet.icmp is not None and packet.icmp[0] in _NEIGHBOURS
    return "neighbour discovery" if is_neighbour else None


def is_to_metadata(packet: Packet) -> bool:
    """Whether hosts that are told of a metadata server lead it there."""
    return packet.protocol == _TCP and packet.dst == METADATA and packet.dst_port == _METADATA_PORT


def tunnel_kind(packet: Packet) -> Literal["IPIP", "VXLAN"] | None:
    """Of an encapsulated packet."""
    if packet.protocol == _IPIP:
        return "IPIP"
    return "VXLAN" if packet.protocol == _UDP and packet.dst_port == VXLAN_PORT else None
