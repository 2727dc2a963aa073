"""One call at a time for a name, any number for different names, and nothing left behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from calico_core.errors import NotReady
from calico_core.locks import NamedLocks

WAIT_S = 10.0


def test_one_name_is_held_by_one() -> None:
    locks = NamedLocks()
    counter = 0
    inside: list[int] = []

    def work(_: int) -> None:
        nonlocal counter
        with locks.hold("endpoint", timeout_s=WAIT_S):
            counter += 1
            inside.append(counter)
            threading.Event().wait(0.001)
            counter -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert inside == [1] * 40


def test_different_names_do_not_wait_for_each_other() -> None:
    locks = NamedLocks()
    both = threading.Barrier(2, timeout=WAIT_S)

    def work(name: str) -> None:
        with locks.hold(name, timeout_s=WAIT_S):
            both.wait()  # passes only when both are inside

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ["a", "b"]))


def test_time_out_names_what_is_held() -> None:
    locks = NamedLocks()
    with (
        locks.hold("endpoint-1", timeout_s=WAIT_S),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(NotReady, match="endpoint-1"),
    ):
        pool.submit(_hold, locks, "endpoint-1", 0.01).result()


@pytest.mark.parametrize("times_out", [False, True])
def test_nothing_is_remembered_when_nobody_holds(times_out: bool) -> None:
    locks = NamedLocks()
    with locks.hold("a", timeout_s=WAIT_S), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_hold, locks, "a" if times_out else "b", 0.01)
        assert (waiting.exception() is not None) is times_out
    assert locks._locks == {}


def test_an_error_inside_frees_the_lock() -> None:
    locks = NamedLocks()
    with pytest.raises(KeyError), locks.hold("a", timeout_s=WAIT_S):
        raise KeyError("inside")
    _hold(locks, "a", 0.01)


def _hold(locks: NamedLocks, name: str, timeout_s: float) -> None:
    with locks.hold(name, timeout_s=timeout_s):
        pass
