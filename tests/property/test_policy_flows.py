"""Explanations hold: each end's verdict is the naive evaluator's, the rule named as deciding does match as it was
written, and none of those passed over does."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from calico_core.model.keys import Key
from calico_core.policy.explain import Packet
from calico_core.policy.flows import Cluster, Side
from tests.property.test_policy_resolver import batches, packets, rule_matches, side_allows


@settings(max_examples=150, deadline=None)
@given(history=batches, probes=st.lists(packets(), min_size=8, max_size=16))
def test_every_explanation_holds(history: list[list[tuple[Key, Any]]], probes: list[Packet]) -> None:
    records: dict[Key, Any] = {}
    for batch in history:
        for key, record in batch:
            records.pop(key, None)
            if record is not None and not isinstance(key, str):
                records[key] = record
    cluster = Cluster(records.items())
    for packet in probes:
        verdict = cluster.explain(packet)
        for side in verdict.sides:
            check_side(records, side, packet)
        assert (verdict.outcome == "deny") == any(side.outcome == "deny" for side in verdict.sides)


def check_side(records: dict[Key, Any], side: Side, packet: Packet) -> None:
    if side.workload is None or side.outcome is None:
        assert side.reason
        return
    endpoint = records[side.workload]
    assert (side.outcome == "allow") == side_allows(records, endpoint, side.direction, packet)
    assert [step.outcome for step in side.steps[:-1]] == ["pass"] * (len(side.steps) - 1)
    for step in side.steps:
        if step.rule is not None:
            assert rule_matches(records, step.rule, packet)
    for each in side.passed_over:
        assert not rule_matches(records, each.rule, packet), each
