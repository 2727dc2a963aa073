"""The kinds of sets we keep: their nft type, and their elements as values, as text and as the kernel's bytes.

An address is an integer, a range a pair of them; ``source`` elements say who may send what: (interface, MAC, address)
or (interface, address); a ``verdict`` element leads an interface's packets to a chain; ``ports`` are (address,
protocol, port); ``nat`` says for an address what stands for it, ``hairpin`` the same for what is its own source and
destination.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

import msgspec
from pyroaring import FrozenBitMap

if TYPE_CHECKING:
    from collections.abc import Iterable

NFT_SET_ANONYMOUS, NFT_SET_INTERVAL, NFT_SET_MAP = 0x1, 0x4, 0x8
NFT_DATA_VERDICT = 0xFFFFFF00

# Type numbers of nft's userspace (include/datatype.h): a concatenation packs them six bits each.
_IPV4, _IPV6, _MAC, _PROTOCOL, _SERVICE, _IFNAME = 7, 8, 9, 12, 13, 41
_BITS = 6
IFNAMSIZ = 16


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of set. ``flags``, ``key_type`` and ``data_type`` are what the kernel shows of it."""

    name: str
    declaration: str
    key_type: int
    flags: int = 0
    data_type: int = 0
    family: int = 4

    @property
    def keyword(self) -> str:
        return "map" if self.flags & NFT_SET_MAP else "set"


_KINDS = (
    Kind(name="hosts4", declaration="type ipv4_addr;", key_type=_IPV4),
    Kind(name="hosts6", declaration="type ipv6_addr;", key_type=_IPV6, family=6),
    Kind(name="ranges4", declaration="type ipv4_addr; flags interval;", key_type=_IPV4, flags=NFT_SET_INTERVAL),
    Kind(
        name="ranges6", declaration="type ipv6_addr; flags interval;", key_type=_IPV6, flags=NFT_SET_INTERVAL, family=6
    ),
    Kind(
        name="source_mac4", declaration="type ifname . ether_addr . ipv4_addr;",
        key_type=(_IFNAME << 2 * _BITS) | (_MAC << _BITS) | _IPV4,
    ),
    Kind(
        name="source_mac6", declaration="type ifname . ether_addr . ipv6_addr;",
        key_type=(_IFNAME << 2 * _BITS) | (_MAC << _BITS) | _IPV6, family=6,
    ),
    Kind(name="source4", declaration="type ifname . ipv4_addr;", key_type=(_IFNAME << _BITS) | _IPV4),
    Kind(name="source6", declaration="type ifname . ipv6_addr;", key_type=(_IFNAME << _BITS) | _IPV6, family=6),
    *(
        Kind(
            name=f"ports{family}", declaration=f"type ipv{family}_addr . inet_proto . inet_service;", family=family,
            key_type=(address << 2 * _BITS) | (_PROTOCOL << _BITS) | _SERVICE,
        )
        for family, address in ((4, _IPV4), (6, _IPV6))
    ),
    *(
        Kind(
            name=f"nat{family}", declaration=f"type ipv{family}_addr : ipv{family}_addr;", family=family,
            key_type=address, data_type=address, flags=NFT_SET_MAP,
        )
        for family, address in ((4, _IPV4), (6, _IPV6))
    ),
    *(
        Kind(
            name=f"hairpin{family}", family=family, key_type=(address << _BITS) | address, data_type=address,
            declaration=f"type ipv{family}_addr . ipv{family}_addr : ipv{family}_addr;", flags=NFT_SET_MAP,
        )
        for family, address in ((4, _IPV4), (6, _IPV6))
    ),
    Kind(
        name="verdict", declaration="type ifname : verdict;", key_type=_IFNAME,
        flags=NFT_SET_MAP, data_type=NFT_DATA_VERDICT,
    ),
)  # fmt: skip
KINDS = {kind.name: kind for kind in _KINDS}


