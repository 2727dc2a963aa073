"""The link monitor: a thread that tells when interfaces of a namespace come, go and change state.

Events only say "look again". Who starts a monitor and then lists the links misses nothing: the subscription stands
before :meth:`LinkMonitor.start` returns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.address_messages import RTM_DELADDR, RTM_NEWADDR, parse_address
from calico_core.dataplane.linux.link_messages import (
    RTM_DELLINK,
    RTM_NEWLINK,
    parse_link,
)
from calico_core.dataplane.linux.netlink import NETLINK_ROUTE, parse_messages
from calico_core.dataplane.linux.netns import socket_in
from calico_core.dataplane.linux.route_messages import RTM_DELROUTE, RTM_NEWROUTE, parse_route
from calico_core.errors import KernelRefused
from calico_core.log import get_logger
from calico_core.model.workloads import InterfaceEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from calico_core.dataplane.linux.address_messages import InterfaceAddress
    from calico_core.dataplane.linux.link_messages import Link
    from calico_core.dataplane.linux.link_table import LinkTable
    from calico_core.dataplane.linux.route_messages import Route

    #: The value and whether it is there now (false: it went).
    AddressCallback = Callable[[InterfaceAddress, bool], None]
    RouteCallback = Callable[[Route, bool], None]

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_RECEIVE_BUFFER_BYTES = 4 << 20
_STOP_WAIT_S = 5.0

log = get_logger(__name__)


class LinkMonitor:
    """Calls back from its own thread with frozen values, for links with :class:`InterfaceEvent`.

    An event is sent when a link's name, flags or operational state changed since the last one. ``resync`` means that
    the kernel dropped events: list everything again. Addresses and routes are watched when callbacks are given.
    ``table`` follows the links, ahead of the callback; whoever starts the monitor fills it, and again after a
    ``resync``.
    """

    def __init__(
        self,
        callback: Callable[[InterfaceEvent], None],
        *,
        namespace_fd: int | None = None,
        on_address: AddressCallback | None = None,
        on_route: RouteCallback | None = None,
        table: LinkTable | None = None,
        on_period: Callable[[], None] | None = None,
        period_s: float = 0.0,
        receive_buffer_bytes: int = _RECEIVE_BUFFER_BYTES,
    ) -> None:
        """``on_period`` is called from the same thread each ``period_s`` seconds, 0: never."""
        self._callback, self._on_address, self._on_route = callback, on_address, on_route
        self._table = table
        self._on_period, self._period_s = on_period, period_s if on_period is not None else 0.0
        self._known: dict[int, tuple[str, int, bool]] = {}
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="link-monitor", daemon=True)
        self._socket = socket_in(namespace_fd, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
        # beyond rmem_max needs CAP_NET_ADMIN, which we have where this matters
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer_bytes)

    def start(self) -> None:
        groups = RTMGRP_LINK
        if self._on_address is not None:
            groups |= RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
        if self._on_route is not None:
            groups |= RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE
        try:
            self._socket.bind((0, groups))
        except OSError as error:
            raise KernelRefused("subscribe to link events", error.errno or errno.EIO) from error
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread and close the socket. Safe to repeat; from the callback itself it does not wait."""
        if self._stop_fd < 0:
            return
        os.eventfd_write(self._stop_fd, 1)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_STOP_WAIT_S)
        if not self._thread.is_alive():
            self._socket.close()
            os.close(self._stop_fd)
            self._stop_fd = -1

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        period_ends = time.monotonic() + self._period_s
        while True:
            wait_ms = max(0.0, period_ends - time.monotonic()) * 1000 if self._period_s else None
            ready = [descriptor for descriptor, _ in poller.poll(wait_ms)]
            if self._stop_fd in ready:
                return
            if ready:
                self._take()
            if self._on_period is not None and self._period_s and time.monotonic() >= period_ends:
                self._on_period()
                period_ends = time.monotonic() + self._period_s

    def _take(self) -> None:
        try:
            data = self._socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.warning("links.events_lost")
            self._known.clear()
            if self._table is not None:
                self._table.lose()
            self._callback(InterfaceEvent(kind="resync"))
            return
        for kind, _flags, _sequence, body in parse_messages(data):
            # ifinfomsg family: bridges tell of their ports with messages that look like deletions
            if kind in (RTM_NEWLINK, RTM_DELLINK) and body[0] == socket.AF_UNSPEC:
                self._link_changed(parse_link(body), is_deleted=kind == RTM_DELLINK)
            elif kind in (RTM_NEWADDR, RTM_DELADDR) and self._on_address is not None:
                self._on_address(parse_address(body), kind == RTM_NEWADDR)
            elif kind in (RTM_NEWROUTE, RTM_DELROUTE) and self._on_route is not None:
                route = parse_route(body)
                if route is not None:
                    self._on_route(route, kind == RTM_NEWROUTE)

    def _link_changed(self, link: Link, *, is_deleted: bool) -> None:
        before = self._known.get(link.index)
        name_before = before[0] if before is not None else ""
        if self._table is not None:
            # of links that were there before any event
            name_before = name_before or self._table.name_of(link.index)
            if is_deleted:
                self._table.remove(link.index)
            else:
                self._table.put(link)
        if is_deleted:
            self._known.pop(link.index, None)
            self._callback(InterfaceEvent(kind="deleted", name=link.name, index=link.index))
            return
        now = (link.name, link.flags, link.is_operational)
        if now == before:
            return
        self._known[link.index] = now
        if name_before not in ("", link.name):
            self._callback(InterfaceEvent(kind="deleted", name=name_before, index=link.index))
        self._callback(InterfaceEvent(kind="up" if now[2] else "down", name=link.name, index=link.index))
