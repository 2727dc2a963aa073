"""What the host's ends of workloads' interfaces need besides routes: sysctls, a neighbour entry for each IPv4 address,
and a proxy entry for the gateway of IPv6 that a record names.

An end we know to be right costs nothing; all are looked at again at a resync. Source: felix specification 6.9.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.linux import sysctl
from calico_core.dataplane.linux.address_messages import (
    NTF_PROXY,
    NUD_PERMANENT,
    delete_neighbour,
    delete_proxy,
    set_neighbour,
    set_proxy,
)
from calico_core.dataplane.linux.link_pair import is_host_end
from calico_core.dataplane.linux.netns import run_in
from calico_core.dataplane.linux.prefix import AF_INET, AF_INET6, host_prefix
from calico_core.dataplane.linux.workload_sysctls import host_end, source_check
from calico_core.errors import KernelRefused
from calico_core.interfaces.dataplane import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from calico_core.dataplane.linux.address_messages import Neighbour
    from calico_core.dataplane.linux.link_messages import Link
    from calico_core.dataplane.linux.prefix import Prefix
    from calico_core.dataplane.linux.rtnetlink import RouteSocket
    from calico_core.dataplane.linux.sysctl import Setting
    from calico_core.model.hoststate import HostWorkload

#: New interfaces check sources strictly from their first packet on.
STRICT_FROM_THE_START = (sysctl.Setting("ipv4/conf/default/rp_filter", "1", is_vital=False),)
_GONE = (errno.ENODEV, errno.ENOENT, errno.ENETDOWN, errno.ENXIO)


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """``changed``: what was set, in words."""

    changed: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()


class _Wanted(msgspec.Struct, frozen=True):
    """``neighbours``: with their MACs; those of IPv6 are proxy entries and have none."""

    settings: tuple[Setting, ...]
    neighbours: frozenset[tuple[Prefix, bytes]]


class WorkloadLinks:
    """One thread, but for :meth:`was_set`; the socket is the caller's."""

    def __init__(
        self,
        socket: RouteSocket,
        namespace_fd: int | None,
        *,
        opens_loopback: bool,
        has_ipv6: bool,
        makes_router: bool = True,
    ) -> None:
        self._socket, self._namespace_fd = socket, namespace_fd
        self._of_the_host = STRICT_FROM_THE_START + (forwarding(has_ipv6=has_ipv6) if makes_router else ())
        self._opens_loopback, self._has_ipv6 = opens_loopback, has_ipv6
        self._wanted: dict[str, _Wanted] = {}
        self._done: dict[str, _Wanted] = {}
        # by name, with the link's index: what was written to that very link
        self._settings: dict[str, tuple[int, tuple[Setting, ...]]] = {}
        self._neighbours: dict[str, tuple[int, frozenset[tuple[Prefix, bytes]]]] = {}

    def want(self, interface: str, workload: HostWorkload | None) -> None:
        """What the interface shall have from the next :meth:`sync` on; None or inactive: nothing of ours."""
        if workload is None or not workload.is_active:
            self._wanted.pop(interface, None)
            return
        v4 = [net for net in workload.nets if net.version == 4]
        has_v6 = self._has_ipv6 and any(net.version == 6 for net in workload.nets)
        has_prefixes = any(net.version == 4 for net in workload.allowed_source_prefixes)
        mac = b"" if workload.mac is None else int(workload.mac).to_bytes(6, "big")
        neighbours = [(host_prefix(net.ip), mac) for net in v4 if mac and net.prefixlen == 32]
        if has_v6 and workload.ipv6_gateway is not None:
            neighbours.append((host_prefix(workload.ipv6_gateway), b""))
        self._wanted[interface] = _Wanted(
            host_end(
                interface,
                has_v4=bool(v4) or has_prefixes,
                has_v6=has_v6,
                opens_loopback=self._opens_loopback,
                has_prefixes=has_prefixes,
            ),
            frozenset(neighbours),
        )

    def want_nothing(self, prefixes: tuple[str, ...]) -> None:
        """As policy goes, the kernel checks sources again on all links whose names begin so, and on ends of pairs of
        ours that are called otherwise, whoever told it not to."""
        self._wanted.clear()
        names = [link.name for link in self._socket.links() if link.name.startswith(prefixes) or is_host_end(link)]
        run_in(self._namespace_fd, lambda: _check_sources(names))

    def was_set(self, interface: str, index: int, settings: tuple[Setting, ...]) -> None:
        """The wiring has written these. Any thread."""
        self._settings[interface] = (index, settings)

    def forget(self, interface: str) -> None:
        """The link went or came again, and its neighbours with it. Sysctls stay with a link until it is deleted."""
        self._done.pop(interface, None)

    def sync(self, interfaces: Iterable[str], links: Mapping[str, Link]) -> LinkReport:
        """Make these right, relying on what we know of them. ``links``: those of them that are there."""
        changed: list[str] = []
        failures: list[Failure] = []
        for name in interfaces:
            if self._wanted.get(name) == self._done.get(name):
                continue
            link = links.get(name)
            if link is not None and link.is_up:
                self._try_to_align(link, None, changed, failures)
            else:
                self._lose(name, is_deleted=link is None)
        return LinkReport(changed=tuple(changed), failures=tuple(failures))

    def resync(self) -> LinkReport:
        """Look at all of them, and at the host's own sysctls, trusting nothing."""
        changed: list[str] = []
        failures: list[Failure] = []
        self._apply(self._of_the_host, changed, failures)
        try:
            links = {link.name: link for link in self._socket.links()}
            known = self._list_neighbours()
        except KernelRefused as error:
            failures.append(Failure("interfaces", str(error)))
            return LinkReport(changed=tuple(changed), failures=tuple(failures))
        for name in sorted({*self._wanted, *self._done}):
            link = links.get(name)
            if link is not None and link.is_up:
                self._try_to_align(link, known.get(link.index, {}), changed, failures)
            else:
                self._lose(name, is_deleted=link is None)
        return LinkReport(changed=tuple(changed), failures=tuple(failures))

    def _lose(self, name: str, *, is_deleted: bool) -> None:
        self.forget(name)
        if is_deleted:
            self._settings.pop(name, None)
            self._neighbours.pop(name, None)

    def _try_to_align(
        self, link: Link, known: dict[Prefix, Neighbour] | None, changed: list[str], failures: list[Failure]
    ) -> None:
        """As :meth:`_align`. What failed is not done, and one link that does not answer holds up no other."""
        failed_before = len(failures)
        try:
            self._align(link, known, changed, failures)
        except KernelRefused as error:
            failures.append(Failure(f"interface {link.name}", str(error)))
        if len(failures) > failed_before:
            self.forget(link.name)

    def _align(
        self, link: Link, known: dict[Prefix, Neighbour] | None, changed: list[str], failures: list[Failure]
    ) -> None:
        """``known``: its neighbours; None: trust what we know of it."""
        wanted = self._wanted.get(link.name) or self._unwanted(link.name)
        settings = (link.index, wanted.settings)
        if (known is not None or self._settings.get(link.name) != settings) and self._apply(
            wanted.settings, changed, failures
        ):
            self._settings[link.name] = settings
        macs = dict(wanted.neighbours)
        if known is None:
            index, before = self._neighbours.get(link.name, (0, frozenset()))
            wrong = sorted(macs)
            surplus = {address for address, _ in before} - macs.keys() if index == link.index else set()
        else:
            standing = {each: entry.mac for each, entry in known.items() if _is_lasting(entry)}
            wrong = [address for address, mac in sorted(macs.items()) if standing.get(address) != mac]
            # on a workload's interface nobody else makes lasting ones
            surplus = standing.keys() - macs.keys()
        requests = [
            set_neighbour(link.index, each, macs[each]) if macs[each] else set_proxy(link.index, each) for each in wrong
        ]
        requests += [
            (delete_proxy if each.family == AF_INET6 else delete_neighbour)(link.index, each)
            for each in sorted(surplus)
        ]
        for request, outcome in zip(requests, self._socket.attempt(requests), strict=True):
            if outcome.error is None:
                changed.append(request.operation.removeprefix("set "))
            elif outcome.error.errno not in _GONE:
                failures.append(Failure(request.operation, str(outcome.error)))
        self._neighbours[link.name] = (link.index, wanted.neighbours)
        if link.name in self._wanted:
            self._done[link.name] = wanted
        else:
            self._lose(link.name, is_deleted=True)

    def _unwanted(self, name: str) -> _Wanted:
        """Nothing of ours, but that the kernel checks again what policy has checked alone."""
        done = self._done.get(name)
        is_loose = done is not None and source_check(name, is_strict=False) in done.settings
        return _Wanted((source_check(name, is_strict=True),) if is_loose else (), frozenset())

    def _apply(self, settings: tuple[Setting, ...], changed: list[str], failures: list[Failure]) -> bool:
        """Whether all of them are right now."""
        is_right = True
        for setting, error in run_in(self._namespace_fd, lambda: _set(settings)):
            if error is None:
                changed.append(f"sysctl {setting.path}")
                continue
            is_right = False
            if setting.is_vital and error.errno not in _GONE:
                failures.append(Failure(f"sysctl {setting.path}", str(error)))
        return is_right

    def _list_neighbours(self) -> dict[int, dict[Prefix, Neighbour]]:
        """IPv4 neighbours and proxy entries of IPv6, by the index of their interface."""
        found: dict[int, dict[Prefix, Neighbour]] = {}
        neighbours = (each for each in self._socket.neighbours() if each.address.family == AF_INET)
        for each in (*neighbours, *self._socket.proxies(AF_INET6)):
            found.setdefault(each.index, {})[each.address] = each
        return found


