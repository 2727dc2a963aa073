"""Who writes when."""

from __future__ import annotations

import threading
import time

import pytest

from calico_core.errors import Contended
from calico_core.ipam.jobs import Job
from calico_core.ipam.steps import Plan
from calico_core.ipam.turns import MOST_AT_ONCE, Turns

DONE = Plan((), lambda: True)


def a_job(*versions: int, handle: str | None = "h", deadline_s: float = 10.0) -> Job:
    handles = None if handle is None else (handle,)
    return Job(versions or (4,), lambda fresh, draft: DONE, None, handles=handles, what="a", deadline_s=deadline_s)


class Caller(threading.Thread):
    """Enters and tells which group it leads."""

    def __init__(self, turns: Turns, job: Job) -> None:
        super().__init__(daemon=True)
        self._turns, self.job = turns, job
        self.group: list[Job] | None = None

    def run(self) -> None:
        self.group = self._turns.enter(self.job)

    def wait(self) -> list[Job]:
        self.join(10)
        assert self.group is not None
        return self.group


def waiting(turns: Turns, *jobs: Job) -> list[Caller]:
    """They wait, in this order."""
    callers = []
    for job in jobs:
        callers.append(Caller(turns, job))
        callers[-1].start()
        deadline = time.monotonic() + 10
        while job not in turns._waiting and callers[-1].group is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    return callers


def test_who_waits_goes_together_and_the_oldest_leads() -> None:
    turns = Turns()
    first = a_job()
    assert turns.enter(first) == [first]
    jobs = [a_job(handle=f"h{number}") for number in range(3)]
    callers = waiting(turns, *jobs)
    first.plan = DONE
    turns.leave([first])
    assert callers[0].wait() == jobs
    for job in jobs:
        job.plan = DONE
    turns.leave(jobs)
    assert [caller.wait() for caller in callers[1:]] == [[], []]
    assert turns._waiting == []


def test_families_do_not_wait_for_each_other_but_for_who_needs_both() -> None:
    turns = Turns()
    four = a_job(4)
    assert turns.enter(four) == [four]
    both, six = a_job(4, 6, handle="both"), a_job(6, handle="six")
    assert turns.enter(six) == [six]
    turns.leave([six])
    (caller,) = waiting(turns, both)
    later = waiting(turns, a_job(6, handle="later"))[0]
    turns.leave([four])
    assert caller.wait() == [both, later.job], "first come, first served: it is not overtaken for ever"


@pytest.mark.parametrize("handles", [("h", "h"), (None, "h"), ("h", None)])
def test_some_do_not_go_together(handles: tuple[str | None, str | None]) -> None:
    turns = Turns()
    first = a_job(handle="first")
    turns.enter(first)
    callers = waiting(turns, *(a_job(handle=handle) for handle in handles))
    turns.leave([first])
    assert callers[0].wait() == [callers[0].job]
    turns.leave(callers[0].wait())
    assert callers[1].wait() == [callers[1].job]


def test_a_group_has_its_limit() -> None:
    turns = Turns()
    first = a_job(handle="first")
    turns.enter(first)
    callers = waiting(turns, *(a_job(handle=f"h{n}") for n in range(MOST_AT_ONCE + 3)))
    turns.leave([first])
    group = callers[0].wait()
    assert len(group) == MOST_AT_ONCE
    for job in group:
        job.plan = DONE
    turns.leave(group)
    assert len(callers[MOST_AT_ONCE].wait()) == 3


def test_waiting_ends_with_the_callers_time() -> None:
    turns = Turns()
    first = a_job()
    turns.enter(first)
    with pytest.raises(Contended, match="waiting for other calls"):
        turns.enter(a_job(deadline_s=0.01))
    turns.leave([first])
    assert turns._waiting == []
