"""Whether a workload may send from an address at all: its host asks that before any policy. Pure.

Source: felix specification 6.3, scenario 35.
"""

from __future__ import annotations

from netaddr import IPAddress, IPNetwork

from calico_core.model.addresses import contains
from calico_core.model.hoststate import HostWorkload
from calico_core.policy.explain import Packet

_UDP, _ICMPV6 = 17, 58
_UNSPECIFIED = {4: IPAddress("0.0.0.0"), 6: IPAddress("::")}
_LINK_LOCAL = IPNetwork("fe80::/10")
_NEIGHBOURS = frozenset({130, 131, 132, 133, 135, 136, 143})
"""ICMPv6 types of neighbour discovery and of multicast listeners."""


def is_spoofed(workload: HostWorkload, packet: Packet) -> bool:
    """What asks for an address, or speaks on the link alone, needs none that is its own."""
    if any(contains(net, packet.src) for net in workload.nets + workload.allowed_source_prefixes):
        return False
    ports = (packet.src_port, packet.dst_port) if packet.protocol == _UDP else None
    if packet.src.version == 4:
        return packet.src != _UNSPECIFIED[4] or ports != (68, 67)
    if contains(_LINK_LOCAL, packet.src) and ports == (546, 547):
        return False
    is_on_link = packet.src == _UNSPECIFIED[6] or contains(_LINK_LOCAL, packet.src)
    is_neighbourly = packet.protocol == _ICMPV6 and packet.icmp is not None and packet.icmp[0] in _NEIGHBOURS
    return not (is_on_link and is_neighbourly)