def no_elements(kind: str) -> Any:
    return FrozenBitMap() if kind == "hosts4" else frozenset()


def find_kind(key_type: int, flags: int, data_type: int) -> str:
    """The kind of a set the kernel shows; empty when we keep none like it."""
    shape = (key_type, flags & (NFT_SET_INTERVAL | NFT_SET_MAP), data_type)
    for kind in _KINDS:
        if (kind.key_type, kind.flags, kind.data_type) == shape:
            return kind.name
    return ""


def address_text(value: int, family: int) -> str:
    if family == 4:
        return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
    return str(IPv6Address(value))


def range_text(first: int, last: int, family: int) -> str:
    text = address_text(first, family)
    return text if first == last else f"{text}-{address_text(last, family)}"


def element_text(kind: Kind, element: Any, *, is_removal: bool = False) -> str:
    """As nft reads it; a removal from a map names the key alone."""
    name = kind.name
    if name.startswith("hosts"):
        return address_text(element, kind.family)
    if name.startswith("ranges"):
        first, last = element
        return range_text(first, last, kind.family)
    if name == "verdict":
        return f'"{element[0]}"' if is_removal else f'"{element[0]}" : goto {element[1]}'
    if name.startswith("ports"):
        return f"{address_text(element[0], kind.family)} . {element[1]} . {element[2]}"
    if name.startswith(("nat", "hairpin")):
        key, data = (address_text(each, kind.family) for each in element)
        key = f"{key} . {key}" if name.startswith("hairpin") else key
        return key if is_removal else f"{key} : {data}"
    *before, address = element
    parts = [f'"{before[0]}"', *(mac_text(mac) for mac in before[1:]), address_text(address, kind.family)]
    return " . ".join(parts)


def mac_text(mac: int) -> str:
    return mac.to_bytes(6, "big").hex(":")


def element_data(kind: Kind, element: Any) -> bytes:
    """What a ``nat`` or ``hairpin`` element leads to, as the kernel holds it."""
    return bytes(element[1].to_bytes(4 if kind.family == 4 else 16, "big"))


def element_key(kind: Kind, element: Any) -> bytes:
    """The key as the kernel holds it: network order, each part of a concatenation padded to four bytes."""
    size = 4 if kind.family == 4 else 16
    name = kind.name
    if name.startswith("hosts"):
        return bytes(element.to_bytes(size, "big"))
    if name.startswith("ports"):
        address, protocol, port = element
        return bytes(address.to_bytes(size, "big") + bytes((protocol, 0, 0, 0)) + port.to_bytes(2, "big") + b"\0\0")
    if name.startswith(("nat", "hairpin")):
        return bytes(element[0].to_bytes(size, "big") * (2 if name.startswith("hairpin") else 1))
    interface = element[0].encode().ljust(IFNAMSIZ, b"\0")
    if name == "verdict":
        return bytes(interface)
    macs = b"".join(mac.to_bytes(6, "big") + b"\0\0" for mac in element[1:-1])
    return bytes(interface + macs + element[-1].to_bytes(size, "big"))


def parse_key(kind: Kind, key: bytes) -> Any:
    """The element of a key of :func:`element_key`; of a map its first part only."""
    name = kind.name
    if name.startswith(("hosts", "ranges", "nat")):
        return int.from_bytes(key, "big")
    size = 4 if kind.family == 4 else 16
    if name.startswith("hairpin"):
        return int.from_bytes(key[:size], "big")
    if name.startswith("ports"):
        return int.from_bytes(key[:size], "big"), key[size], int.from_bytes(key[size + 4 : size + 6], "big")
    interface = key[:IFNAMSIZ].rstrip(b"\0").decode(errors="replace")
    if name == "verdict":
        return interface
    if "mac" in name:
        return interface, int.from_bytes(key[16:22], "big"), int.from_bytes(key[24:], "big")
    return interface, int.from_bytes(key[16:], "big")


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges without overlap; touching ones become one. The kernel refuses overlaps."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
