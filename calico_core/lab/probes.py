"""Questions to the network: does a packet from here arrive there, and does the answer come back?

A probe starts no process and no thread: its sockets, one in each namespace, are served by the calling thread, so
what is measured is the kernel's forwarding and nothing else.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from typing import Literal

import msgspec
from netaddr import IPAddress

from calico_core.errors import InvalidRequest
from calico_core.lab.station import Station, address_of, open_socket

ProbeKind = Literal["tcp", "udp", "icmp"]

_ECHO_REQUEST, _ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_UNREACHABLE = {4: 3, 6: 1}
_ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence: RFC 792, RFC 4443
_REPEAT_S = 0.2
_PAUSE_S = 0.02
_TOKEN_BYTES = 16


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """``rtt_ms`` None: no answer. ``detail`` is empty for an ordinary answer, else what was seen."""

    is_reachable: bool
    rtt_ms: float | None = None
    detail: str = ""


def probe(
    source: Station,
    target: Station,
    kind: ProbeKind = "tcp",
    port: int = 0,
    *,
    ip_version: int = 4,
    timeout_s: float = 1.0,
    has_server: bool = False,
) -> ProbeResult:
    """Whether ``source`` reaches ``target``'s first address of the family, and is answered.

    The laboratory answers for the target, on ``port`` (0: any free one); ``has_server`` means that somebody listens
    there already. ICMP is answered by the target's kernel. A refusal by the network (reset, ICMP unreachable) is a
    "no" at once; silence is one after ``timeout_s``.
    """
    address = address_of(target, ip_version)
    if kind == "icmp":
        return _probe_icmp(source, address, timeout_s)
    if kind not in ("tcp", "udp"):
        raise InvalidRequest("kind", f"{kind!r} is not tcp, udp or icmp")
    if has_server and not port:
        raise InvalidRequest("port", "name the port that the server listens on")
    probe_one = _probe_tcp if kind == "tcp" else _probe_udp
    if has_server:
        return probe_one(source, address, port, None, timeout_s)
    with listener(target, kind, port, ip_version=ip_version) as server:
        return probe_one(source, address, server.getsockname()[1], server, timeout_s)


def probe_until(
    source: Station,
    target: Station,
    kind: ProbeKind = "tcp",
    port: int = 0,
    *,
    is_reachable: bool,
    within_s: float,
    ip_version: int = 4,
    timeout_s: float = 0.2,
) -> ProbeResult:
    """Probe again until the answer is ``is_reachable``, at most ``within_s``; gives the last result."""
    deadline = time.monotonic() + within_s
    while True:
        result = probe(source, target, kind, port, ip_version=ip_version, timeout_s=timeout_s)
        if result.is_reachable == is_reachable or time.monotonic() >= deadline:
            return result
        time.sleep(_PAUSE_S)


def listener(station: Station, kind: Literal["tcp", "udp"], port: int = 0, *, ip_version: int = 4) -> socket.socket:
    """A bound (TCP: listening), non-blocking socket on the station's address.

    :raises InvalidRequest: the port is taken, or the address is not there.
    """
    stream = kind == "tcp"
    server = open_socket(station, _family(ip_version), socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    address = address_of(station, ip_version)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if stream else 0)
        server.bind((str(address), port))
        if stream:
            server.listen(64)
    except OSError as error:
        server.close()
        raise InvalidRequest("port", f"cannot listen on {address} port {port} at {station.name}: {error}") from error
    return server


def icmp_socket(station: Station, ip_version: int) -> socket.socket:
    """A raw ICMP socket: it hears all ICMP of the namespace, so match what you read."""
    return open_socket(station, _family(ip_version), socket.SOCK_RAW, _ICMP[ip_version])


def echo_request(ip_version: int, identifier: int, sequence: int, payload: bytes) -> bytes:
    """An ICMP or ICMPv6 echo request; of the latter the kernel fills in the checksum."""
    header = _ECHO.pack(_ECHO_REQUEST[ip_version], 0, 0, identifier, sequence)
    if ip_version == 6:
        return header + payload
    checksum = _checksum(header + payload)
    return _ECHO.pack(_ECHO_REQUEST[4], 0, checksum, identifier, sequence) + payload


def parse_echo_reply(ip_version: int, packet: bytes, identifier: int) -> tuple[int, bytes] | None:
    """``(sequence, payload)`` of a reply to us, or None for any other packet."""
    message = _icmp_of(ip_version, packet)
    if len(message) < _ECHO.size:
        return None
    kind, _code, _sum, found, sequence = _ECHO.unpack_from(message)
    if kind != _ECHO_REPLY[ip_version] or found != identifier:
        return None
    return sequence, message[_ECHO.size :]


def _probe_tcp(
    source: Station, address: IPAddress, port: int, server: socket.socket | None, timeout_s: float
) -> ProbeResult:
    """Reachable: the handshake, and (when we answer ourselves) bytes there and back."""
    started = time.monotonic()
    deadline = started + timeout_s
    accepted: socket.socket | None = None
    with open_socket(source, _family(address.version), socket.SOCK_STREAM) as client:
        try:
            status = client.connect_ex((str(address), port))
            if status not in (0, errno.EINPROGRESS):
                return _refused(status)
            if not _ready(client, select.POLLOUT, deadline):
                return _silent(timeout_s)
            status = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if status:
                return _refused(status)
            rtt_ms = _since_ms(started)
            if server is None:
                return ProbeResult(is_reachable=True, rtt_ms=rtt_ms)
            if not _ready(server, select.POLLIN, deadline):
                return ProbeResult(is_reachable=False, detail="connected, but not to the target")
            accepted, _ = server.accept()
            token = os.urandom(_TOKEN_BYTES)
            for sender, receiver in ((client, accepted), (accepted, client)):
                sender.send(token)
                if not _ready(receiver, select.POLLIN, deadline) or receiver.recv(_TOKEN_BYTES) != token:
                    return ProbeResult(is_reachable=False, detail="connected, but no data passed")
            return ProbeResult(is_reachable=True, rtt_ms=rtt_ms)
        except OSError as error:
            return _refused(error.errno or errno.EIO)
        finally:
            if accepted is not None:
                # our side goes at once, without TIME_WAIT to keep the port from the next probe
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()


def _probe_udp(
    source: Station, address: IPAddress, port: int, server: socket.socket | None, timeout_s: float
) -> ProbeResult:
    token = os.urandom(_TOKEN_BYTES)
    deadline = time.monotonic() + timeout_s
    arrived = False
    with open_socket(source, _family(address.version), socket.SOCK_DGRAM) as client:
        poller = select.poll()
        for each in (client, server):
            if each is not None:
                poller.register(each, select.POLLIN)
        try:
            client.connect((str(address), port))
            while time.monotonic() < deadline:
                sent = time.monotonic()
                client.send(token)
                # looked at once at least: an answer may have come while this thread did not run
                while ready := poller.poll(max(0.0, min(deadline, sent + _REPEAT_S) - time.monotonic()) * 1000):
                    for descriptor, _ in ready:
                        if server is not None and descriptor == server.fileno():
                            data, sender = server.recvfrom(2048)
                            arrived = arrived or data == token
                            server.sendto(data, sender)
                        elif client.recv(2048) == token or server is None:
                            return ProbeResult(is_reachable=True, rtt_ms=_since_ms(sent))
        except OSError as error:
            return _refused(error.errno or errno.EIO)
    if arrived:
        return ProbeResult(is_reachable=False, detail="it arrived, but the answer did not")
    return _silent(timeout_s)


def _probe_icmp(source: Station, address: IPAddress, timeout_s: float) -> ProbeResult:
    version = address.version
    identifier, token = int.from_bytes(os.urandom(2), "big"), os.urandom(_TOKEN_BYTES)
    deadline = time.monotonic() + timeout_s
    sequence = 0
    with icmp_socket(source, version) as client:
        try:
            while time.monotonic() < deadline:
                sequence += 1
                sent = time.monotonic()
                client.sendto(echo_request(version, identifier, sequence, token), (str(address), 0))
                while _ready(client, select.POLLIN, min(deadline, sent + _REPEAT_S)):
                    packet = client.recv(4096)
                    if parse_echo_reply(version, packet, identifier) == (sequence, token):
                        return ProbeResult(is_reachable=True, rtt_ms=_since_ms(sent))
                    if token in packet and _icmp_of(version, packet)[:1] == bytes((_UNREACHABLE[version],)):
                        code = _icmp_of(version, packet)[1]
                        return ProbeResult(is_reachable=False, detail=f"ICMP unreachable, code {code}")
        except OSError as error:
            return _refused(error.errno or errno.EIO)
    return _silent(timeout_s)


def _ready(waiting: socket.socket, events: int, deadline: float) -> bool:
    poller = select.poll()
    poller.register(waiting, events)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _refused(number: int) -> ProbeResult:
    return ProbeResult(is_reachable=False, detail=os.strerror(number).lower())


def _silent(timeout_s: float) -> ProbeResult:
    return ProbeResult(is_reachable=False, detail=f"no answer in {timeout_s:g} s")


def _since_ms(started: float) -> float:
    return (time.monotonic() - started) * 1000


def _family(ip_version: int) -> int:
    return socket.AF_INET6 if ip_version == 6 else socket.AF_INET


def _icmp_of(ip_version: int, packet: bytes) -> bytes:
    """The ICMP message. IPv4 raw sockets give the IP header before it, IPv6 ones do not (raw(7))."""
    return packet if ip_version == 6 else packet[(packet[0] & 0x0F) * 4 :]


def _checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    result: int = ~total & 0xFFFF
    return result
