"""The collector on a memory store with the real address management: what it frees, and what wins against it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.datastore import Put
from calico_core.ipam.allocator import BlockIpam
from calico_core.ipam.local_view import LocalView
from calico_core.model import codec
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import AffinityKey, HandleKey, WorkloadEndpointKey
from calico_core.node.collector import Collector
from tests.doubles.ipam_store import a_request, add_pool, check_laws, contents
from tests.waiting import eventually

HOST = "rack-a"
GRACE_S = 900.0
MINE = {"node": HOST, "orchestrator": "cni"}


class Bench:
    """One host. ``now`` is the collector's clock, ``local`` what its kernel says."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryDatastore()
        self.records = TypedRecords(self.store)
        self.ipam = BlockIpam(self.records, HOST)
        self.local = LocalView(host=HOST, interfaces=frozenset({"lo"}), lists={"cni": {}})
        self.now = 0.0
        self.memory = folder / "state" / "collector.json"
        add_pool(self.store, "10.65.0.0/24")
        self.collector = self.make()

    def make(self, *, interval_s: float = 600.0, grace_s: float = GRACE_S) -> Collector:
        return Collector(
            records=self.records, ipam=self.ipam, host=HOST, look_locally=lambda: self.local, memory=self.memory,
            interval_s=interval_s, grace_s=grace_s, clock=lambda: self.now,
        )  # fmt: skip

    def assign(self, handle: str) -> IPAddress:
        (address,) = self.ipam.auto_assign(a_request(handle, 1, attributes=MINE))
        return address

    def endpoint(self, name: str, address: IPAddress) -> WorkloadEndpointKey:
        key = WorkloadEndpointKey(HOST, "cni", name, "e")
        self.records.put(key, a_record(name, address))
        return key

    def workload(self, name: str) -> WorkloadEndpointKey:
        return self.endpoint(name, self.assign(f"net.{name}"))

    def look(self, *, after_s: float = 0.0) -> None:
        self.now += after_s
        self.collector.look()

    def look_past_the_grace(self) -> None:
        self.look()
        self.look(after_s=GRACE_S)

    @property
    def held(self) -> set[str | None]:
        return set(contents(self.store).holders().values())


def a_record(name: str, address: IPAddress) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        state="active",
        name=f"cali{name}",
        ipv4_nets=(IPNetwork(f"{address}/32"),),
        netns=f"/run/netns/calico-gone-{name}",
    )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_leaked_address_is_freed_with_its_handle_and_a_live_one_is_not(bench: Bench) -> None:
    bench.workload("live")
    bench.local = msgspec.structs.replace(bench.local, interfaces=frozenset({"lo", "calilive"}))
    bench.assign("net.dead")
    bench.look()
    assert bench.held == {"net.live", "net.dead"}
    assert bench.collector.status()["suspects"] == ["handle net.dead"]
    bench.look(after_s=GRACE_S)
    assert bench.held == {"net.live"}
    assert bench.records.get(HandleKey("net.dead")) is None
    assert bench.collector.status()["released"] == 1
    assert bench.collector.status()["suspects"] == []
    check_laws(bench.store)


def test_a_borrowed_address_is_found_too(bench: Bench) -> None:
    other = BlockIpam(bench.records, "rack-b")
    other.auto_assign(a_request("net.other", 1, attributes={"node": "rack-b", "orchestrator": "cni"}))
    block = next(iter(contents(bench.store).blocks))
    address = IPAddress(block.last, 4)
    bench.ipam.auto_assign(a_request("net.dead", 1, 0, str(address), attributes=MINE))
    assert bench.records.get(AffinityKey(HOST, block)) is None
    bench.look_past_the_grace()
    assert bench.held == {"net.other"}


def test_an_endpoint_that_comes_between_the_last_look_and_the_release_wins(bench: Bench) -> None:
    address = bench.assign("net.slow")
    bench.look()
    bench.now += GRACE_S
    key = WorkloadEndpointKey(HOST, "cni", "slow", "e")
    put = Put(key.path, codec.encode(a_record("slow", address)))
    bench.store.faults.before(1, lambda: bench.store.transact([], [put]))
    bench.collector.look()
    assert bench.records.get(key) is not None
    assert bench.held == {"net.slow"}
    assert bench.collector.status()["released"] == 0


def test_an_address_given_anew_under_the_same_handle_is_kept(bench: Bench) -> None:
    bench.assign("net.again")
    bench.look()
    bench.now += GRACE_S

    def again() -> None:
        other = BlockIpam(bench.records, HOST)
        other.release_by_handle(["net.again"])
        other.auto_assign(a_request("net.again", 1, attributes=MINE))

    bench.store.faults.before(1, again)
    bench.collector.look()
    assert bench.held == {"net.again"}


def test_an_endpoint_whose_sandbox_and_interface_are_gone_goes_with_its_addresses(bench: Bench) -> None:
    Path("/run/netns").mkdir(exist_ok=True)  # the directory must be there for a missing file to mean anything
    key = bench.workload("gone")
    bench.look()
    assert bench.records.get(key) is not None
    bench.look(after_s=GRACE_S)
    assert bench.records.get(key) is None
    assert bench.held == set()
    assert bench.collector.status()["removed"] == 1


def test_an_endpoint_that_was_written_meanwhile_stays(bench: Bench) -> None:
    Path("/run/netns").mkdir(exist_ok=True)
    key = bench.workload("gone")
    bench.look()
    bench.now += GRACE_S
    found = bench.records.get(key)
    assert found is not None
    changed = msgspec.structs.replace(found.record, labels={"a": "b"})
    bench.store.faults.before(1, lambda: bench.records.put(key, changed))
    bench.collector.look()
    assert bench.records.get(key) is not None
    assert bench.held == {"net.gone"}


def test_a_sudden_loss_freezes_across_restarts_until_it_is_confirmed(bench: Bench) -> None:
    keys = [bench.workload(f"w{number}") for number in range(4)]
    bench.look()
    for key in keys[:3]:
        bench.records.delete(key)
    bench.look()
    assert bench.collector.status()["state"] == "frozen"
    bench.collector = bench.make()
    assert "3 of 4" in bench.collector.status()["frozen_because"]
    bench.look_past_the_grace()
    assert len(bench.held) == 4
    assert "3 of 4" in bench.collector.unfreeze()
    assert bench.collector.unfreeze() == ""
    bench.look()
    assert bench.held <= {"net.w3"}
    assert bench.make().status()["state"] == "watching"


def test_a_datastore_that_is_away_leaves_everything_as_it_was(bench: Bench) -> None:
    bench.assign("net.dead")
    bench.look()
    collector = bench.make(interval_s=0.01, grace_s=0.0)
    bench.store.faults.down = True
    collector.start()
    try:
        eventually(lambda: bool(collector.status()["last_error"]))
        bench.store.faults.down = False
        bench.collector = collector
        eventually(lambda: bench.held == set())
        eventually(lambda: not collector.status()["last_error"])
    finally:
        collector.stop()


def test_an_interval_of_0_switches_it_off(bench: Bench) -> None:
    collector = bench.make(interval_s=0)
    collector.start()
    assert collector.status()["state"] == "off"
    collector.stop()


def test_a_memory_that_is_not_ours_counts_as_none(bench: Bench) -> None:
    bench.memory.parent.mkdir(parents=True)
    bench.memory.write_text("?")
    assert bench.make().status()["state"] == "watching"
