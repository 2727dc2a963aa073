"""A real node collects what a workload left behind, keeps what lives, and freezes when much vanishes at once."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from calico_core.dataplane.linux import netns
from calico_core.datastore.records import TypedRecords
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.interfaces.datastore import DatastoreOptions
from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from calico_core.model.keys import HOSTS, WorkloadEndpointKey
from tests import waiting
from tests.e2e.observing import MakeLab

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

GRACE_S = 1.0
_WITHIN_S = 60.0


@pytest.fixture
def lab(make_lab: MakeLab) -> Laboratory:
    made = make_lab(1, nodes=False)
    host = made.hosts[0]
    host.start_node(environment={"CALICO_COLLECTOR_INTERVAL": "0.3", "CALICO_COLLECTOR_GRACE": str(GRACE_S)})
    host.install_cni()
    return made


def test_a_leaked_address_is_collected_and_a_living_one_never(lab: Laboratory) -> None:
    host = lab.hosts[0]
    live, orphan, dead = (attached(lab) for _ in range(3))
    forget_endpoint(host, orphan)  # a record deleted by hand, its container lives
    dead_address = str(dead.addresses[0])
    forget_endpoint(host, dead)
    netns.delete_namespace(dead.namespace.name)  # and one whose container is gone too
    eventually(lambda: dead_address not in held(host))
    looked = collector(host)["last_look"]
    eventually(lambda: collector(host)["last_look"] > looked + 3 * GRACE_S)
    assert held(host) == {str(live.addresses[0]), str(orphan.addresses[0])}
    eventually(lambda: collector(host)["released"] == 1)
    assert "interface-without-endpoint" in codes(host)
    netns.delete_namespace(orphan.namespace.name)
    eventually(lambda: held(host) == {str(live.addresses[0])})
    eventually(lambda: codes(host) == set())


def test_an_endpoint_whose_container_vanished_goes_with_its_address(lab: Laboratory) -> None:
    host = lab.hosts[0]
    live, dead = attached(lab), attached(lab)
    netns.delete_namespace(dead.namespace.name)
    eventually(lambda: held(host) == {str(live.addresses[0])})
    endpoints = json.loads(host.calicoctl("endpoint", "show", "-o", "json").stdout)
    assert [endpoint["addresses"] for endpoint in endpoints] == [[str(live.addresses[0])]]
    eventually(lambda: collector(host)["removed"] == 1)


def test_a_sudden_loss_freezes_until_it_is_confirmed(lab: Laboratory) -> None:
    host = lab.hosts[0]
    workloads = [attached(lab) for _ in range(4)]
    looked = collector(host)["last_look"] or 0.0
    eventually(lambda: (collector(host)["last_look"] or 0.0) > looked)
    forget_endpoint(host, *workloads[:3])
    eventually(lambda: collector(host)["state"] == "frozen")
    for workload in workloads[:3]:
        netns.delete_namespace(workload.namespace.name)
    looked = collector(host)["last_look"]
    eventually(lambda: collector(host)["last_look"] > looked + 2 * GRACE_S)
    assert len(held(host)) == 4
    assert "FROZEN" in host.calicoctl("node", "status", check=False).stdout
    plan = json.loads(host.calicoctl("ipam", "release", "--leaked", "--grace", "0", "-o", "json").stdout)
    assert [row["kept"] for row in plan] == ["", "", ""], "an operator may do it by hand"
    host.calicoctl("ipam", "unfreeze")
    eventually(lambda: held(host) == {str(workloads[3].addresses[0])})
    eventually(lambda: collector(host)["state"] == "watching")


def attached(lab: Laboratory) -> LabWorkload:
    workload = lab.add_workload(lab.hosts[0])
    workload.attach(network="net1")
    return workload


def forget_endpoint(host: LabHost, *workloads: LabWorkload) -> None:
    """Delete the records as a person with an editor would: nobody is told, nothing else is done."""
    store = SqliteDatastore.open(host.environment["CALICO_DATASTORE"], DatastoreOptions())
    try:
        wanted = {workload.container_id for workload in workloads}
        for found in TypedRecords(store).list(HOSTS):
            if isinstance(found.key, WorkloadEndpointKey) and found.record.container_id in wanted:
                store.delete(found.key.path)
    finally:
        store.close()


def held(host: LabHost) -> set[str]:
    """Every address that is assigned: those of endpoints, and of which the check says that no endpoint has them."""
    endpoints = json.loads(host.calicoctl("endpoint", "show", "-o", "json").stdout)
    findings = json.loads(host.calicoctl("ipam", "check", "-o", "json").stdout)
    orphans = {row["object"] for row in findings if row["code"] == "address-without-endpoint"}
    return orphans | {address for endpoint in endpoints for address in endpoint["addresses"]}


def codes(host: LabHost) -> set[str]:
    return {row["code"] for row in json.loads(host.calicoctl("ipam", "check", "-o", "json").stdout)}


def collector(host: LabHost) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.calicoctl("status", "-o", "json", check=False).stdout)["collector"]
    return found


eventually = partial(waiting.eventually, within_s=_WITHIN_S, every_s=0.05)
