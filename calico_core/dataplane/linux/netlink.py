"""Netlink framing: messages, attributes, and a socket that sends requests and checks every answer.

Written over ``struct`` because an attach has a millisecond: a message costs microseconds here. Used by the route
socket, conntrack and the link monitor. Byte order is the host's; layouts are those of linux/netlink.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Self

import msgspec

from calico_core.dataplane.linux.netns import socket_in
from calico_core.errors import KernelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP_INTR = 0x1, 0x4, 0x8, 0x10
NLM_F_ROOT, NLM_F_MATCH = 0x100, 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_INT = struct.Struct("=i")
_TIMEVAL = struct.Struct("@ll")

# Kernel answers to one send queue up in our receive buffer: keep a send well below it.
_MESSAGES_A_SEND = 128
_RECEIVE_BYTES = 65536
_RECEIVE_BUFFER_BYTES = 1 << 20
_DUMP_ATTEMPTS = 8
DEFAULT_TIMEOUT_S = 5.0


class Request(msgspec.Struct, frozen=True):
    """One message to the kernel. ``operation`` names it in errors; ``body`` is what follows the nlmsghdr."""

    operation: str
    type: int
    flags: int
    body: bytes


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one request of a send came to: its error, or None, and the messages it was answered with."""

    error: KernelRefused | None = None
    replies: tuple[tuple[int, bytes], ...] = ()


def attribute(kind: int, value: bytes) -> bytes:
    """One nlattr, padded to 4 bytes."""
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length & 3)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def u32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in host order."""
    return attribute(kind, value.to_bytes(4, sys.byteorder))


def text(kind: int, value: str) -> bytes:
    """A string attribute with its closing zero."""
    return attribute(kind, value.encode() + b"\0")


def parse_attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Attributes by type from ``data[start:]``. Of a repeated type the last one counts; a torn tail is ignored."""
    found: dict[int, bytes] = {}
    position, end = start, len(data)
    unpack = _ATTRIBUTE.unpack_from
    while position + 4 <= end:
        length, kind = unpack(data, position)
        if length < 4 or position + length > end:
            break
        found[kind & NLA_TYPE_MASK] = data[position + 4 : position + length]
        position += (length + 3) & ~3
    return found


def parse_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """``(type, flags, sequence, body)`` of each message in a datagram."""
    position, end = 0, len(data)
    while position + 16 <= end:
        length, kind, flags, sequence, _port = HEADER.unpack_from(data, position)
        if length < 16 or position + length > end:
            break
        yield kind, flags, sequence, data[position + 16 : position + length]
        position += (length + 3) & ~3


def parse_error(body: bytes, flags: int) -> tuple[int, str]:
    """``(errno, message)`` of an NLMSG_ERROR body; 0 is an acknowledgement."""
    (code,) = _INT.unpack_from(body)
    message = ""
    if flags & NLM_F_ACK_TLVS:
        offset = 20
        if not flags & NLM_F_CAPPED:
            (length,) = struct.unpack_from("=I", body, 4)
            offset = 4 + ((length + 3) & ~3)
        raw = parse_attributes(body, offset).get(NLMSGERR_ATTR_MSG, b"")
        message = raw.rstrip(b"\0").decode(errors="replace")
    return -code, message


