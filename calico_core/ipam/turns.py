"""Whose turn it is to write. One transaction of a family is under way at a time; who arrives meanwhile waits, and those
who wait go together in the next one (group commit).

The first who waits leads: it plans and commits for all it takes along, in its own thread. There is no thread of our
own to start, to watch and to stop. Source: ipam specification 10, point 3.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from calico_core.errors import Contended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calico_core.ipam.jobs import Job

MOST_AT_ONCE = 50


class Turns:
    """Safe for several threads. First come, first served, a family at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy: set[int] = set()
        self._waiting: list[Job] = []
        self._led: set[int] = set()  # ids of jobs that somebody leads

    def enter(self, job: Job) -> list[Job]:
        """Wait for the turn: the jobs to be led, this one first; or empty when another has settled it meanwhile.

        Raises ``Contended`` when the job's time passed and nobody had begun with it. Every group is followed by
        :meth:`leave`.
        """
        deadline = time.monotonic() + job.deadline_s
        with self._changed:
            self._waiting.append(job)
            while not job.is_settled:
                if id(job) not in self._led and self._is_next(job):
                    return self._group(job)
                left = deadline - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                elif id(job) not in self._led:
                    self._waiting.remove(job)
                    self._changed.notify_all()
                    raise Contended(f"{job.what}, waiting for other calls of this host", 0)
                else:
                    self._changed.wait(job.deadline_s or 1.0)  # under way: its leader has a deadline of its own
            return []

    def leave(self, group: Sequence[Job]) -> None:
        """The group's transaction is over. Who is not settled waits on, at the place it had."""
        with self._changed:
            for job in group:
                self._led.discard(id(job))
                self._busy -= job.versions
                if job.is_settled or job is group[0]:
                    self._waiting.remove(job)
            self._changed.notify_all()

    def _is_next(self, job: Job) -> bool:
        taken = set(self._busy)
        for other in self._waiting:
            if other is job:
                return not taken & job.versions
            if id(other) not in self._led:
                taken |= other.versions
        return False

    def _group(self, leader: Job) -> list[Job]:
        group = [leader]
        for other in () if leader.goes_alone else tuple(self._waiting):
            if len(group) == MOST_AT_ONCE:
                break
            is_free = other is not leader and id(other) not in self._led
            if is_free and other.versions <= leader.versions and other.may_join(group):
                group.append(other)
        self._led |= {id(job) for job in group}
        self._busy |= leader.versions
        return group
