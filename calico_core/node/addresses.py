"""Which address a host is known by. Source: node specification 6.4."""

from __future__ import annotations

import socket
from collections.abc import Callable

from netaddr import IPAddress

from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.errors import InvalidRequest, InvalidSettings
from calico_core.log import get_logger
from calico_core.model.addresses import contains, not_reachable, parse_address, parse_network
from calico_core.model.interface_names import parse_interface_names
from calico_core.settings import Settings

log = get_logger(__name__)

_PROBE = {4: "198.51.100.1", 6: "2001:db8::1"}
"""Documentation addresses: connecting a datagram socket makes the kernel pick a source, nothing is sent."""


def node_addresses(settings: Settings) -> tuple[IPAddress | None, IPAddress | None]:
    """IPv4 and IPv6, at least one of them. Raises ``InvalidSettings``."""
    is_excluded = parse_interface_names(settings.excluded_interfaces)
    pools = (settings.pool_v4,) if settings.pool_v4 != "none" else ()
    ipv4 = node_address(settings.ip, 4, pools=pools, is_excluded=is_excluded)
    ipv6 = node_address(settings.ip6, 6, is_excluded=is_excluded)
    if ipv4 is None and ipv6 is None:
        raise InvalidSettings("ip", settings.origins.get("ip", "default"), "no address found; give IP or IP6")
    for address in (ipv4, ipv6):
        if address is not None and not is_own_address(address):
            log.warning("node.address_not_local", address=address)
    return ipv4, ipv6


def node_address(
    setting: str,
    version: int,
    *,
    pools: tuple[str, ...] = (),
    is_excluded: Callable[[str], bool] = lambda _interface: False,
) -> IPAddress | None:
    """``none`` → None; an address (a CIDR's address) → itself; ``autodetect`` → the source address of the default
    route, else the first usable address of an interface; never one of an excluded interface. None when nothing is
    found."""
    name = "ip" if version == 4 else "ip6"
    if setting in {"", "none"}:
        return None
    if setting != "autodetect":
        try:
            return parse_address(setting.partition("/")[0], version=version)
        except InvalidRequest:
            wanted = f"an IPv{version} address, 'autodetect' or 'none'"
            raise InvalidSettings(name, "environment", f"{setting!r} is not {wanted}") from None
    usable = [found for found in _own_addresses(is_excluded) if found.version == version and _is_usable(found, pools)]
    preferred = _towards_default_route(version)
    return preferred if preferred in usable else next(iter(usable), None)


def is_own_address(address: IPAddress) -> bool:
    """Whether an interface of this host holds it."""
    return address in _own_addresses()


def _towards_default_route(version: int) -> IPAddress | None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_PROBE[version], 9))
            return parse_address(probe.getsockname()[0].partition("%")[0])
    except OSError:
        return None


def _own_addresses(is_excluded: Callable[[str], bool] = lambda _interface: False) -> list[IPAddress]:
    """In the kernel's order."""
    with RouteSocket() as route:
        left_out = {link.index for link in route.links() if is_excluded(link.name)}
        found = [entry.prefix for entry in route.addresses() if entry.index not in left_out]
    return [IPAddress(int.from_bytes(prefix.address, "big"), 4 if len(prefix.address) == 4 else 6) for prefix in found]


def _is_usable(address: IPAddress, pools: tuple[str, ...]) -> bool:
    return not not_reachable(address) and not any(contains(parse_network(pool), address) for pool in pools)
