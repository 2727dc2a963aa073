"""The address monitor: tells which addresses each interface of the host has, now and whenever they change."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from netaddr import IPAddress

from calico_core.dataplane.linux.interfaces import LinkMonitor
from calico_core.dataplane.linux.netns import run_in
from calico_core.dataplane.linux.prefix import AF_INET
from calico_core.dataplane.linux.rtnetlink import RouteSockets
from calico_core.errors import DataplaneError, KernelRefused
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from calico_core.dataplane.linux.address_messages import InterfaceAddress
    from calico_core.dataplane.linux.prefix import Prefix
    from calico_core.model.workloads import InterfaceEvent

    AddressesCallback = Callable[[str, frozenset[IPAddress] | None], None]

log = get_logger(__name__)


class AddressMonitor:
    """Calls back with an interface's name and all its addresses, None when it is gone; for each interface first from
    :meth:`start`, later from the monitor's thread, and only when something is different. Interfaces whose name starts
    with one of ``prefixes`` are left out.

    It lists at the start and when the kernel has dropped events; else it follows the events alone, however many links
    there are. Each ``poll_s`` seconds (0: not) it compares, in case that an event did not come for another reason."""

    def __init__(
        self,
        callback: AddressesCallback,
        *,
        prefixes: tuple[str, ...],
        namespace_fd: int | None = None,
        poll_s: float = 0.0,
    ) -> None:
        self._callback, self._prefixes = callback, prefixes
        self._lock = threading.RLock()
        self._told: dict[str, frozenset[IPAddress]] = {}
        self._names: dict[int, str] = {}
        self._addresses: dict[int, set[Prefix]] = {}
        self._namespace_fd = namespace_fd
        self._sockets = RouteSockets(namespace_fd)
        self._monitor = LinkMonitor(
            self._link_changed,
            namespace_fd=namespace_fd,
            on_address=self._address_changed,
            on_period=self._compare,
            period_s=poll_s,
        )

    def start(self) -> None:
        """The subscription stands before anything is listed: nothing is missed in between."""
        self._monitor.start()
        self._look()

    def stop(self) -> None:
        """Safe to repeat."""
        self._monitor.stop()
        self._sockets.close()

    # --- the monitor's thread --------------------------------------------------------------------------------

    def _link_changed(self, event: InterfaceEvent) -> None:
        if event.kind == "resync":
            self._look()
            return
        with self._lock:
            before = self._names.get(event.index)
            is_gone = event.kind == "deleted"
            if before is not None and (before == event.name) is is_gone:
                del self._names[event.index], self._addresses[event.index]
                self._tell(before, None)
                before = None
            if before is None and not is_gone and not event.name.startswith(self._prefixes):
                self._names[event.index] = event.name
                # one that was renamed brings its addresses
                addresses = self._addresses[event.index] = self._list_one(event.index)
                self._tell(event.name, addresses)

    def _address_changed(self, address: InterfaceAddress, is_there: bool) -> None:
        with self._lock:
            # a link is told before its addresses: an index we do not know is a workload's
            known = self._addresses.get(address.index)
            if known is None:
                return
            change = known.add if is_there else known.discard
            change(address.prefix)
            self._tell(self._names[address.index], known)

    def _compare(self) -> None:
        """Names of all links, which are cheap to read, and the addresses of those that are no workload's. Listing all
        links and addresses takes ten times as long, and workloads have nearly all of them."""
        try:
            names = {name for name in run_in(self._namespace_fd, _link_names) if not name.startswith(self._prefixes)}
            with self._lock, self._sockets.borrow() as socket:
                if names == {*self._names.values()}:
                    for index, name in tuple(self._names.items()):
                        addresses = self._addresses[index] = {each.prefix for each in socket.addresses(index)}
                        self._tell(name, addresses)
                    return
        except (DataplaneError, OSError) as error:  # an index may be another link's now
            log.debug("addresses.not_compared", error=str(error))
        self._look()

    # --- both ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        with self._lock, self._sockets.borrow() as socket:
            try:
                names = {link.index: link.name for link in socket.links() if not link.name.startswith(self._prefixes)}
                addresses: dict[int, set[Prefix]] = {index: set() for index in names}
                for each in socket.addresses():
                    if each.index in addresses:
                        addresses[each.index].add(each.prefix)
            except KernelRefused as error:
                log.warning("addresses.not_listed", error=str(error))
                return
            self._names, self._addresses = names, addresses
            for name in self._told.keys() - set(names.values()):
                self._tell(name, None)
            for index, name in names.items():
                self._tell(name, addresses[index])

    def _list_one(self, index: int) -> set[Prefix]:
        with self._sockets.borrow() as socket:
            try:
                return {each.prefix for each in socket.addresses(index)}
            except KernelRefused:  # gone again, which the next event says
                return set()

    def _tell(self, name: str, prefixes: set[Prefix] | None) -> None:
        """Unless it was told so."""
        addresses = frozenset(map(_ip, prefixes)) if prefixes is not None else None
        if self._told.get(name) == addresses:
            return
        if addresses is None:
            del self._told[name]
        else:
            self._told[name] = addresses
        self._callback(name, addresses)


def _link_names() -> list[str]:
    """Of the thread's network namespace. Source: proc(5), /proc/net/dev."""
    with open("/proc/thread-self/net/dev", encoding="utf-8", errors="surrogateescape") as file:
        return [line.partition(":")[0].strip() for line in file.readlines()[2:]]


def _ip(prefix: Prefix) -> IPAddress:
    return IPAddress(int.from_bytes(prefix.address, "big"), 4 if prefix.family == AF_INET else 6)
