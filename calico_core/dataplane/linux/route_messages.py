"""Route requests and the kernel's routes (rtnetlink(7), linux/rtnetlink.h)."""

from __future__ import annotations

import struct

import msgspec

from calico_core.dataplane.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    attribute,
    u32,
)
from calico_core.dataplane.linux.prefix import AF_INET, Prefix

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 6, 7, 15
RTN_UNICAST, RTN_BLACKHOLE = 1, 6
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RT_TABLE_MAIN, RT_TABLE_COMPAT = 254, 252
RTNH_F_ONLINK = 4
RTPROT_BOOT, RTPROT_STATIC, RTPROT_BIRD = 3, 4, 12
RTM_F_CLONED = 0x200

#: The number our routes carry, so that they are told from everybody else's.
PROTOCOL = 80
#: Below BIRD's 1024, so that a local IPv6 workload wins (felix specification 6.9).
LOCAL_METRIC_V6 = 512

_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst, src length, tos, table, protocol, scope, type, flags
#: The same, its table, an IPv4 destination and a device: what a route to a workload is, in the order of the kernel.
_PLAIN_V4 = struct.Struct("=BBBBBBBBI HHI HH4s HHI")
_PLAIN_V4_TYPES = (8, RTA_TABLE, 8, RTA_DST, 8, RTA_OIF)
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_ANY = {4: b"\0" * 4, 16: b"\0" * 16}


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route. ``index`` 0: no device (blackhole, or several next hops). ``gateway`` empty: directly connected.
    ``source``: the address the host prefers for what it sends there itself; empty: the kernel chooses.

    The kernel keeps no scope for IPv6: it reads back as universe, so write it as that.
    """

    destination: Prefix
    index: int = 0
    gateway: bytes = b""
    scope: int = RT_SCOPE_UNIVERSE
    protocol: int = PROTOCOL
    metric: int = 0
    table: int = RT_TABLE_MAIN
    type: int = RTN_UNICAST
    is_onlink: bool = False
    source: bytes = b""


def workload_route(destination: Prefix, index: int) -> Route:
    """The host's route to one workload address."""
    if destination.family == AF_INET:
        return Route(destination=destination, index=index, scope=RT_SCOPE_LINK)
    return Route(destination=destination, index=index, metric=LOCAL_METRIC_V6)


def add_route(route: Route) -> Request:
    """Fails with EEXIST when a route of that destination, metric and table is there."""
    return Request(f"add route {route.destination}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, _encode(route))


def replace_route(route: Route) -> Request:
    """Wins over a route of the same destination, metric and table."""
    return Request(f"replace route {route.destination}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, _encode(route))


def delete_route(route: Route) -> Request:
    # RT_SCOPE_NOWHERE matches any scope (net/ipv4/fib_trie.c)
    body = _encode(route, scope=RT_SCOPE_NOWHERE)
    return Request(f"delete route {route.destination}", RTM_DELROUTE, 0, body)


def dump_routes(family: int, *, table: int = RT_TABLE_MAIN, protocol: int = 0, index: int = 0) -> Request:
    """Routes of a family and table, filtered by the kernel; protocol or index 0 takes all."""
    body = _ROUTE.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0) + u32(RTA_TABLE, table)
    body += u32(RTA_OIF, index) if index else b""
    return Request("list routes", RTM_GETROUTE, 0, body)


def parse_route(body: bytes) -> Route | None:
    """From RTM_NEWROUTE; None for a cached clone. Attributes are walked by hand, and the usual ones taken in one step:
    this runs for every route."""
    if len(body) == _PLAIN_V4.size:
        (
            family, length, _src, _tos, _table, protocol, scope, kind, flags,
            size, one, table, other_size, two, address, last_size, three, index,
        ) = _PLAIN_V4.unpack(body)  # fmt: skip
        if (size, one, other_size, two, last_size, three) == _PLAIN_V4_TYPES and family == AF_INET and not flags:
            return Route(
                destination=Prefix(AF_INET, address, length),
                index=index,
                scope=scope,
                protocol=protocol,
                table=table,
                type=kind,
            )
    family, length, _src, _tos, table, protocol, scope, kind, flags = _ROUTE.unpack_from(body)
    if flags & RTM_F_CLONED:
        return None
    destination, gateway, source, index, metric = b"", b"", b"", 0, 0
    position, end = 12, len(body)
    while position + 4 <= end:
        size, attribute_type = _ATTRIBUTE.unpack_from(body, position)
        if size < 4:
            break
        if attribute_type == RTA_DST:
            destination = body[position + 4 : position + size]
        elif attribute_type == RTA_OIF:
            (index,) = _U32.unpack_from(body, position + 4)
        elif attribute_type == RTA_GATEWAY:
            gateway = body[position + 4 : position + size]
        elif attribute_type == RTA_PREFSRC:
            source = body[position + 4 : position + size]
        elif attribute_type == RTA_PRIORITY:
            (metric,) = _U32.unpack_from(body, position + 4)
        elif attribute_type == RTA_TABLE:
            (table,) = _U32.unpack_from(body, position + 4)
        position += (size + 3) & ~3
    return Route(
        destination=Prefix(family, destination or _ANY[4 if family == AF_INET else 16], length),
        index=index,
        gateway=gateway,
        scope=scope,
        protocol=protocol,
        metric=metric,
        table=table,
        type=kind,
        is_onlink=bool(flags & RTNH_F_ONLINK),
        source=source,
    )


def _encode(route: Route, scope: int | None = None) -> bytes:
    prefix = route.destination
    flags = RTNH_F_ONLINK if route.is_onlink else 0
    table = route.table if route.table < 256 else RT_TABLE_COMPAT
    scope = route.scope if scope is None else scope
    parts = [
        _ROUTE.pack(prefix.family, prefix.length, 0, 0, table, route.protocol, scope, route.type, flags),
        u32(RTA_TABLE, route.table),
    ]
    if prefix.length:
        parts.append(attribute(RTA_DST, prefix.address))
    if route.gateway:
        parts.append(attribute(RTA_GATEWAY, route.gateway))
    if route.index:
        parts.append(u32(RTA_OIF, route.index))
    if route.source:
        parts.append(attribute(RTA_PREFSRC, route.source))
    if route.metric:
        parts.append(u32(RTA_PRIORITY, route.metric))
    return b"".join(parts)
