"""Networks that share an interface, on doubles: who does, and what results, GC and put-off detaches make of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from netaddr import IPAddress

from calico_cni.interface_mode import may_share_interface, shares_interface
from calico_cni.wire import NetworkConfiguration, parse_configuration
from calico_core.errors import Unavailable
from calico_core.interfaces.integration import CallReply
from calico_core.model.endpoints import WorkloadEndpoint
from tests.doubles.cni import CONTAINER, CniSetup, a_network, error_of, stdout_of


def a_single(name: str, **changes: Any) -> dict[str, Any]:
    return a_network(**{"name": name, "interface_mode": "single", **changes})


def record_of(setup: CniSetup) -> WorkloadEndpoint:
    (attached,) = setup.workloads.attached.values()
    return attached.endpoint


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({"cniVersion": None}, True),
        ({"cniVersion": "0.2.0"}, True),
        ({"cniVersion": "0.2.0", "interface_mode": "per-attachment"}, False),
        ({"cniVersion": "0.2.0", "ipam": {"type": "host-local"}}, False),
        ({"cniVersion": "0.3.0"}, False),
        ({"cniVersion": "1.1.0"}, False),
        ({"cniVersion": "0.3.0", "interface_mode": "single"}, True),
    ],
)
def test_which_networks_share(changes: dict[str, Any], shares: bool) -> None:
    stdin = json.dumps(a_network(**changes)).encode()
    assert shares_interface(parse_configuration(stdin, NetworkConfiguration)) is shares
    assert may_share_interface(stdin) is shares


@pytest.mark.parametrize("stdin", [b"", b"{", b"\xff", b'{"interface_mode": 3}', b'{"ipam": []}'])
def test_a_configuration_that_nobody_can_read_shares_nothing(stdin: bytes) -> None:
    assert may_share_interface(stdin) is False


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_the_stored_addresses_in_the_version_asked_for(setup: CniSetup, version: str) -> None:
    first = stdout_of(setup.call("ADD", a_network(cniVersion=version)))
    second = stdout_of(setup.call("ADD", a_network(cniVersion=version, name="net2"), interface="eth1"))
    assert first["ip4"]["routes"] == [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]
    assert second == {"cniVersion": version, "ip4": {"ip": first["ip4"]["ip"]}}
    assert list(setup.ipam.held) == [IPAddress("10.65.0.1")]
    assert [profile.name for profile in setup.workloads.profiles.values()] == ["net1", "net2"]


def test_the_second_result_names_the_interface_there_is(setup: CniSetup) -> None:
    first = stdout_of(setup.call("ADD", a_single("net1")))
    second = stdout_of(setup.call("ADD", a_single("net2"), interface="eth1"))
    assert second["interfaces"][1]["name"] == "eth0"
    assert second["ips"] == first["ips"]
    assert "routes" not in second


def test_an_address_that_the_interface_does_not_have(setup: CniSetup) -> None:
    stdout_of(setup.call("ADD", a_single("net1")))
    error = error_of(setup.call("ADD", a_single("net2", runtimeConfig={"ips": ["10.65.0.77"]})))
    assert (error["code"], "net1" in error["msg"]) == (7, True)
    error = error_of(setup.call("ADD", a_single("net2"), CNI_ARGS="MAC=02:00:00:00:00:99"))
    assert error["code"] == 7
    assert record_of(setup).profile_ids == ("net1",)


@pytest.mark.parametrize("order", [("net1", "net2"), ("net2", "net1")])
def test_each_del_takes_one_network(setup: CniSetup, order: tuple[str, str]) -> None:
    interfaces = {"net1": "eth0", "net2": "eth1"}
    for name, interface in interfaces.items():
        stdout_of(setup.call("ADD", a_single(name), interface=interface))
    first, last = order
    for _ in range(2):
        assert setup.call("DEL", a_single(first), interface=interfaces[first]) == CallReply()
        assert record_of(setup).profile_ids == (last,)
        assert list(setup.ipam.held) == [IPAddress("10.65.0.1")]
    for _ in range(2):
        assert setup.call("DEL", a_single(last), interface=interfaces[last]) == CallReply()
        assert (setup.workloads.attached, setup.ipam.held) == ({}, {})


@pytest.mark.parametrize("mode", ["auto", "per-attachment"])
def test_a_mode_that_was_changed_since_keeps_nothing(setup: CniSetup, mode: str) -> None:
    for name, interface in (("net1", "eth0"), ("net2", "eth1")):
        stdout_of(setup.call("ADD", a_single(name), interface=interface))
    for name, interface in (("net1", "eth0"), ("net2", "eth1")):
        assert setup.call("DEL", a_single(name, interface_mode=mode), interface=interface) == CallReply()
    assert (setup.workloads.attached, setup.ipam.held) == ({}, {})


def test_the_other_way_round(setup: CniSetup) -> None:
    """Made when every version had interfaces of its own."""
    for name, interface in (("net1", "eth0"), ("net2", "eth1")):
        stdout_of(setup.call("ADD", a_network(name=name), interface=interface))
    assert len(setup.workloads.attached) == 2
    for name, interface in (("net2", "eth1"), ("net1", "eth0")):
        assert setup.call("DEL", a_single(name), interface=interface) == CallReply()
    assert (setup.workloads.attached, setup.ipam.held) == ({}, {})


def test_a_detach_that_was_put_off_knows_its_mode(namespace_fd: int, tmp_path: Path) -> None:
    setup = CniSetup(namespace_fd, state=tmp_path)
    for name, interface in (("net1", "eth0"), ("net2", "eth1")):
        stdout_of(setup.call("ADD", a_single(name), interface=interface))
    setup.workloads.failure = Unavailable("127.0.0.1:2379", "refused")
    assert setup.call("DEL", a_single("net1")) == CallReply()
    assert setup.workloads.detach_requests[-1].is_shared
    assert record_of(setup).profile_ids == ("net1", "net2")
    assert setup.integration.replay() == 1
    assert setup.workloads.detach_requests[-1].is_shared
    assert record_of(setup).profile_ids == ("net2",)
    assert list(setup.ipam.held) == [IPAddress("10.65.0.1")]


def test_gc_takes_what_is_old_of_its_own_network(setup: CniSetup) -> None:
    for name, interface in (("net1", "eth0"), ("net2", "eth1"), ("net2", "eth2")):
        stdout_of(setup.call("ADD", a_single(name), interface=interface))
    key, attached = next(iter(setup.workloads.attached.items()))
    then = time.time() - 120
    first, second, young = attached.endpoint.attachments
    aged = (*(msgspec.structs.replace(each, created=then) for each in (first, second)), young)
    endpoint = msgspec.structs.replace(attached.endpoint, created=then, attachments=aged)
    setup.workloads.attached[key] = msgspec.structs.replace(attached, endpoint=endpoint)
    setup.records.put(key, endpoint)

    def gc(name: str, *valid: str) -> list[tuple[str, str]]:
        listed = [{"containerID": CONTAINER, "ifname": each} for each in valid]
        configuration = a_single(name, cniVersion="1.1.0", **{"cni.dev/valid-attachments": listed})
        assert setup.call("GC", configuration) == CallReply()
        return [(each.network, each.ifname) for each in record_of(setup).attachments]

    everything = [("net1", "eth0"), ("net2", "eth1"), ("net2", "eth2")]
    assert gc("net3") == everything
    assert gc("net2", "eth1", "eth2") == everything
    assert gc("net2", "eth0") == [("net1", "eth0"), ("net2", "eth2")], "eth2 is younger than a list may be"
    assert gc("net1") == [("net2", "eth2")]


def test_check_is_of_the_shared_interface(setup: CniSetup) -> None:
    result = stdout_of(setup.call("ADD", a_single("net1")))
    second = stdout_of(setup.call("ADD", a_single("net2"), interface="eth1"))
    setup.workloads.host_ends["eth0"] = result["interfaces"][0]["name"]
    assert setup.call("CHECK", a_single("net1", prevResult=result)) == CallReply()
    assert setup.call("CHECK", a_single("net2", prevResult=second), interface="eth1") == CallReply()
    assert [each.container_interface for each in setup.workloads.check_requests] == ["eth0"]
    setup.workloads.host_ends["eth0"] = "somebody"
    error = error_of(setup.call("CHECK", a_single("net2", prevResult=second), interface="eth1"))
    assert "eth0 is no longer a pair" in error["msg"]
