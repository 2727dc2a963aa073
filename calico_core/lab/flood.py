"""A one-way flood: how much of it arrives, whatever becomes of answers."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

import msgspec

from calico_core.lab.probes import listener
from calico_core.lab.station import Station, address_of, open_socket
from calico_core.lab.traffic import TrafficThread

_MARK_BYTES = 16
_RECEIVE_BUFFER_BYTES = 8 << 20
_QUIET_MS = 50
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it


class FloodReport(msgspec.Struct, frozen=True, kw_only=True):
    """``arrived`` is what the target's socket got, answers or not; ``refused`` sends failed in the source's kernel."""

    sent: int
    arrived: int
    refused: int
    first_arrival_s: float | None
    last_arrival_s: float | None
    seconds: float


class Flood(TrafficThread):
    """One-way datagrams, never answered: the proof that no forbidden packet passes, or the measure of those that do.

    Unanswered, they stay new to connection tracking, so every one is judged by the policy.
    """

    def __init__(
        self, source: Station, target: Station, *, rate_per_s: float = 1000.0, port: int = 0, ip_version: int = 4
    ) -> None:
        super().__init__(f"flood {source.name}-{target.name}")
        self._source, self._target, self._port, self._version = source, target, port, ip_version
        self._interval_s = 1.0 / rate_per_s
        self._started = self._ended = 0.0
        self._to = ("", 0)
        self._sent = self._arrived = self._refused = 0
        self._first: float | None = None
        self._last: float | None = None

    def stop(self) -> FloodReport:
        """Send no more, take what is still on its way, and give the final report."""
        self._end()
        return self.report()

    def report(self) -> FloodReport:
        with self._lock:
            now = self._ended or time.monotonic()
            return FloodReport(
                sent=self._sent,
                arrived=self._arrived,
                refused=self._refused,
                first_arrival_s=self._first,
                last_arrival_s=self._last,
                seconds=now - self._started if self._started else 0.0,
            )

    def _serve(self) -> None:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(listener(self._target, "udp", self._port, ip_version=self._version))
            with contextlib.suppress(OSError):  # beyond rmem_max needs CAP_NET_ADMIN
                server.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            family = socket.AF_INET6 if self._version == 6 else socket.AF_INET
            client = stack.enter_context(open_socket(self._source, family, socket.SOCK_DGRAM))
            self._to = (str(address_of(self._target, self._version)), server.getsockname()[1])
            mark = os.urandom(_MARK_BYTES)
            self._started = time.monotonic()
            self._ready.set()
            poller = select.poll()
            poller.register(server, select.POLLIN)
            poller.register(self._stop_fd, select.POLLIN)
            due, is_stopped = self._started, False
            while not is_stopped:
                now = time.monotonic()
                while due <= now:
                    self._send(client, mark)
                    due += self._interval_s
                for descriptor, _ in poller.poll(max(0.0, due - time.monotonic()) * 1000):
                    is_stopped = is_stopped or descriptor == self._stop_fd
                self._drain(server, mark)
            # what is on its way arrives within a scheduler's breath: links of one machine queue nothing
            poller.unregister(self._stop_fd)
            while poller.poll(_QUIET_MS):
                self._drain(server, mark)
            with self._lock:
                self._ended = time.monotonic()

    def _send(self, client: socket.socket, mark: bytes) -> None:
        try:
            client.sendto(mark, self._to)
            refused = 0
        except OSError:
            refused = 1
        with self._lock:
            self._sent += 1
            self._refused += refused

    def _drain(self, server: socket.socket, mark: bytes) -> None:
        arrived = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                arrived += server.recv(2048) == mark
        if not arrived:
            return
        at_s = time.monotonic() - self._started
        with self._lock:
            self._arrived += arrived
            self._first = at_s if self._first is None else self._first
            self._last = at_s
