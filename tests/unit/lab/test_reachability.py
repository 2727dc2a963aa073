"""The table of who reaches whom."""

from __future__ import annotations

from calico_core.lab.probes import ProbeResult, echo_request, parse_echo_reply
from calico_core.lab.reachability import Cell, Reachability

YES, NO = ProbeResult(is_reachable=True, rtt_ms=0.1), ProbeResult(is_reachable=False, detail="no answer in 1 s")


def test_rows_name_every_pair_from_its_source() -> None:
    table = Reachability(
        names=("a", "b"),
        kinds=("tcp",),
        cells=(
            Cell(source="a", target="b", kind="tcp", result=YES),
            Cell(source="b", target="a", kind="tcp", result=NO),
        ),
        seconds=0.1,
    )
    assert table.rows() == (("from \\ to", "a", "b"), ("a", "—", "yes"), ("b", "no", "—"))
    assert table.find("b", "a") == NO


def test_several_kinds_share_a_cell() -> None:
    cells = tuple(
        Cell(source="a", target="b", kind=kind, result=result) for kind, result in (("tcp", YES), ("icmp", NO))
    )
    back = tuple(Cell(source="b", target="a", kind=kind, result=YES) for kind in ("tcp", "icmp"))
    table = Reachability(names=("a", "b"), kinds=("tcp", "icmp"), cells=cells + back, seconds=0.0)
    assert table.rows()[1] == ("a", "—", "tcp yes, icmp no")


def test_an_icmp_request_carries_the_checksum_of_rfc_1071() -> None:
    packet = echo_request(4, 0x1234, 7, b"odd")
    padded = packet + b"\0"
    total = sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert packet[0] == 8


def test_only_our_own_reply_is_taken() -> None:
    ip_header = bytes([0x46]) + b"\0" * 23  # 24 bytes: with an option
    reply = bytes([0, 0, 0, 0, 0x12, 0x34, 0, 7]) + b"data"
    assert parse_echo_reply(4, ip_header + reply, 0x1234) == (7, b"data")
    assert parse_echo_reply(4, ip_header + reply, 0x1235) is None
    assert parse_echo_reply(4, ip_header + bytes([8]) + reply[1:], 0x1234) is None  # a request we overhear
    assert parse_echo_reply(6, bytes([129]) + reply[1:], 0x1234) == (7, b"data")
    assert parse_echo_reply(6, b"\x81", 0x1234) is None
