"""Deleting links without waiting for what nobody needs.

A deletion takes a link out of its namespace within a millisecond: it has no name, no addresses and no routes any
more. Then the kernel keeps the sender for another 10 to 30 ms, until its last reader (RCU) has let go of the memory,
however many links the request names. So what is known to go together travels as a link group in one request, and
whoever deletes one link goes on at the kernel's word that it is gone, while a thread of ours sits out the rest.
"""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.link_messages import delete_group, delete_link, set_link
from calico_core.dataplane.linux.parting import Parting

if TYPE_CHECKING:
    from collections.abc import Collection

    from calico_core.dataplane.linux.rtnetlink import RouteSocket, RouteSockets
    from calico_core.errors import KernelRefused

#: Links on their way out: ``cali`` in ASCII, a group number nobody else has a reason to use.
DOOMED_GROUP = 0x63616C69
_SENDERS = 128  # as many as there are calls at once


def delete_links(route_socket: RouteSocket, names: Collection[str]) -> None:
    """Delete links by name, one wait in all. Those already gone are success.

    :raises KernelRefused: of the first link that cannot be deleted; the others are gone.
    """
    unique = sorted(set(names))
    if not unique:
        return
    if len(unique) == 1:
        _tolerate_gone(route_socket.attempt([delete_link(unique[0])])[0].error)
        return
    marked = route_socket.attempt([set_link(name, group=DOOMED_GROUP) for name in unique])
    if any(outcome.error is None for outcome in marked):
        _tolerate_gone(route_socket.attempt([delete_group(DOOMED_GROUP)])[0].error)
    for outcome in marked:
        _tolerate_gone(outcome.error)


def _tolerate_gone(error: KernelRefused | None) -> None:
    # ENODEV also when another process deleted our group in between
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
