"""The address monitor: tells which addresses each interface of the host has, now and whenever they change."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from netaddr import IPAddress

from calico_core.dataplane.linux.interfaces import LinkMonitor
from calico_core.dataplane.linux.prefix import AF_INET
from calico_core.dataplane.linux.rtnetlink import RouteSockets
from calico_core.errors import KernelRefused
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from calico_core.dataplane.linux.address_messages import InterfaceAddress
    from calico_core.model.workloads import InterfaceEvent

    AddressesCallback = Callable[[str, frozenset[IPAddress] | None], None]

log = get_logger(__name__)


class AddressMonitor:
    """Calls back with an interface's name and all its addresses, None when it is gone; for each interface first from
    :meth:`start`, later from the monitor's thread, and only when something is different. Interfaces whose name starts
    with ``prefix`` are left out."""

    def __init__(self, callback: AddressesCallback, *, prefix: str, namespace_fd: int | None = None) -> None:
        self._callback, self._prefix = callback, prefix
        self._lock = threading.RLock()
        self._told: dict[str, frozenset[IPAddress]] = {}
        self._indexes: frozenset[int] = frozenset()
        self._sockets = RouteSockets(namespace_fd)
        self._monitor = LinkMonitor(self._link_changed, namespace_fd=namespace_fd, on_address=self._address_changed)

    def start(self) -> None:
        """The subscription stands before anything is listed: nothing is missed in between."""
        self._monitor.start()
        self._look()

    def stop(self) -> None:
        """Safe to repeat."""
        self._monitor.stop()
        self._sockets.close()

    def _link_changed(self, event: InterfaceEvent) -> None:
        is_workload = event.name.startswith(self._prefix) and event.index not in self._indexes
        if event.kind == "resync" or not is_workload:
            self._look()

    def _address_changed(self, address: InterfaceAddress, is_there: bool) -> None:
        del is_there
        # a link is told before its addresses: an index we do not know is a workload's
        if address.index in self._indexes:
            self._look()

    def _look(self) -> None:
        """List everything and tell what is not as it was told. A host has few interfaces besides its workloads'."""
        with self._lock:
            try:
                found = self._list()
            except KernelRefused as error:
                log.warning("addresses.not_listed", error=str(error))
                return
            before, self._told = self._told, found
            for name in before.keys() - found.keys():
                self._callback(name, None)
            for name, addresses in found.items():
                if before.get(name) != addresses:
                    self._callback(name, addresses)

    def _list(self) -> dict[str, frozenset[IPAddress]]:
        with self._sockets.borrow() as socket:
            names = {link.index: link.name for link in socket.links() if not link.name.startswith(self._prefix)}
            self._indexes = frozenset(names)
            addresses: dict[str, set[IPAddress]] = {name: set() for name in names.values()}
            for each in socket.addresses():
                name = names.get(each.index)
                if name is not None:
                    value = int.from_bytes(each.prefix.address, "big")
                    addresses[name].add(IPAddress(value, 4 if each.prefix.family == AF_INET else 6))
        return {name: frozenset(each) for name, each in addresses.items()}
