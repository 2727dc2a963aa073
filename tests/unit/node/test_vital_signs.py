"""Which part makes a node unready, dead or merely degraded; on a real agent over doubles of store and kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from netaddr import IPAddress

from calico_core.dataplane.memory import MemoryDataplane
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.dataplane import ApplyReport, DataplaneOptions, Failure
from calico_core.interfaces.routing import PeerStatus, RoutingStatus
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import HostChanges
from calico_core.model.keys import ReadyKey, WorkloadEndpointKey
from calico_core.node.agent import Agent
from calico_core.node.busy import Busy
from calico_core.node.vital_signs import LIMIT_S, VitalSigns
from tests.waiting import eventually

WAIT_S = 10.0


class StillRouter:
    """A router that only says how it is."""

    def __init__(self) -> None:
        self.is_alive = True
        self.last_error = ""
        self.busy_s = 0.0


class RefusingDataplane(MemoryDataplane):
    """``refusal``: why the kernel takes no policy at all, or ''."""

    refusal = ""

    def apply(self, changes: HostChanges) -> ApplyReport:
        report = super().apply(changes)
        return ApplyReport(failures=(Failure("table inet calico", self.refusal),)) if self.refusal else report


class Node:
    def __init__(self) -> None:
        self.records = TypedRecords(MemoryDatastore())
        self.states = {"cni": "ready"}
        self.signs = VitalSigns(lambda: self.states)
        self.dataplane = RefusingDataplane(DataplaneOptions(host="h"))
        self.agent = Agent(store=self.records.store, host="h", dataplane=self.dataplane)
        self.router = StillRouter()
        self.routing = RoutingStatus(driver="bird", is_running=True)

    def run(self) -> None:
        self.agent.start()
        self.signs.agent, self.signs.router = self.agent, self.router
        self.signs.routing_status = lambda: self.routing
        self.signs.has_integrations = self.signs.is_serving = True

    def look(self) -> dict[str, str]:
        return {each.name: each.state for each in self.signs.look()}

    def reason(self, name: str) -> str:
        return next(each.reason for each in self.signs.look() if each.name == name)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.agent.stop()


def test_nothing_is_ready_before_the_first_sync(node: Node) -> None:
    assert set(node.look().values()) == {"unready"}
    node.run()
    assert node.look() == {
        "engine": "unready",
        "datastore": "unready",
        "integration cni": "ready",
        "socket": "ready",
        "routing": "ready",
    }
    node.records.put(ReadyKey(), "true")
    eventually(lambda: set(node.look().values()) == {"ready"})


def test_a_datastore_lost_later_degrades_only(node: Node) -> None:
    node.records.put(ReadyKey(), "true")
    node.run()
    eventually(lambda: set(node.look().values()) == {"ready"})
    node.records.put(ReadyKey(), "false")
    eventually(lambda: node.look()["datastore"] == "degraded")
    assert node.look()["engine"] == "ready"


def test_a_kernel_that_refuses_policy_makes_the_node_unready_until_it_takes_it(node: Node) -> None:
    node.records.put(ReadyKey(), "true")
    node.run()
    eventually(lambda: set(node.look().values()) == {"ready"})
    node.dataplane.refusal = "out of memory"
    node.records.put(WorkloadEndpointKey("h", "cni", "pod", "a"), WorkloadEndpoint(state="active", name="cali1"))
    eventually(lambda: node.look()["engine"] == "unready")
    assert node.reason("engine") == "out of memory"
    node.dataplane.refusal = ""
    eventually(lambda: node.look()["engine"] == "ready")


def test_broken_integrations_and_routing_degrade(node: Node) -> None:
    node.run()
    node.states["mesos"] = "broken: not installed"
    assert node.look()["integration mesos"] == "degraded"
    assert node.reason("integration mesos") == "broken: not installed"
    peer = PeerStatus(ip=IPAddress("192.0.2.1"), origin="mesh", state="Active")
    for routing, reason in (
        (RoutingStatus(driver="bird", is_running=False), "does not answer"),
        (RoutingStatus(driver="bird", is_running=True, rejected="line 3"), "line 3"),
        (RoutingStatus(driver="bird", is_running=True, peers=(peer,)), "none of 1"),
    ):
        node.routing = routing
        assert node.look()["routing"] == "degraded"
        assert reason in node.reason("routing")
    node.router.is_alive = False
    assert node.look()["routing"] == "dead"


def test_an_engine_that_hangs_or_ended_is_dead(node: Node) -> None:
    node.records.put(ReadyKey(), "true")
    node.run()
    eventually(lambda: node.look()["engine"] == "ready")
    node.agent.stop()
    assert node.look()["engine"] == "dead"

    hanging = Node()
    hanging.run()
    try:
        eventually(lambda: hanging.agent.counters.busy_since is None)
        hanging.agent.counters.busy_since = time.monotonic() - LIMIT_S - 1
        assert hanging.look()["engine"] == "dead"
        assert "one pass takes 91 s" in hanging.reason("engine")
    finally:
        hanging.agent.stop()


def test_any_loop_may_hang_or_end(node: Node) -> None:
    node.records.put(ReadyKey(), "true")
    node.run()
    reporter = node.signs.loops["reporter"] = StillRouter()
    eventually(lambda: set(node.look().values()) == {"ready"})
    reporter.busy_s = LIMIT_S - 1
    assert node.look()["reporter"] == "ready"
    reporter.busy_s = LIMIT_S + 1
    assert (node.look()["reporter"], node.reason("reporter")) == ("dead", "one turn takes 91 s already")
    node.signs.limit_s = 200
    assert node.look()["reporter"] == "ready"
    node.router.busy_s = 201.0
    assert node.look()["routing"] == "dead"
    reporter.is_alive = False
    assert (node.look()["reporter"], node.reason("reporter")) == ("dead", "a thread of it ended")


def test_a_turn_is_timed_and_a_wait_is_not() -> None:
    now = [5.0]
    busy = Busy(lambda: now[0])
    assert busy.seconds == 0
    with busy.turn():
        now[0] += 3
        assert busy.seconds == 3
    assert busy.seconds == 0
    with pytest.raises(ValueError, match="x"), busy.turn():
        raise ValueError("x")
    assert busy.seconds == 0


def test_single_loops_may_have_limits_of_their_own(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.run()
    eventually_in_sync(node)
    node.router.busy_s = 50.0
    assert node.look()["routing"] == "ready"
    node.signs.limit(90.0, (("routing", 40.0), ("InternalDataplaneMainLoop", 1000.0), ("moon", 1.0)))
    assert node.look()["routing"] == "dead"
    node.agent.counters.busy_since = time.monotonic() - 500
    assert node.look()["engine"] != "dead"
    node.signs.limit(90.0, ())
    assert (node.look()["engine"], node.look()["routing"]) == ("dead", "ready")
    (said,) = [each for each in caplog.records if each.getMessage() == "health.unknown_component"]
    assert said.calico_fields["name"] == "moon"  # type: ignore[attr-defined]


def eventually_in_sync(node: Node) -> None:
    node.records.put(ReadyKey(), True)
    assert node.agent.wait_in_sync(WAIT_S)
