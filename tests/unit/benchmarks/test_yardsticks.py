"""A run beside which the machine changed is told from one that counts."""

from __future__ import annotations

import pytest

from tests.benchmarks import yardsticks


@pytest.mark.parametrize(
    ("before", "after", "told", "is_steady"),
    [(0.1, 0.105, 0.05, True), (0.1, 0.112, 0.12, False), (0.1, 0.08, -0.2, False)],
)
def test_a_drift_of_more_than_a_tenth_is_told(before: float, after: float, told: float, is_steady: bool) -> None:
    found = yardsticks.drift({"loop_s": before}, {"loop_s": after})
    assert found == {"loop_drift": pytest.approx(told), "is_steady": is_steady}


def test_units_are_of_both_ends() -> None:
    assert yardsticks.unit_s({"loop_cpu_s": 0.1}, {"loop_cpu_s": 0.3}) == pytest.approx(0.2e-6)


def test_microseconds() -> None:
    found = yardsticks.cpu_us([3e-6, 1e-6, 2e-6])
    assert found == {"n": 3, "min_cpu_us": 1.0, "median_cpu_us": 2.0, "p95_cpu_us": 3.0}
