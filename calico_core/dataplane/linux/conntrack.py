"""The kernel's table of connections: reading it, and forgetting entries. Those of an address that a workload gave up go
so that its next owner does not inherit them; others so that their next packet is judged anew.

Raw ctnetlink (linux/netfilter/nfnetlink_conntrack.h), no program. For IPv4, kernels from 6.8 delete by filter. For
older ones the table is read and the matching entries are deleted one by one; so it is for IPv6 always, because the
kernel's IPv6 filter matches the wrong way round and would forget everything but the address (observed in 6.18).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from netaddr import IPAddress

from calico_core.dataplane.linux.netlink import (
    DEFAULT_TIMEOUT_S,
    NETLINK_NETFILTER,
    NetlinkSocket,
    Request,
    attribute,
    nested,
    parse_attributes,
    u32,
)
from calico_core.dataplane.linux.prefix import AF_INET, AF_INET6, AF_UNSPEC, Prefix, host_prefix
from calico_core.interfaces.dataplane import Connection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SUBSYSTEM = 1 << 8
CT_NEW, CT_GET, CT_DELETE, CT_GET_STATS = (_SUBSYSTEM | number for number in (0, 1, 2, 5))
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ZONE, CTA_FILTER = 1, 2, 18, 25
CTA_TUPLE_IP, CTA_IP_V4_SRC, CTA_IP_V4_DST, _CTA_IP_V6_SRC = 1, 1, 2, 3
CTA_TUPLE_PROTO, CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 2, 1, 2, 3
_ICMP_TYPE, _ICMP_CODE, _ICMP6_TYPE, _ICMP6_CODE = 5, 6, 8, 9
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
CTA_STATS_GLOBAL_ENTRIES = 1
_FILTER_IP_SRC, _FILTER_IP_DST = 1, 2

# The filter came later than the rest: EINVAL for a tuple without protocol, or the attribute is refused.
_FILTER_UNKNOWN = {errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ERANGE}


class Conntrack:
    """The connection table of one namespace. One thread at a time."""

    def __init__(self, namespace_fd: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._socket = NetlinkSocket(NETLINK_NETFILTER, namespace_fd, timeout_s)

    def close(self) -> None:
        self._socket.close()

    def flush(self, addresses: Iterable[IPAddress]) -> None:
        """Delete every entry with one of the addresses as source or destination, of the original or the reply
        direction. None there is success.

        :raises KernelRefused: anything else.
        """
        prefixes = [host_prefix(address) for address in addresses]
        v4 = [prefix for prefix in prefixes if prefix.family == AF_INET]
        listed = [prefix for prefix in prefixes if prefix.family != AF_INET]
        requests = [request for prefix in v4 for request in _delete_by_filter(prefix)]
        for outcome in self._socket.attempt(requests):
            if outcome.error is None or outcome.error.errno == errno.ENOENT:
                continue
            if outcome.error.errno not in _FILTER_UNKNOWN:
                raise outcome.error
            listed = prefixes
        if listed:
            self.flush_by_listing(listed)

    def flush_by_listing(self, prefixes: Iterable[Prefix]) -> None:
        """As :meth:`flush`, for kernels that do not filter."""
        wanted: dict[int, set[bytes]] = {}
        for prefix in prefixes:
            wanted.setdefault(prefix.family, set()).add(prefix.address)
        doomed = [
            Request("delete conntrack entry", CT_DELETE, 0, _header(family) + identity)
            for family, packed in wanted.items()
            for identity in self._entries_of(family, packed)
        ]
        for outcome in self._socket.attempt(doomed):
            if outcome.error is not None and outcome.error.errno != errno.ENOENT:
                raise outcome.error

    def count(self, address: IPAddress) -> int:
        """How many entries name the address; for diagnosis and tests."""
        prefix = host_prefix(address)
        return sum(1 for _ in self._entries_of(prefix.family, {prefix.address}))

    def list(self) -> list[Connection]:
        """Every connection of both families, whatever its zone."""
        return [connection for connection, _, _ in self._connections()]

    def cut(self, connections: Iterable[Connection]) -> int:
        """Delete the entries of these connections. How many there were; those already gone do not count."""
        wanted = set(connections)
        if not wanted:
            return 0
        # the kernel wants the tuple as it wrote it (an ICMP entry's identifier is no part of ours)
        doomed = [
            Request("delete conntrack entry", CT_DELETE, 0, _header(family) + identity)
            for connection, family, identity in self._connections()
            if connection in wanted
        ]
        outcomes = self._socket.attempt(doomed)
        for outcome in outcomes:
            if outcome.error is not None and outcome.error.errno != errno.ENOENT:
                raise outcome.error
        return sum(outcome.error is None for outcome in outcomes)

    def _connections(self) -> Iterator[tuple[Connection, int, bytes]]:
        """Each with its family and what identifies it to the kernel.

        The kernel goes through its whole table in one go, 10 ms for 262,144 buckets even if none has an entry, and all
        other work of that processor waits, as does whoever makes or deletes an interface: once for both families, and
        not at all where this namespace has no connection.
        """
        if self._is_empty():
            return
        for body in self._socket.dump(Request("list conntrack entries", CT_GET, 0, _header(AF_UNSPEC))):
            family = body[0]
            if family not in (AF_INET, AF_INET6):
                continue
            found = parse_attributes(body, 4)
            original, reply = found.get(CTA_TUPLE_ORIG, b""), found.get(CTA_TUPLE_REPLY, b"")
            try:
                protocol, src, dst, src_port, dst_port = _parse_tuple(original, family)
                _, reply_src, reply_dst, reply_src_port, reply_dst_port = _parse_tuple(reply, family)
            except KeyError:
                continue  # not a tuple as we know them
            zone = found.get(CTA_ZONE)
            identity = nested(CTA_TUPLE_ORIG, original) + (attribute(CTA_ZONE, zone) if zone else b"")
            connection = Connection(
                protocol, src, dst, src_port, dst_port, reply_src, reply_dst, reply_src_port, reply_dst_port
            )
            yield connection, family, identity

    def _is_empty(self) -> bool:
        """Whether this namespace surely has no connection: a counter of the kernel, read in microseconds."""
        (outcome,) = self._socket.attempt([Request("count conntrack entries", CT_GET_STATS, 0, _header(AF_UNSPEC))])
        counts = (parse_attributes(body, 4).get(CTA_STATS_GLOBAL_ENTRIES) for _, body in outcome.replies)
        return outcome.error is None and any(each is not None and not any(each) for each in counts)

    def _entries_of(self, family: int, packed: set[bytes]) -> Iterator[bytes]:
        """What identifies each matching entry: its original tuple and its zone, as the kernel wrote them."""
        for body in self._socket.dump(Request("list conntrack entries", CT_GET, 0, _header(family))):
            found = parse_attributes(body, 4)
            original, reply = found.get(CTA_TUPLE_ORIG, b""), found.get(CTA_TUPLE_REPLY, b"")
            if packed.isdisjoint(_addresses(original)) and packed.isdisjoint(_addresses(reply)):
                continue
            zone = found.get(CTA_ZONE)
            yield nested(CTA_TUPLE_ORIG, original) + (attribute(CTA_ZONE, zone) if zone else b"")


def _delete_by_filter(prefix: Prefix) -> Iterator[Request]:
    """Four deletions: the address in each place it can stand. IPv4 only."""
    for tuple_kind, flags_kind in (
        (CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS),
        (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS),
    ):
        for place, flag in ((CTA_IP_V4_SRC, _FILTER_IP_SRC), (CTA_IP_V4_DST, _FILTER_IP_DST)):
            side = nested(tuple_kind, nested(CTA_TUPLE_IP, attribute(place, prefix.address)))
            chosen = nested(CTA_FILTER, u32(flags_kind, flag))
            yield Request(f"flush conntrack of {prefix}", CT_DELETE, 0, _header(prefix.family) + side + chosen)


def _header(family: int) -> bytes:
    return bytes((family, 0, 0, 0))  # nfgenmsg: family, version, resource id


def _addresses(conntrack_tuple: bytes) -> Iterator[bytes]:
    yield from parse_attributes(parse_attributes(conntrack_tuple).get(CTA_TUPLE_IP, b"")).values()


def _parse_tuple(data: bytes, family: int) -> tuple[int, IPAddress, IPAddress, int, int]:
    """Protocol, source, destination, and the ports or what stands in their place: ICMP type and code, or 0."""
    parts = parse_attributes(data)
    addresses = parse_attributes(parts[CTA_TUPLE_IP])
    first = CTA_IP_V4_SRC if family == AF_INET else _CTA_IP_V6_SRC
    src, dst = (
        IPAddress(int.from_bytes(addresses[each], "big"), 4 if family == AF_INET else 6) for each in (first, first + 1)
    )
    values = parse_attributes(parts[CTA_TUPLE_PROTO])
    protocol = values[CTA_PROTO_NUM][0]
    for one, two in ((_ICMP_TYPE, _ICMP_CODE), (_ICMP6_TYPE, _ICMP6_CODE)):
        if one in values and two in values:
            return protocol, src, dst, values[one][0], values[two][0]
    source, destination = (_port(values.get(each)) for each in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT))
    return protocol, src, dst, source, destination


def _port(value: bytes | None) -> int:
    return int.from_bytes(value[:2], "big") if value else 0
