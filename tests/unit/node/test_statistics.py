"""Figures in the log, when a signal asks for them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from calico_core import log
from calico_core.node.metric import Metric, counter, gauge
from calico_core.node.statistics import tell, thread_costs


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [each.calico_fields for each in caplog.records if each.getMessage() == event]  # type: ignore[attr-defined]


def test_every_figure_that_is_not_0_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger=log.PACKAGES[0]):
        tell(
            [
                counter("felix_a", "A.", 3),
                gauge("felix_b", "B.", 0),
                Metric("felix_c", "summary", "C.", (("_sum", {"kind": "x"}, 0.5), ("_count", {"kind": "x"}, 2.0))),
            ]
        )
    assert told(caplog, "node.figure") == [
        {"metric": "felix_a", "value": 3},
        {"metric": "felix_c_sum", "value": 0.5, "kind": "x"},
        {"metric": "felix_c_count", "value": 2.0, "kind": "x"},
    ]
    assert "MainThread" in [each["thread"] for each in told(caplog, "node.thread")]


def test_a_thread_that_works_costs_more_than_one_that_waits() -> None:
    ended = threading.Event()
    waiting = threading.Thread(target=ended.wait, name="waits")
    waiting.start()
    try:
        before = {each.name: each for each in thread_costs()}
        sum(number * number for number in range(1_000_000))
        after = {each.name: each for each in thread_costs()}
    finally:
        ended.set()
        waiting.join()
    cost = {name: after[name].cpu_s - before[name].cpu_s for name in ("MainThread", "waits")}
    assert cost["MainThread"] > 0.005
    assert cost["waits"] < cost["MainThread"] / 10
