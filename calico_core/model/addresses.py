"""Addresses, networks and MACs: netaddr values from edge to edge, strings only on the wire.

Parsing is strict on purpose: netaddr's lax forms (``10``, ``010.1.1.1``) once let typing errors through as
addresses. CIDRs are normalised on entry (host bits dropped). Treat the values as frozen, though netaddr would let
you assign.
"""

from __future__ import annotations

import re
from functools import lru_cache

import netaddr
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.model.numbers import decimal

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{12}")
WIDTH = {4: 32, 6: 128}
LOOPBACK = IPNetwork("127.0.0.0/8")


class _MacDialect(netaddr.mac_unix_expanded):
    """Lower-case, colon-separated, two digits a byte."""


def parse_address(text: str, *, field: str = "address", version: int | None = None) -> IPAddress:
    """An address in its usual notation (dotted quad, RFC 4291). Raises ``InvalidRequest`` naming ``field``."""
    try:
        # a number would be one too for netaddr, and a list makes it stumble
        address = IPAddress(text, flags=netaddr.INET_PTON) if isinstance(text, str) else None
    except (netaddr.AddrFormatError, ValueError, TypeError):
        address = None
    if address is None:
        raise InvalidRequest(field, f"{text!r} is not an IP address")
    if version is not None and address.version != version:
        raise InvalidRequest(field, f"{text!r} is not an IPv{version} address")
    return address


def parse_network(text: str, *, field: str = "cidr", version: int | None = None) -> IPNetwork:
    """A CIDR with its host bits dropped; a bare address is a /32 or /128."""
    base, slash, length = text.partition("/") if isinstance(text, str) else ("", "", "")
    address = parse_address(base, field=field, version=version)
    width = WIDTH[address.version]
    prefix_length = decimal(length) if slash else width
    if prefix_length is None or prefix_length > width:
        raise InvalidRequest(field, f"{text!r} needs a prefix length from 0 to {width}")
    return IPNetwork((int(address), prefix_length), version=address.version).cidr


def parse_mac(text: str, *, field: str = "mac") -> EUI:
    """A 48-bit MAC in colon, dash or bare notation."""
    if not isinstance(text, str) or not _MAC.fullmatch(text):
        raise InvalidRequest(field, f"{text!r} is not a MAC address such as 02:00:5e:10:00:01")
    return EUI(text, version=48, dialect=_MacDialect)


def mac_from_bytes(raw: bytes) -> EUI:
    return EUI(int.from_bytes(raw, "big"), version=48, dialect=_MacDialect)


def local_mac(raw: bytes) -> EUI:
    """Locally administered, unicast: of six random bytes all but two bits."""
    return mac_from_bytes(bytes(((raw[0] & 0xFC) | 0x02, *raw[1:])))


def host_network(address: IPAddress) -> IPNetwork:
    """The /32 or /128 of one address."""
    return IPNetwork((int(address), WIDTH[address.version]), version=address.version)


def first_address(network: IPNetwork) -> IPAddress:
    return IPAddress(network.first, network.version)


def not_reachable(address: IPAddress) -> str:
    """Why other hosts do not reach one by this address, as ``a loopback address``; '' where they may."""
    if not int(address):
        return "the unspecified address"
    if address.is_loopback():
        return "a loopback address"
    if address.is_multicast():
        return "a multicast address"
    return "a link-local address" if address.is_link_local() else ""


def contains(network: IPNetwork, address: IPAddress) -> bool:
    """Cheaper than netaddr's ``in`` and never true across families."""
    return bool(network.version == address.version and network.first <= int(address) <= network.last)


@lru_cache(maxsize=65536)
def network_to_segment(network: IPNetwork) -> str:
    """As datastore keys write it: ``10.0.0.0-24``. Source: datastore specification 1.3."""
    return str(network).replace("/", "-")


def network_from_segment(segment: str) -> IPNetwork:
    base, dash, length = segment.rpartition("-")
    if not dash:
        raise InvalidRequest("cidr", f"{segment!r} is not a CIDR written as 10.0.0.0-24")
    return parse_network(f"{base}/{length}")
