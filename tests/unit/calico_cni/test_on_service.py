"""The network plugin on a node's workload service: what a detach finds of an attach. Datastore and interfaces are in
memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calico_core.interfaces.integration import CallReply
from tests.doubles.cni import CniOnService, a_network, stdout_of

POD = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"


@pytest.fixture
def node(namespace_fd: int, tmp_path: Path) -> Iterator[CniOnService]:
    made = CniOnService(namespace_fd, tmp_path)
    yield made
    made.close()


@pytest.fixture
def other_namespace_fd() -> Iterator[int]:
    descriptor = os.open("/proc/self/ns/uts", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def of_kubernetes(**changes: Any) -> dict[str, Any]:
    return a_network(orchestrator="k8s", **changes)


def host_end(result: dict[str, Any]) -> str:
    return str(result["interfaces"][0]["name"])


@pytest.mark.parametrize("has_namespace", [True, False])
def test_a_late_del_leaves_the_pods_next_sandbox_its_interface_while_the_datastore_is_away(
    node: CniOnService, other_namespace_fd: int, has_namespace: bool
) -> None:
    fd = node.namespace_fd
    stdout_of(node.call("ADD", of_kubernetes(), container="x", CNI_ARGS=POD))
    assert node.call("DEL", of_kubernetes(), container="x", CNI_ARGS=POD) == CallReply()
    result = stdout_of(node.call("ADD", of_kubernetes(), container="y", namespace_fd=other_namespace_fd, CNI_ARGS=POD))
    node.store.faults.down = True
    late = node.call("DEL", of_kubernetes(), container="x", namespace_fd=fd if has_namespace else None, CNI_ARGS=POD)
    assert late == CallReply()
    assert node.wiring.exists(host_end(result))
    assert node.integration.replay() == 0
    assert node.wiring.exists(host_end(result))
    node.store.faults.down = False
    assert node.integration.replay() == 1
    assert node.wiring.exists(host_end(result))
    assert len(node.left()) == 2


def test_a_pods_interface_goes_while_the_datastore_is_away(node: CniOnService) -> None:
    result = stdout_of(node.call("ADD", of_kubernetes(), container="x", CNI_ARGS=POD))
    node.store.faults.down = True
    assert node.call("DEL", of_kubernetes(), container="x", CNI_ARGS=POD) == CallReply()
    assert not node.wiring.exists(host_end(result))
    node.store.faults.down = False
    assert node.integration.replay() == 1
    assert node.left() == []
