"""When a node starts itself anew because of settings."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from calico_core.node.restart import Restart
from tests.waiting import eventually


class Node:
    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.must_wait = False
        self.asked = threading.Semaphore(0)
        self.differing: set[str] = set()
        self.restart = Restart(self.stopping, lambda: None, self._must_wait, pause_s=0.01)

    def _must_wait(self) -> bool:
        self.asked.release()
        return self.must_wait

    def change(self, *names: str) -> None:
        self.differing = set(names)
        self.restart.later(lambda: self.differing)

    def is_asked_again(self) -> None:
        """Twice more at least: the first may be under way already."""
        for _ in range(2):
            assert self.asked.acquire(timeout=10)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.stopping.set()
    made.restart.cancel()


def test_a_setting_that_differs_is_a_reason(node: Node) -> None:
    node.change("health_port")
    assert node.stopping.wait(10)
    assert node.restart.is_wanted


def test_it_waits_while_the_store_is_not_to_be_believed(node: Node) -> None:
    node.must_wait = True
    node.change("interface_prefix")
    node.is_asked_again()
    assert not node.restart.is_wanted
    node.must_wait = False
    assert node.stopping.wait(10)
    assert node.restart.is_wanted


def test_settings_that_come_back_meanwhile_are_none(node: Node) -> None:
    node.must_wait = True
    node.change("interface_prefix")
    node.is_asked_again()
    node.differing = set()
    node.must_wait = False
    timer = node.restart._timer
    assert timer is not None
    eventually(lambda: not timer.is_alive())
    assert not node.restart.is_wanted
    assert not node.stopping.is_set()


def test_what_differs_just_as_a_judgement_ends_is_judged_anew(node: Node) -> None:
    """The thread of the timer lives a moment longer than its last look."""
    looks = 0

    def differing() -> set[str]:
        nonlocal looks
        looks += 1
        found = node.differing
        if looks == 2:  # the last, of a change that was taken back
            node.change("health_port")
        return found

    node.restart.later(differing)
    assert node.stopping.wait(10)
    assert node.restart.is_wanted


def test_a_stop_ends_the_wait(node: Node) -> None:
    node.must_wait = True
    node.change("interface_prefix")
    node.is_asked_again()
    node.stopping.set()
    timer = node.restart._timer
    assert timer is not None
    eventually(lambda: not timer.is_alive())
    assert not node.restart.is_wanted
