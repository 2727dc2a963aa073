"""Where the time of a call goes.

Whoever takes a call from outside opens a :func:`measured` block. What runs in it, however deep, says with :func:`lap`
that a step has ended, and knows nothing of who asks.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_running: contextvars.ContextVar[Stopwatch | None] = contextvars.ContextVar("calico_stopwatch", default=None)


class Stopwatch:
    """Of one call, in one thread."""

    __slots__ = ("_last", "_started", "began", "steps")

    def __init__(self) -> None:
        self.began = time.time()
        self._started = self._last = time.perf_counter()
        self.steps: list[tuple[str, float]] = []

    @property
    def total_ms(self) -> float:
        return round((time.perf_counter() - self._started) * 1000, 2)

    def lap(self, name: str) -> None:
        """The time since the step before, or since the beginning, was spent on this."""
        now = time.perf_counter()
        self.steps.append((f"{name}_ms", round((now - self._last) * 1000, 2)))
        self._last = now


class Timing:
    """A sum and a number of durations, as a Prometheus summary without quantiles. One thread notes, any reads."""

    __slots__ = ("count", "sum_s")

    def __init__(self) -> None:
        self.count = 0
        self.sum_s = 0.0

    def note(self, seconds: float) -> None:
        self.count += 1
        self.sum_s += seconds

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """The block, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.note(time.perf_counter() - started)


@contextlib.contextmanager
def measured() -> Iterator[Stopwatch]:
    """The stopwatch of the block, or of the block around it."""
    running = _running.get()
    if running is not None:
        yield running
        return
    started = Stopwatch()
    token = _running.set(started)
    try:
        yield started
    finally:
        _running.reset(token)


def lap(name: str) -> None:
    """A step of the call that runs here has ended; nothing where nobody measures."""
    running = _running.get()
    if running is not None:
        running.lap(name)
