"""How long a thread has been at one turn of its loop: what waits is well, what does not come back hangs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Busy:
    """Written by one thread, read by any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        self._since = self._clock()
        try:
            yield
        finally:
            self._since = None

    @property
    def seconds(self) -> float:
        """Of the turn under way; 0 while the thread waits."""
        since = self._since
        return 0.0 if since is None else max(0.0, self._clock() - since)
