"""The network plugin on a node's workload service: what a detach finds of an attach. Datastore and interfaces are in
memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calico_core.interfaces.integration import CallReply
from calico_core.model.addresses import parse_mac
from calico_core.model.keys import HOSTS
from calico_core.model.workloads import Detach, WiringRequest
from tests.doubles.cni import CONTAINER, CniOnService, a_network, stdout_of

MAC = "02:00:5e:00:00:07"
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


def with_other_ipam(folder: Path) -> tuple[dict[str, Any], str]:
    """A network and the ``CNI_PATH`` where its IPAM plugin lies, which writes down what it hears."""
    program = folder / "other-ipam"
    answer = """{"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.9/24"}]}"""
    program.write_text(
        f"#!/bin/sh\ncat > /dev/null\necho $CNI_COMMAND >> {folder}/heard\n"
        f"[ $CNI_COMMAND = ADD ] && echo '{answer}'\n:\n"
    )
    program.chmod(0o755)
    return a_network(ipam={"type": program.name}), str(folder)


def behind_another(inner: dict[str, str]) -> dict[str, Any]:
    """A network after a plugin that has made the pair of ``cali77`` and ``inner``."""
    ips = [{"address": "10.78.0.2/24", "interface": 1}]
    previous = {"cniVersion": "1.0.0", "interfaces": [{"name": "cali77"}, inner], "ips": ips}
    return a_network(prevResult=previous, ipam=None)


def a_wiring(node: CniOnService, interface: str) -> WiringRequest:
    """A pair of another plugin's."""
    return WiringRequest(
        interface=interface,
        container_interface="eth0",
        namespace_fd=node.namespace_fd,
        namespace="/run/netns/c1",
        addresses=(),
    )


def host_end(result: dict[str, Any]) -> str:
    return str(result["interfaces"][0]["name"])


@pytest.mark.parametrize("mode", ["per-attachment", "single"])
def test_any_interface_goes_while_the_datastore_is_away(node: CniOnService, mode: str) -> None:
    """Whether a further one is shared by now stands in the record of the first."""
    made = [
        host_end(stdout_of(node.call("ADD", a_network(interface_mode="per-attachment"), interface=interface)))
        for interface in ("eth0", "net1")
    ]
    node.store.faults.down = True
    assert node.call("DEL", a_network(interface_mode=mode), interface="net1") == CallReply()
    assert [node.wiring.exists(each) for each in made] == [True, False]
    node.store.faults.down = False
    assert node.integration.replay() == 1
    assert len(node.left()) == 2


def test_an_interface_with_another_plugins_addresses_goes_while_the_datastore_is_away(
    node: CniOnService, tmp_path: Path
) -> None:
    """The plugin frees them, whatever the datastore does."""
    network, search = with_other_ipam(tmp_path)
    made = host_end(stdout_of(node.call("ADD", network, CNI_PATH=search)))
    node.store.faults.down = True
    assert node.call("DEL", network, CNI_PATH=search) == CallReply()
    assert not node.wiring.exists(made)
    assert (tmp_path / "heard").read_text().split() == ["ADD", "DEL"]
    node.store.faults.down = False
    assert node.integration.replay() == 1
    assert node.left() == []


@pytest.mark.parametrize("broken", ["eth0", "net1"])
@pytest.mark.parametrize("is_foreign", [False, True])
def test_del_where_a_record_of_the_container_does_not_decode(
    node: CniOnService, tmp_path: Path, broken: str, is_foreign: bool
) -> None:
    network, search = with_other_ipam(tmp_path) if is_foreign else (a_network(), "")
    made = {}
    for interface in ("eth0", "net1"):
        added = node.call("ADD", network, interface=interface, CNI_PATH=search)
        made[interface] = host_end(stdout_of(added))
    for found in node.records.list(HOSTS):
        if found.record.name == made[broken]:
            node.store.put(found.key.path, b"{")
    for interface in ("net1", "eth0"):
        assert node.call("DEL", network, interface=interface, CNI_PATH=search) == CallReply()
        assert not node.wiring.exists(made[interface])
    assert node.left() == []


