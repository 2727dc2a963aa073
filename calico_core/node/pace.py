"""When the engine is to try again what failed, and when to look at everything anew. One thread."""

from __future__ import annotations

import random
import time

_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 10.0
_REFRESH_JITTER = 1.2


class Pace:
    """``refresh_interval_s`` 0: never. ``last_error``: why the kernel does not have all that it was to have, or ''."""

    def __init__(self, refresh_interval_s: float) -> None:
        self.last_error = ""
        self._refresh_interval_s = refresh_interval_s
        self._refresh_at = 0.0
        self._retry_s = 0.0
        self._retry_at: float | None = None
        self.note_refresh()

    def note_failure(self, reason: str) -> None:
        """The next attempt comes after twice the time of the one before."""
        self.last_error = reason
        self._retry_s = min(max(self._retry_s * 2, _RETRY_FIRST_S), _RETRY_MAX_S)
        self._retry_at = time.monotonic() + self._retry_s

    def note_success(self) -> None:
        self._retry_at, self._retry_s, self.last_error = None, 0.0, ""

    def note_refresh(self) -> None:
        """The next is up to a fifth later than said: hosts that were started together shall not work together."""
        self._refresh_at = time.monotonic() + self._refresh_interval_s * random.uniform(1.0, _REFRESH_JITTER)

    @property
    def is_retry_due(self) -> bool:
        return self._retry_at is not None and time.monotonic() >= self._retry_at

    @property
    def is_refresh_due(self) -> bool:
        return self._refresh_interval_s > 0 and time.monotonic() >= self._refresh_at

    def times(self, *, refreshes: bool) -> list[float]:
        """Of the next attempt and, when it ``refreshes``, of the next look at everything."""
        times = [self._retry_at] if self._retry_at is not None else []
        return [*times, self._refresh_at] if refreshes and self._refresh_interval_s > 0 else times
