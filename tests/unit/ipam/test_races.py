from __future__ import annotations

import pytest

from calico_core.errors import Contended
from calico_core.ipam.races import Races


def test_one_retry_at_once_then_growing_pauses_until_the_deadline() -> None:
    now = [100.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    races = Races("it", 1.0, clock=lambda: now[0], sleep=sleep, jitter=lambda _low, high: high)
    races.lost()
    assert pauses == []

    def lose_for_ever() -> None:
        while True:
            races.lost()

    with pytest.raises(Contended) as refusal:
        lose_for_ever()
    assert pauses[:8] == [0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.2]
    assert sum(pauses) == pytest.approx(1.0)
    assert refusal.value.attempts == races.lost_count == len(pauses) + 2
