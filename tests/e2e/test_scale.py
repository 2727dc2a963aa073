"""Scenario 64 in small: updates of remote endpoints reach the kernel while they come. ``nox -s scale`` is the whole."""

from __future__ import annotations

import pytest

from tests.campaigns import scale

pytestmark = pytest.mark.needs_root


def test_updates_arrive_while_they_come() -> None:
    result = scale.run(scale.Size(remote=1000, local=20, policies=100, rate=300, seconds=2.0))
    assert result.updates == 600
    assert not result.missing
    # of a machine that others use too, no more is asked than that it keeps up
    assert result.percentile_s(0.99) < 5 * scale.P99_S
    assert result.queue < 600
    assert result.peak_mb < result.memory_mb * scale.MEMORY_GROWTH


def test_what_is_missed_is_said() -> None:
    good = scale.Result(scale.Size(), 9.0, 60.0, [0.01] * 60_000, 60_000, 500, 300.0, 310.0, 30.0, [0.01] * 1200)
    assert not good.problems
    assert good._replace(times_s=good.times_s[1:]).problems == ["updates are missing"]
    assert good._replace(times_s=[0.01] * 59_000 + [1.2] * 1000).problems == ["the 99th percentile is too high"]
    assert good._replace(took_s=64.0).problems == ["the rate was not kept"]
    assert good._replace(queue=1001).problems == ["the queue grew"]
    assert good._replace(peak_mb=400.0).problems == ["memory grew"]
