"""How long a call goes on after losing a race. Source: ipam specification 8, last paragraph."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from calico_core.errors import Contended

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.2


class Races:
    """Of one call: one retry at once, then pauses with full jitter, until the deadline. One thread."""

    def __init__(
        self,
        what: str,
        deadline_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._what, self._clock, self._sleep, self._jitter = what, clock, sleep, jitter
        self._end = clock() + deadline_s
        self.lost_count = 0

    @property
    def is_over(self) -> bool:
        return self._clock() >= self._end

    def lost(self) -> None:
        """Another writer was quicker: wait for the next attempt. Raises ``Contended`` past the deadline."""
        self.lost_count += 1
        if self.is_over:
            raise Contended(self._what, self.lost_count)
        if self.lost_count > 1:
            self.pause(self.lost_count - 2)

    def pause(self, step: int) -> None:
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(step, 10))
        self._sleep(min(self._jitter(0, longest), max(self._end - self._clock(), 0)))
