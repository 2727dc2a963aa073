"""Deleting links. The kernel waits 15–30 ms for each deletion request, however many links it names, so deletions
that arrive together travel together: as a link group in one request."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.link_messages import delete_group, delete_link, set_link
from calico_core.errors import CalicoError, KernelRefused

if TYPE_CHECKING:
    from collections.abc import Collection

    from calico_core.dataplane.linux.rtnetlink import RouteSocket, RouteSockets

#: Links on their way out: ``cali`` in ASCII, a group number nobody else has a reason to use.
DOOMED_GROUP = 0x63616C69
_WAIT_S = 60.0


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
    """Coalesces deletions of many threads: while one waits in the kernel, the others' names gather for the next.

    No lock is held during the kernel's wait, so attaches go on.
    """

    def __init__(self, sockets: RouteSockets) -> None:
        self._sockets = sockets
        self._changed = threading.Condition()
        self._queue: list[_Ticket] = []
        self._is_busy = False

    def delete(self, *names: str) -> None:
        """Returns when the links are gone. Errors as :func:`delete_links`, to everyone of the batch."""
        ticket = _Ticket(names)
        with self._changed:
            self._queue.append(ticket)
            if not self._changed.wait_for(lambda: ticket.is_done or not self._is_busy, timeout=_WAIT_S):
                self._queue = [each for each in self._queue if each is not ticket]
                raise KernelRefused(f"delete links {', '.join(names)}", errno.ETIMEDOUT)
            if not ticket.is_done:
                batch, self._queue, self._is_busy = self._queue, [], True
            else:
                batch = []
        if batch:
            self._delete_batch(batch)
        if ticket.error is not None:
            raise ticket.error

    def _delete_batch(self, batch: list[_Ticket]) -> None:
        failure: CalicoError | None = KernelRefused("delete links", errno.EINTR)
        try:
            with self._sockets.borrow() as route_socket:
                delete_links(route_socket, {name for ticket in batch for name in ticket.names})
            failure = None
        except CalicoError as error:
            failure = error
        finally:
            with self._changed:
                for ticket in batch:
                    ticket.error, ticket.is_done = failure, True
                self._is_busy = False
                self._changed.notify_all()


class _Ticket:
    __slots__ = ("error", "is_done", "names")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.error: CalicoError | None = None
        self.is_done = False
