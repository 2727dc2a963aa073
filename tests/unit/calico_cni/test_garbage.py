"""GC of both programs, on doubles. What a runtime sends: CNI specification 1.1.0."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from netaddr import IPNetwork

from calico_core.errors import NotReady
from calico_core.ipam import blocks
from calico_core.model.blocks import AllocationAttributes
from calico_core.model.keys import BlockKey
from tests.doubles.cni import HOST, CniSetup, a_network, error_of, stdout_of

OLD_S = 120.0


def gc(setup: CniSetup, valid: Any, **options: Any) -> Any:
    return setup.call("GC", a_network(cniVersion="1.1.0", **{"cni.dev/valid-attachments": valid}), **options)


def add(setup: CniSetup, container: str, *, age_s: float = OLD_S, network: str = "net1") -> None:
    stdout_of(setup.call("ADD", a_network(name=network), container=container))
    key = next(key for key in setup.workloads.attached if key.workload == container)
    found = setup.records.get(key)
    assert found is not None
    setup.records.put(key, msgspec.structs.replace(found.record, created=time.time() - age_s))


def standing(setup: CniSetup) -> list[str]:
    return sorted(key.workload for key in setup.workloads.attached)


def test_stale_endpoints_go_and_no_others(setup: CniSetup) -> None:
    for container in ("stale", "valid", "valid-1"):
        add(setup, container)
    add(setup, "young", age_s=5)
    add(setup, "elsewhere", network="net2")
    valid = [{"containerID": "valid", "ifname": "eth0"}, {"containerID": "valid-1", "ifname": "eth1"}]
    assert gc(setup, valid).status == 0
    assert standing(setup) == ["elsewhere", "valid", "young"]
    assert {detach.container_id for detach in setup.workloads.detach_requests} == {"stale", "valid-1"}


def test_the_older_name_of_the_list(setup: CniSetup) -> None:
    add(setup, "stale")
    configuration = a_network(cniVersion="1.1.0", **{"cni.dev/attachments": []})
    assert setup.call("GC", configuration).status == 0
    assert standing(setup) == []


def test_a_runtime_without_containers(setup: CniSetup) -> None:
    """An empty list in Go that nothing was ever put into."""
    add(setup, "stale")
    empty = {"cni.dev/valid-attachments": None, "cni.dev/attachments": None}
    assert setup.call("GC", {**a_network(cniVersion="1.1.0"), **empty}).status == 0
    assert standing(setup) == []


def test_one_name_without_a_list(setup: CniSetup) -> None:
    add(setup, "valid")
    lists = {"cni.dev/valid-attachments": None, "cni.dev/attachments": [{"containerID": "valid", "ifname": "eth0"}]}
    assert setup.call("GC", {**a_network(cniVersion="1.1.0"), **lists}).status == 0
    assert standing(setup) == ["valid"]


@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
def test_no_list_is_not_an_empty_one(setup: CniSetup, program: str) -> None:
    add(setup, "stale")
    assert error_of(setup.call("GC", a_network(cniVersion="1.1.0"), program=program))["code"] == 7
    assert standing(setup) == ["stale"]


@pytest.mark.parametrize("valid", ["none", {}, [1], [{"ifname": "eth0"}]])
@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
def test_without_a_usable_list_nothing_goes(setup: CniSetup, program: str, valid: Any) -> None:
    add(setup, "stale")
    assert error_of(gc(setup, valid, program=program))["code"] == 7
    assert standing(setup) == ["stale"]


def test_a_failure_stops_nothing_and_is_told(setup: CniSetup) -> None:
    for container in ("a", "b"):
        add(setup, container)
    setup.workloads.failure = NotReady("busy")
    error = error_of(gc(setup, []))
    assert (error["code"], "busy" in error["msg"]) == (11, True)
    assert len(standing(setup)) == 1
    assert gc(setup, []).status == 0
    assert standing(setup) == []


@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
def test_interfaces_that_nobody_has_a_record_of(setup: CniSetup, program: str) -> None:
    setup.workloads.orphans = ("cali0",)
    assert gc(setup, [], program=program).status == 0
    assert setup.workloads.orphans == (() if program == "calico" else ("cali0",))


@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
def test_addresses_without_an_endpoint(setup: CniSetup, program: str) -> None:
    """As another network plugin leaves them, with our IPAM."""
    old, new = "2020-01-01T00:00:00+00:00", time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    notes = {"node": HOST, "network": "net1", "ifname": "eth0", "timestamp": old}
    held = {
        "net1.stale": {**notes, "container": "stale"},
        "net1.valid": {**notes, "container": "valid"},
        "net1.young": {**notes, "container": "young", "timestamp": new},
        "net2.stale": {**notes, "container": "stale", "network": "net2"},
        "net1.far": {**notes, "container": "far", "node": "node2"},
    }
    cidr = IPNetwork("10.65.0.0/26")
    block = blocks.new_block(cidr, HOST, sequence=1)
    for number, (handle, attributes) in enumerate(held.items()):
        block = blocks.take_ordinal(block, number, AllocationAttributes(handle_id=handle, secondary=attributes))
        setup.ipam.held[cidr[number]] = (handle, dict(attributes))
    setup.records.put(BlockKey(cidr), block)
    assert gc(setup, [{"containerID": "valid", "ifname": "eth0"}], program=program).status == 0
    assert {handle for handle, _ in setup.ipam.held.values()} == held.keys() - {"net1.stale"}
