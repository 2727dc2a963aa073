"""The slowest attaches since the start and where they spent their time, for ``calicoctl node slow``."""

from __future__ import annotations

import heapq
import threading

from calico_core.model.record import Value
from calico_core.model.workloads import Attach
from calico_core.stopwatch import Stopwatch

KEPT = 50


class AttachTimes(Value, frozen=True):
    """``began``: seconds since the epoch. ``steps``: name and milliseconds in the order they ended; what is missing to
    ``ms`` came after the last. ``error``: why it failed, or empty."""

    endpoint: str
    container: str
    network: str
    began: float
    ms: float
    steps: tuple[tuple[str, float], ...]
    error: str = ""


class SlowestAttaches:
    """Any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, AttachTimes]] = []  # the quickest of them first
        self._count = 0

    @property
    def count(self) -> int:
        """Of all attaches, also those that were quick."""
        return self._count

    def note(self, request: Attach, watch: Stopwatch, error: str = "") -> None:
        """An attach has ended."""
        ms = watch.total_ms
        with self._lock:
            self._count += 1
            if len(self._heap) >= self._kept and ms <= self._heap[0][0]:
                return
            times = AttachTimes(
                endpoint=request.key.path,
                container=request.container_id or "",
                network=request.network or "",
                began=round(watch.began, 3),
                ms=ms,
                steps=tuple(watch.steps),
                error=error,
            )
            replace = heapq.heappushpop if len(self._heap) >= self._kept else heapq.heappush
            replace(self._heap, (ms, self._count, times))

    def list(self) -> list[AttachTimes]:
        """Slowest first."""
        with self._lock:
            found = sorted(self._heap, reverse=True)
        return [times for _, _, times in found]
