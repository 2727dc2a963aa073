"""What a node says of itself and its endpoints, on a memory store; liveness goes with the lease."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.routing import RoutingStatus
from calico_core.model.endpoints import EndpointStatus
from calico_core.model.hosts import DATAPLANE_FAILED
from calico_core.model.keys import (
    FelixLastStatusKey,
    FelixStatusKey,
    HostEndpointKey,
    HostEndpointStatusKey,
    NodeStatusKey,
    WorkloadEndpointKey,
    WorkloadStatusKey,
)
from calico_core.node.agent_state import AgentState
from calico_core.node.status import StatusReporter
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 10.0
HOST = "rack-a"


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryDatastore(clock=self.clock)
        self.records = TypedRecords(self.store)
        self.reporters: list[StatusReporter] = []

    def start(
        self, *, interval_s: float = 30.0, ttl_s: float = 90.0, reports_endpoints: bool = True, delay_s: float = 0.0
    ) -> StatusReporter:
        reporter = StatusReporter(
            records=self.records,
            host=HOST,
            version="1.2.3",
            interval_s=interval_s,
            ttl_s=ttl_s,
            reports_endpoints=reports_endpoints,
            endpoints_delay_s=delay_s,
            routing_status=lambda: RoutingStatus(driver="none", is_running=False),
            integrations=lambda: {"cni": "ready"},
        )
        self.reporters.append(reporter)
        reporter.start()
        return reporter

    def endpoint(self, name: str) -> EndpointStatus | None:
        found = self.records.get(status_key(name))
        return found.record if found is not None else None


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.store.faults.down = False
    for reporter in made.reporters:
        reporter.stop()


def status_key(name: str) -> WorkloadStatusKey:
    return WorkloadStatusKey(HOST, "cni", "pod", name)


def node_state(bench: Bench) -> str:
    found = bench.records.get(NodeStatusKey(HOST))
    return found.record.state if found is not None else ""


def state(*, is_applied: bool = True, **endpoints: tuple[str, str]) -> AgentState:
    keys = {WorkloadEndpointKey(HOST, "cni", "pod", name): status for name, status in endpoints.items()}
    return AgentState(is_in_sync=True, is_applied=is_applied, endpoints=keys)


def test_statuses_follow_the_agent(bench: Bench) -> None:
    reporter = bench.start()
    reporter.put(state(a=("up", ""), b=("error", "no such set")))
    eventually(lambda: bench.endpoint("b"))
    assert bench.endpoint("a") == EndpointStatus(status="up")
    assert bench.endpoint("b") == EndpointStatus(status="error", reason="no such set")
    reporter.put(state(b=("up", "")))
    eventually(lambda: bench.endpoint("a") is None)
    assert bench.endpoint("b") == EndpointStatus(status="up")


def test_what_has_not_changed_is_not_written_again(bench: Bench) -> None:
    reporter = bench.start()
    reporter.put(state(a=("up", "")))
    eventually(lambda: bench.endpoint("a"))
    revision = bench.records.get(status_key("a")).mod_revision
    reporter.put(state(a=("up", ""), b=("up", "")))
    eventually(lambda: bench.endpoint("b"))
    assert bench.records.get(status_key("a")).mod_revision == revision


def test_leftovers_of_an_earlier_run_are_swept_and_other_hosts_left(bench: Bench) -> None:
    other = WorkloadStatusKey("rack-b", "cni", "pod", "x")
    for key in (status_key("gone"), other):
        bench.records.put(key, EndpointStatus(status="up"))
    reporter = bench.start()
    reporter.put(state(is_applied=False))
    reporter.put(state(a=("up", "")))
    eventually(lambda: bench.endpoint("a"))
    assert bench.endpoint("gone") is None
    assert bench.records.get(other) is not None


def test_nothing_is_swept_before_the_first_apply(bench: Bench) -> None:
    bench.records.put(status_key("kept"), EndpointStatus(status="up"))
    reporter = bench.start()
    reporter.put(state(is_applied=False))
    eventually(lambda: reporter.state is not None and bench.records.get(NodeStatusKey(HOST)))
    assert bench.endpoint("kept") is not None


def test_a_dataplane_that_fails_is_told_at_once(bench: Bench) -> None:
    reporter = bench.start(interval_s=3600.0)
    reporter.put(state())
    eventually(lambda: bench.records.get(NodeStatusKey(HOST)))

    def failed_checks() -> tuple[str, ...]:
        return bench.records.get(NodeStatusKey(HOST)).record.failed_checks

    reporter.put(msgspec.structs.replace(state(), last_error="no room for the set"))
    eventually(lambda: failed_checks() == (f"{DATAPLANE_FAILED}: no room for the set",))
    reporter.put(state())
    eventually(lambda: failed_checks() == ())


def test_endpoint_reporting_can_be_switched_off(bench: Bench) -> None:
    reporter = bench.start(reports_endpoints=False)
    reporter.put(state(a=("up", "")))
    eventually(lambda: bench.records.get(NodeStatusKey(HOST)))
    assert bench.endpoint("a") is None


def test_liveness_goes_with_its_lease(bench: Bench) -> None:
    bench.start()
    eventually(lambda: bench.records.get(NodeStatusKey(HOST)))
    assert bench.records.get(FelixStatusKey(HOST)) is not None
    bench.clock.now += 91.0
    assert bench.records.get(NodeStatusKey(HOST)) is None
    assert bench.records.get(FelixStatusKey(HOST)) is None
    assert bench.records.get(FelixLastStatusKey(HOST)) is not None  # says when it was last seen


def test_the_agents_report_says_whether_policy_is_in_force_yet(bench: Bench) -> None:
    reporter = bench.start(interval_s=0.05)

    def said() -> list[bool | None]:
        found = (bench.records.get(key) for key in (FelixStatusKey(HOST), FelixLastStatusKey(HOST)))
        return [each.record.first_update if each is not None else None for each in found]

    eventually(lambda: said() == [False, False])
    reporter.put(state(is_applied=False))
    eventually(lambda: reporter.state is not None)
    assert said() == [False, False]
    reporter.put(state())
    eventually(lambda: said() == [True, True])
    found = bench.records.get(FelixStatusKey(HOST))
    assert found is not None
    assert datetime.strptime(found.record.time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) <= datetime.now(UTC)
    assert found.record.uptime > 0


def test_the_agents_report_lasts_as_long_as_it_is_told(bench: Bench) -> None:
    bench.start(ttl_s=40.0)
    eventually(lambda: bench.records.get(NodeStatusKey(HOST)))
    bench.clock.now += 39.0
    assert bench.records.get(FelixStatusKey(HOST)) is not None
    bench.clock.now += 2.0
    assert bench.records.get(FelixStatusKey(HOST)) is None
    assert bench.records.get(NodeStatusKey(HOST)) is not None  # the node's own lasts 90 s


def test_interval_0_switches_the_agents_heartbeat_off(bench: Bench) -> None:
    bench.start(interval_s=0.0)
    eventually(lambda: bench.records.get(NodeStatusKey(HOST)))
    assert bench.records.get(FelixStatusKey(HOST)) is None
    assert bench.records.get(FelixLastStatusKey(HOST)) is None


def test_the_nodes_own_report(bench: Bench) -> None:
    reporter = bench.start(interval_s=0.02)
    reporter.put(state(a=("up", ""), b=("up", ""), c=("down", "no link")))

    eventually(lambda: node_state(bench) == "running")
    record = bench.records.get(NodeStatusKey(HOST)).record
    assert record.version == "1.2.3"
    assert record.endpoints == {"up": 2, "down": 1}
    assert record.routing == {"driver": "none", "running": "no"}
    assert record.integrations == {"cni": "ready"}


def test_last_words(bench: Bench) -> None:
    reporter = bench.start()
    eventually(lambda: bench.records.get(NodeStatusKey(HOST)))
    reporter.stop()
    bench.clock.now += 1000.0
    assert bench.records.get(NodeStatusKey(HOST)).record.state == "stopped"
    assert bench.records.get(FelixStatusKey(HOST)) is None
    reporter.stop()


def test_a_store_away_at_the_end_does_not_keep_us(bench: Bench) -> None:
    reporter = bench.start()
    eventually(lambda: bench.records.get(NodeStatusKey(HOST)))
    bench.store.faults.down = True
    started = time.monotonic()
    reporter.stop()
    assert time.monotonic() - started < WAIT_S


def test_what_could_not_be_written_is_written_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calico_core.node.status._RETRY_S", 0.05)
    bench.store.faults.down = True
    reporter = bench.start()
    reporter.put(state(a=("up", "")))
    eventually(lambda: reporter.state is not None)
    bench.store.faults.down = False
    eventually(lambda: bench.endpoint("a"))
    eventually(lambda: bench.records.get(NodeStatusKey(HOST)))


def test_what_a_datastore_lost_while_it_was_away_is_written_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("calico_core.node.status._RETRY_S", 0.05)
    reporter = bench.start(interval_s=0.05)
    reporter.put(state(a=("up", ""), b=("up", "")))
    eventually(lambda: bench.endpoint("a") and bench.endpoint("b"))
    bench.store.delete_prefix("/calico/")
    bench.records.put(status_key("gone"), EndpointStatus(status="up"))
    bench.store.faults.down = True
    eventually(lambda: "status.not_written" in caplog.messages)
    bench.store.faults.down = False
    eventually(lambda: bench.endpoint("a") and bench.endpoint("b") and bench.endpoint("gone") is None)


def test_after_a_failure_only_what_differs_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calico_core.node.status._RETRY_S", 0.05)
    reporter = bench.start(interval_s=0.05)
    reporter.put(state(same=("up", ""), reasoned=("error", "no such set"), altered=("up", "")))
    eventually(lambda: node_state(bench) == "running")
    keys = (status_key("same"), status_key("reasoned"), NodeStatusKey(HOST))
    before = [bench.records.get(key).mod_revision for key in keys]
    bench.records.put(status_key("altered"), EndpointStatus(status="down"))
    bench.store.faults.refuse(1)  # one failed heartbeat
    eventually(lambda: bench.records.get(keys[-1]).mod_revision > before[-1])  # comes after those of endpoints
    assert [bench.records.get(key).mod_revision for key in keys[:-1]] == before[:-1]
    assert bench.endpoint("altered") == EndpointStatus(status="up")


def test_what_stands_there_from_an_earlier_run_is_not_written_again(bench: Bench) -> None:
    key = status_key("a")
    revision = bench.records.put(key, EndpointStatus(status="up"))
    reporter = bench.start()
    reporter.put(state(a=("up", ""), b=("up", "")))
    eventually(lambda: bench.endpoint("b"))
    assert bench.records.get(key).mod_revision == revision


def test_nodes_do_not_come_back_all_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("calico_core.node.status._RETRY_S", 0.3)
    bench.store.faults.down = True
    bench.start()

    def waits_s() -> list[float]:
        at = [each.created for each in caplog.records if each.message == "status.not_written"]
        return [later - earlier for earlier, later in pairwise(at)]

    eventually(lambda: any(each < 0.28 for each in waits_s()))


def test_a_datastore_that_was_replaced_unnoticed_gets_all_statuses(bench: Bench) -> None:
    reporter = bench.start(interval_s=0.05)
    reporter.put(state(a=("up", "")))
    eventually(lambda: bench.endpoint("a"))
    bench.store.delete_prefix("/calico/")
    bench.clock.now += 91.0  # nor does it know the leases
    eventually(lambda: bench.endpoint("a"))


def test_a_flapping_endpoint_is_not_written_at_each_turn(bench: Bench) -> None:
    reporter = bench.start(delay_s=0.6)
    began = time.monotonic()
    reporter.put(state(a=("up", "")))
    eventually(lambda: bench.endpoint("a") == EndpointStatus(status="up"))
    revisions = {bench.records.get(status_key("a")).mod_revision}  # type: ignore[union-attr]
    for turn in range(40):
        reporter.put(state(a=("down", f"turn {turn}")))
        revisions.add(bench.records.get(status_key("a")).mod_revision)  # type: ignore[union-attr]
    eventually(lambda: bench.endpoint("a") == EndpointStatus(status="down", reason="turn 39"))
    took_s = time.monotonic() - began
    assert took_s > 0.45
    assert len(revisions) <= 1 + took_s / 0.45


def test_host_endpoints_have_a_status_too_and_leftovers_go(bench: Bench) -> None:
    old, key = HostEndpointStatusKey(HOST, "old"), HostEndpointKey(HOST, "eth0")
    bench.records.put(old, EndpointStatus(status="up"))
    reporter = bench.start()
    reporter.put(AgentState(is_in_sync=True, is_applied=True, endpoints={}, host_endpoints={key: ("up", "")}))
    written = HostEndpointStatusKey(HOST, "eth0")
    eventually(lambda: bench.records.get(written) is not None and bench.records.get(old) is None)
    reporter.put(state())
    eventually(lambda: bench.records.get(written) is None)