@pytest.mark.parametrize("is_foreign", [False, True])
def test_add_of_the_next_sandbox_where_the_record_does_not_decode(
    node: CniOnService, tmp_path: Path, is_foreign: bool
) -> None:
    network, search = with_other_ipam(tmp_path) if is_foreign else (a_network(), "")
    network = {**network, "orchestrator": "k8s"}
    stdout_of(node.call("ADD", network, container="x", CNI_ARGS=POD, CNI_PATH=search))
    (found,) = node.records.list(HOSTS)
    node.store.put(found.key.path, b"{")
    stdout_of(node.call("ADD", network, container="y", CNI_ARGS=POD, CNI_PATH=search))
    (found,) = node.records.list(HOSTS)
    assert found.record.container_id == "y"


NAMED_AFTER = {"pod": of_kubernetes(), "container": a_network()}


@pytest.mark.parametrize("is_away", [False, True])
@pytest.mark.parametrize("interface", ["eth0", "net1"])
@pytest.mark.parametrize(("before", "since"), [("pod", "container"), ("container", "pod")])
def test_a_list_that_names_endpoints_otherwise_since(
    node: CniOnService, before: str, since: str, interface: str, is_away: bool
) -> None:
    """It got or lost ``policy.type`` or ``orchestrator``."""
    added = node.call("ADD", NAMED_AFTER[before], interface=interface, CNI_ARGS=POD)
    node.store.faults.down = is_away
    assert node.call("DEL", NAMED_AFTER[since], interface=interface, CNI_ARGS=POD) == CallReply()
    node.store.faults.down = False
    assert node.integration.replay() == int(is_away)
    assert node.left() == []
    assert not node.wiring.exists(host_end(stdout_of(added)))


@pytest.mark.parametrize("interface", ["eth0", "net1"])
def test_a_list_that_shared_an_interface_and_names_endpoints_otherwise_since(
    node: CniOnService, interface: str
) -> None:
    shared = {"interface_mode": "single"}
    made = host_end(stdout_of(node.call("ADD", of_kubernetes(**shared), CNI_ARGS=POD)))
    stdout_of(node.call("ADD", of_kubernetes(name="net2", **shared), interface="net1", CNI_ARGS=POD))
    networks = {"eth0": "net1", "net1": "net2"}
    for each in (interface, *(networks.keys() - {interface})):
        assert node.wiring.exists(made)
        assert node.call("DEL", a_network(name=networks[each]), interface=each, CNI_ARGS=POD) == CallReply()
    assert node.left() == []
    assert not node.wiring.exists(made)


@pytest.mark.parametrize("maker", ["eth0", "net1"])
def test_a_shared_interface_keeps_its_address_when_its_maker_goes_by_the_other_name(
    node: CniOnService, maker: str
) -> None:
    shared = {"interface_mode": "single"}
    other = "net1" if maker == "eth0" else "eth0"
    added = stdout_of(node.call("ADD", of_kubernetes(**shared), interface=maker, CNI_ARGS=POD))
    stdout_of(node.call("ADD", of_kubernetes(name="net2", **shared), interface=other, CNI_ARGS=POD))
    for _ in range(2):
        assert node.call("DEL", a_network(**shared), interface=maker, CNI_ARGS=POD) == CallReply()
        held = node.ipam.by_handle(f"net1.{CONTAINER}")
        assert [f"{each}/32" for each in held] == [added["ips"][0]["address"]]
    assert node.call("DEL", a_network(name="net2", **shared), interface=other, CNI_ARGS=POD) == CallReply()
    assert node.left() == []


