"""Entries in the connection table of a namespace: a host without any is looked through by nobody."""

from __future__ import annotations

import socket

from netaddr import IPAddress

from calico_core.dataplane.linux.conntrack import CT_NEW, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY
from calico_core.dataplane.linux.netlink import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NetlinkSocket,
    Request,
    attribute,
    nested,
)
from calico_core.dataplane.linux.prefix import AF_INET

_SIDES = (IPAddress("192.0.2.1").packed, IPAddress("192.0.2.2").packed)
_LIFETIME_S = 3600
_FIRST_PORT = 10_000
_TIMEOUT = 7  # CTA_TIMEOUT


def enter(count: int, namespace_fd: int | None = None) -> None:
    """So many of UDP, between two addresses that are no workload's. They end with the namespace."""
    with NetlinkSocket(NETLINK_NETFILTER, namespace_fd) as kernel:
        kernel.execute(*(_request(_FIRST_PORT + number) for number in range(count)))


def _request(port: int) -> Request:
    sides = _side(CTA_TUPLE_ORIG, _SIDES, (port, 53)) + _side(CTA_TUPLE_REPLY, _SIDES[::-1], (53, port))
    lifetime = attribute(_TIMEOUT, _LIFETIME_S.to_bytes(4, "big"))
    return Request("enter connection", CT_NEW, NLM_F_CREATE, bytes((AF_INET, 0, 0, 0)) + sides + lifetime)


def _side(kind: int, addresses: tuple[bytes, bytes], ports: tuple[int, int]) -> bytes:
    protocol = attribute(1, bytes((socket.IPPROTO_UDP,)))
    protocol += b"".join(attribute(2 + place, port.to_bytes(2, "big")) for place, port in enumerate(ports))
    return nested(kind, nested(1, attribute(1, addresses[0]), attribute(2, addresses[1])), nested(2, protocol))
