"""``calico-ipam`` under another network plugin."""

from __future__ import annotations

from typing import Any

import pytest
from netaddr import IPAddress

from calico_core.interfaces.integration import CallReply
from tests.doubles.cni import CONTAINER, CniSetup, error_of, stdout_of

NO_ADDRESSES: dict[str, Any] = {"cniVersion": "1.0.0", "ips": []}


def under_bridge(**changes: Any) -> dict[str, Any]:
    """Another plugin's configuration: its keys are none of our business."""
    return {
        "cniVersion": "1.0.0",
        "name": "net1",
        "type": "bridge",
        "mtu": {"not": "ours"},
        "ipam": {"type": "calico-ipam"},
        **changes,
    }


def run(setup: CniSetup, command: str, configuration: dict[str, Any], **options: Any) -> CallReply:
    return setup.call(command, configuration, program="calico-ipam", **options)


@pytest.mark.parametrize(
    ("flags", "addresses"),
    [
        ({}, ["10.65.0.1/32"]),
        ({"assign_ipv4": "true"}, ["10.65.0.1/32"]),
        ({"assign_ipv4": "false", "assign_ipv6": "true"}, ["fd80:65::1/128"]),
        ({"assign_ipv6": True}, ["10.65.0.1/32", "fd80:65::1/128"]),
    ],
)
def test_add_gives_an_abbreviated_result(setup: CniSetup, flags: dict[str, Any], addresses: list[str]) -> None:
    reply = run(setup, "ADD", under_bridge(ipam={"type": "calico-ipam", **flags}), namespace_fd=None)
    assert stdout_of(reply) == {"cniVersion": "1.0.0", "ips": [{"address": address} for address in addresses]}
    assert setup.workloads.attach_requests == []


def test_add_in_the_first_shape(setup: CniSetup) -> None:
    assert stdout_of(run(setup, "ADD", under_bridge(cniVersion="0.2.0"))) == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.65.0.1/32"},
    }


def test_add_again_and_del_again(setup: CniSetup) -> None:
    assert run(setup, "ADD", under_bridge()) == run(setup, "ADD", under_bridge())
    assert setup.ipam.by_handle(f"net1.{CONTAINER}") == (IPAddress("10.65.0.1"),)
    for _ in range(2):
        assert run(setup, "DEL", under_bridge(), CNI_NETNS="", namespace_fd=None) == CallReply()
    assert setup.ipam.held == {}


def test_del_frees_what_the_first_reference_plugin_named(setup: CniSetup) -> None:
    setup.ipam.held[IPAddress("10.65.0.9")] = (CONTAINER, {})
    setup.ipam.held[IPAddress("10.65.0.10")] = (f"{CONTAINER}0", {})
    stdout_of(run(setup, "ADD", under_bridge()))  # both forms at once
    assert len(setup.ipam.held) == 3
    run(setup, "DEL", under_bridge())
    assert list(setup.ipam.held) == [IPAddress("10.65.0.10")]


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "says"),
    [
        ({}, "IP=10.65.0", 7, "CNI_ARGS.IP"),
        ({}, "IP=172.16.0.1", 7, "172.16.0.1"),
        ({"ipam": {"ipv4_pools": ["10.99.0.0/24"]}}, "", 101, "10.99.0.0/24"),
        ({"ipam": {"ipv4_pools": ["x"]}}, "", 7, "ipam.ipv4_pools"),
        ({"ipam": {"assign_ipv4": "no way"}}, "", 7, "ipam.assign_ipv4"),
        ({"name": ""}, "", 7, "name"),
    ],
)
def test_refusals(setup: CniSetup, changes: dict[str, Any], arguments: str, code: int, says: str) -> None:
    error = error_of(run(setup, "ADD", under_bridge(**changes), CNI_ARGS=arguments))
    assert error["code"] == code
    assert says in error["msg"]
    assert setup.ipam.held == {}


def test_an_address_in_use(setup: CniSetup) -> None:
    stdout_of(run(setup, "ADD", under_bridge(), CNI_ARGS="IP=10.65.0.5"))
    assert error_of(run(setup, "ADD", under_bridge(), container="other", CNI_ARGS="IP=10.65.0.5"))["code"] == 102


def test_the_last_address(namespace_fd: int) -> None:
    setup = CniSetup(namespace_fd)
    setup.ipam.pools = setup.ipam.pools[:1]
    for number in range(255):
        stdout_of(run(setup, "ADD", under_bridge(), container=f"c{number}"))
    assert error_of(run(setup, "ADD", under_bridge(), container="late"))["code"] == 101


def test_check(setup: CniSetup) -> None:
    result = stdout_of(run(setup, "ADD", under_bridge()))
    assert run(setup, "CHECK", under_bridge(prevResult=result)) == CallReply()
    assert error_of(run(setup, "CHECK", under_bridge()))["code"] == 7
    run(setup, "DEL", under_bridge())
    assert "10.65.0.1" in error_of(run(setup, "CHECK", under_bridge(prevResult=result)))["msg"]
    assert error_of(run(setup, "CHECK", under_bridge(prevResult=NO_ADDRESSES)))["code"] == 100


def test_missing_variables(setup: CniSetup) -> None:
    error = error_of(run(setup, "ADD", under_bridge(), interface="", CNI_NETNS=""))
    assert error["code"] == 4
    assert "CNI_NETNS" in error["msg"]
