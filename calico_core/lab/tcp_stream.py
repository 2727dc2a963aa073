"""One long-lived TCP connection: does it survive, does it stall, what does the kernel have to send again?"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time

import msgspec

from calico_core.errors import KernelRefused
from calico_core.lab.probes import listener
from calico_core.lab.station import Station, address_of, open_socket
from calico_core.lab.traffic import TrafficThread

_CONNECT_WAIT_S = 10.0
_QUIET_S = 1.0
_READ_BYTES = 1 << 16
# struct tcp_info, linux/tcp.h: state first, total_retrans behind the receiver's estimates
_INFO_BYTES, _TOTAL_RETRANS = 104, 100
_ESTABLISHED = 1


class TcpStreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """``longest_stall_s`` is the longest time in which nothing arrived though something was to send.

    ``error`` is empty while the connection lives, else what ended it.
    """

    is_established: bool
    bytes_sent: int
    bytes_arrived: int
    retransmits: int
    longest_stall_s: float
    seconds: float
    error: str


class TcpStream(TrafficThread):
    """``chunk_bytes`` every ``interval_s``, read at the target and never answered but by acknowledgements."""

    def __init__(
        self,
        source: Station,
        target: Station,
        interval_s: float = 0.01,
        *,
        chunk_bytes: int = 512,
        port: int = 0,
        ip_version: int = 4,
    ) -> None:
        super().__init__(f"tcp {source.name}-{target.name}")
        self._source, self._target, self._port, self._version = source, target, port, ip_version
        self._interval_s, self._chunk = interval_s, bytes(chunk_bytes)
        self._started = self._ended = self._last_arrival = 0.0
        self._bytes_sent = self._bytes_arrived = self._retransmits = 0
        self._longest_stall = 0.0
        self._is_established = False
        self._failure = ""

    def stop(self) -> TcpStreamReport:
        """Send no more, wait up to a second for the rest to arrive, close, and give the final report."""
        self._end()
        return self.report()

    def report(self) -> TcpStreamReport:
        with self._lock:
            now = self._ended or time.monotonic()
            stall = now - self._last_arrival if self._bytes_arrived < self._bytes_sent else 0.0
            return TcpStreamReport(
                is_established=self._is_established,
                bytes_sent=self._bytes_sent,
                bytes_arrived=self._bytes_arrived,
                retransmits=self._retransmits,
                longest_stall_s=max(self._longest_stall, stall),
                seconds=now - self._started if self._started else 0.0,
                error=self._failure,
            )

    def _serve(self) -> None:
        """:raises KernelRefused: no connection within 10 s."""
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(listener(self._target, "tcp", self._port, ip_version=self._version))
            family = socket.AF_INET6 if self._version == 6 else socket.AF_INET
            client = stack.enter_context(open_socket(self._source, family, socket.SOCK_STREAM))
            accepted = stack.enter_context(self._connect(client, server))
            self._started = self._last_arrival = time.monotonic()
            self._is_established = True
            self._ready.set()
            self._send_and_read(client, accepted)
            # an aborted connection leaves no TIME_WAIT on the port
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _connect(self, client: socket.socket, server: socket.socket) -> socket.socket:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = str(address_of(self._target, self._version))
        status = client.connect_ex((address, server.getsockname()[1]))
        if status not in (0, errno.EINPROGRESS):
            raise KernelRefused(f"connect to {self._target.name}", status)
        poller = select.poll()
        poller.register(server, select.POLLIN)
        poller.register(client, 0)  # errors only
        ready = poller.poll(_CONNECT_WAIT_S * 1000)
        if all(descriptor != server.fileno() for descriptor, _ in ready):
            status = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ETIMEDOUT
            raise KernelRefused(f"connect to {self._target.name}", status)
        accepted, _ = server.accept()
        accepted.setblocking(False)
        return accepted

    def _send_and_read(self, client: socket.socket, accepted: socket.socket) -> None:
        poller = select.poll()
        poller.register(accepted, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        due, last = self._started, float("inf")
        while not self._failure:
            now = time.monotonic()
            if last < float("inf") and self._bytes_arrived >= self._bytes_sent:
                break
            if last == float("inf") and now >= due:
                self._send(client)
                due = max(due + self._interval_s, now)
            wait_s = (due if last == float("inf") else last) - time.monotonic()
            ready = poller.poll(max(0.0, wait_s) * 1000)
            if not ready and time.monotonic() >= last:
                break  # and not before: what came while this thread did not run is no loss
            for descriptor, _ in ready:
                if descriptor == self._stop_fd:
                    poller.unregister(self._stop_fd)
                    last = time.monotonic() + _QUIET_S
                else:
                    self._take(accepted)
            self._look(client)
        with self._lock:
            self._ended = time.monotonic()

    def _send(self, client: socket.socket) -> None:
        try:
            sent = client.send(self._chunk)
        except BlockingIOError:
            return  # the buffer is full: a stall, which is what we are here to see
        except OSError as error:
            self._fail(error)
            return
        with self._lock:
            if self._bytes_arrived == self._bytes_sent:
                self._last_arrival = time.monotonic()  # nothing was owed until now
            self._bytes_sent += sent

    def _take(self, accepted: socket.socket) -> None:
        try:
            data = accepted.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if not data:
            self._fail(OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            return
        now = time.monotonic()
        with self._lock:
            self._longest_stall = max(self._longest_stall, now - self._last_arrival)
            self._last_arrival = now
            self._bytes_arrived += len(data)

    def _look(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            if len(info) < _INFO_BYTES:
                return
            with self._lock:
                self._is_established = info[0] == _ESTABLISHED
                (self._retransmits,) = struct.unpack_from("=I", info, _TOTAL_RETRANS)

    def _fail(self, error: OSError) -> None:
        with self._lock:
            self._failure = (error.strerror or str(error)).lower()
            self._is_established = False
