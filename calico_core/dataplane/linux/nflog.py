"""Packets that rules tell to an NFLOG group: a thread that reads them, and what their headers say.

Knows nothing of the rules that send them; nftables and iptables write the same messages. Layouts:
linux/netfilter/nfnetlink_log.h, RFC 791 and 8200.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from netaddr import IPAddress

from calico_core.dataplane.linux.netlink import (
    NETLINK_NETFILTER,
    NetlinkSocket,
    Request,
    attribute,
    parse_attributes,
    parse_messages,
)
from calico_core.errors import KernelRefused
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

_SUBSYSTEM = 4 << 8
MESSAGE_PACKET, MESSAGE_CONFIG = _SUBSYSTEM, _SUBSYSTEM | 1
_CONFIG_COMMAND, _CONFIG_MODE, _CONFIG_TIMEOUT = 1, 2, 4
_BIND, _COPY_PACKET = 1, 2
#: The kernel gathers packets for so long before it tells of them, in hundredths of a second.
_GATHER = 10
_TIMESTAMP, _IN_DEVICE, _OUT_DEVICE, _PAYLOAD, _PREFIX = 3, 4, 5, 9, 10

_SIOCGIFNAME = 0x8910
_IFREQ = struct.Struct("16si20x")
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_RECEIVE_BUFFER_BYTES = 1 << 20
_DATAGRAM_BYTES = 1 << 17
_STOP_WAIT_S = 5.0

_ICMP, _ICMPV6, _FRAGMENT, _AUTHENTICATION = 1, 58, 44, 51
_EXTENSIONS = frozenset({0, 43, 44, 51, 60, 135})
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})

log = get_logger(__name__)


class Headers(NamedTuple):
    """What a packet's first bytes say; what is cut off or not there is None."""

    src: IPAddress
    dst: IPAddress
    protocol: int
    src_port: int | None
    dst_port: int | None
    icmp: tuple[int, int] | None
    length_bytes: int


class LoggedPacket(msgspec.Struct, frozen=True):
    """One packet as the kernel told it. ``time`` in seconds since the epoch."""

    prefix: str
    time: float
    in_interface: str
    out_interface: str
    headers: Headers


class NflogReader:
    """Reads one group of one network namespace and calls back from its own thread. A group has one reader at a time.

    Packets that come faster than they are read are lost, and that is said once.
    """

    def __init__(
        self,
        group: int,
        callback: Callable[[LoggedPacket], None],
        *,
        snapshot_bytes: int,
        namespace_fd: int | None = None,
    ) -> None:
        """:raises KernelRefused: EBUSY when somebody else reads the group."""
        self._callback = callback
        self._lost = False
        self._socket = _GroupSocket(group, snapshot_bytes, namespace_fd)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="nflog-reader", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and leave the group. Safe to repeat; from the callback itself it does not wait."""
        if self._stop_fd < 0:
            return
        os.eventfd_write(self._stop_fd, 1)
        if self._thread is not threading.current_thread():
            self._thread.join(_STOP_WAIT_S)
        if not self._thread.is_alive():
            self._socket.close()
            os.close(self._stop_fd)
            self._stop_fd = -1

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        while True:
            if self._stop_fd in [descriptor for descriptor, _ in poller.poll()]:
                return
            try:
                data = self._socket.take()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                if not self._lost:
                    log.warning("nflog.packets_lost")
                self._lost = True
                continue
            for kind, _flags, _sequence, body in parse_messages(data):
                packet = self._parse(body) if kind == MESSAGE_PACKET else None
                if packet is not None:
                    self._callback(packet)

    def _parse(self, body: bytes) -> LoggedPacket | None:
        found = parse_attributes(body, 4)
        headers = parse_headers(found.get(_PAYLOAD, b""))
        if headers is None:
            return None
        stamp = found.get(_TIMESTAMP)
        seconds, microseconds = struct.unpack(">QQ", stamp) if stamp else (0, 0)
        return LoggedPacket(
            prefix=found.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace"),
            time=seconds + microseconds / 1e6 if seconds else time.time(),
            in_interface=self._socket.interface(found.get(_IN_DEVICE)),
            out_interface=self._socket.interface(found.get(_OUT_DEVICE)),
            headers=headers,
        )


class _GroupSocket(NetlinkSocket):
    """Bound to a group; what it holds is read without waiting."""

    def __init__(self, group: int, snapshot_bytes: int, namespace_fd: int | None) -> None:
        super().__init__(NETLINK_NETFILTER, namespace_fd)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        head = struct.pack(">BBH", socket.AF_UNSPEC, 0, group)
        mode = attribute(_CONFIG_MODE, struct.pack(">IBx", snapshot_bytes, _COPY_PACKET))
        wait = attribute(_CONFIG_TIMEOUT, struct.pack(">I", _GATHER))
        try:
            self.execute(
                Request(
                    f"read NFLOG group {group}", MESSAGE_CONFIG, 0, head + attribute(_CONFIG_COMMAND, bytes([_BIND]))
                )
            )
            self.execute(Request(f"set up NFLOG group {group}", MESSAGE_CONFIG, 0, head + mode + wait))
        except KernelRefused as error:
            self.close()
            if error.errno == errno.EPERM:
                # so says the kernel of a group that has a reader
                raise KernelRefused(error.operation, errno.EBUSY, "another program reads it") from error
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> bytes:
        """Empty when there is nothing."""
        try:
            return self._socket.recv(_DATAGRAM_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def interface(self, index: bytes | None) -> str:
        """Its name now; '' when there is none, or it is gone."""
        if not index:
            return ""
        request = _IFREQ.pack(b"", int.from_bytes(index, "big"))
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFNAME, request)
        except OSError:
            return ""
        return answer[:16].rstrip(b"\0").decode(errors="replace")


def parse_headers(data: bytes) -> Headers | None:
    """Of an IPv4 or IPv6 packet, cut off anywhere behind its addresses; None when it is neither."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        length, offset = int.from_bytes(data[2:4], "big"), (data[0] & 0xF) * 4
        src, dst = (IPAddress(int.from_bytes(data[at : at + 4], "big"), 4) for at in (12, 16))
        is_first = not int.from_bytes(data[6:8], "big") & 0x1FFF
        protocol = data[9]
    elif version == 6 and len(data) >= 40:
        length = int.from_bytes(data[4:6], "big") + 40
        src, dst = (IPAddress(int.from_bytes(data[at : at + 16], "big"), 6) for at in (8, 24))
        protocol, offset, is_first = _skip_extensions(data)
    else:
        return None
    upper = data[offset:] if is_first else b""
    src_port: int | None = None
    dst_port: int | None = None
    if protocol in _WITH_PORTS and len(upper) >= 4:
        src_port, dst_port = struct.unpack_from(">HH", upper)
    icmp = (upper[0], upper[1]) if protocol in (_ICMP, _ICMPV6) and len(upper) >= 2 else None
    return Headers(src, dst, protocol, src_port, dst_port, icmp, length)


def _skip_extensions(data: bytes) -> tuple[int, int, bool]:
    """The upper protocol, where it begins, and whether it does so in this fragment."""
    protocol, offset, is_first = data[6], 40, True
    while protocol in _EXTENSIONS and len(data) >= offset + 8:
        if protocol == _FRAGMENT:
            is_first = is_first and not int.from_bytes(data[offset + 2 : offset + 4], "big") >> 3
            size = 8
        elif protocol == _AUTHENTICATION:
            size = (data[offset + 1] + 2) * 4
        else:
            size = (data[offset + 1] + 1) * 8
        protocol, offset = data[offset], offset + size
    return protocol, offset, is_first
