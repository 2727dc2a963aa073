"""Several watches read as one, for the syncer."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Self

from calico_core.interfaces.datastore import CompactedAway, Lost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calico_core.interfaces.datastore import Watch, WatchMessage

WATCH_WAIT_S = 30.0
"""How long one wait for events lasts. Nothing depends on it, stopping closes the watches; but each end of one wakes a
thread of an idle node."""
_CLOSE_WAIT_S = 5.0
PUT_WAIT_S = 0.1
QUEUED_MESSAGES = 1000


class Feed:
    """Several watches read as one, by one thread. A single one is read directly, and so are those that ring a bell; of
    others each has a thread, which only waits."""

    def __init__(self, watches: Mapping[str, Watch], stop: threading.Event) -> None:
        self._watches = dict(watches)
        self._stop = stop
        self._closed = False
        self._queue: queue.Queue[tuple[str, WatchMessage] | None] = queue.Queue(QUEUED_MESSAGES)
        self._rung = threading.Event()
        self._turns = deque(self._watches.items())
        self._threads: list[threading.Thread] = []
        if len(self._watches) > 1 and not all(watch.ring(self._rung.set) for watch in self._watches.values()):
            for prefix in self._watches:
                thread = threading.Thread(target=self._pump, args=(prefix,), name=f"watch {prefix}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for thread in self._threads:
            thread.join(_CLOSE_WAIT_S)

    def next(self, timeout_s: float) -> tuple[str, WatchMessage] | None:
        """A prefix and its message, or None."""
        if self._closed or self._stop.is_set():
            return None
        if len(self._watches) == 1:
            ((prefix, watch),) = self._watches.items()
            message = self._read(watch, timeout_s)
            return None if message is None else (prefix, message)
        if not self._threads:
            return self._take() or (self._take() if timeout_s and self._rung.wait(timeout_s) else None)
        try:
            return self._queue.get(timeout=timeout_s) if timeout_s else self._queue.get_nowait()
        except queue.Empty:
            return None

    def _take(self) -> tuple[str, WatchMessage] | None:
        """What a watch that rings has, each in turn."""
        self._rung.clear()
        for _ in self._watches:
            prefix, watch = self._turns[0]
            self._turns.rotate(-1)
            message = watch.next(0)
            if message is not None:
                return prefix, message
        return None

    def close(self) -> None:
        """From any thread."""
        self._closed = True
        self._rung.set()
        for watch in self._watches.values():
            watch.close()
        try:
            self._queue.put_nowait(None)  # wakes the reader
        except queue.Full:
            return

    def _read(self, watch: Watch, timeout_s: float) -> WatchMessage | None:
        """None long before its time means that the store was closed below us: say so instead of asking for ever."""
        began = time.monotonic()
        message = watch.next(timeout_s)
        if message is None and not self._closed and time.monotonic() - began < timeout_s / 2:
            return Lost("the watch was closed")
        return message

    def _pump(self, prefix: str) -> None:
        watch = self._watches[prefix]
        message: WatchMessage | None = None
        while not self._closed and not isinstance(message, Lost | CompactedAway):
            message = self._read(watch, WATCH_WAIT_S)
            while message is not None and not self._closed:
                try:
                    self._queue.put((prefix, message), timeout=PUT_WAIT_S)
                    break
                except queue.Full:
                    continue