def forwarding(*, has_ipv6: bool) -> tuple[Setting, ...]:
    """What makes the host a router. IPv6 only where the kernel speaks it."""
    settings = [sysctl.Setting("ipv4/ip_forward", "1")]
    if has_ipv6 and sysctl.has_ipv6():
        settings.append(sysctl.Setting("ipv6/conf/all/forwarding", "1"))
    return tuple(settings)


def _is_lasting(entry: Neighbour) -> bool:
    return entry.state == NUD_PERMANENT or bool(entry.flags & NTF_PROXY)


def _set(settings: tuple[Setting, ...]) -> list[tuple[Setting, KernelRefused | None]]:
    """Write what is not so; each that was written, or why it could not be."""
    outcomes: list[tuple[Setting, KernelRefused | None]] = []
    for setting in settings:
        try:
            if sysctl.find(setting.path) == setting.value:
                continue
            sysctl.write(setting.path, setting.value)
            outcomes.append((setting, None))
        except KernelRefused as error:
            outcomes.append((setting, error))
    return outcomes


def _check_sources(interfaces: Iterable[str]) -> None:
    for interface in interfaces:
        loose, strict = source_check(interface, is_strict=False), source_check(interface, is_strict=True)
        with contextlib.suppress(KernelRefused):  # the link went
            if sysctl.find(loose.path) == loose.value:
                sysctl.write(strict.path, strict.value)
