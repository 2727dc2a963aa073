"""A flow's first packet as bytes, each with a number of its own that is found again wherever the packet ends up.

TCP carries the number as its sequence number, SCTP as its initiate tag, everything else in its payload, so that a
capture, an answer or an error that quotes the packet leads back to it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from netaddr import IPAddress

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
_MAGIC = b"calicoOR"
_SYN, _RST = 0x02, 0x04
_HOP_LIMIT = 64
# Destination unreachable, and IPv6's word for a protocol that nobody knows (RFC 4443, 3.4).
_ERRORS = {(ICMP, 3), (ICMPV6, 1), (ICMPV6, 4)}


class Flow(NamedTuple):
    """``sender``: who sends it, whatever it claims as ``src``. Ports 0 and ``icmp`` None where there are none."""

    sender: str
    src: IPAddress
    dst: IPAddress
    protocol: int
    src_port: int = 0
    dst_port: int = 0
    icmp: tuple[int, int] | None = None

    def __str__(self) -> str:
        ends = f"{self.src} → {self.dst}"
        if self.icmp is not None:
            return f"{self.sender}: {ends} protocol {self.protocol} type {self.icmp[0]} code {self.icmp[1]}"
        return f"{self.sender}: {ends} protocol {self.protocol} ports {self.src_port} → {self.dst_port}"


def packet(flow: Flow, number: int) -> bytes:
    """The whole IP packet; ``number`` below 2³²."""
    body = _body(flow, number)
    if flow.src.version == 4:
        # The kernel fills in the checksum of the header, its length and its identification.
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, _HOP_LIMIT, flow.protocol, 0)
        return head + flow.src.packed + flow.dst.packed + body
    head = struct.pack("!IHBB", 6 << 28, len(body), flow.protocol, _HOP_LIMIT)
    return head + flow.src.packed + flow.dst.packed + body


def number_in(protocol: int, transport: bytes) -> int | None:
    """The number of a packet that arrived."""
    if protocol == TCP:
        return int.from_bytes(transport[4:8], "big") if len(transport) >= 14 and transport[13] & _SYN else None
    if protocol == SCTP:
        return int.from_bytes(transport[16:20], "big") if len(transport) >= 20 else None
    return _number_after_magic(transport)


def answered_in(protocol: int, transport: bytes) -> tuple[int, str] | None:
    """The number of the packet that this one answers, and how: ``reply``, ``unreachable`` (nobody listens there) or
    ``prohibited``."""
    if protocol == TCP:
        is_reset = len(transport) >= 14 and transport[13] & _RST
        return (int.from_bytes(transport[8:12], "big") - 1, "reply") if is_reset else None
    if protocol not in (ICMP, ICMPV6) or len(transport) < 8:
        return None
    kind, code = transport[0], transport[1]
    if (protocol, kind) in {(ICMP, 0), (ICMPV6, 129)}:
        number = _number_after_magic(transport)
        return None if number is None else (number, "reply")
    if (protocol, kind) not in _ERRORS:
        return None
    number = _quoted(protocol, transport[8:])
    how = "prohibited" if (protocol, kind, code) in {(ICMP, 3, 13), (ICMPV6, 1, 1)} else "unreachable"
    return None if number is None else (number, how)


def _quoted(protocol: int, quoted: bytes) -> int | None:
    inner, offset = (quoted[9], (quoted[0] & 15) * 4) if protocol == ICMP else (quoted[6], 40)
    return number_in(inner, quoted[offset:])


def _number_after_magic(data: bytes) -> int | None:
    at = data.find(_MAGIC)
    if at < 0 or len(data) < at + len(_MAGIC) + 4:
        return None
    return int.from_bytes(data[at + len(_MAGIC) : at + len(_MAGIC) + 4], "big")


def _body(flow: Flow, number: int) -> bytes:
    payload = _MAGIC + number.to_bytes(4, "big")
    ports = struct.pack("!HH", flow.src_port, flow.dst_port)
    if flow.protocol == TCP:
        return _summed(flow, ports + struct.pack("!IIBBHHH", number, 0, 5 << 4, _SYN, 1024, 0, 0), 16)
    if flow.protocol == UDP:
        return _summed(flow, ports + struct.pack("!HH", 8 + len(payload), 0) + payload, 6)
    if flow.protocol == SCTP:
        chunk = struct.pack("!BBHIIHHI", 1, 0, 20, number, 65535, 1, 1, 1)
        body = ports + bytes(8) + chunk
        return body[:8] + struct.pack("<I", _crc32c(body)) + body[12:]
    if flow.icmp is not None:
        kind, code = flow.icmp
        body = struct.pack("!BBHHH", kind, code, 0, number & 0xFFFF, 1) + payload
        if flow.protocol == ICMPV6:
            return _summed(flow, body, 2)
        return body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
    return payload


def _summed(flow: Flow, body: bytes, at: int) -> bytes:
    pseudo = flow.src.packed + flow.dst.packed + struct.pack("!II", len(body), flow.protocol)
    return body[:at] + struct.pack("!H", _checksum(pseudo + body) or 0xFFFF) + body[at + 2 :]


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901 - eight rounds of one value
        table.append(value)
    return table


_CRC = _crc_table()
