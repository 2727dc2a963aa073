"""Routes to the host's workloads: what is wanted for each interface, and what we last made of it.

An interface whose routes we know to be right costs nothing; its link is looked up again when it is touched. Routes of
our protocol on workload interfaces that nobody wants are removed, and those on ends of pairs of ours that are called
otherwise, as of an earlier prefix; all others are left alone.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.linux.link_pair import is_host_end
from calico_core.dataplane.linux.prefix import AF_INET, AF_INET6, prefix_of
from calico_core.dataplane.linux.route_messages import LOCAL_METRIC_V6, RT_SCOPE_LINK, Route
from calico_core.dataplane.linux.routes import apply_routes, plan_routes
from calico_core.errors import KernelRefused
from calico_core.interfaces.dataplane import Failure, Figure, timing_figures
from calico_core.stopwatch import Timing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from netaddr import IPAddress, IPNetwork

    from calico_core.dataplane.linux.link_messages import Link
    from calico_core.dataplane.linux.rtnetlink import RouteSocket

_GONE = (errno.ENODEV, errno.ENETDOWN, errno.ENXIO)


class RouteReport(msgspec.Struct, frozen=True, kw_only=True):
    """``changed``: destinations added or removed. ``without_link``: interfaces that are not there, or that no traffic
    flows by; one that is up and waits for its other end has its routes all the same."""

    changed: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    without_link: frozenset[str] = frozenset()


class WorkloadRoutes:
    """One thread; the socket is the caller's."""

    def __init__(
        self,
        socket: RouteSocket,
        *,
        prefixes: tuple[str, ...],
        protocol: int,
        makes_routes: bool = True,
        sources: Iterable[IPAddress] = (),
    ) -> None:
        """``makes_routes`` False: somebody else makes them, and none is touched; links are still looked for.
        ``sources``: as :attr:`DataplaneOptions.route_sources`."""
        self._socket, self._makes_routes = socket, makes_routes
        self._prefixes, self._protocol = prefixes, protocol
        self._sources = {AF_INET if each.version == 4 else AF_INET6: each.packed for each in sources}
        self._wanted: dict[str, tuple[IPNetwork, ...]] = {}
        self._programmed: dict[str, frozenset[Route]] = {}
        self._partial, self._full = Timing(), Timing()

    def want(self, interface: str, networks: tuple[IPNetwork, ...]) -> None:
        """What the interface shall have from the next :meth:`sync` on; nothing, when empty."""
        if networks:
            self._wanted[interface] = networks
        else:
            self._wanted.pop(interface, None)

    def figures(self) -> tuple[Figure, ...]:
        """Any thread."""
        programmed = list(self._programmed.values())
        return (
            Figure("route_table_num_ifaces", len(self._wanted)),
            Figure("route_table_num_routes", sum(map(len, programmed))),
            *timing_figures("route_table_partial_resync_seconds", self._partial),
            *timing_figures("route_table_resync_seconds", self._full),
        )

    def want_nothing(self) -> None:
        self._wanted.clear()

    @property
    def interfaces(self) -> set[str]:
        """Wanted or programmed."""
        return {*self._wanted, *self._programmed}

    def forget(self, interface: str) -> None:
        """The link went or came again, and its routes with it."""
        self._programmed.pop(interface, None)

    def leave(self, index: int) -> RouteReport:
        """Take ours from a link that has got another name: one that is up keeps them."""
        if not self._makes_routes:
            return RouteReport()
        try:
            observed = self._socket.routes(protocol=self._protocol, index=index)
        except KernelRefused as error:
            return RouteReport(failures=(Failure(f"routes of interface {index}", str(error)),))
        plan = plan_routes((), observed, protocol=self._protocol)
        failed = {each.route: each.error for each in apply_routes(self._socket, plan)}
        return RouteReport(
            changed=tuple(str(route.destination) for route in plan.delete if route not in failed),
            failures=tuple(_failure(route, error) for route, error in failed.items() if error.errno not in _GONE),
        )

    def sync(self, interfaces: Iterable[str], links: Mapping[str, Link]) -> RouteReport:
        """Make the routes of these interfaces right, relying on what we know of them. ``links``: those of them that
        are there."""
        with self._partial.measure():
            return self._sync(interfaces, links)

    def _sync(self, interfaces: Iterable[str], links: Mapping[str, Link]) -> RouteReport:
        changed: list[str] = []
        failures: list[Failure] = []
        without_link: set[str] = set()
        for interface in interfaces:
            try:
                link = links.get(interface)
                if interface in self._wanted and (link is None or not link.is_operational):
                    without_link.add(interface)
                if link is None or not link.is_up:
                    self.forget(interface)
                    continue
                if not self._makes_routes:
                    continue
                desired = self._desired(link)
                if self._programmed.get(interface) != desired:
                    changes, failed = self._align(link, desired)
                    changed += changes
                    failures += failed
            except KernelRefused as error:
                self.forget(interface)
                failures.append(Failure(f"routes of {interface}", str(error)))
        return RouteReport(changed=tuple(changed), failures=tuple(failures), without_link=frozenset(without_link))

    def resync(self) -> RouteReport:
        """Read all links and routes and make them right, trusting nothing."""
        try:
            with self._full.measure():
                return self._resync()
        except KernelRefused as error:
            self._programmed.clear()
            return RouteReport(failures=(Failure("routes", str(error)),))

    def _resync(self) -> RouteReport:
        links = {link.name: link for link in self._socket.links()}
        workloads = {link.index for link in links.values() if link.name.startswith(self._prefixes) or is_host_end(link)}
        present = {name: link for name in self._wanted if (link := links.get(name)) and link.is_up}
        without_link = frozenset(self._wanted.keys() - {link.name for link in present.values() if link.is_operational})
        if not self._makes_routes:
            return RouteReport(without_link=without_link)
        desired = {name: self._desired(link) for name, link in present.items()}
        wanted = [route for routes in desired.values() for route in routes]
        observed = [
            route for route in self._socket.routes() if route.protocol != self._protocol or route.index in workloads
        ]
        plan = plan_routes(wanted, observed, protocol=self._protocol)
        failed = {each.route: each.error for each in apply_routes(self._socket, plan)}
        self._programmed = {name: routes - failed.keys() for name, routes in desired.items()}
        return RouteReport(
            changed=tuple(str(route.destination) for route in (*plan.delete, *plan.replace) if route not in failed),
            failures=tuple(_failure(route, error) for route, error in failed.items() if error.errno not in _GONE),
            without_link=without_link,
        )

    def _desired(self, link: Link) -> frozenset[Route]:
        routes: list[Route] = []
        for network in self._wanted.get(link.name, ()):
            destination = prefix_of(network)
            is_v4 = destination.family == AF_INET
            routes.append(
                Route(
                    destination=destination,
                    index=link.index,
                    protocol=self._protocol,
                    scope=RT_SCOPE_LINK if is_v4 else 0,
                    metric=0 if is_v4 else LOCAL_METRIC_V6,
                    source=self._sources.get(destination.family, b""),
                )
            )
        return frozenset(routes)

    def _align(self, link: Link, desired: frozenset[Route]) -> tuple[list[str], list[Failure]]:
        # one that is new to us has none, or those of the wiring: replacing a route by the same is no harm
        observed = self._programmed.get(link.name, ())
        plan = plan_routes(desired, observed, protocol=self._protocol)
        failed = {each.route: each.error for each in apply_routes(self._socket, plan)}
        if desired:
            self._programmed[link.name] = desired - failed.keys()
        else:
            self.forget(link.name)
        changed = [str(route.destination) for route in (*plan.delete, *plan.replace) if route not in failed]
        return changed, [_failure(route, error) for route, error in failed.items() if error.errno not in _GONE]


def _failure(route: Route, error: KernelRefused) -> Failure:
    return Failure(f"route {route.destination}", str(error))
