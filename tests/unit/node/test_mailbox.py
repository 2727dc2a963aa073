"""What crosses between threads arrives: all of it in order, or the newest alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from calico_core.node.mailbox import LatestSlot, Mailbox

WAIT_S = 10.0


def test_a_mailbox_gives_everything_in_order() -> None:
    box: Mailbox[int] = Mailbox()
    for number in range(5):
        box.post(number)
    assert box.take(0) == [0, 1, 2, 3, 4]
    assert box.take(0) == []


def test_a_post_wakes_the_taker() -> None:
    box: Mailbox[str] = Mailbox()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(box.take, WAIT_S)
        box.post("news")
        assert taken.result(WAIT_S) == ["news"]


def test_nothing_is_lost_between_many_posters() -> None:
    box: Mailbox[tuple[int, int]] = Mailbox()
    found: list[tuple[int, int]] = []

    def post(poster: int) -> None:
        for number in range(200):
            box.post((poster, number))

    with ThreadPoolExecutor(4) as pool:
        posters = [pool.submit(post, poster) for poster in range(4)]
        while len(found) < 800:
            batch = box.take(WAIT_S)
            assert batch
            found += batch
        for poster in posters:
            poster.result(WAIT_S)
    for poster in range(4):
        assert [number for who, number in found if who == poster] == list(range(200))


def test_closing_wakes_the_taker_and_keeps_what_is_there() -> None:
    box: Mailbox[str] = Mailbox()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(box.take, None)
        box.close()
        assert taken.result(WAIT_S) == []
    assert box.is_closed
    box.post("late")
    assert box.take(None) == ["late"]
    assert box.take(None) == []


def test_a_slot_keeps_the_newest_only() -> None:
    slot: LatestSlot[int] = LatestSlot()
    for number in range(5):
        slot.put(number)
    assert slot.take(0) == 4
    assert slot.take(0) is None


def test_a_slot_wakes_its_taker() -> None:
    slot: LatestSlot[str] = LatestSlot()
    ready = threading.Event()

    def take() -> str | None:
        ready.set()
        return slot.take(WAIT_S)

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(take)
        assert ready.wait(WAIT_S)
        slot.put("value")
        assert taken.result(WAIT_S) == "value"


def test_a_closed_slot_does_not_wait() -> None:
    slot: LatestSlot[str] = LatestSlot()
    slot.close()
    assert slot.take(None) is None
