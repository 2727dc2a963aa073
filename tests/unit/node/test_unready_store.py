"""A node that starts on a store that nobody called ready, with something in force or without."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.datastore import DatastoreOptions
from calico_core.interfaces.integration import Call
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import GlobalConfigKey, PolicyKey, ReadyKey, WorkloadEndpointKey
from calico_core.model.policies import Policy
from calico_core.node.remembered import Remembered
from calico_core.node.unready_store import UnreadyStore
from tests.waiting import eventually

HOST = "rack-a"
WAIT_S = 10.0


class Start:
    """What a starting node does, in a thread of its own."""

    def __init__(self, memory: Path, *, confirm_after_s: float = 300.0) -> None:
        self.store = MemoryDatastore.open("memory://", DatastoreOptions())
        self.records = TypedRecords(self.store)
        self.heard: list[str] = []
        self.stopping = threading.Event()
        self.remembered = Remembered(memory)
        self.unready = UnreadyStore(
            self.records, HOST, self.remembered, confirm_after_s=confirm_after_s, look_every_s=0.01
        )
        self.went_on: bool | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.went_on = self.unready.wait(self.stopping, self.heard.append)

    def begin(self) -> None:
        self.thread.start()

    def goes_on(self) -> bool:
        self.thread.join(WAIT_S)
        return bool(self.went_on)

    def ask(self, question: str) -> tuple[int, str]:
        reply = self.unready.answer(Call(program="node", environment={}, stdin=question.encode()))
        return reply.status, (reply.stdout + reply.stderr).decode()

    def waits(self) -> None:
        eventually(lambda: self.unready.reason)
        self.thread.join(0.05)
        assert self.went_on is None


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """Of a node with two interfaces and three policies."""
    path = tmp_path / "interfaces.json"
    Remembered(path).save(frozenset({"cali1", "cali2"}), {"policies": 3}, 0.0)
    return path


@pytest.fixture
def start(memory: Path) -> Iterator[Start]:
    made = Start(memory)
    yield made
    made.stopping.set()
    if made.thread.is_alive():
        made.thread.join(WAIT_S)


def test_a_new_host_and_a_new_cluster_are_begun_with_at_once(tmp_path: Path) -> None:
    fresh = Start(tmp_path / "interfaces.json")
    fresh.begin()
    assert fresh.goes_on()
    assert fresh.heard == []


def test_a_host_that_had_nothing_in_force_waits_for_nothing(tmp_path: Path) -> None:
    Remembered(tmp_path / "interfaces.json").save(frozenset(), {}, 0.0)
    idle = Start(tmp_path / "interfaces.json")
    idle.begin()
    assert idle.goes_on()


def test_a_store_that_somebody_called_ready_is_gone_on_with(start: Start) -> None:
    start.records.put(ReadyKey(), "true")
    start.begin()
    assert start.goes_on()
    assert start.heard == []


@pytest.mark.parametrize("ready", [None, "false"])
def test_an_emptied_store_is_waited_for(start: Start, ready: str | None) -> None:
    if ready is not None:
        start.records.put(ReadyKey(), ready)
    before = start.store.list("/calico/").entries
    start.begin()
    start.waits()
    assert start.store.list("/calico/").entries == before
    why = "/calico/v1/Ready is not true, and the datastore has 0 of 2 local endpoints that were in force here"
    assert start.heard == [why]
    status, said = start.ask("status")
    assert (status, why in said, "confirm-removals" in said) == (1, True, True)
    start.records.put(ReadyKey(), "true")
    assert start.goes_on()
    assert start.heard == [why, ""]
    assert start.remembered.lost(0, {}) != "", "what the store has is judged again"


def test_the_records_are_back(start: Start) -> None:
    start.records.put(GlobalConfigKey("InterfacePrefix"), "cali")
    start.begin()
    start.waits()
    for number in (1, 2):
        key = WorkloadEndpointKey(HOST, "cni", "pod", f"eth{number}")
        start.records.put(key, WorkloadEndpoint(state="active", name=f"cali{number}"))
    start.waits()
    for number in (1, 2):
        start.records.put(PolicyKey("default", f"p{number}"), Policy(selector="all()"))
    assert start.goes_on()


def test_a_person_confirms(start: Start, memory: Path) -> None:
    start.begin()
    start.waits()
    status, said = start.ask("confirm-removals")
    assert status == 0
    assert "0 of 2 local endpoints" in json.loads(said)["frozen_because"]
    assert start.goes_on()
    assert start.remembered.lost(0, {}) == "", "nor does anything else ask again"
    assert Remembered(memory).lost(0, {}) == "", "nor another life, should this one end before its agent begins"


def test_a_store_that_says_the_same_for_long_is_believed(memory: Path) -> None:
    start = Start(memory, confirm_after_s=0.1)
    start.begin()
    assert start.goes_on()
    assert len(start.heard) == 2


def test_time_without_a_store_does_not_count(memory: Path) -> None:
    start = Start(memory, confirm_after_s=0.1)
    start.store.faults.down = True
    start.begin()
    start.thread.join(0.3)
    assert start.went_on is None
    start.stopping.set()
    start.thread.join(WAIT_S)
    assert start.went_on is False
    assert start.heard == []
