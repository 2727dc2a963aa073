"""Names and addresses of a laboratory. Pure.

Addresses keep away from the default pools (192.168.0.0/16, fd80:24e2:f998:72d6::/64) and from what clouds and Docker
use by default. On a bridge all hosts share one subnet; behind a router each has one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.lab.record import FabricKind, FabricRecord, HostRecord

#: Names become parts of UNIX socket paths, which end at 107 bytes.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,22}[a-z0-9])?")
_WORKLOAD = re.compile(r"w-[0-9]+")
FABRIC = "fabric"
MOST_HOSTS = 64

_BRIDGE_V4 = IPNetwork("172.31.0.0/24")
_ROUTED_V4 = IPNetwork("172.31.0.0/16")
_V6 = IPNetwork("fd31:ca1c::/32")
_ROUTER_SERVICES = (IPAddress("172.31.255.1"), IPAddress("fd31:ca1c:0:ffff::1"))
_FIRST_HOST = 11


def check_name(name: str, *, field: str = "name") -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(field, f"{name!r} is not 1 to 24 lower-case letters, digits and inner dashes")
    return name


def host_names(hosts: int | Sequence[str]) -> tuple[str, ...]:
    """The names asked for, or ``host1``, ``host2`` … for a number."""
    names = tuple(f"host{number}" for number in range(1, hosts + 1)) if isinstance(hosts, int) else tuple(hosts)
    if not 1 <= len(names) <= MOST_HOSTS:
        raise InvalidRequest("hosts", f"{len(names)} is not between 1 and {MOST_HOSTS}")
    for name in names:
        check_name(name, field="hosts")
        if name == FABRIC or _WORKLOAD.fullmatch(name):
            raise InvalidRequest("hosts", f"{name!r} is a name the laboratory uses itself")
    if len(set(names)) != len(names):
        raise InvalidRequest("hosts", "names repeat")
    return names


def plan(
    lab: str, names: Sequence[str], *, fabric: FabricKind, ipv6: bool
) -> tuple[FabricRecord, tuple[HostRecord, ...]]:
    """The fabric and its hosts, in the order of ``names``."""
    width = 2 if ipv6 else 1
    if fabric == "bridge":
        fabric_addresses = tuple(_nth(net, 1) for net in (_BRIDGE_V4, _subnet_v6(0))[:width])
    else:
        fabric_addresses = _ROUTER_SERVICES[:width]
    hosts: list[HostRecord] = []
    for position, name in enumerate(names):
        if fabric == "bridge":
            subnets = (_BRIDGE_V4, _subnet_v6(0))[:width]
            own = _FIRST_HOST + position
        else:
            subnets = (_routed_v4(position + 1), _subnet_v6(position + 1))[:width]
            own = 2
        hosts.append(
            HostRecord(
                name=name,
                namespace=f"{lab}-{name}",
                port=f"port{position + 1}",
                addresses=tuple(_nth(net, own) for net in subnets),
                subnets=subnets,
                gateways=tuple(_nth(net, 1) for net in subnets),
            )
        )
    return FabricRecord(kind=fabric, namespace=f"{lab}-{FABRIC}", addresses=fabric_addresses), tuple(hosts)


def _nth(network: IPNetwork, number: int) -> IPAddress:
    return IPAddress(network.first + number, network.version)


def _routed_v4(number: int) -> IPNetwork:
    return IPNetwork((_ROUTED_V4.first + number * 256, 30), version=4)


def _subnet_v6(number: int) -> IPNetwork:
    return IPNetwork((_V6.first + (number << 64), 64), version=6)