def test_addresses_stay_held_while_nobody_can_say_what_goes_by_the_other_name(
    node: CniOnService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The datastore goes away between the two."""
    stdout_of(node.call("ADD", of_kubernetes(), CNI_ARGS=POD))
    before = node.left()
    detach = node.service.detach

    def goes_away(request: Detach) -> bool:
        is_found = detach(request)
        node.store.faults.down = True
        return is_found

    monkeypatch.setattr(node.service, "detach", goes_away)
    assert node.call("DEL", a_network(), CNI_ARGS=POD) == CallReply()
    monkeypatch.undo()
    node.store.faults.down = False
    assert node.left() == before
    assert node.integration.replay() == 1
    assert node.left() == []


@pytest.mark.parametrize("arguments", ["", POD])
def test_del_frees_addresses_that_no_record_tells_of(node: CniOnService, arguments: str) -> None:
    stdout_of(node.call("ADD", of_kubernetes(), CNI_ARGS=arguments))
    for found in node.records.list(HOSTS):
        node.records.delete(found.key)
    assert node.call("DEL", of_kubernetes(), CNI_ARGS=arguments) == CallReply()
    assert node.left() == []


@pytest.mark.parametrize(("first", "second"), [("pod", "container"), ("container", "pod")])
def test_what_another_sandbox_of_the_pod_has_by_the_other_name_stays(
    node: CniOnService, first: str, second: str
) -> None:
    made = host_end(stdout_of(node.call("ADD", NAMED_AFTER[first], container="y", CNI_ARGS=POD)))
    before = node.left()
    assert node.call("DEL", NAMED_AFTER[second], container="x", CNI_ARGS=POD) == CallReply()
    assert node.wiring.exists(made)
    assert node.left() == before


@pytest.mark.parametrize("is_away", [False, True])
@pytest.mark.parametrize("mode", ["per-attachment", "single"])
def test_a_prefix_of_interfaces_that_was_changed_since(node: CniOnService, mode: str, is_away: bool) -> None:
    network = a_network(interface_mode=mode)
    made = host_end(stdout_of(node.call("ADD", network)))
    node.restart(interface_prefix="tap")
    node.store.faults.down = is_away
    assert node.call("DEL", network) == CallReply()
    node.store.faults.down = False
    assert node.integration.replay() == int(is_away)
    assert not node.wiring.exists(made)
    assert node.left() == []


def test_an_interface_of_another_plugin_is_left_to_it(node: CniOnService) -> None:
    node.wiring.attach(a_wiring(node, "cali77"))
    behind = behind_another({"name": "eth0", "sandbox": "/run/netns/c1"})
    stdout_of(node.call("ADD", behind))
    assert node.call("DEL", behind) == CallReply()
    assert node.wiring.exists("cali77")
    assert node.left() == []


@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
@pytest.mark.parametrize(
    ("container", "interface", "other"), [("b", "eth1", "b.eth1"), ("b", "eth0", "net1.b"), ("b.eth1", "eth0", "b")]
)
def test_ids_with_dots_name_one_container_each(
    node: CniOnService, program: str, container: str, interface: str, other: str
) -> None:
    added = stdout_of(node.call("ADD", container=container, interface=interface, program=program))
    before = node.left()
    other_interface = "eth1" if other == "b" else "eth0"
    assert node.call("DEL", container=other, interface=other_interface, program=program) == CallReply()
    assert node.left() == before
    further = stdout_of(node.call("ADD", container=other, interface=other_interface, program=program))
    assert further["ips"][0]["address"] != added["ips"][0]["address"]
    for each, name in ((container, interface), (other, other_interface)):
        assert node.call("DEL", container=each, interface=name, program=program) == CallReply()
    assert node.left() == []


def mac_of(node: CniOnService) -> object:
    (found,) = node.records.list(HOSTS)
    return found.record.mac


@pytest.mark.parametrize(("asked", "recorded"), [({}, None), ({"mac": MAC}, parse_mac(MAC))])
def test_a_container_is_held_to_a_mac_that_was_asked_for(
    node: CniOnService, asked: dict[str, str], recorded: object
) -> None:
    """A ``tuning`` plugin after us may give it another one."""
    result = stdout_of(node.call("ADD", a_network(runtimeConfig=asked)))
    assert mac_of(node) == recorded
    assert result["interfaces"][1]["mac"] == asked.get("mac", result["interfaces"][1]["mac"]) != ""


@pytest.mark.parametrize("said", [{}, {"mac": MAC}])
def test_an_interface_of_another_plugin_keeps_the_mac_it_has(node: CniOnService, said: dict[str, str]) -> None:
    """A result need not say it."""
    node.wiring.attach(a_wiring(node, "cali77"))
    stdout_of(node.call("ADD", behind_another({"name": "eth0", "sandbox": "/run/netns/c1", **said})))
    assert mac_of(node) is None


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
