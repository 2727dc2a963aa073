"""Endpoints that an earlier plugin left: random ids, no container, no network in the record."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.errors import NamespaceGone
from calico_core.interfaces.integration import CallReply
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import HOSTS, WorkloadEndpointKey
from tests.doubles.cni import CONTAINER, HOST, CniSetup, a_network, stdout_of

NAMES = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"
K8S = a_network(orchestrator="k8s")


def leave(setup: CniSetup, orchestrator: str, workload: str, *, handle: str, **fields: Any) -> WorkloadEndpointKey:
    """As the first plugin wrote it, with its address."""
    endpoint = uuid.uuid4().hex
    address = IPAddress(f"10.65.0.{100 + len(setup.ipam.held)}")
    setup.ipam.held[address] = (handle, {})
    key = WorkloadEndpointKey(HOST, orchestrator, workload, endpoint)
    record = WorkloadEndpoint(
        state="active",
        name=f"cali{endpoint}"[:15],
        profile_ids=("net1",),
        ipv4_nets=(IPNetwork(f"{address}/32"),),
        **fields,
    )
    setup.workloads.adopt(key, record)
    return key


def keys(setup: CniSetup) -> set[str]:
    return {found.key.path for found in setup.records.list(f"{HOSTS}{HOST}/workload/")}


@pytest.mark.parametrize("handle", [CONTAINER, f"net1.{CONTAINER}"])
def test_a_containers_goes_with_its_address(setup: CniSetup, handle: str) -> None:
    leave(setup, "cni", CONTAINER, handle=handle)
    other = leave(setup, "cni", f"{CONTAINER}0", handle="other")
    for _ in range(2):
        assert setup.call("DEL") == CallReply()
        assert keys(setup) == {other.path}
        assert {holder for holder, _ in setup.ipam.held.values()} == {"other"}


def test_a_container_with_one_of_ours_has_none(setup: CniSetup) -> None:
    stdout_of(setup.call("ADD"))
    kept = leave(setup, "cni", CONTAINER, handle="someone")
    assert setup.call("DEL") == CallReply()
    assert keys(setup) == {kept.path}


@pytest.mark.parametrize("fields", [{"container_id": "other"}, {"network": "net9"}])
def test_what_names_its_owner_is_none(setup: CniSetup, fields: dict[str, str]) -> None:
    kept = leave(setup, "cni", CONTAINER, handle="other", **fields)
    assert setup.call("DEL") == CallReply()
    assert keys(setup) == {kept.path}


def test_a_second_interface_was_unknown_then(setup: CniSetup) -> None:
    kept = leave(setup, "cni", CONTAINER, handle=CONTAINER)
    assert setup.call("DEL", interface="eth1") == CallReply()
    assert keys(setup) == {kept.path}


def test_a_pods_goes_with_the_container_that_it_leads_to(setup: CniSetup) -> None:
    key = leave(setup, "k8s", "shop.web-1", handle="shop.web-1")
    neighbour = leave(setup, "k8s", "shop.web-10", handle="shop.web-10")
    # the late DEL of the container before: the record is a newer one's
    for namespace_fd in (None, setup.namespace_fd):
        assert setup.call("DEL", K8S, namespace_fd=namespace_fd, CNI_ARGS=NAMES) == CallReply()
        assert keys(setup) == {key.path, neighbour.path}
    setup.workloads.host_ends["eth0"] = f"cali{key.endpoint}"[:15]
    assert setup.call("DEL", K8S, CNI_ARGS=NAMES) == CallReply()
    assert keys(setup) == {neighbour.path}
    assert {holder for holder, _ in setup.ipam.held.values()} == {"shop.web-10"}


def test_a_pod_that_was_filed_as_a_container(setup: CniSetup) -> None:
    leave(setup, "cni", CONTAINER, handle=CONTAINER)
    assert setup.call("DEL", K8S, namespace_fd=None, CNI_ARGS=NAMES) == CallReply()
    assert (keys(setup), setup.ipam.held) == (set(), {})


def test_a_namespace_that_is_none(setup: CniSetup) -> None:
    key = leave(setup, "k8s", "shop.web-1", handle="shop.web-1")
    setup.workloads.host_end_failure = NamespaceGone("/run/netns/c1", "it is a file")
    assert setup.call("DEL", K8S, CNI_ARGS=NAMES) == CallReply()
    assert keys(setup) == {key.path}
