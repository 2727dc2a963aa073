"""Which address a host is known by. Source: node specification 6.4."""

from __future__ import annotations

import socket

from netaddr import IPAddress

from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.errors import InvalidRequest, InvalidSettings
from calico_core.model.addresses import contains, parse_address, parse_network

_PROBE = {4: "198.51.100.1", 6: "2001:db8::1"}
"""Documentation addresses: connecting a datagram socket makes the kernel pick a source, nothing is sent."""


def node_address(setting: str, version: int, *, pools: tuple[str, ...] = ()) -> IPAddress | None:
    """``none`` → None; an address (a CIDR's address) → itself; ``autodetect`` → the source address of the default
    route, else the first usable address of an interface. None when nothing is found."""
    name = "ip" if version == 4 else "ip6"
    if setting in {"", "none"}:
        return None
    if setting != "autodetect":
        try:
            return parse_address(setting.partition("/")[0], version=version)
        except InvalidRequest:
            wanted = f"an IPv{version} address, 'autodetect' or 'none'"
            raise InvalidSettings(name, "environment", f"{setting!r} is not {wanted}") from None
    return _towards_default_route(version, pools) or _first_found(version, pools)


def is_own_address(address: IPAddress) -> bool:
    """Whether an interface of this host holds it."""
    return address in _own_addresses()


def _towards_default_route(version: int, pools: tuple[str, ...]) -> IPAddress | None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_PROBE[version], 9))
            address = parse_address(probe.getsockname()[0].partition("%")[0])
    except OSError:
        return None
    return address if _is_usable(address, pools) else None


def _first_found(version: int, pools: tuple[str, ...]) -> IPAddress | None:
    usable = (found for found in _own_addresses() if found.version == version and _is_usable(found, pools))
    return next(usable, None)


def _own_addresses() -> list[IPAddress]:
    """In the kernel's order."""
    with RouteSocket() as route:
        found = [entry.prefix for entry in route.addresses()]
    return [IPAddress(int.from_bytes(prefix.address, "big"), 4 if len(prefix.address) == 4 else 6) for prefix in found]


def _is_usable(address: IPAddress, pools: tuple[str, ...]) -> bool:
    if address.is_loopback() or address.is_link_local() or address.is_multicast() or not int(address):
        return False
    return not any(contains(parse_network(pool), address) for pool in pools)
