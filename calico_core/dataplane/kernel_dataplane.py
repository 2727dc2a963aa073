"""What the dataplanes on a real kernel share: one state, its routes, its connections, and a report of every apply.

A driver brings the :class:`Policy`, which is all that nftables and iptables do differently. The engine thread calls
it. Order of an apply: routes of what goes, then policy, then routes of what comes, then the connections of addresses
that were given up. So a workload is reachable only once its policy stands. Source: felix specification 6–8.
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec
from netaddr import IPAddress

from calico_core.dataplane.claims import Claims, Down
from calico_core.dataplane.denials import Origins
from calico_core.dataplane.denied_packets import DeniedPackets
from calico_core.dataplane.kernel_policy import Policy, TableReport
from calico_core.dataplane.linux import sysctl
from calico_core.dataplane.linux.conntrack import Conntrack
from calico_core.dataplane.linux.link_table import LinkTable
from calico_core.dataplane.linux.netns import run_in
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.dataplane.linux.wiring import VethWiring
from calico_core.dataplane.workload_links import STRICT_FROM_THE_START, LinkReport, WorkloadLinks, forwarding
from calico_core.dataplane.workload_routes import RouteReport, WorkloadRoutes
from calico_core.errors import DataplaneError, InvalidRequest, KernelRefused
from calico_core.interfaces.dataplane import (
    ApplyReport,
    Connection,
    Dataplane,
    DataplaneOptions,
    DeniedPacket,
    Failure,
    Figure,
    WorkloadWiring,
    is_whole_policy,
    timing_figures,
)
from calico_core.log import get_logger
from calico_core.model.addresses import LOOPBACK, contains
from calico_core.model.hoststate import HostChanges, HostState
from calico_core.stopwatch import Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from calico_core.dataplane.linux.link_messages import Link
    from calico_core.model.keys import WorkloadEndpointKey
    from calico_core.model.workloads import InterfaceEvent

log = get_logger(__name__)


P = TypeVar("P", bound=Policy)


class KernelDataplane(Dataplane, Generic[P]):
    """Programs one network namespace. ``namespace_fd`` None: the process's own. It closes ``policy``, which tells
    ``origins`` what is behind each denial, and goes by ``down`` where several workloads claim an address.

    Subjects in reports: a workload by its key's path, rules and sets by their id, ``pools``, ``route <CIDR>``,
    ``conntrack``; ``table …`` when the batch is not in force.
    """

    def __init__(
        self,
        options: DataplaneOptions,
        namespace_fd: int | None,
        policy: P,
        origins: Origins | None = None,
        down: Down | None = None,
    ) -> None:
        self._namespace_fd = namespace_fd
        self._policy = policy
        if options.makes_router:
            run_in(namespace_fd, lambda: sysctl.apply(forwarding(has_ipv6=options.is_ipv6_enabled)))
        self._state = HostState()
        self._renamed: set[str] = set()  # interfaces whose links were given other names
        self._unsettled: set[str] = set()  # interfaces whose links or routes could not all be made right
        self._uncut: set[tuple[int, int]] = set()  # addresses: family, value
        self._is_complete = False
        self._is_alone = False
        self._families = (4, 6) if options.is_ipv6_enabled else (4,)
        self._down = Down() if down is None else down
        self._claims = Claims(self._down)
        self._route_socket = RouteSocket(namespace_fd, options.netlink_timeout_s)
        self._link_table = LinkTable()
        self._routes = WorkloadRoutes(
            self._route_socket,
            prefixes=options.interface_prefixes,
            protocol=options.route_protocol,
            makes_routes=options.makes_routes,
            sources=options.route_sources,
        )
        self._conntrack = Conntrack(namespace_fd, options.netlink_timeout_s)
        self._cutting = Timing()
        self._denied = DeniedPackets(options.denied_group, Origins() if origins is None else origins, namespace_fd)
        self._prefixes, self._address_poll_s = options.interface_prefixes, options.address_poll_s
        opens_loopback = options.metadata is not None and contains(LOOPBACK, options.metadata[0])
        self._links = WorkloadLinks(
            self._route_socket,
            namespace_fd,
            opens_loopback=opens_loopback,
            has_ipv6=options.is_ipv6_enabled,
            makes_router=options.makes_router,
        )
        self._wiring = VethWiring(
            namespace_fd,
            interface_prefixes=self._prefixes,
            opens_loopback=opens_loopback,
            on_settings=self._links.was_set,
        )

    def ensure_closed(self) -> None:
        run_in(self._namespace_fd, lambda: sysctl.apply(STRICT_FROM_THE_START))
        try:
            is_closed = self._other_kind_stands()
        except DataplaneError as error:  # who cannot tell closes
            log.warning("dataplane.other_kind_unknown", error=str(error))
            is_closed = False
        if not is_closed:
            self._policy.ensure_closed()

    def apply(self, changes: HostChanges) -> ApplyReport:
        if not self._is_complete and not changes.is_complete:
            raise InvalidRequest("is_complete", "the first batch must carry the whole state")
        started = time.perf_counter()
        moved, kept = self._take_in(changes)
        rivals = self._judge_rivals()
        moved |= rivals
        # what goes loses its routes while its rules still stand
        going = self._leave(self._want(moved))
        policy_started = time.perf_counter()
        table = self._policy.follow(self._with_those_of(rivals, changes), self._state)
        self._uncut |= table.lost
        policy_done = time.perf_counter()
        self._want(kept - rivals)
        if changes.is_complete:
            links, coming = self._links.resync(), self._routes.resync()
        else:
            links, coming = self._follow_links((*moved, *kept))
        failures = (*self._cut(table), *self._take_over(table))
        done = time.perf_counter()
        report = self._report(table, links, [going, coming], failures)
        tell = log.info if report.changes or report.failures else log.debug
        tell(
            "dataplane.applied",
            changes=report.changes,
            failures=len(report.failures),
            path=table.path,
            policy_ms=round((policy_done - policy_started) * 1000, 3),
            total_ms=round((done - started) * 1000, 3),
        )
        return report

    def resync(self) -> ApplyReport:
        if not self._is_complete:
            return ApplyReport()
        self._pass_on()
        table = self._policy.resync()
        links = self._links.resync()
        routes = self._routes.resync()
        report = self._report(table, links, [routes], self._cut(table))
        healed = (*table.healed, *links.changed, *(f"route {each}" for each in routes.changed))
        return msgspec.structs.replace(report, healed=healed)

    def interface_changed(self, event: InterfaceEvent) -> ApplyReport:
        if not self._is_complete:
            return ApplyReport()
        if event.kind == "resync":
            return self._follow_all_links()
        if not event.name.startswith(self._prefixes) or self._claims.owner(event.name) is None:
            self._renamed.discard(event.name)
            return ApplyReport()
        left, healed = RouteReport(), ""
        if event.kind == "deleted" and (other := self._link_table.name_of(event.index)) not in ("", event.name):
            left = self._routes.leave(event.index)
            self._renamed.add(event.name)
            healed = f"interface {event.name}: it was renamed {other}"
        elif event.kind == "up" and event.name in self._renamed:
            self._renamed.remove(event.name)
            healed = f"interface {event.name}: there is a link of its name again"
        # the kernel removes the routes of a link that goes down; a new link of the name starts without
        self._routes.forget(event.name)
        self._links.forget(event.name)
        table = self._pass_on()
        links, routes = self._follow_links([event.name])
        report = self._report(table, links, [left, routes], self._cut(table) if table is not None else ())
        return msgspec.structs.replace(report, healed=(healed,)) if healed else report

    def watch_interfaces(self, callback: Callable[[InterfaceEvent], None]) -> Callable[[], None]:
        from calico_core.dataplane.linux.interfaces import LinkMonitor

        monitor = LinkMonitor(callback, namespace_fd=self._namespace_fd, table=self._link_table)
        monitor.start()
        with RouteSocket(self._namespace_fd) as own:
            self._link_table.fill(own.links())

        def stop() -> None:
            monitor.stop()
            self._link_table.lose()

        return stop

    def watch_addresses(self, callback: Callable[[str, frozenset[IPAddress] | None], None]) -> Callable[[], None]:
        from calico_core.dataplane.linux.addresses import AddressMonitor

        monitor = AddressMonitor(
            callback, prefixes=self._prefixes, namespace_fd=self._namespace_fd, poll_s=self._address_poll_s
        )
        monitor.start()
        return monitor.stop

    def wiring(self) -> WorkloadWiring:
        return self._wiring

    def watch_denied(self, callback: Callable[[DeniedPacket], None]) -> Callable[[], None]:
        return self._denied.watch(callback)

    def figures(self) -> tuple[Figure, ...]:
        cutting = timing_figures("route_table_conntrack_wait_seconds", self._cutting)
        return (*self._policy.figures(), *self._routes.figures(), *cutting)

    def wanted(self) -> HostState:
        return self._state.copy()

    def interfaces_down(self) -> frozenset[str]:
        return self._down.names

    def connections(self) -> tuple[Connection, ...]:
        with contextlib.closing(Conntrack(self._namespace_fd)) as table:
            return tuple(table.list())

    def cut(self, connections: Iterable[Connection]) -> int:
        with contextlib.closing(Conntrack(self._namespace_fd)) as table:
            return table.cut(connections)

    def purge(self) -> None:
        self._policy.purge()
        self._routes.want_nothing()
        self._links.want_nothing(self._prefixes)
        failures = self._routes.resync().failures
        self._state, self._is_complete = HostState(), False
        self._claims.clear()
        self._down.tell(())
        self._renamed.clear()
        if failures:
            reasons = "; ".join(f"{each.subject}: {each.reason}" for each in failures)
            raise KernelRefused("remove routes", errno.EBUSY, reasons)

    def close(self) -> None:
        self._denied.close()
        self._policy.close()
        self._route_socket.close()
        self._conntrack.close()
        self._wiring.close()

    # --- state ------------------------------------------------------------------------------------

    def _take_in(self, changes: HostChanges) -> tuple[set[str], set[str]]:
        """Update the state; gives the interfaces that someone else has now or that have other addresses, and those
        with other policy alone: nothing that policy must wait for."""
        self._state.update(changes)
        self._is_complete = True
        moved: set[str] = set()
        kept: set[str] = set()
        if changes.is_complete:
            moved |= self._claims.interfaces()
            self._claims.clear()
        for workload in changes.workloads:
            concerned = kept if self._claims.keep(workload) else moved
            concerned |= self._claims.put(workload)
        for key in changes.removed_workloads:
            moved |= self._claims.remove(key)
        return moved, kept - moved

    def _judge_rivals(self) -> set[str]:
        """Look which interfaces of those are up whose workloads claim an address of each other. Gives them all if that
        is another than before."""
        names = sorted(self._claims.rivals())
        try:
            links = self._find_links(names) if names else {}
        except KernelRefused as error:
            log.warning("dataplane.rivals_unknown", error=str(error))
            return set()
        # by the carrier: the kernel takes its time to call a link operational
        down = {name for name in names if (link := links.get(name)) is None or not (link.is_up and link.has_carrier)}
        return set(names) if self._down.tell(down) else set()

    def _with_those_of(self, interfaces: set[str], changes: HostChanges) -> HostChanges:
        """The batch with the workloads that claim these as well, so that policy places them anew."""
        if not interfaces or changes.is_complete:
            return changes
        keys = {key for interface in interfaces for key in self._claims.keys(interface)}
        keys.difference_update(each.key for each in changes.workloads)
        more = (self._state.workloads[key] for key in sorted(keys, key=lambda key: key.path))
        return msgspec.structs.replace(changes, workloads=(*changes.workloads, *more))

    def _pass_on(self) -> TableReport | None:
        """Addresses that several claim go to the first of them whose interface is up; routes follow with the next look
        at links. None: they have whoever had them."""
        rivals = self._judge_rivals()
        if not rivals:
            return None
        self._want(rivals)
        self._unsettled |= rivals
        table = self._policy.follow(self._with_those_of(rivals, HostChanges()), self._state)
        self._uncut |= table.lost
        log.info("dataplane.addresses_passed_on", down=sorted(self._down.names), changes=table.changes)
        return table

    def _want(self, interfaces: Iterable[str]) -> list[str]:
        """What they shall have of links and routes; gives those that shall have none. No others than workloads'."""
        leaving: list[str] = []
        for interface in sorted(each for each in interfaces if each.startswith(self._prefixes)):
            networks = self._claims.networks(interface)
            if not networks:
                leaving.append(interface)
            self._routes.want(interface, tuple(net for net in networks if net.version in self._families))
            self._links.want(interface, self._claims.owner(interface))
        return leaving

    def _leave(self, interfaces: list[str]) -> RouteReport:
        """Take the routes of interfaces that shall have none."""
        if not interfaces:
            return RouteReport()
        try:
            return self._routes.sync(interfaces, self._find_links(interfaces))
        except KernelRefused as error:
            return RouteReport(failures=(Failure("interfaces", str(error)),))

    def _find_links(self, names: list[str]) -> dict[str, Link]:
        """From the events, while somebody watches them."""
        table = self._link_table
        return table.find(names) if table.is_filled else self._route_socket.find_links(names)

    def _follow_links(self, interfaces: Iterable[str]) -> tuple[LinkReport, RouteReport]:
        """What depends on links, of these interfaces and those that failed before."""
        names = sorted({*interfaces, *self._unsettled})
        if not names:
            return LinkReport(), RouteReport()
        try:
            found = self._find_links(names)
        except KernelRefused as error:
            links, routes = LinkReport(failures=(Failure("interfaces", str(error)),)), RouteReport()
        else:
            links, routes = self._links.sync(names, found), self._routes.sync(names, found)
        self._unsettled = set(names) if links.failures or routes.failures else set()
        return links, routes

    def _follow_all_links(self) -> ApplyReport:
        """Events were lost. If this does not come to its end, the next apply looks at all of them."""
        self._unsettled |= self._claims.interfaces()
        for name in self._unsettled:
            self._routes.forget(name)
            self._links.forget(name)
        self._link_table.fill(self._route_socket.links())
        table = self._pass_on()
        links, routes = self._links.resync(), self._routes.resync()
        if not links.failures and not routes.failures:
            self._unsettled.clear()
        return self._report(table, links, [routes], self._cut(table) if table is not None else ())

    def _take_over(self, table: TableReport) -> tuple[Failure, ...]:
        """Once policy of ours is in force, what a dataplane of another kind left is removed."""
        if self._is_alone or any(is_whole_policy(each.subject) for each in table.failures):
            return ()
        try:
            self._remove_other_kinds()
        except DataplaneError as error:
            log.warning("dataplane.other_kind_stays", error=str(error))
            return (Failure("policy of another kind of dataplane", str(error)),)
        self._is_alone = True
        return ()

    def _other_kind_stands(self) -> bool:
        """Whether policy of ours by a driver of another kind closes this host while there is none by this one; a
        driver that knows of some overrides it.

        :raises DataplaneError: it cannot be told.
        """
        return False

    def _remove_other_kinds(self) -> None:
        """Policy of ours that drivers of other kinds left on this host; a driver that knows of some overrides it.

        :raises DataplaneError: some of it stays.
        """

    def _cut(self, table: TableReport) -> tuple[Failure, ...]:
        """Forget the connections of addresses that an interface lost, also of those the kernel would not before."""
        self._uncut |= table.lost
        if not self._uncut:
            return ()
        addresses = [IPAddress(value, 4 if family == 4 else 6) for family, value in sorted(self._uncut)]
        try:
            with self._cutting.measure():
                self._conntrack.flush(addresses)
        except KernelRefused as error:
            log.warning("conntrack.not_flushed", addresses=[str(each) for each in addresses], error=str(error))
            return (Failure("conntrack", str(error)),)
        self._uncut.clear()
        log.debug("conntrack.flushed", addresses=[str(each) for each in addresses])
        return ()

    def _report(
        self,
        table: TableReport | None,
        links: LinkReport,
        routes: Iterable[RouteReport],
        failures: tuple[Failure, ...],
    ) -> ApplyReport:
        changes = len(links.changed) + (table.changes if table is not None else 0)
        losers = () if table is None else self._claims.losers()
        found = [*links.failures]
        if table is not None:
            found += table.failures
        missing: set[WorkloadEndpointKey] = set()
        for report in routes:
            changes += len(report.changed)
            found += report.failures
            for interface in report.without_link:
                missing |= self._claims.keys(interface)
        return ApplyReport(
            changes=changes,
            failures=(*found, *failures),
            losers=tuple(Failure(workload.key.path, reason) for workload, reason in losers),
            endpoints_without_link=tuple(sorted(missing, key=lambda key: key.path)),
        )