class NetlinkSocket:
    """A netlink socket kept open. One thread at a time uses it; every wait ends after ``timeout_s``.

    ``namespace_fd`` None is the namespace of the calling thread.
    """

    def __init__(self, protocol: int, namespace_fd: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._socket = socket_in(namespace_fd, socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._sequence = 0
        try:
            self._configure(timeout_s)
        except OSError as error:
            self._socket.close()
            raise KernelRefused("set up netlink socket", error.errno or errno.EIO) from error

    def _configure(self, timeout_s: float) -> None:
        sock = self._socket
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            # comfort of kernels since 4.20; without them errors are terser and dumps unfiltered
            with contextlib.suppress(OSError):
                sock.setsockopt(SOL_NETLINK, option, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        # SO_RCVTIMEO instead of settimeout: no poll() before each recv
        limit = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(self, *requests: Request) -> list[Outcome]:
        """Send the requests in one message and give their outcomes, all free of errors.

        The kernel carries out every request, also those behind a failed one.

        :raises KernelRefused: of the first request that failed.
        """
        outcomes = self.attempt(requests)
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return outcomes

    def attempt(self, requests: Sequence[Request]) -> list[Outcome]:
        """As :meth:`execute`, with errors as values. Long sequences go in several sends."""
        outcomes: list[Outcome] = []
        for start in range(0, len(requests), _MESSAGES_A_SEND):
            outcomes += self._attempt_chunk(requests[start : start + _MESSAGES_A_SEND])
        return outcomes

    def next_sequence(self) -> int:
        """For one message that the caller builds."""
        self._sequence += 1
        return self._sequence

    def send(self, data: bytes, operation: str) -> None:
        """Messages in full; ``operation`` names them in errors. What comes back is read with :meth:`receive`."""
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelRefused(operation, error.errno or errno.EIO) from error

    def receive(self, operation: str) -> bytes:
        """The next datagram.

        :raises KernelRefused: ETIMEDOUT when none came in time.
        """
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError as error:
            raise KernelRefused(operation, errno.ETIMEDOUT, "no answer from the kernel in time") from error
        except OSError as error:
            raise KernelRefused(operation, error.errno or errno.EIO) from error

    def _attempt_chunk(self, requests: Sequence[Request]) -> list[Outcome]:
        first = self._sequence + 1
        self._sequence += len(requests)
        parts: list[bytes] = []
        for sequence, request in enumerate(requests, first):
            flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
            parts += (HEADER.pack(16 + len(request.body), request.type, flags, sequence, 0), request.body)
        self.send(b"".join(parts), requests[0].operation)

        errors: dict[int, KernelRefused] = {}
        replies: dict[int, list[tuple[int, bytes]]] = {}
        waiting = len(requests)
        while waiting:
            for kind, flags, sequence, body in parse_messages(self.receive(requests[0].operation)):
                index = sequence - first
                if not 0 <= index < len(requests):
                    continue  # a late answer to an earlier request that timed out
                if kind != NLMSG_ERROR:
                    replies.setdefault(index, []).append((kind, body))
                    continue
                waiting -= 1
                number, message = parse_error(body, flags)
                if number:
                    errors[index] = refused(requests[index].operation, number, message)
        return [
            Outcome(error=errors.get(index), replies=tuple(replies.get(index, ()))) for index in range(len(requests))
        ]

    def dump(self, request: Request) -> list[bytes]:
        """Bodies of all messages of a dump. Repeated when the table changed meanwhile (NLM_F_DUMP_INTR)."""
        for _ in range(_DUMP_ATTEMPTS):
            bodies, was_interrupted = self._dump_once(request)
            if not was_interrupted:
                return bodies
        # a table that never rests: the last pass may lack what changed during it, events will tell
        return bodies

    def _dump_once(self, request: Request) -> tuple[list[bytes], bool]:
        wanted = self.next_sequence()
        flags = request.flags | NLM_F_REQUEST | NLM_F_DUMP
        self.send(
            HEADER.pack(16 + len(request.body), request.type, flags, wanted, 0) + request.body,
            request.operation,
        )
        bodies: list[bytes] = []
        was_interrupted = False
        while True:
            for kind, got, sequence, body in parse_messages(self.receive(request.operation)):
                if sequence != wanted:
                    continue
                was_interrupted |= bool(got & NLM_F_DUMP_INTR)
                if kind == NLMSG_DONE:
                    number = -_INT.unpack_from(body)[0] if len(body) >= 4 else 0
                    if number > 0:
                        raise refused(request.operation, number, "")
                    return bodies, was_interrupted
                if kind == NLMSG_ERROR:
                    raise refused(request.operation, *parse_error(body, got))
                bodies.append(body)


def refused(operation: str, number: int, message: str) -> KernelRefused:
    """The error of a refused request: the kernel's own words behind the errno's."""
    words = os.strerror(number)
    return KernelRefused(operation, number, f"{words} ({message})" if message else words)
