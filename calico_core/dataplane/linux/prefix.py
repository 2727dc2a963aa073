"""A CIDR in the kernel's terms: family, packed bytes, length.

Tables of tens of thousands of routes pass through here, so these are cheap tuples; netaddr values stop at this edge.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from netaddr import IPAddress, IPNetwork

AF_UNSPEC, AF_INET, AF_INET6 = int(socket.AF_UNSPEC), int(socket.AF_INET), int(socket.AF_INET6)


class Prefix(NamedTuple):
    """``address`` is packed, network order; its host bits may be set for an interface address."""

    family: int
    address: bytes
    length: int

    @property
    def is_host(self) -> bool:
        """A /32 or /128."""
        return self.length == len(self.address) * 8

    def __str__(self) -> str:
        return f"{socket.inet_ntop(self.family, self.address)}/{self.length}"


def prefix_of(network: IPNetwork) -> Prefix:
    """The network itself, host bits dropped."""
    return Prefix(*_packed(network.first, network.version), network.prefixlen)


def host_prefix(address: IPAddress) -> Prefix:
    """The /32 or /128 of an address."""
    family, packed = _packed(address.value, address.version)
    return Prefix(family, packed, len(packed) * 8)


def network_of(prefix: Prefix) -> IPNetwork:
    value = (int.from_bytes(prefix.address, "big"), prefix.length)
    return (IPNetwork(value, version=4) if prefix.family == AF_INET else IPNetwork(value, version=6)).cidr


def parse_prefix(text: str) -> Prefix:
    """From a literal such as ``169.254.1.1/32``; for constants and tests, not for input from outside."""
    base, _, length = text.partition("/")
    family = AF_INET6 if ":" in base else AF_INET
    packed = socket.inet_pton(family, base)
    return Prefix(family, packed, int(length) if length else len(packed) * 8)


def _packed(value: int | None, version: int) -> tuple[int, bytes]:
    assert value is not None  # netaddr types it so for values never set
    if version == 4:
        return AF_INET, value.to_bytes(4, "big")
    return AF_INET6, value.to_bytes(16, "big")
