"""Several watches read as one, by watches that ring; those that do not are read by the syncer's tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from calico_core.datastore.etcd3_watch import Etcd3Watch
from calico_core.datastore.feed import Feed
from calico_core.interfaces.datastore import Batch, Event, Lost, WatchMessage

A, B = "/calico/a/", "/calico/b/"
PATIENCE_S = 20.0


def a_batch(revision: int) -> Batch:
    return Batch(revision, (Event(f"{A}{revision}", b"", None, revision),))


class Watched:
    """A feed of two watches."""

    def __init__(self, *waiting: WatchMessage) -> None:
        self.idle = threading.Event()
        self.watches = {
            prefix: Etcd3Watch(prefix, lambda watch: None, on_idle=self.idle.set, idle_s=0.05) for prefix in (A, B)
        }
        self.watches[A].deliver(waiting)
        self.feed = Feed(self.watches, threading.Event())

    def read_beside(self) -> tuple[threading.Thread, list[object]]:
        """One read, by a thread that is about to wait, or does."""
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(self.feed.next(PATIENCE_S)))
        thread.start()
        return thread, found


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    with made.feed:
        yield made


def test_what_came_before_the_feed_is_read() -> None:
    made = Watched(a_batch(1))
    with made.feed:
        assert made.feed.next(PATIENCE_S) == (A, a_batch(1))
        assert made.feed.next(0) is None


def test_there_is_no_thread_for_a_watch_that_rings(watched: Watched) -> None:
    assert not [each for each in threading.enumerate() if each.name.startswith("watch ")]


@pytest.mark.parametrize("prefix", [A, B])
def test_a_message_wakes_the_reader(watched: Watched, prefix: str) -> None:
    thread, found = watched.read_beside()
    watched.watches[prefix].deliver([a_batch(2)])
    thread.join(PATIENCE_S)
    assert found == [(prefix, a_batch(2))]


def test_the_end_of_a_watch_wakes_the_reader(watched: Watched) -> None:
    thread, found = watched.read_beside()
    watched.watches[B].end(Lost("gone"))
    thread.join(PATIENCE_S)
    assert found == [(B, Lost("gone"))]


def test_closing_wakes_the_reader(watched: Watched) -> None:
    thread, found = watched.read_beside()
    watched.feed.close()
    thread.join(PATIENCE_S)
    assert found == [None]
    assert watched.feed.next(PATIENCE_S) is None


def test_a_busy_watch_does_not_keep_the_other_waiting(watched: Watched) -> None:
    for prefix in (A, B):
        watched.watches[prefix].deliver([a_batch(number) for number in range(1, 4)])
    found = [watched.feed.next(PATIENCE_S) for _ in range(6)]
    assert [each[0] for each in found if each] == [A, B, A, B, A, B]
    assert [each[1].revision for each in found if each] == [1, 1, 2, 2, 3, 3]


def test_a_quiet_watch_is_asked_how_far_the_store_is(watched: Watched) -> None:
    until = time.monotonic() + PATIENCE_S
    while not watched.idle.is_set() and time.monotonic() < until:
        assert watched.feed.next(0.1) is None
    assert watched.idle.is_set()
