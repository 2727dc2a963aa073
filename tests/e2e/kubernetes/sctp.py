"""Whether an SCTP packet gets from one pod to another, by raw sockets: not every kernel has the protocol itself."""

from __future__ import annotations

import os
import select
import socket
import struct
import time

from calico_core.lab.station import Station, open_socket

_INIT = 1
_REPEAT_S = 0.2


def arrives(source: Station, target: Station, port: int, *, timeout_s: float = 1.0) -> bool:
    """Whether an INIT chunk (RFC 9260, 3.3.2) does."""
    tag = os.urandom(4)
    packet = _packet(40000 + os.urandom(1)[0], port, tag)
    deadline = time.monotonic() + timeout_s
    with (
        open_socket(source, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP) as sender,
        open_socket(target, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP) as receiver,
    ):
        poller = select.poll()
        poller.register(receiver, select.POLLIN)
        while time.monotonic() < deadline:
            sender.sendto(packet, (str(target.addresses[0]), 0))
            until = time.monotonic() + _REPEAT_S
            while poller.poll(max(0.0, until - time.monotonic()) * 1000):
                if tag in receiver.recv(2048):
                    return True
    return False


def _packet(source_port: int, port: int, tag: bytes) -> bytes:
    chunk = struct.pack("!BBH", _INIT, 0, 20) + tag + struct.pack("!IHHI", 65536, 1, 1, 1)
    header = struct.pack("!HHI", source_port, port, 0)
    checksum = _crc32c(header + bytes(4) + chunk)
    return header + struct.pack("<I", checksum) + chunk


def _crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF
