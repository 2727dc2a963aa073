"""Packets of the oracle as bytes, and what a packet that was seen is: each carries the number it was sent under.

Checksums are right: connection tracking calls a packet with a wrong one invalid.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Literal, NamedTuple

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
SYN, SYN_ACK, _ACK = 0x02, 0x12, 0x10
_MAGIC = b"orcl"
_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
_TOO_BIG = {4: (3, 4), 6: (2, 0)}
_PROHIBITED = {(ICMP, 3, 13), (ICMPV6, 1, 1)}
_L4_BYTES = {TCP: 20, UDP: 8, ICMP: 8, ICMPV6: 8, SCTP: 12}


Kind = Literal["packet", "prohibited", "error"]


class Seen(NamedTuple):
    """A packet that arrived: the one of that number itself, or what answers it (``prohibited`` and ``error``: by
    ICMP)."""

    number: int
    kind: Kind = "packet"


class Head(NamedTuple):
    """What translation may change. ``ident``: of an echo. None where the protocol has no such thing."""

    src: str
    dst: str
    sport: int | None = None
    dport: int | None = None
    ident: int | None = None


def mark(number: int) -> bytes:
    return _MAGIC + struct.pack("!I", number)


def packet(
    src: str, dst: str, protocol: int, number: int, *, sport: int = 0, dport: int = 0,
    icmp: tuple[int, int] = (0, 0), ident: int = 0, flags: int = SYN,
    answers: int = 0,
) -> bytes:  # fmt: skip
    """From the IP header on. ``ident``: of an echo. ``answers``: the number of what is acknowledged."""
    body = mark(number)
    pseudo = _pseudo(src, dst, protocol)
    if protocol == TCP:
        acknowledged = (answers + len(body) + 1) & 0xFFFFFFFF if flags & _ACK else 0
        segment = struct.pack("!HHIIBBHHH", sport, dport, number, acknowledged, 0x50, flags, 8192, 0, 0)
        return ip_packet(src, dst, protocol, _summed(segment + body, 16, pseudo))
    if protocol == UDP:
        datagram = struct.pack("!HHHH", sport, dport, 8 + len(body), 0) + body
        return ip_packet(src, dst, protocol, _summed(datagram, 6, pseudo))
    if protocol in (ICMP, ICMPV6):
        message = struct.pack("!BBHHH", *icmp, 0, ident, 1) + body
        return ip_packet(src, dst, protocol, _summed(message, 2, pseudo if protocol == ICMPV6 else b""))
    if protocol == SCTP:
        return ip_packet(src, dst, protocol, _sctp_init(sport, dport, number))
    # a packet that has no checksum where the kernel looks for one would not be rejected but only dropped
    return ip_packet(src, dst, protocol, _summed(body + bytes(2), 8, pseudo if ip_address(src).version == 6 else b""))


def error(src: str, dst: str, about: bytes, *, is_too_big: bool) -> bytes:
    """Port unreachable, or fragmentation needed, about a packet that ``dst`` sent."""
    version = ip_address(src).version
    kind, code = (_TOO_BIG if is_too_big else _UNREACHABLE)[version]
    rest = 1400 if is_too_big else 0
    message = struct.pack("!BBHI", kind, code, 0, rest) + about
    if version == 4:
        return ip_packet(src, dst, ICMP, _summed(message, 2))
    return ip_packet(src, dst, ICMPV6, _summed(message, 2, _pseudo(src, dst, ICMPV6)))


def ip_packet(src: str, dst: str, protocol: int, payload: bytes) -> bytes:
    source, target = ip_address(src), ip_address(dst)
    if source.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0)
        return _summed(head + source.packed + target.packed, 10) + payload
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source.packed + target.packed + payload


def frame(src_mac: bytes, dst_mac: bytes, ip: bytes) -> bytes:
    return dst_mac + src_mac + (b"\x08\x00" if ip[0] >> 4 == 4 else b"\x86\xdd") + ip


def read_frame(data: bytes) -> Seen | None:
    """None: not one of ours."""
    return read_ip(data[14:])


def read_ip(data: bytes) -> Seen | None:
    if len(data) < 20:
        return None
    if data[0] >> 4 == 4:
        return read_payload(data[9], data[(data[0] & 0xF) * 4 :])
    return read_payload(data[6], data[40:]) if data[0] >> 4 == 6 else None


def read_head(data: bytes) -> Head:
    """Of a packet from the IP header on."""
    is_v4 = data[0] >> 4 == 4
    at, width = (12, 4) if is_v4 else (8, 16)
    src, dst = (str(ip_address(data[start : start + width])) for start in (at, at + width))
    protocol, payload = (data[9], data[(data[0] & 0xF) * 4 :]) if is_v4 else (data[6], data[40:])
    if protocol in (TCP, UDP, SCTP):
        return Head(src, dst, *struct.unpack("!HH", payload[:4]))
    if protocol in (ICMP, ICMPV6):
        return Head(src, dst, ident=struct.unpack("!H", payload[4:6])[0])
    return Head(src, dst)


def read_payload(protocol: int, data: bytes) -> Seen | None:
    is_icmp = protocol in (ICMP, ICMPV6)
    if is_icmp and len(data) > 8 and (data[0] < 128 if protocol == ICMPV6 else data[0] in (3, 4, 5, 11, 12)):
        inner = read_ip(data[8:])
        kind: Kind = "prohibited" if (protocol, data[0], data[1]) in _PROHIBITED else "error"
        return None if inner is None or inner.kind != "packet" else Seen(inner.number, kind)
    at = _L4_BYTES.get(protocol, 0)
    if protocol == SCTP:
        at += 4  # the chunk's header
    found = data[at : at + 8]
    return Seen(struct.unpack("!I", found[4:])[0]) if found[:4] == _MAGIC else None


def _sctp_init(sport: int, dport: int, number: int) -> bytes:
    """The mark stands where the initiate tag and the window are."""
    chunk = struct.pack("!BBH", 1, 0, 20) + mark(number) + struct.pack("!HHI", 1, 1, 1)
    head = struct.pack("!HHII", sport, dport, 0, 0)
    return head[:8] + struct.pack("<I", _crc32c(head + chunk)) + chunk


def _crc32c(data: bytes) -> int:
    """Castagnoli's (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_of(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC = [_crc_of(byte) for byte in range(256)]


def _pseudo(src: str, dst: str, protocol: int) -> bytes:
    """Addresses and protocol; the length is added where the sum is made."""
    return ip_address(src).packed + ip_address(dst).packed + bytes((0, protocol))


def _summed(data: bytes, at: int, pseudo: bytes = b"") -> bytes:
    """With the Internet checksum (RFC 1071) at its place."""
    whole = data + b"\0" * (len(data) % 2)
    whole += pseudo + struct.pack("!H", len(data)) * bool(pseudo)
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:at] + struct.pack("!H", (~total & 0xFFFF) or 0xFFFF) + data[at + 2 :]
