"""The agent on a memory store and a dataplane without a kernel: from a record to the word that it is in force."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.memory import MemoryDataplane
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import KernelRefused, NotReady
from calico_core.interfaces.dataplane import ApplyReport, Connection, DataplaneOptions, Failure
from calico_core.interfaces.datastore import Delete, Put
from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.hoststate import HostPeers, RulesId
from calico_core.model.keys import (
    BgpHostAddressKey,
    GlobalConfigKey,
    HostEndpointKey,
    HostIpKey,
    PolicyKey,
    PoolKey,
    ProfileRulesKey,
    ProfileTagsKey,
    ReadyKey,
    WorkloadEndpointKey,
)
from calico_core.model.policies import Policy
from calico_core.model.pools import Pool
from calico_core.model.rules import Rule, RuleLists
from calico_core.model.workloads import PairRequest
from calico_core.node.agent import Agent
from calico_core.node.agent_state import AgentState
from calico_core.node.counters import CountedRule
from calico_core.node.remembered import Remembered
from calico_core.policy.resolver import PolicyResolver
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from calico_core.model.hoststate import HostChanges, HostRule
    from calico_core.model.keys import Key

WAIT_S = 10.0
HOST = "rack-a"


class FaultyDataplane(MemoryDataplane):
    """``errors``: raised by the next applies, in order. ``error``: raised by every apply as long as it is there.
    ``whole``: why nothing can be programmed, or ''. ``tries``: how many applies there were. ``unread``: so often the
    connection table cannot be read."""

    def __init__(self, options: DataplaneOptions) -> None:
        super().__init__(options)
        self.errors: list[Exception] = []
        self.error: Exception | None = None
        self.whole = ""
        self.tries = 0
        self.unread = 0

    def apply(self, changes: HostChanges) -> ApplyReport:
        self.tries += 1
        if error := self.errors.pop(0) if self.errors else self.error:
            # what is wanted is kept, as the seam demands
            self.state.update(changes)
            self._is_complete = True
            raise error
        report = super().apply(changes)
        return ApplyReport(failures=(Failure("table inet calico", self.whole),)) if self.whole else report

    def connections(self) -> tuple[Connection, ...]:
        if self.unread:
            self.unread -= 1
            raise KernelRefused("list connections", 105)
        return super().connections()

    def cut(self, connections: Iterable[Connection]) -> int:
        """What older policy permits is back with its next packet."""
        return 0 if self.whole or self.errors or self.error else super().cut(connections)


class Bench:
    def __init__(self) -> None:
        self.store = MemoryDatastore()
        self.records = TypedRecords(self.store)
        self.dataplane = FaultyDataplane(DataplaneOptions(host=HOST))
        self.states: list[AgentState] = []
        self.deaths: list[bool] = []
        self.agents: list[Agent] = []

    def start(
        self,
        *,
        refresh_interval_s: float = 0.0,
        is_ready: bool = True,
        remembered: Remembered | None = None,
        is_excluded: Callable[[str], bool] = lambda _name: False,
        lets_spoof: bool = False,
        give_up_after_s: float = 90.0,
        on_config: Callable[[Key, str | None], None] | None = None,
        settings_differ: Callable[[], bool] = lambda: False,
    ) -> Agent:
        if is_ready:
            self.records.put(ReadyKey(), "true")
        agent = Agent(
            store=self.store,
            host=HOST,
            dataplane=self.dataplane,
            refresh_interval_s=refresh_interval_s,
            reporter=self.states.append,
            on_death=lambda: self.deaths.append(True),
            remembered=remembered,
            on_config=on_config,
            settings_differ=settings_differ,
            resolver=PolicyResolver(HOST, interface_prefixes=("cali",), is_excluded=is_excluded, lets_spoof=lets_spoof),
            give_up_after_s=give_up_after_s,
        )
        self.agents.append(agent)
        agent.start()
        return agent

    def write(self, name: str = "a", /, host: str = HOST, **fields: object) -> tuple[WorkloadEndpointKey, int]:
        key = WorkloadEndpointKey(host, "cni", "pod", name)
        values: dict[str, object] = {
            "state": "active",
            "name": f"cali{name}",
            "ipv4_nets": (IPNetwork("10.65.0.2/32"),),
            "profile_ids": ("web",),
        }
        return key, self.records.put(key, WorkloadEndpoint(**{**values, **fields}))

    def write_profile(self, name: str = "web", *rules: Rule) -> None:
        self.records.put(ProfileTagsKey(name), (name,))
        self.records.put(ProfileRulesKey(name), RuleLists(inbound_rules=rules or (Rule(action="allow"),)))

    def link(self, name: str) -> None:
        self.dataplane.wiring().make_pair(PairRequest(interface=f"cali{name}", peer=f"tmp{name}"))

    def rules(self, profile: str) -> tuple[HostRule, ...]:
        return self.dataplane.wanted().rules[RulesId(f"profile/{profile}")].inbound

    def status(self, key: WorkloadEndpointKey) -> str:
        return self.states[-1].endpoints.get(key, ("", ""))[0] if self.states else ""


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    for agent in made.agents:
        agent.stop()


def test_a_written_endpoint_is_programmed(bench: Bench) -> None:
    bench.write_profile()
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    assert bench.dataplane.is_programmed(key)
    assert agent.wait_in_sync(0)
    assert not agent.wait_programmed(key, revision + 1000, 0)


def test_changes_that_nobody_waits_for_gather(bench: Bench) -> None:
    """However slow the machine is: a batch each 20 ms, and one or two at the edges."""
    bench.write_profile()
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    before = len(bench.dataplane.applied)
    started = time.monotonic()
    for number in range(1, 301):
        bench.write_profile("web", Rule(action="allow", protocol="tcp", dst_ports=(number,)))
    eventually(lambda: any(rule.dst_ports == ((300, 300),) for rule in bench.rules("web")))
    batches = len(bench.dataplane.applied) - before
    assert 1 <= batches <= (time.monotonic() - started) / 0.02 + 2


def test_what_was_there_before_is_in_the_first_batch(bench: Bench) -> None:
    bench.write_profile()
    written = [bench.write(name) for name in "abc"]
    agent = bench.start()
    assert all(agent.wait_programmed(key, revision, WAIT_S) for key, revision in written)
    assert bench.dataplane.applied[0].is_complete
    assert {workload.key for workload in bench.dataplane.applied[0].workloads} == {key for key, _ in written}
    assert not any(changes.is_complete for changes in bench.dataplane.applied[1:])


def test_an_empty_store_is_a_complete_state_too(bench: Bench) -> None:
    agent = bench.start()
    assert agent.wait_in_sync(WAIT_S)
    assert bench.dataplane.applied[0].is_complete


def test_nothing_is_applied_before_the_store_is_ready(bench: Bench) -> None:
    bench.write_profile()
    key, revision = bench.write()
    agent = bench.start(is_ready=False)
    assert bench.dataplane.is_closed  # unknown workloads are, from the first moment
    bench.link("z")
    eventually(lambda: bench.states)  # the engine has made a pass
    assert not agent.wait_programmed(key, revision, 0.1)
    assert not agent.knows_ready()
    assert bench.dataplane.applied == []
    bench.records.put(ReadyKey(), "true")
    assert agent.wait_programmed(key, revision, WAIT_S)
    assert agent.knows_ready()


def test_what_the_agent_knows_of_profiles(bench: Bench) -> None:
    bench.write_profile("web")
    agent = bench.start()
    assert agent.wait_in_sync(WAIT_S)
    assert agent.knows_profile("web")
    assert not agent.knows_profile("db")
    bench.records.delete(ProfileRulesKey("web"))
    eventually(lambda: not agent.knows_profile("web"))


def test_endpoints_of_other_hosts_are_not_ours(bench: Bench) -> None:
    agent = bench.start()
    other, revision = bench.write("x", host="rack-b")
    own, own_revision = bench.write("a")
    assert agent.wait_programmed(own, own_revision, WAIT_S)
    assert not agent.wait_programmed(other, revision, 0)
    assert other not in bench.dataplane.state.workloads
    assert other not in bench.states[-1].endpoints


def test_a_record_that_changes_nothing_here_is_programmed_at_once(bench: Bench) -> None:
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    batches = len(bench.dataplane.applied)
    key, later = bench.write(created=12.5)
    assert agent.wait_programmed(key, later, WAIT_S)
    assert len(bench.dataplane.applied) == batches


def test_a_failure_is_told_and_heals(bench: Bench) -> None:
    agent = bench.start()
    assert agent.wait_in_sync(WAIT_S)
    key = WorkloadEndpointKey(HOST, "cni", "pod", "a")
    bench.dataplane.refused[key.path] = "no such set"
    bench.link("a")
    bench.link("b")
    _, revision = bench.write("a")
    started = time.monotonic()
    assert not agent.wait_programmed(key, revision, 60.0)
    assert time.monotonic() - started < WAIT_S  # told, not timed out
    eventually(lambda: bench.status(key) == "error")
    assert bench.states[-1].last_error == "no such set"
    assert agent.figures().counters.failing == 1

    other, other_revision = bench.write("b")
    assert agent.wait_programmed(other, other_revision, WAIT_S)  # one that fails does not hold up others

    bench.dataplane.refused.clear()
    eventually(lambda: agent.wait_programmed(key, revision, 0))
    eventually(lambda: bench.status(key) == "up")
    assert bench.states[-1].last_error == ""
    assert agent.figures().counters.failing == 0
    assert bench.status(other) == "up"


def test_a_failing_endpoint_is_not_in_force_after_an_unrelated_change(bench: Bench) -> None:
    agent = bench.start()
    key = WorkloadEndpointKey(HOST, "cni", "pod", "a")
    bench.dataplane.refused[key.path] = "no such set"
    assert agent.wait_in_sync(WAIT_S)
    bench.write("a")
    _, revision = bench.write("a", created=1.0)
    other, other_revision = bench.write("b")
    assert agent.wait_programmed(other, other_revision, WAIT_S)
    assert not agent.wait_programmed(key, revision, 0.05)


def test_a_record_that_is_not_obeyed_is_not_in_force(bench: Bench) -> None:
    bench.write_profile()
    agent = bench.start()
    key, revision = bench.write(name="eth5")
    assert not agent.wait_programmed(key, revision, WAIT_S)
    assert bench.status(key) == "error"
    assert "does not begin with 'cali'" in bench.states[-1].endpoints[key][1]
    _, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)


def test_of_two_endpoints_with_one_interface_one_is_in_force(bench: Bench) -> None:
    bench.write_profile()
    bench.link("a")
    agent = bench.start()
    first, first_revision = bench.write("a")
    second, second_revision = bench.write("b", name="calia")
    assert agent.wait_programmed(first, first_revision, WAIT_S)
    assert not agent.wait_programmed(second, second_revision, WAIT_S)
    eventually(lambda: bench.status(first) == "up" and bench.status(second) == "error")
    assert first.path in bench.states[-1].endpoints[second][1]
    # that is of the records: nothing is tried again, and the next real failure is not waited for longer
    assert bench.states[-1].last_error == ""
    assert agent.figures().counters.failing == 0
    bench.write("a", state="inactive")
    eventually(lambda: bench.status(first) == "down" and bench.status(second) == "up")
    assert agent.wait_programmed(second, second_revision, WAIT_S)


def test_when_nothing_can_be_programmed_no_endpoint_is_in_force(bench: Bench) -> None:
    bench.dataplane.whole = "out of memory"
    agent = bench.start()
    key, revision = bench.write()
    assert not agent.wait_programmed(key, revision, WAIT_S)
    assert not agent.is_in_sync
    assert not agent.wait_in_sync(0)
    bench.dataplane.whole = ""
    eventually(lambda: agent.wait_programmed(key, revision, 0))
    assert agent.wait_in_sync(WAIT_S)


@pytest.mark.parametrize("raises", [True, False])
def test_a_kernel_that_refuses_policy_for_long_ends_the_agent(bench: Bench, *, raises: bool) -> None:
    """Its supervisor starts another. One refusal, or some within the time, end nothing."""
    agent = bench.start(give_up_after_s=1.5)
    assert agent.wait_in_sync(WAIT_S)
    bench.dataplane.errors = [KernelRefused("commit", 12)]
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    assert not agent.is_refused
    bench.dataplane.errors = [KernelRefused("commit", 12)] * (1000 if raises else 0)
    bench.dataplane.whole = "out of memory"
    bench.write("b")
    eventually(lambda: agent.is_refused)
    eventually(lambda: bench.deaths)


@pytest.mark.parametrize("raises", [True, False])
def test_a_connection_denied_while_the_kernel_refuses_policy_ends_once_it_does_not(
    bench: Bench, *, raises: bool
) -> None:
    bench.write_profile()
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    bench.dataplane.connect(flow := flow_to_a())
    tries = bench.dataplane.tries
    if raises:
        bench.dataplane.error = KernelRefused("commit", 12)
    else:
        bench.dataplane.whole = "another program holds the lock"
    bench.write_profile("web", Rule(action="deny"))
    eventually(lambda: bench.dataplane.tries >= tries + 3)  # longer than changes gather before a look
    assert flow in bench.dataplane.connections()
    bench.dataplane.whole, bench.dataplane.error = "", None
    eventually(lambda: bench.dataplane.connections() == ())


def test_a_connection_table_that_cannot_be_read_once_is_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calico_core.node.flow_cutter._RETRY_FIRST_S", 0.05)
    bench.write_profile()
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    bench.dataplane.connect(flow_to_a())
    bench.dataplane.unread = 2
    bench.write_profile("web", Rule(action="deny"))
    eventually(lambda: not bench.dataplane.unread)
    eventually(lambda: bench.dataplane.connections() == ())


def flow_to_a() -> Connection:
    peer, own = IPAddress("10.65.9.9"), IPAddress("10.65.0.2")
    return Connection(6, peer, own, 40000, 80, own, peer, 80, 40000)


def test_the_state_of_a_host_endpoint_follows_an_apply_that_raised(bench: Bench) -> None:
    agent = bench.start()
    assert agent.wait_in_sync(WAIT_S)
    bench.dataplane.errors = [KernelRefused("commit", 12)]
    key = HostEndpointKey(HOST, "all")
    bench.records.put(key, HostEndpoint(name="*"))
    eventually(lambda: bench.states[-1].host_endpoints.get(key) == ("up", ""))
    said = [state.host_endpoints[key][0] for state in bench.states if key in state.host_endpoints]
    assert said[0] == "error"


def test_an_apply_that_raises_is_tried_again(bench: Bench) -> None:
    bench.dataplane.errors = [KernelRefused("commit", 12), KernelRefused("commit", 12)]
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    assert bench.deaths == []
    assert bench.dataplane.errors == []


def test_an_unexpected_error_ends_the_agent_and_lets_go_whoever_waits(bench: Bench) -> None:
    agent = bench.start()
    assert agent.wait_in_sync(WAIT_S)
    bench.dataplane.errors = [RuntimeError("a bug")]
    key, revision = bench.write()
    started = time.monotonic()
    assert not agent.wait_programmed(key, revision, 60.0)
    assert time.monotonic() - started < WAIT_S
    eventually(lambda: bench.deaths)
    eventually(lambda: not agent.is_alive)


def test_an_agent_whose_connections_nobody_judges_any_more_is_not_alive(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write_profile()
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    assert agent.is_alive

    def end() -> tuple[Connection, ...]:
        raise SystemExit  # what ends a thread and nothing else

    monkeypatch.setattr(threading, "excepthook", lambda _death: None)
    monkeypatch.setattr(bench.dataplane, "connections", end)
    bench.write_profile("web", Rule(action="deny"))
    eventually(lambda: not agent.is_alive)


def test_stopping_lets_go_whoever_waits(bench: Bench) -> None:
    from concurrent.futures import ThreadPoolExecutor

    agent = bench.start()
    assert agent.wait_in_sync(WAIT_S)
    assert agent.is_alive
    key = WorkloadEndpointKey(HOST, "cni", "pod", "never")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(agent.wait_programmed, key, 1, 60.0)
        agent.stop()
        assert waiting.result(WAIT_S) is False
    assert not agent.is_alive
    assert bench.dataplane.state.workloads == {}
    agent.stop()


def test_status_follows_the_link(bench: Bench) -> None:
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    eventually(lambda: bench.status(key) == "down")
    bench.link("a")
    eventually(lambda: bench.status(key) == "up")
    bench.dataplane.wiring().detach("calia")
    eventually(lambda: bench.status(key) == "down")


def test_a_removed_endpoint_goes_from_kernel_and_status(bench: Bench) -> None:
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    bench.records.delete(key)
    eventually(lambda: key not in bench.dataplane.state.workloads)
    eventually(lambda: key not in bench.states[-1].endpoints)
    _, again = bench.write()
    assert agent.wait_programmed(key, again, WAIT_S)


def test_a_record_that_does_not_decode_is_named_and_skipped(bench: Bench) -> None:
    agent = bench.start()
    assert agent.wait_in_sync(WAIT_S)
    bad = WorkloadEndpointKey(HOST, "cni", "pod", "bad")
    bench.store.put(bad.path, b'{"state":"active"}')
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    eventually(lambda: bad.path in bench.states[-1].bad_records)


def test_nothing_goes_while_the_store_is_away(bench: Bench) -> None:
    agent = bench.start()
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    bench.store.faults.down = True
    bench.store.faults.break_watches()
    bench.link("b")  # something happens on the host meanwhile
    count = len(bench.states)
    bench.dataplane.wiring().detach("calib")
    eventually(lambda: len(bench.states) > count)
    assert bench.dataplane.is_programmed(key)
    bench.store.faults.down = False
    _, later = bench.write("c")
    assert agent.wait_programmed(WorkloadEndpointKey(HOST, "cni", "pod", "c"), later, WAIT_S)
    assert bench.dataplane.is_programmed(key)


def test_a_refresh_heals_the_kernel(bench: Bench) -> None:
    agent = bench.start(refresh_interval_s=0.05)
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    bench.dataplane.forget()
    eventually(lambda: bench.dataplane.is_programmed(key))


def test_configuration_in_the_store_does_not_disturb(bench: Bench) -> None:
    agent = bench.start()
    bench.records.put(GlobalConfigKey("InterfacePrefix"), "cali")
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)


def test_counters_and_configuration_are_told(bench: Bench) -> None:
    heard: list[tuple[object, str | None]] = []
    bench.records.put(ReadyKey(), "true")
    bench.records.put(GlobalConfigKey("LogSeverityScreen"), "info")
    agent = Agent(
        store=bench.store,
        host=HOST,
        dataplane=bench.dataplane,
        refresh_interval_s=0,
        on_config=lambda key, value: heard.append((key, value)),
    )
    bench.agents.append(agent)
    agent.start()
    bench.write_profile()
    key, revision = bench.write()
    bench.write("far", host="rack-b")
    assert agent.wait_programmed(key, revision, WAIT_S)
    eventually(lambda: agent.figures().cluster[WorkloadEndpointKey] == 2)
    figures = agent.figures()
    assert figures.endpoints.total() == 1
    assert figures.cluster[ProfileRulesKey] == 1
    assert figures.counters.apply.count >= 1
    assert figures.counters.resyncs_started == 1
    assert figures.counters.updates >= 5
    bench.records.delete(GlobalConfigKey("LogSeverityScreen"))
    eventually(lambda: len(heard) == 2)
    assert heard == [(GlobalConfigKey("LogSeverityScreen"), "info"), (GlobalConfigKey("LogSeverityScreen"), None)]
    bench.store.delete(key.path)
    eventually(lambda: agent.figures().endpoints.total() == 0)
    assert agent.figures().cluster[WorkloadEndpointKey] == 1


def test_a_store_that_loses_everything_takes_nothing_from_the_kernel(bench: Bench) -> None:
    bench.write_profile()
    agent = bench.start()
    keys = []
    for number in range(20):
        bench.link(f"w{number}")
        key, revision = bench.write(f"w{number}", ipv4_nets=(IPNetwork(f"10.65.0.{number + 1}/32"),))
        keys.append(key)
    assert agent.wait_programmed(key, revision, WAIT_S)
    for key in keys:
        bench.records.delete(key)
    other, revision = bench.write("new", ipv4_nets=(IPNetwork("10.65.1.1/32"),))
    assert agent.wait_programmed(other, revision, WAIT_S)  # the deletions came before
    standing = set(bench.dataplane.state.workloads)
    assert len(standing & set(keys)) > 0
    agent.confirm_removals()
    eventually(lambda: set(bench.dataplane.state.workloads) == {other})


def test_a_tree_that_is_deleted_takes_nothing_away_however_small(bench: Bench) -> None:
    """``etcdctl del --prefix /calico``; then it is imported again."""
    heard: list[tuple[object, str | None]] = []
    bench.records.put(GlobalConfigKey("InterfacePrefix"), "cali")
    bench.write_profile()
    key, revision = bench.write()
    agent = bench.start(on_config=lambda key, value: heard.append((key, value)))
    assert agent.wait_programmed(key, revision, WAIT_S)
    eventually(lambda: agent.trusts_store)
    kept = bench.store.list("/calico/").entries
    bench.store.transact([], [Delete(entry.key) for entry in kept])
    eventually(lambda: agent.doubts_store)
    assert not agent.trusts_store
    bench.store.transact([], [Put(entry.key, entry.value) for entry in kept])
    eventually(lambda: not agent.doubts_store)
    other, revision = bench.write("new", ipv4_nets=(IPNetwork("10.65.1.1/32"),))
    assert agent.wait_programmed(other, revision, WAIT_S)
    assert not any(changes.removed_workloads or changes.removed_rules for changes in bench.dataplane.applied)
    assert (GlobalConfigKey("InterfacePrefix"), None) not in heard


def test_what_waits_is_doubted_before_people_are_told(bench: Bench) -> None:
    agent = bench.start()
    for number in range(20):
        bench.records.put(PolicyKey("default", f"p{number}"), Policy(selector="all()"))
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)
    bench.store.faults.down = True
    bench.store.faults.break_watches()
    eventually(lambda: not agent.trusts_store)
    assert not agent.doubts_store, "what it says is known to be so"
    raw = bench.store._store
    with raw.changed:  # the agent hears of it by a snapshot
        bench.store.faults.down = False
        for number in range(20):
            bench.store.delete(PolicyKey("default", f"p{number}").path)
        bench.store.compact(raw.revision)
    eventually(lambda: agent.doubts_store and agent.knows_ready())
    agent.confirm_removals()
    eventually(lambda: not agent.doubts_store)


def test_a_node_that_starts_on_an_emptied_store_waits_before_it_removes(bench: Bench, tmp_path: Path) -> None:
    memory = tmp_path / "interfaces.json"
    Remembered(memory).save(frozenset(f"caliw{number}" for number in range(5)), {}, 0.0)
    for number in range(5):
        bench.link(f"w{number}")
    agent = bench.start(remembered=Remembered(memory))
    eventually(lambda: agent.frozen_because)
    assert not agent.is_in_sync
    assert bench.dataplane.applied == []
    assert "knows nothing of 5 of 5" in agent.confirm_removals()
    assert agent.wait_in_sync(WAIT_S)
    assert agent.frozen_because == ""


def test_a_node_that_starts_without_the_policies_it_had_waits_too(bench: Bench, tmp_path: Path) -> None:
    """No workload stands here; of its host endpoint the kernel has what the earlier life gave it."""
    memory = tmp_path / "interfaces.json"
    for number in range(20):
        bench.records.put(PolicyKey("default", f"p{number}"), Policy(selector="all()"))
    agent = bench.start(remembered=Remembered(memory))
    assert agent.wait_in_sync(WAIT_S)
    agent.stop()
    for number in range(20):
        bench.records.delete(PolicyKey("default", f"p{number}"))
    applied = len(bench.dataplane.applied)
    agent = bench.start(remembered=Remembered(memory))
    eventually(lambda: agent.frozen_because == "the datastore lost 20 of 20 policies that were in force here")
    assert agent.doubts_store
    for number in range(12):
        bench.records.put(PolicyKey("default", f"p{number}"), Policy(selector="all()"))
    assert agent.wait_in_sync(WAIT_S)
    assert not agent.doubts_store
    assert bench.dataplane.applied[applied].is_complete


def test_what_was_meant_to_go_before_a_stop_is_no_loss(bench: Bench, tmp_path: Path) -> None:
    memory = tmp_path / "interfaces.json"
    for number in range(8):
        bench.records.put(PolicyKey("default", f"p{number}"), Policy(selector="all()"))
    agent = bench.start(remembered=Remembered(memory))
    assert agent.wait_in_sync(WAIT_S)
    for number in range(8):
        bench.records.delete(PolicyKey("default", f"p{number}"))
    eventually(lambda: agent.figures().cluster[PolicyKey] == 0)
    key, revision = bench.write()
    assert agent.wait_programmed(key, revision, WAIT_S)  # the deletions came before
    agent.stop()
    agent = bench.start(remembered=Remembered(memory))
    assert agent.wait_in_sync(WAIT_S)


def test_nothing_is_begun_with_settings_that_the_store_no_longer_has(bench: Bench) -> None:
    differing: set[str] = {"interface_prefix"}
    agent = bench.start(settings_differ=lambda: bool(differing))
    eventually(agent.knows_ready)
    for name in ("y", "z"):  # the first pass may have been under way
        passes = len(bench.states)
        bench.link(name)
        eventually(lambda before=passes: len(bench.states) > before)
    assert bench.dataplane.applied == []
    differing.clear()
    bench.records.put(GlobalConfigKey("InterfacePrefix"), "cali")
    assert agent.wait_in_sync(WAIT_S)


def test_counters_of_rules_are_read_by_the_engine(bench: Bench) -> None:
    bench.write_profile("web", Rule(action="allow", protocol="tcp"), Rule(action="deny"))
    key, revision = bench.write()
    agent = bench.start()
    assert agent.wait_programmed(key, revision, WAIT_S)
    rules = RulesId("profile/web")
    bench.dataplane.count(rules, "inbound", 1, 3, 300)
    assert agent.rule_counts.ask() == (
        CountedRule(rules, "inbound", 0, "allow", 0, 0),
        CountedRule(rules, "inbound", 1, "deny", 3, 300),
    )
    assert agent.figures().rules == agent.rule_counts.ask()
    agent.stop()
    with pytest.raises(NotReady, match="busy"):
        agent.rule_counts.ask(0.05)


def test_the_addresses_of_all_hosts_and_both_families_reach_the_dataplane(bench: Bench) -> None:
    bench.start()
    cidr = IPNetwork("fd80::/64")
    bench.records.put(PoolKey(cidr), Pool(cidr=cidr, vxlan_mode="always"))
    bench.records.put(HostIpKey(HOST), "192.0.2.1")
    bench.records.put(BgpHostAddressKey("rack-b", 6), "fd00::2")
    wanted = HostPeers(addresses=(IPAddress("192.0.2.1"), IPAddress("fd00::2")), is_vxlan=True)
    eventually(lambda: bench.dataplane.state.peers == wanted)


def test_an_excluded_interface_is_the_business_of_an_endpoint_that_names_it_alone(bench: Bench) -> None:
    bench.records.put(HostEndpointKey(HOST, "eth"), HostEndpoint(expected_ipv4_addrs=(IPAddress("192.0.2.1"),)))
    bench.records.put(HostEndpointKey(HOST, "all"), HostEndpoint(name="*"))
    bench.start(is_excluded=lambda name: name.startswith("kube-"))
    bench.dataplane.set_addresses("kube-ipvs0", IPAddress("192.0.2.1"))
    bench.dataplane.set_addresses("eth0", IPAddress("192.0.2.1"))

    def spared() -> tuple[str, ...]:
        return bench.dataplane.wanted().interfaces["*"].spares

    eventually(lambda: bench.dataplane.wanted().interfaces.keys() == {"eth0", "*"})
    eventually(lambda: spared() == ("kube-ipvs0",))
    bench.dataplane.set_addresses("kube-dummy0", IPAddress("192.0.2.9"))
    eventually(lambda: spared() == ("kube-dummy0", "kube-ipvs0"))
    bench.dataplane.remove_interface("kube-ipvs0")
    eventually(lambda: spared() == ("kube-dummy0",))
    bench.records.put(HostEndpointKey(HOST, "named"), HostEndpoint(name="kube-dummy0"))
    eventually(lambda: "kube-dummy0" in bench.dataplane.wanted().interfaces)


def test_a_host_endpoint_is_up_where_an_interface_has_it(bench: Bench) -> None:
    bench.start()
    key = HostEndpointKey(HOST, "eth")
    bench.records.put(key, HostEndpoint(expected_ipv4_addrs=(IPAddress("192.0.2.1"),)))
    bench.records.put(HostEndpointKey("rack-b", "eth"), HostEndpoint(name="eth0"))

    def said() -> tuple[str, str] | None:
        return bench.states[-1].host_endpoints.get(key) if bench.states else None

    eventually(lambda: (said() or ("", ""))[0] == "down")
    assert bench.states[-1].host_endpoints.keys() == {key}
    bench.dataplane.set_addresses("eth0", IPAddress("192.0.2.1"))
    eventually(lambda: said() == ("up", ""))
    bench.dataplane.remove_interface("eth0")
    eventually(lambda: (said() or ("", ""))[0] == "down")
    bench.records.delete(key)
    eventually(lambda: said() is None)


@pytest.mark.parametrize("lets_spoof", [True, False])
def test_prefixes_that_mean_nothing_are_told_of_once(
    bench: Bench, *, lets_spoof: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bench.write_profile()
    prefixes = (IPNetwork("198.51.100.0/25"), IPNetwork("198.51.100.0/24"))
    key, _ = bench.write(allowed_source_prefixes=prefixes)
    agent = bench.start(lets_spoof=lets_spoof)
    assert agent.wait_in_sync(WAIT_S)
    for label in ("one", "two"):
        _, revision = bench.write(allowed_source_prefixes=prefixes, labels={"now": label})
        assert agent.wait_programmed(key, revision, WAIT_S)
    kept = bench.dataplane.wanted().workloads[key].allowed_source_prefixes
    assert kept == (prefixes[1:] if lets_spoof else ())
    told = [each for each in caplog.records if each.getMessage() == "endpoint.source_prefixes_ignored"]
    assert len(told) == (0 if lets_spoof else 1)
