"""Headers of logged packets, whole and cut off."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress

from calico_core.dataplane.linux.nflog import parse_headers

V4, V6 = (IPAddress("10.0.0.1"), IPAddress("10.0.0.2")), (IPAddress("fd00::1"), IPAddress("fd00::2"))
TCP = struct.pack(">HH", 1000, 80) + bytes(16)


def v4(protocol: int, upper: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(upper), 0, fragment, 64, protocol, 0,
        V4[0].packed, V4[1].packed,
    )  # fmt: skip
    return head + options + upper


def v6(next_header: int, upper: bytes) -> bytes:
    return struct.pack(">IHBB16s16s", 6 << 28, len(upper), next_header, 64, V6[0].packed, V6[1].packed) + upper


def extension(next_header: int, size: int = 8) -> bytes:
    return bytes((next_header, size // 8 - 1)) + bytes(size - 2)


@pytest.mark.parametrize(
    ("data", "protocol", "ports", "icmp"),
    [
        (v4(6, TCP), 6, (1000, 80), None),
        (v4(6, TCP, options=bytes(8)), 6, (1000, 80), None),
        (v4(132, TCP), 132, (1000, 80), None),
        (v4(6, TCP, fragment=7), 6, (None, None), None),
        (v4(6, TCP, fragment=0x2000), 6, (1000, 80), None),
        (v4(6, TCP[:3]), 6, (None, None), None),
        (v4(1, b"\3\1rest"), 1, (None, None), (3, 1)),
        (v4(47, TCP), 47, (None, None), None),
        (v6(17, TCP), 17, (1000, 80), None),
        (v6(58, b"\x80\0more"), 58, (None, None), (128, 0)),
        (v6(0, extension(60, 16) + extension(6) + TCP), 6, (1000, 80), None),
        (v6(44, bytes((17, 0)) + struct.pack(">HI", 0x0001, 9) + TCP), 17, (1000, 80), None),
        (v6(44, bytes((17, 0)) + struct.pack(">HI", 8 << 3, 9) + TCP), 17, (None, None), None),
        (v6(51, bytes((6, 4)) + bytes(22) + TCP), 6, (1000, 80), None),
        (v6(0, extension(6)[:5]), 0, (None, None), None),
    ],
)
def test_headers(
    data: bytes, protocol: int, ports: tuple[int | None, int | None], icmp: tuple[int, int] | None
) -> None:
    headers = parse_headers(data)
    assert headers is not None
    assert (headers.src, headers.dst) == (V4 if data[0] >> 4 == 4 else V6)
    assert (headers.protocol, (headers.src_port, headers.dst_port), headers.icmp) == (protocol, ports, icmp)
    assert headers.length_bytes == len(data)


@given(st.binary(max_size=80))
def test_anything_is_survived(data: bytes) -> None:
    headers = parse_headers(data)
    assert headers is None or data[0] >> 4 in (4, 6)
