"""Denied packets for those who ask: nothing missed between two questions, nobody listening when nobody asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from netaddr import IPAddress

from calico_core.dataplane.memory import MemoryDataplane
from calico_core.interfaces.dataplane import DataplaneOptions, DenialOrigin, DeniedPacket
from calico_core.model.hoststate import RulesId
from calico_core.node.denied import DeniedLog, parse_question
from tests.waiting import eventually

ORIGIN = DenialOrigin(reason="rule", direction="inbound", rules=RulesId("profile/p"), rule=2)


def packet(port: int) -> DeniedPacket:
    one, other = IPAddress("10.0.0.1"), IPAddress("10.0.0.2")
    return DeniedPacket(
        origin=ORIGIN, time=1.5, in_interface="cali1", out_interface="cali2", src=one, dst=other, protocol=6,
        src_port=4000, dst_port=port, length_bytes=60,
    )  # fmt: skip


def ports(answer: dict[str, object]) -> list[int]:
    packets = answer["packets"]
    assert isinstance(packets, list)
    return [each["port"] for each in packets]


@pytest.fixture
def dataplane() -> MemoryDataplane:
    return MemoryDataplane.open(DataplaneOptions(denied_group=7))


@pytest.fixture
def denied(dataplane: MemoryDataplane) -> Iterator[DeniedLog]:
    made = DeniedLog(dataplane)
    yield made
    made.close()
    assert not made.is_listening


def test_who_asks_again_gets_what_came_since(dataplane: MemoryDataplane, denied: DeniedLog) -> None:
    dataplane.deny(packet(1))  # nobody listens
    start = denied.after(None, 0)
    assert ports(start) == []
    dataplane.deny(packet(2))
    dataplane.deny(packet(3))
    first = denied.after(start["cursor"], 0)
    assert ports(first) == [2, 3]
    assert ports(denied.after(start["cursor"], 0)) == [2, 3], "the answer may have been lost: it is given again"
    dataplane.deny(packet(4))
    assert ports(denied.after(first["cursor"], 0)) == [4]
    (found,) = denied.after(first["cursor"], 0)["packets"]
    assert (found["source"], found["rules"], found["rule"], found["direction"]) == (
        "10.0.0.1", "profile/p", 2, "inbound",
    )  # fmt: skip


def test_a_waiting_question_is_answered_by_the_packet(dataplane: MemoryDataplane, denied: DeniedLog) -> None:
    cursor = denied.after(None, 0)["cursor"]
    answers: list[dict[str, object]] = []
    asking = threading.Thread(target=lambda: answers.append(denied.after(cursor, 5)))
    started = time.monotonic()
    asking.start()
    eventually(lambda: denied._waiting == 1)
    dataplane.deny(packet(9))
    asking.join(5)
    assert ports(answers[0]) == [9]
    assert time.monotonic() - started < 4


def test_too_many_that_wait_are_answered_at_once(denied: DeniedLog) -> None:
    cursor = denied.after(None, 0)["cursor"]
    waiting = [threading.Thread(target=denied.after, args=(cursor, 5)) for _ in range(4)]
    for each in waiting:
        each.start()
    eventually(lambda: denied._waiting == 4)
    started = time.monotonic()
    assert ports(denied.after(cursor, 5)) == []
    assert time.monotonic() - started < 4, "it does not wait"
    denied.close()
    for each in waiting:
        each.join(20)
        assert not each.is_alive()


def test_the_ring_is_bounded_and_says_what_it_lost(dataplane: MemoryDataplane, denied: DeniedLog) -> None:
    cursor = denied.after(None, 0)["cursor"]
    for port in range(2500):
        dataplane.deny(packet(port))
    found = denied.after(cursor, 0)
    assert (found["missed"], ports(found)[0], len(ports(found))) == (500, 500, 2000)


def test_a_cursor_of_an_earlier_node_means_from_now_on(dataplane: MemoryDataplane, denied: DeniedLog) -> None:
    start = denied.after(77, 0)
    dataplane.deny(packet(1))
    assert (ports(start), ports(denied.after(start["cursor"], 0))) == ([], [1])


def test_nobody_asks_nobody_listens(dataplane: MemoryDataplane) -> None:
    denied = DeniedLog(dataplane, unheard_s=0.05)
    assert not denied.is_listening
    cursor = denied.after(None, 0)["cursor"]
    assert denied.is_listening
    eventually(lambda: not denied.is_listening)
    dataplane.deny(packet(1))
    assert ports(denied.after(cursor, 0)) == []
    assert denied.is_listening
    denied.close()


@pytest.mark.parametrize(
    ("words", "question"), [([], (None, 0.0)), (["now", "2"], (None, 2.0)), (["17", "0.5"], (17, 0.5))]
)
def test_questions(words: list[str], question: tuple[int | None, float]) -> None:
    assert parse_question(iter(words)) == question


def test_what_is_no_question() -> None:
    with pytest.raises(ValueError, match="soon"):
        parse_question(iter(["soon"]))
