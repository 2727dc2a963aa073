from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from calico_core.errors import KernelRefused
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.stopwatch import Stopwatch
from calico_core.workload.slowest import SlowestAttaches

if TYPE_CHECKING:
    from tests.unit.workload.conftest import Bench


class Took(Stopwatch):
    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms

    @property
    def total_ms(self) -> float:
        return self.ms


def test_only_the_slowest_stay_in_order(bench: Bench) -> None:
    slowest = SlowestAttaches(kept=3)
    for ms in (5, 1, 9, 3, 9, 7):
        slowest.note(bench.attach_request("c"), Took(ms))
    assert [times.ms for times in slowest.list()] == [9, 9, 7]
    assert slowest.count == 6


def test_every_attach_is_noted_with_its_steps(bench: Bench) -> None:
    bench.service.attach(bench.attach_request("c1"))
    (times,) = bench.service.slowest.list()
    assert [name for name, _ in times.steps] == ["before_ms", "lock_ms", "record_ms", "interface_ms", "policy_ms"]
    assert times.endpoint == bench.attach_request("c1").key.path
    assert (times.container, times.error) == ("c1", "")
    assert times.ms >= sum(ms for _, ms in times.steps)


def test_one_that_failed_says_why_and_how_far_it_came(bench: Bench) -> None:
    bench.wiring.fail_next(KernelRefused("make a pair", 17))
    with pytest.raises(KernelRefused):
        bench.service.attach(bench.attach_request("c1", key=WorkloadEndpointKey("rack-a", "cni", "c1", "e1")))
    (times,) = bench.service.slowest.list()
    assert times.steps[-1][0] == "record_ms"
    assert "make a pair" in times.error
