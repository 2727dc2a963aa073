"""Deleting links without waiting for what nobody needs.

A deletion takes a link out of its namespace within a millisecond: it has no name, no addresses and no routes any
more. Then the kernel keeps the sender for another 10 to 30 ms, until its last reader (RCU) has let go of the memory.
So whoever deletes a link goes on at the kernel's word that it is gone, while a thread of ours sits out the rest.
"""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.link_messages import delete_link
from calico_core.dataplane.linux.parting import Parting

if TYPE_CHECKING:
    from calico_core.dataplane.linux.rtnetlink import RouteSocket, RouteSockets
    from calico_core.errors import KernelRefused

_SENDERS = 128  # as many as there are calls at once


def _tolerate_gone(error: KernelRefused | None) -> None:
    if error is not None and error.errno != errno.ENODEV:
        raise error


class LinkReaper:
    """Deletes links for callers in many threads, none of whom waits for another or for the kernel's memory."""

    def __init__(self, sockets: RouteSockets) -> None:
        self._sockets = sockets
        self._senders = ThreadPoolExecutor(max_workers=_SENDERS, thread_name_prefix="reaper")

    def close(self) -> None:
        """Returns when the kernel is done with everything that was deleted."""
        self._senders.shutdown(wait=True)

    def delete(self, name: str) -> None:
        """Returns when the link is gone; already gone is success.

        Kernels before 6.2 do not say when that is, and are waited for to the end.

        :raises KernelRefused: it cannot be deleted.
        """
        route_socket = self._sockets.take()
        parting = Parting(route_socket, delete_link(name))
        self._senders.submit(self._send, route_socket, parting)
        _tolerate_gone(parting.wait())

    def _send(self, route_socket: RouteSocket, parting: Parting) -> None:
        if parting.send():
            self._sockets.give_back(route_socket)
        else:
            route_socket.close()
