"""Explanations hold: each end's verdict is the naive evaluator's, the rule named as deciding does match as it was
written, and none of those passed over does."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from calico_core.model.keys import Key, WorkloadEndpointKey
from calico_core.policy.explain import Packet
from calico_core.policy.flows import Cluster, Side
from tests.property.test_policy_resolver import (
    batches,
    nats_of,
    outcome_at,
    packets,
    rule_matches,
    side_allows,
    translate,
)


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
            if side.place in {"host", "interface"} and side.host_endpoint is not None:
                check_interface(records, side, packet)
        assert (verdict.outcome == "deny") == any(side.outcome == "deny" for side in verdict.sides)


def as_seen(records: dict[Key, Any], packet: Packet, host: str) -> Packet:
    """Translated, on the host whose workload the floating address leads to: the first by key of all hosts."""
    owners = {
        nat.external: key for host in ("there", "here") for key, nats in nats_of(records, host).items() for nat in nats
    }  # "here" is the first of the two
    return translate(records, packet, host) if packet.dst in owners and owners[packet.dst].host == host else packet


def check_interface(records: dict[Key, Any], side: Side, packet: Packet) -> None:
    assert side.host is not None
    assert side.host_endpoint is not None
    inner = as_seen(records, packet, side.host) if side.direction == "inbound" else packet
    hooks = ["untracked", "pre_dnat"] if side.direction == "inbound" else ["untracked"]
    if side.place == "interface":
        hooks = [*hooks, "forward"] if side.direction == "inbound" else ["forward"]
    else:
        hooks.append("normal")
    outcome = "pass"
    for hook in hooks:
        asked = packet if hook in {"untracked", "pre_dnat"} else inner
        outcome = outcome_at(records, records[side.host_endpoint], hook, side.direction, asked)
        if outcome != "pass":
            break
    assert (side.outcome == "deny") == (outcome == "deny")


def has_its_interface(records: dict[Key, Any], key: WorkloadEndpointKey) -> bool:
    """The first by key of the active ones of its host that claim it."""
    return not any(
        isinstance(other, WorkloadEndpointKey)
        and (other.host, record.name, record.state) == (key.host, records[key].name, "active")
        and other.path < key.path
        for other, record in records.items()
    )


def check_side(records: dict[Key, Any], side: Side, packet: Packet) -> None:
    if side.workload is None or side.outcome is None:
        assert side.reason or side.host_endpoint
        return
    packet = as_seen(records, packet, side.workload.host)
    endpoint = records[side.workload]
    may = has_its_interface(records, side.workload) and side_allows(records, endpoint, side.direction, packet)
    assert (side.outcome == "allow") == may
    assert [step.outcome for step in side.steps[:-1]] == ["pass"] * (len(side.steps) - 1)
    for step in side.steps:
        if step.rule is not None:
            assert rule_matches(records, step.rule, packet)
    for each in side.passed_over:
        assert not rule_matches(records, each.rule, packet), each
