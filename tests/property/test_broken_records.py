"""Whatever stands in the datastore, the agent goes on: what it cannot read is named and counts as not there."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from netaddr import IPAddress

from calico_core.dataplane.memory import MemoryDataplane
from calico_core.datastore.memory import MemoryDatastore
from calico_core.errors import InvalidRecord
from calico_core.interfaces.dataplane import Dataplane, DataplaneOptions
from calico_core.interfaces.datastore import Delete, Put
from calico_core.model import codec
from calico_core.model.hoststate import HostState
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import BGP_HOSTS, V1, ReadyKey, WorkloadEndpointKey
from calico_core.node.agent import Agent
from calico_core.node.agent_state import AgentState
from calico_core.policy.resolver import PolicyResolver
from calico_core.policy.tunnel_routes import TunnelTable
from calico_core.routing.bird_config import render
from calico_core.routing.peerings import PeeringTable
from tests.doubles.broken_records import HOST, records
from tests.waiting import eventually

WAIT_S = 30.0
INTERFACES = {"eth0": frozenset({IPAddress("10.0.0.1")}), "eth1": frozenset({IPAddress("192.0.2.1")})}
MARK = WorkloadEndpointKey(HOST, "test", "mark", "eth0")


class Bench:
    """A running agent and what is in its datastore."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.dataplane, self.deaths = dataplane, 0
        self.store = MemoryDatastore()
        self.store.transact([], [Put(ReadyKey().path, b"true")])
        self.agent = Agent(
            store=self.store,
            host=HOST,
            dataplane=dataplane,
            refresh_interval_s=0,
            confirm_removals_after_s=0,
            on_death=self._die,
            reporter=self._hear,
            resolver=PolicyResolver(HOST, interface_prefixes=("cali",)),
            cuts_denied_flows=False,
        )
        self.bad_records: tuple[str, ...] = ()
        self.held: dict[str, bytes] = {}
        self._numbers = itertools.count(1)
        self.agent.start()

    def _die(self) -> None:
        self.deaths += 1

    def _hear(self, state: AgentState) -> None:
        self.bad_records = state.bad_records

    def reach(self, wanted: dict[str, bytes]) -> None:
        """In one transaction of the store, until the agent has followed it."""
        number = next(self._numbers)
        mark = f'{{"state":"active","name":"caliz","ipv4_nets":["10.66.{number >> 8 & 255}.{number & 255}"]}}'.encode()
        wanted = {**wanted, MARK.path: mark}
        gone = [Delete(path) for path in self.held.keys() - wanted.keys()]
        new = [Put(path, value) for path, value in wanted.items() if self.held.get(path) != value]
        revision = self.store.transact([], [*gone, *new]).revision
        self.held = wanted
        assert self.agent.wait_programmed(MARK, revision, WAIT_S) or self.deaths, "the agent did not follow"
        assert not self.deaths
        assert self.agent.is_alive


@contextlib.contextmanager
def running(dataplane: Dataplane) -> Iterator[Bench]:
    bench = Bench(dataplane)
    try:
        yield bench
    finally:
        bench.agent.stop()
        dataplane.close()


def readable(stored: dict[str, bytes]) -> tuple[HostState, set[str]]:
    """What is to be in force, and the paths that cannot be read."""
    resolver, good, bad = PolicyResolver(HOST, interface_prefixes=("cali",)), [], set()
    for name, addresses in INTERFACES.items():
        resolver.set_interface(name, addresses)
    for path, value in stored.items():
        key = parse_key(path) if path.startswith((V1, BGP_HOSTS)) else None
        if key is None:
            continue
        try:
            good.append((key, codec.decode(key, value)))
        except InvalidRecord:
            bad.add(path)
    resolver.apply(good)
    resolver.in_sync()
    state = HostState()
    state.update(resolver.flush())
    return state, bad


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    dataplane = MemoryDataplane(DataplaneOptions(host=HOST))
    for name, addresses in INTERFACES.items():
        dataplane.set_addresses(name, *addresses)
    with running(dataplane) as made:
        yield made


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(stored=records())
def test_the_agent_goes_on_with_all_that_can_be_read(bench: Bench, stored: dict[str, bytes]) -> None:
    bench.reach(stored)
    state, bad = readable(bench.held)
    # another prefix of the datastore has a watch of its own
    eventually(lambda: vars(bench.dataplane.wanted()) == vars(state), within_s=WAIT_S)
    eventually(lambda: set(bench.bad_records) == bad, within_s=WAIT_S)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(stored=records())
def test_routing_and_tunnels_go_on_too(stored: dict[str, bytes]) -> None:
    peerings, tunnels = PeeringTable(HOST), TunnelTable(HOST, (IPAddress("192.0.2.1"),))
    records = []
    for path, value in stored.items():
        key = parse_key(path)
        if key is not None:
            with contextlib.suppress(InvalidRecord):
                records.append((key, codec.decode(key, value)))
    peerings.apply(records)
    tunnels.apply(records)
    state = peerings.state()
    assert state is None or render(state)
    assert tunnels.state().locals
    for updates in ([(key, None) for key, _ in records], records):
        peerings.apply(updates)
        tunnels.apply(updates)
    assert peerings.state() == state
