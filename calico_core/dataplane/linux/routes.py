"""Keeping the host's workload routes as wanted: look, compare, change what differs.

Ours are routes of our protocol number. Everybody else's are left alone, but where one takes the place of a wanted route
(felix specification 6.9).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.linux.route_messages import (
    PROTOCOL,
    RT_TABLE_MAIN,
    Route,
    delete_route,
    replace_route,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from calico_core.dataplane.linux.netlink import Request
    from calico_core.dataplane.linux.rtnetlink import RouteSocket
    from calico_core.errors import KernelRefused


class RoutePlan(msgspec.Struct, frozen=True):
    """What to change, in this order."""

    delete: tuple[Route, ...] = ()
    replace: tuple[Route, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.delete or self.replace)


class RouteFailure(msgspec.Struct, frozen=True):
    """A route that could not be changed; the others were."""

    route: Route
    error: KernelRefused


def observe(route_socket: RouteSocket, *, table: int = RT_TABLE_MAIN) -> tuple[Route, ...]:
    """The routes of the table, both families."""
    return tuple(route_socket.routes(table=table))


def plan_routes(desired: Collection[Route], observed: Collection[Route], *, protocol: int = PROTOCOL) -> RoutePlan:
    """The changes that lead from ``observed`` to ``desired``. Pure; a second plan after applying it is empty.

    Destination, table and metric identify a route. A wanted route wins over a foreign one of the same identity.
    """
    if _is_right(desired, observed, protocol):
        return RoutePlan()
    wanted = {_identity(route): route for route in desired}
    present: dict[tuple[object, ...], list[Route]] = {}
    for route in observed:
        identity = _identity(route)
        if identity in wanted or route.protocol == protocol:
            present.setdefault(identity, []).append(route)

    delete: list[Route] = []
    replace = [route for identity, route in wanted.items() if route not in present.get(identity, ())]
    for identity, found in present.items():
        kept = wanted.get(identity)
        if kept is None:
            delete += found
        elif len(found) > 1:
            # IPv6 keeps several of one identity; replacing takes the place of the first only
            delete += [each for each in found if each != kept and each.protocol == protocol]
    return RoutePlan(tuple(delete), tuple(replace))


def _is_right(desired: Collection[Route], observed: Collection[Route], protocol: int) -> bool:
    """Nothing is missing, and nothing of ours is there beyond. Most looks find that, and it takes no identities."""
    wanted = frozenset(desired)
    return wanted.issubset(observed) and all(route in wanted for route in observed if route.protocol == protocol)


def apply_routes(route_socket: RouteSocket, plan: RoutePlan) -> tuple[RouteFailure, ...]:
    """Carry out a plan in one pass. Gives the routes that failed (a device that went, for one)."""
    steps: list[tuple[Route, Request]] = [(route, delete_route(route)) for route in plan.delete]
    steps += [(route, replace_route(route)) for route in plan.replace]
    outcomes = route_socket.attempt([request for _, request in steps])
    failures: list[RouteFailure] = []
    for position, outcome in enumerate(outcomes):
        is_deletion = position < len(plan.delete)
        if outcome.error is None or (is_deletion and outcome.error.errno in (errno.ESRCH, errno.ENODEV)):
            continue
        failures.append(RouteFailure(steps[position][0], outcome.error))
    return tuple(failures)


def _identity(route: Route) -> tuple[object, ...]:
    return route.destination, route.table, route.metric
