"""Packets of workloads that their host handles itself, whatever policy says: what it always lets them ask, what it
leads elsewhere, what it never lets out. Pure. Sources: felix specification 2.3, 6.5 and 6.7."""

from __future__ import annotations

from typing import Literal

from netaddr import IPAddress

from calico_core.model.always_open import (
    DHCP_PORTS,
    DISCOVERY_TYPES,
    DNS_PORT,
    METADATA,
    METADATA_PORT,
    NEIGHBOUR_TYPES,
)
from calico_core.model.rules import PROTOCOLS
from calico_core.model.tunnels import IPIP_PROTOCOL, VXLAN_PORT
from calico_core.policy.explain import Packet

_METADATA = IPAddress(METADATA)
_TCP, _UDP = 6, 17


def always_passes(packet: Packet) -> str | None:
    """Between a workload and the host that it runs on: in words, what it is. None: nothing of the kind."""
    if packet.protocol == _UDP and packet.dst_port == DNS_PORT:
        return "DNS"
    if packet.protocol == _UDP and (packet.src_port, packet.dst_port) == DHCP_PORTS[packet.src.version]:
        return "DHCP"
    return "neighbour discovery" if _icmpv6_type(packet) in NEIGHBOUR_TYPES else None


def is_discovery(packet: Packet) -> bool:
    """Whether it is what hosts and routers of a link find each other by."""
    return _icmpv6_type(packet) in DISCOVERY_TYPES


def _icmpv6_type(packet: Packet) -> int | None:
    return packet.icmp[0] if packet.protocol == PROTOCOLS["icmpv6"] and packet.icmp is not None else None


def is_to_metadata(packet: Packet) -> bool:
    """Whether hosts that are told of a metadata server lead it there."""
    return packet.protocol == _TCP and packet.dst == _METADATA and packet.dst_port == METADATA_PORT


def tunnel_kind(packet: Packet) -> Literal["IPIP", "VXLAN"] | None:
    """Of an encapsulated packet."""
    if packet.protocol == IPIP_PROTOCOL:
        return "IPIP"
    return "VXLAN" if packet.protocol == _UDP and packet.dst_port == VXLAN_PORT else None
