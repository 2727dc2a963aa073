"""A datastore that is emptied under a node, and the node's next life on it: nothing goes from the kernel, and nothing
is written into the store, before somebody says so.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from calico_core.datastore.records import TypedRecords
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.interfaces.datastore import DatastoreOptions, Delete, Entry, Put
from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from calico_core.model.endpoints import HostEndpoint
from calico_core.model.keys import GlobalConfigKey, HostEndpointKey, PolicyKey, ReadyKey
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root
WAIT_S = 120.0


@pytest.fixture
def host() -> Iterator[LabHost]:
    with Laboratory.create(f"e{uuid.uuid4().hex[:8]}", 1, datastore="sqlite", routing="none") as made:
        yield made.hosts[0]


@pytest.fixture
def records(host: LabHost) -> Iterator[TypedRecords]:
    with contextlib.closing(SqliteDatastore.open(host.environment["CALICO_DATASTORE"], DatastoreOptions())) as store:
        yield TypedRecords(store)


def ruleset(host: LabHost) -> str:
    """Without counters."""
    return host.run(("nft", "--stateless", "list", "ruleset")).stdout


def says(host: LabHost, text: str) -> bool:
    return text in host.node_log.read_text()


def enforce(host: LabHost, records: TypedRecords) -> str:
    """A policy on a host endpoint, and a setting that is not the default; gives the rules of the kernel."""
    records.put(GlobalConfigKey("InterfacePrefix"), "tap")
    host.start_node(timeout_s=WAIT_S)
    rule = Rule(action="deny", protocol="udp", src_net="198.51.100.0/24")
    records.put(PolicyKey("default", "closed"), Policy(selector="all()", inbound_rules=(rule,)))
    records.put(HostEndpointKey(host.name, "uplink"), HostEndpoint(name="eth0", labels={"a": "b"}))
    eventually(lambda: "198.51.100." in ruleset(host), within_s=WAIT_S, every_s=0.2)
    memory = host.directory / "state" / "interfaces.json"
    eventually(
        lambda: {"policies", "host endpoints"} <= set(json.loads(memory.read_bytes())["records"]), within_s=WAIT_S
    )
    return ruleset(host)


def empty(records: TypedRecords) -> tuple[Entry, ...]:
    """As ``etcdctl del --prefix /calico``."""
    kept = tuple(entry for entry in records.store.list("/calico/").entries if entry.lease is None)
    records.store.transact([], [Delete(entry.key) for entry in kept])
    return kept


def stored(records: TypedRecords) -> set[str]:
    return {entry.key for entry in records.store.list("/calico/v1/").entries}


def test_an_emptied_store_is_not_begun_with_until_it_is_back(host: LabHost, records: TypedRecords) -> None:
    before = enforce(host, records)
    kept = empty(records)
    eventually(lambda: says(host, "sync.not-ready"), within_s=WAIT_S)
    host.kill_node()
    assert stored(records) == set()
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(host.start_node, timeout_s=WAIT_S)
        eventually(lambda: says(host, "removals.frozen"), within_s=WAIT_S)
        shown = host.calicoctl("status", check=False)
        assert shown.returncode == 1
        assert "0 of 1 host endpoints that were in force here" in shown.stdout + shown.stderr
        assert stored(records) == set()
        assert ruleset(host) == before
        records.store.transact([], [Put(entry.key, entry.value) for entry in kept])
        started.result()
    eventually(lambda: host.calicoctl("status", check=False).returncode == 0, within_s=WAIT_S, every_s=0.2)
    assert ruleset(host) == before
    assert records.get(ReadyKey()).record == "true"
    found = records.get(GlobalConfigKey("InterfacePrefix"))
    assert found is not None
    assert found.record == "tap"


def test_an_emptied_store_is_begun_with_when_that_is_meant(host: LabHost, records: TypedRecords) -> None:
    enforce(host, records)
    host.kill_node()
    empty(records)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(host.start_node, timeout_s=WAIT_S)
        eventually(lambda: says(host, "removals.frozen"), within_s=WAIT_S)
        assert "Confirmed: " in host.calicoctl("node", "confirm-removals").stdout
        started.result()
    eventually(lambda: "198.51.100." not in ruleset(host), within_s=WAIT_S, every_s=0.2)
    assert ReadyKey().path in stored(records)
