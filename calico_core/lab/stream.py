"""Steady traffic while something else happens: what was lost, when, and for how long.

One thread owns the sockets in both namespaces from start to stop; others read frozen reports.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import Literal

import msgspec

from calico_core.lab.probes import echo_request, icmp_socket, listener, parse_echo_reply
from calico_core.lab.station import Station, address_of, open_socket
from calico_core.lab.traffic import TrafficThread

_NUMBER = struct.Struct("!QQ")  # the stream's own mark, the packet's number


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A datagram without an answer. ``at_s`` counts from the stream's start; ``has_arrived`` says the answer went."""

    number: int
    at_s: float
    has_arrived: bool


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """``received`` counts answers, each number once; ``lost`` those unanswered longer than the grace time.

    ``arrived`` counts requests at the target (0 for ICMP: its kernel answers). ``reordered`` are answers that came
    after a later one's; ``longest_gap_s`` is the longest time between two answers (start and end count as such).
    """

    sent: int
    arrived: int
    received: int
    lost: int
    reordered: int
    duplicates: int
    losses: tuple[Loss, ...]
    longest_gap_s: float
    seconds: float


class Stream(TrafficThread):
    """Numbered datagrams at a steady pace, each answered by the target.

    A send that the source's own kernel refuses (no route, a rule on output) counts as sent and lost.
    """

    def __init__(
        self,
        source: Station,
        target: Station,
        kind: Literal["udp", "icmp"] = "udp",
        interval_s: float = 0.01,
        *,
        port: int = 0,
        ip_version: int = 4,
        grace_s: float = 1.0,
    ) -> None:
        super().__init__(f"stream {source.name}-{target.name}")
        self._source, self._target, self._kind, self._port = source, target, kind, port
        self._interval_s, self._version, self._grace_s = interval_s, ip_version, grace_s
        self._mark = int.from_bytes(os.urandom(8), "big")
        self._identifier = self._mark & 0xFFFF
        self._started = 0.0
        self._ended = 0.0
        self._sent_at: list[float] = []
        self._arrived: set[int] = set()
        self._answered: set[int] = set()
        self._to = ("", 0)
        self._highest = -1
        self._reordered = self._duplicates = 0
        self._last_answer = 0.0
        self._longest_gap = 0.0

    def stop(self) -> StreamReport:
        """Send no more, wait up to the grace time for answers, and give the final report."""
        self._end()
        return self.report()

    def report(self) -> StreamReport:
        """As of now; datagrams younger than the grace time are not lost yet."""
        with self._lock:
            now = self._ended or time.monotonic()
            limit = now if self._ended else now - self._grace_s
            losses = tuple(
                Loss(number=number, at_s=at - self._started, has_arrived=number in self._arrived)
                for number, at in enumerate(self._sent_at)
                if number not in self._answered and at <= limit
            )
            return StreamReport(
                sent=len(self._sent_at),
                arrived=len(self._arrived),
                received=len(self._answered),
                lost=len(losses),
                reordered=self._reordered,
                duplicates=self._duplicates,
                losses=losses,
                longest_gap_s=max(self._longest_gap, now - self._last_answer) if self._sent_at else 0.0,
                seconds=now - self._started if self._started else 0.0,
            )

    def _serve(self) -> None:
        with contextlib.ExitStack() as stack:
            server = None
            address = str(address_of(self._target, self._version))
            port = 0
            if self._kind == "icmp":
                client = stack.enter_context(icmp_socket(self._source, self._version))
            else:
                server = stack.enter_context(listener(self._target, "udp", self._port, ip_version=self._version))
                family = socket.AF_INET6 if self._version == 6 else socket.AF_INET
                client = stack.enter_context(open_socket(self._source, family, socket.SOCK_DGRAM))
                port = server.getsockname()[1]
            self._to = (address, port)
            self._started = self._last_answer = time.monotonic()
            self._ready.set()
            self._send_and_read(client, server)

    def _send_and_read(self, client: socket.socket, server: socket.socket | None) -> None:
        poller = select.poll()
        poller.register(client, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        if server is not None:
            poller.register(server, select.POLLIN)
        due, last = self._started, float("inf")
        while True:
            now = time.monotonic()
            if last < float("inf") and len(self._answered) == len(self._sent_at):
                break
            if last == float("inf") and now >= due:
                self._send(client)
                # after a stall it goes on from now, without a burst that would look like a flood
                due = max(due + self._interval_s, now)
            wait_s = (due if last == float("inf") else last) - time.monotonic()
            ready = poller.poll(max(0.0, wait_s) * 1000)
            if not ready and time.monotonic() >= last:
                break  # and not before: what came while this thread did not run is no loss
            for descriptor, _ in ready:
                if descriptor == self._stop_fd:
                    poller.unregister(self._stop_fd)
                    last = time.monotonic() + self._grace_s
                elif server is not None and descriptor == server.fileno():
                    self._echo(server)
                else:
                    self._take(client)
        with self._lock:
            self._ended = time.monotonic()
            self._longest_gap = max(self._longest_gap, self._sent_at[-1] - self._last_answer) if self._sent_at else 0.0
            self._last_answer = self._ended

    def _send(self, client: socket.socket) -> None:
        with self._lock:
            number = len(self._sent_at)
            self._sent_at.append(time.monotonic())
        payload = _NUMBER.pack(self._mark, number)
        with contextlib.suppress(OSError):  # its number stays unanswered: a loss
            if self._kind == "icmp":
                client.sendto(echo_request(self._version, self._identifier, number & 0xFFFF, payload), self._to)
            else:
                client.sendto(payload, self._to)

    def _echo(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data, sender = server.recvfrom(2048)
            number = self._number_of(data)
            if number is not None:
                with self._lock:
                    self._arrived.add(number)
                server.sendto(data, sender)

    def _take(self, client: socket.socket) -> None:
        try:
            data = client.recv(4096)
        except OSError:
            return  # an ICMP error about an earlier datagram
        if self._kind == "icmp":
            reply = parse_echo_reply(self._version, data, self._identifier)
            data = reply[1] if reply else b""
        number = self._number_of(data)
        if number is None:
            return
        now = time.monotonic()
        with self._lock:
            if number in self._answered:
                self._duplicates += 1
                return
            self._answered.add(number)
            self._reordered += number < self._highest
            self._highest = max(self._highest, number)
            self._longest_gap = max(self._longest_gap, now - self._last_answer)
            self._last_answer = now

    def _number_of(self, data: bytes) -> int | None:
        if len(data) != _NUMBER.size:
            return None
        mark, number = _NUMBER.unpack(data)
        return int(number) if mark == self._mark else None
