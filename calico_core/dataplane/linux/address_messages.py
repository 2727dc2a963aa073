"""Requests about interface addresses and neighbours (rtnetlink(7), linux/if_addr.h, linux/neighbour.h)."""

from __future__ import annotations

import struct

import msgspec

from calico_core.dataplane.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Request,
    attribute,
    parse_attributes,
)
from calico_core.dataplane.linux.prefix import AF_INET6, Prefix

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 0x02
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
NTF_PROXY = 0x08
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253

_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, interface index
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, interface index, state, flags, type


class InterfaceAddress(msgspec.Struct, frozen=True, kw_only=True):
    """An address of an interface. ``flags`` are the kernel's IFA_F_*, low byte."""

    prefix: Prefix
    index: int
    scope: int = SCOPE_UNIVERSE
    flags: int = 0


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A neighbour entry; ``mac`` is empty for a proxy entry, which has ``NTF_PROXY`` among its flags."""

    address: Prefix
    index: int
    mac: bytes = b""
    state: int = 0
    flags: int = 0


def add_address(index: int, prefix: Prefix, *, scope: int = SCOPE_UNIVERSE) -> Request:
    """Give an interface an address; repeating it changes nothing. IPv6 without duplicate detection: usable at once."""
    flags = IFA_F_NODAD if prefix.family == AF_INET6 else 0
    return Request(
        f"add address {prefix}",
        RTM_NEWADDR,
        NLM_F_CREATE | NLM_F_REPLACE,
        _ADDRESS.pack(prefix.family, prefix.length, flags, scope, index) + _local(prefix),
    )


def delete_address(index: int, prefix: Prefix) -> Request:
    body = _ADDRESS.pack(prefix.family, prefix.length, 0, 0, index) + _local(prefix)
    return Request(f"delete address {prefix}", RTM_DELADDR, 0, body)


def dump_addresses(index: int = 0, family: int = 0) -> Request:
    """All addresses, or those of one interface (index) or family."""
    return Request("list addresses", RTM_GETADDR, 0, _ADDRESS.pack(family, 0, 0, 0, index))


def parse_address(body: bytes) -> InterfaceAddress:
    """From RTM_NEWADDR. The address is the local one (IFA_ADDRESS is the other end of a point-to-point link)."""
    family, length, flags, scope, index = _ADDRESS.unpack_from(body)
    found = parse_attributes(body, _ADDRESS.size)
    packed = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")
    return InterfaceAddress(prefix=Prefix(family, packed, length), index=index, scope=scope, flags=flags)


def set_neighbour(index: int, address: Prefix, mac: bytes) -> Request:
    """A permanent entry, written over what is there."""
    body = _NEIGHBOUR.pack(address.family, index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, address.address) + attribute(NDA_LLADDR, mac)
    return Request(f"set neighbour {address}", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_neighbour(index: int, address: Prefix) -> Request:
    body = _NEIGHBOUR.pack(address.family, index, 0, 0, 0) + attribute(NDA_DST, address.address)
    return Request(f"delete neighbour {address}", RTM_DELNEIGH, 0, body)


def set_proxy(index: int, address: Prefix) -> Request:
    """The host answers for the address on this link. Repeating it changes nothing."""
    body = _NEIGHBOUR.pack(address.family, index, NUD_PERMANENT, NTF_PROXY, 0) + attribute(NDA_DST, address.address)
    return Request(f"set proxy neighbour {address}", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_proxy(index: int, address: Prefix) -> Request:
    body = _NEIGHBOUR.pack(address.family, index, 0, NTF_PROXY, 0) + attribute(NDA_DST, address.address)
    return Request(f"delete proxy neighbour {address}", RTM_DELNEIGH, 0, body)


def dump_neighbours() -> Request:
    """All but proxy entries."""
    return Request("list neighbours", RTM_GETNEIGH, 0, _NEIGHBOUR.pack(0, 0, 0, 0, 0))


def dump_proxies(family: int) -> Request:
    return Request("list proxy neighbours", RTM_GETNEIGH, 0, _NEIGHBOUR.pack(family, 0, 0, NTF_PROXY, 0))


def parse_neighbour(body: bytes) -> Neighbour:
    family, index, state, flags, _type = _NEIGHBOUR.unpack_from(body)
    found = parse_attributes(body, _NEIGHBOUR.size)
    packed = found.get(NDA_DST, b"")
    return Neighbour(
        address=Prefix(family, packed, len(packed) * 8),
        index=index,
        mac=found.get(NDA_LLADDR, b""),
        state=state,
        flags=flags,
    )


def _local(prefix: Prefix) -> bytes:
    return attribute(IFA_LOCAL, prefix.address) + attribute(IFA_ADDRESS, prefix.address)
