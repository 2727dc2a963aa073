"""The host's routes to a workload, and what to do when such a route is there already (cni specification 5.2)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.link_messages import set_link
from calico_core.dataplane.linux.route_messages import (
    RTPROT_BIRD,
    Route,
    add_route,
    replace_route,
)
from calico_core.errors import RouteTaken
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calico_core.dataplane.linux.netlink import Request
    from calico_core.dataplane.linux.rtnetlink import RouteSocket

log = get_logger(__name__)


def raise_and_route(
    host: RouteSocket,
    index: int,
    routes: Sequence[Route],
    *,
    addresses: Sequence[Request] = (),
    ipv4_settings: Mapping[int, int],
    interface_prefixes: tuple[str, ...],
) -> None:
    """Set a host end's IPv4 settings (see ``set_link``), bring it up and add its addresses and routes, all in one
    message and in this order.

    :raises RouteTaken: a route belongs to a live interface; no route was replaced.
    :raises KernelRefused: anything else.
    """
    first = [set_link(index=index, ipv4_settings=ipv4_settings)] if ipv4_settings else []
    first += [set_link(index=index, is_up=True), *addresses]
    outcomes = host.attempt([*first, *map(add_route, routes)])
    clashes: list[Route] = []
    for position, outcome in enumerate(outcomes):
        if outcome.error is None:
            continue
        if position < len(first) or outcome.error.errno != errno.EEXIST:
            raise outcome.error
        clashes.append(routes[position - len(first)])
    if clashes:
        _take_over(host, clashes, interface_prefixes)


def _take_over(host: RouteSocket, clashes: Sequence[Route], interface_prefixes: tuple[str, ...]) -> None:
    """Decide on all of them before the first is replaced."""
    wanted = {(route.destination, route.metric): route for route in clashes}
    replaced: list[Route] = []
    for family in {route.destination.family for route in clashes}:
        for found in host.routes(family):
            route = wanted.get((found.destination, found.metric))
            if route is None or (found.index == route.index and found.scope == route.scope):
                continue  # not about us, or the agent was faster
            owner = _live_owner(host, found, route.index, interface_prefixes)
            if owner:
                raise RouteTaken(str(found.destination), owner)
            log.info("route.replaced", destination=str(found.destination), protocol=found.protocol)
            replaced.append(route)
    if replaced:
        host.execute(*map(replace_route, replaced))


def _live_owner(host: RouteSocket, found: Route, index: int, interface_prefixes: tuple[str, ...]) -> str:
    """Who must not lose the route; empty when it may be replaced."""
    # what BGP brought is older news than a workload that starts here (felix specification 6.9)
    if found.index == index or found.protocol == RTPROT_BIRD:
        return ""
    link = host.find_link(index=found.index) if found.index else None
    if link is None:
        return "" if found.index else f"a route without device, protocol {found.protocol}"
    is_stale = link.name.startswith(interface_prefixes) and not (link.is_up and link.has_carrier)
    return "" if is_stale else link.name
