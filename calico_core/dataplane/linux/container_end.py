"""The container's side of a pair: addresses, the routes through the next hop, and what of them is missing."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.linux import sysctl
from calico_core.dataplane.linux.address_messages import (
    SCOPE_UNIVERSE,
    add_address,
    delete_address,
    set_neighbour,
)
from calico_core.dataplane.linux.link_messages import get_link, set_link
from calico_core.dataplane.linux.prefix import AF_INET, AF_INET6, Prefix, parse_prefix, prefix_of
from calico_core.dataplane.linux.route_messages import RT_SCOPE_LINK, RTPROT_BOOT, Route, add_route
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.dataplane.linux.sysctl import Setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netaddr import IPNetwork

    from calico_core.dataplane.linux.link_messages import Link

#: The next hop of every workload: the host end of its pair, which answers ARP for it without having it.
GATEWAY_V4 = parse_prefix("169.254.1.1/32")
#: The host end's link-local address, EUI-64 of its MAC.
GATEWAY_V6 = parse_prefix("fe80::ecee:eeff:feee:eeee/64")
_DEFAULT = {AF_INET: parse_prefix("0.0.0.0/0"), AF_INET6: parse_prefix("::/0")}


class WantedAddresses:
    """A request's addresses in the kernel's terms."""

    __slots__ = ("all", "v4", "v6")

    def __init__(self, networks: Iterable[IPNetwork]) -> None:
        self.all = tuple(prefix_of(network) for network in networks)
        self.v4 = tuple(each for each in self.all if each.family == AF_INET)
        self.v6 = tuple(each for each in self.all if each.family == AF_INET6)


def open_container(settings: tuple[Setting, ...]) -> tuple[RouteSocket, tuple[Setting, ...]]:
    """A route socket of the namespace this thread is in, after writing what differs of ``settings``.

    Also gives the settings that take the writing back.
    """
    before: list[Setting] = []
    route_socket = RouteSocket()
    try:
        for setting in settings:
            value = sysctl.read(setting.path)
            if value != setting.value:
                sysctl.write(setting.path, setting.value)
                before.append(Setting(setting.path, value, is_vital=False))
    except BaseException:
        route_socket.close()
        sysctl.apply(tuple(reversed(before)))
        raise
    return route_socket, tuple(reversed(before))


def configure(
    container: RouteSocket,
    index: int,
    wanted: WantedAddresses,
    *,
    has_default_route: bool,
    destinations: Sequence[Prefix],
    gateway_mac: bytes,
) -> tuple[Prefix, ...]:
    """Up, addresses, routes, in one message; may be repeated. ``gateway_mac`` empty: found by ARP.

    A route to the next hop, to ``destinations`` or a default route that another interface of the container holds stays
    as it is. Gives the destinations, but for the next hop, whose routes stood already; ours may be among them when this
    is repeated.
    """
    requests = [set_link(index=index, is_up=True), *(add_address(index, each) for each in wanted.all)]
    if wanted.v4 and gateway_mac:
        requests.append(set_neighbour(index, GATEWAY_V4, gateway_mac))
    firm = len(requests)
    routes = _routes(index, wanted, destinations, has_default_route=has_default_route)
    requests += map(add_route, routes)
    unreachable: list[Route] = []
    standing: list[Route] = []
    for position, outcome in enumerate(container.attempt(requests)):
        if outcome.error is None:
            continue
        if position < firm or outcome.error.errno not in {errno.EEXIST, errno.ENETUNREACH}:
            raise outcome.error
        (standing if outcome.error.errno == errno.EEXIST else unreachable).append(routes[position - firm])
    # the route to the next hop is another interface's: the kernel must be told that this one reaches it as well
    again = [add_route(msgspec.structs.replace(each, is_onlink=True)) for each in unreachable]
    for route, outcome in zip(unreachable, container.attempt(again), strict=True):
        if outcome.error is None:
            continue
        if outcome.error.errno != errno.EEXIST:
            raise outcome.error
        standing.append(route)
    return tuple(route.destination for route in standing if route.gateway)


def held_by_others(
    container: RouteSocket,
    index: int,
    wanted: WantedAddresses,
    *,
    has_default_route: bool,
    destinations: Sequence[Prefix],
) -> tuple[Prefix, ...]:
    """Destinations of :func:`configure` that other interfaces lead to, and this one does not."""
    routes = container.routes()
    own = {route.destination for route in routes if route.index == index}
    others = {route.destination for route in routes} - own
    asked = _routes(index, wanted, destinations, has_default_route=has_default_route)
    return tuple(route.destination for route in asked if route.gateway and route.destination in others)


def await_carrier(container: RouteSocket, index: int) -> None:
    """Until the kernel has noticed that the other end is up. It does so in a thread of its own, which waits for its
    lock over interfaces while others are made and deleted, and until then it drops in silence what the container
    sends: a connection that begins there takes a second longer. To ask for the link makes it look at once (Linux 6.8).
    """
    container.attempt([get_link(index=index)])


def remove_surplus(container: RouteSocket, index: int, wanted: WantedAddresses) -> None:
    """Take away global addresses the interface shall not have."""
    surplus = [each for each in _global_addresses(container, index) if each not in wanted.all]
    container.execute(*(delete_address(index, each) for each in surplus))


def differences(
    container: RouteSocket,
    inner: Link,
    wanted: WantedAddresses,
    *,
    has_default_route: bool,
    destinations: Sequence[Prefix],
    needs_next_hop: bool = True,
) -> list[str]:
    """What of :func:`configure` is missing, as sentences. ``needs_next_hop``: the route to it counts."""
    found: list[str] = []
    if not inner.is_up:
        found.append(f"container interface {inner.name} is down")
    present = _global_addresses(container, inner.index)
    found += [f"address {each} is missing on {inner.name}" for each in wanted.all if each not in present]
    found += [f"address {each} is on {inner.name} unasked" for each in present if each not in wanted.all]
    routes = {route.destination for route in container.routes()}
    for route in _routes(inner.index, wanted, destinations, has_default_route=has_default_route):
        if route.destination not in routes and (route.gateway or needs_next_hop):
            found.append(f"container route {route.destination} is missing")
    return found


def _global_addresses(container: RouteSocket, index: int) -> list[Prefix]:
    return [each.prefix for each in container.addresses(index) if each.scope == SCOPE_UNIVERSE]


def _routes(
    index: int, wanted: WantedAddresses, destinations: Sequence[Prefix], *, has_default_route: bool
) -> list[Route]:
    """To the next hop, and through it to the destinations of the families that the container speaks."""
    routes: list[Route] = []
    if wanted.v4:
        routes.append(Route(destination=GATEWAY_V4, index=index, scope=RT_SCOPE_LINK, protocol=RTPROT_BOOT))
    for family, gateway, addresses in ((AF_INET, GATEWAY_V4, wanted.v4), (AF_INET6, GATEWAY_V6, wanted.v6)):
        if not addresses:
            continue
        through = [_DEFAULT[family]] if has_default_route else []
        through += [each for each in destinations if each.family == family and each not in through]
        routes += (
            Route(destination=each, index=index, gateway=gateway.address, protocol=RTPROT_BOOT) for each in through
        )
    return routes
