"""The network plugin as a runtime sees it, on doubles. Scenarios: cni specification 9."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

import calico_cni.check
import calico_cni.status
from calico_cni.identity import identify
from calico_cni.integration import CniIntegration
from calico_cni.versions import VERSIONS
from calico_core.errors import CalicoError, KernelRefused, NotReady, Unavailable
from calico_core.interfaces.integration import Call, CallReply
from calico_core.ipam import blocks
from calico_core.model.blocks import AllocationAttributes
from calico_core.model.endpoints import EndpointStatus
from calico_core.model.hosts import DATAPLANE_FAILED, FelixStatus, NodeStatus
from calico_core.model.keys import BlockKey, FelixLastStatusKey, NodeStatusKey, PoolKey, ReadyKey, WorkloadStatusKey
from calico_core.model.pools import Pool
from tests.doubles.cni import CONTAINER, FIXTURES, HOST, CniSetup, a_network, error_of, stdout_of

MALFORMED = json.loads((FIXTURES / "malformed.json").read_text())
INTERFACE = identify(host=HOST, network="net1", container_id=CONTAINER, container_interface="eth0").interface


# --- add -------------------------------------------------------------------------------------------------------


def test_add_gives_both_interfaces_the_address_and_the_routes(setup: CniSetup) -> None:
    assert stdout_of(setup.call("ADD", a_network(cniVersion="1.1.0"))) == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": INTERFACE, "mac": "ee:ee:ee:ee:ee:ee"},
            {"name": "eth0", "mac": "02:00:5e:10:00:01", "mtu": 1500, "sandbox": "/run/netns/c1"},
        ],
        "ips": [{"address": "10.65.0.1/32", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    }


def test_add_asks_for_one_attach_with_everything_in_it(setup: CniSetup) -> None:
    configuration = a_network(
        mtu="1450",
        ipam={"type": "calico-ipam", "assign_ipv6": True, "ipv4_pools": ["10.65.0.0/24"]},
        args={"cni": {"labels": [{"key": "role", "value": "web"}]}},
        runtimeConfig={"mac": "02:00:5E:10:00:99"},
        container_settings={"allow_ip_forwarding": True},
        policy_setup_timeout_seconds=3,
        nodename=" node1\n",
    )
    stdout_of(setup.call("ADD", configuration, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web"))
    (request,) = setup.workloads.attach_requests
    assert (request.container_id, request.network, request.container_interface) == (CONTAINER, "net1", "eth0")
    assert request.key.orchestrator == "cni"
    assert request.namespace_fd == setup.namespace_fd
    assert (request.mtu_bytes, request.allow_ip_forwarding, request.policy_timeout_s) == (1450, True, 3.0)
    assert str(request.mac) == "02:00:5e:10:00:99"
    assert request.labels == {"role": "web"}
    assert request.profiles == ("net1",)
    assert [profile.name for profile in request.new_profiles] == ["net1"]
    (wanted,) = setup.ipam.requests
    assert (wanted.handle, wanted.num_v4, wanted.num_v6) == (f"net1.{CONTAINER}", 1, 1)
    assert wanted.pools_v4 == (IPNetwork("10.65.0.0/24"),)
    assert wanted.attributes["pod"] == "web"
    assert wanted.attributes["node"] == HOST


@pytest.mark.parametrize("version", VERSIONS)
def test_add_answers_in_the_version_asked_for(setup: CniSetup, version: str) -> None:
    shape = stdout_of(setup.call("ADD", a_network(cniVersion=version)))
    assert shape["cniVersion"] == version
    assert ("ip4" in shape) == (version in {"0.1.0", "0.2.0"})
    assert ("ips" in shape) == (version not in {"0.1.0", "0.2.0"})


def test_add_without_a_version_answers_in_the_first(setup: CniSetup) -> None:
    assert stdout_of(setup.call("ADD", a_network(cniVersion=None))) == {
        "cniVersion": "0.1.0",
        "ip4": {"ip": "10.65.0.1/32", "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]},
    }


def test_adding_again_gives_the_same(setup: CniSetup) -> None:
    assert setup.call("ADD").stdout == setup.call("ADD").stdout
    assert len(setup.ipam.held) == 1


def test_two_interfaces_of_a_container_are_two_attachments(setup: CniSetup) -> None:
    first = stdout_of(setup.call("ADD"))
    second = stdout_of(setup.call("ADD", interface="eth1"))
    assert first["interfaces"][0]["name"] != second["interfaces"][0]["name"]
    assert first["ips"] != second["ips"]
    stdout = setup.call("DEL", interface="eth1")
    assert stdout == CallReply()
    assert list(setup.ipam.held) == [IPAddress("10.65.0.1")]


def test_an_interface_that_another_network_holds_is_taken(setup: CniSetup) -> None:
    stdout_of(setup.call("ADD"))
    error = error_of(setup.call("ADD", a_network(name="net2")))
    assert error["code"] == 106
    assert "net1" in error["msg"]
    assert setup.call("DEL", a_network(name="net2")) == CallReply()
    assert list(setup.ipam.held) == [IPAddress("10.65.0.1")]
    assert len(setup.workloads.attached) == 1


@pytest.mark.parametrize("value", [False, "false"])
def test_without_a_default_route(setup: CniSetup, value: object) -> None:
    shape = stdout_of(setup.call("ADD", a_network(default_route=value)))
    assert "routes" not in shape
    assert setup.workloads.attach_requests[0].is_default_route is False


@pytest.mark.parametrize(("given", "device"), [("netkit", "netkit"), ("veth", "veth"), ("", "veth"), (None, "veth")])
def test_what_the_pair_is_made_of(setup: CniSetup, given: str | None, device: str) -> None:
    stdout_of(setup.call("ADD", a_network(**({} if given is None else {"device_type": given}))))
    assert setup.workloads.attach_requests[0].device == device


def test_ipv6_only(setup: CniSetup) -> None:
    ipam = {"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true"}
    shape = stdout_of(setup.call("ADD", a_network(ipam=ipam, cniVersion="0.3.1")))
    assert shape["ips"] == [{"version": "6", "interface": 1, "address": "fd80:65::1/128"}]
    assert shape["routes"] == [{"dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee"}]


def test_dns_of_the_runtime_comes_before_the_configuration_s(setup: CniSetup) -> None:
    configuration = a_network(
        dns={"nameservers": ["10.0.0.53"], "domain": "example.org"}, runtimeConfig={"dns": {"servers": ["10.9.9.9"]}}
    )
    assert stdout_of(setup.call("ADD", configuration))["dns"] == {
        "nameservers": ["10.9.9.9"],
        "domain": "example.org",
    }


@pytest.mark.parametrize(
    ("configuration", "arguments", "address"),
    [
        ({}, "IP=10.65.0.40", "10.65.0.40/32"),
        ({}, "IP=10.65.0.40/24;MAC=02:00:5e:00:00:01", "10.65.0.40/32"),
        ({}, "IP=fd80:65::9", "fd80:65::9/128"),
        ({"args": {"cni": {"ips": ["10.65.0.30"]}}}, "IP=10.65.0.40", "10.65.0.30/32"),
        ({"args": {"cni": {"ips": ["10.65.0.30"]}}, "runtimeConfig": {"ips": ["10.65.0.20/24"]}}, "", "10.65.0.20/32"),
        ({"runtimeConfig": {"ips": []}}, "IP=10.65.0.40", "10.65.0.40/32"),
    ],
)
def test_the_first_place_that_names_an_address_wins(
    setup: CniSetup, configuration: dict[str, Any], arguments: str, address: str
) -> None:
    shape = stdout_of(setup.call("ADD", a_network(**configuration), CNI_ARGS=arguments))
    assert [ip["address"] for ip in shape["ips"]] == [address]


def test_a_requested_address_that_is_held(setup: CniSetup) -> None:
    stdout_of(setup.call("ADD", CNI_ARGS="IP=10.65.0.40"))
    error = error_of(setup.call("ADD", container="other", CNI_ARGS="IP=10.65.0.40"))
    assert error["code"] == 102
    assert f"net1.{CONTAINER}" in error["msg"]


@pytest.mark.parametrize("row", MALFORMED, ids=[row["what"] for row in MALFORMED])
def test_malformed_configurations_are_refused_by_field_before_anything_happens(
    setup: CniSetup, row: dict[str, Any]
) -> None:
    stdin = row["stdin"].encode() if "stdin" in row else json.dumps(a_network(**row["change"])).encode()
    error = error_of(setup.call("ADD", stdin))
    assert error["code"] == row["code"], error
    assert row["says"] in error["msg"]
    assert row.get("details", "") in error.get("details", "")
    assert setup.ipam.held == {}
    assert setup.workloads.attached == {}


@pytest.mark.parametrize(("arguments", "field"), [("IP=10.0.0", "CNI_ARGS.IP"), ("MAC=xx", "CNI_ARGS.MAC")])
def test_malformed_arguments(setup: CniSetup, arguments: str, field: str) -> None:
    error = error_of(setup.call("ADD", CNI_ARGS=arguments))
    assert error["code"] == 7
    assert field in error["msg"]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("", "CNI_NETNS"),
        ("0", "CNI_NETNS"),
        ("yes", "CNI_NETNS"),
        ("1", "CNI_NETNS_OVERRIDE"),
        ("TRUE", "CNI_NETNS_OVERRIDE"),
        ("true", "CNI_NETNS_OVERRIDE"),
    ],
)
def test_the_host_s_own_namespace_is_refused(setup: CniSetup, override: str, field: str) -> None:
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        error = error_of(setup.call("ADD", namespace_fd=descriptor, CNI_NETNS_OVERRIDE=override))
    finally:
        os.close(descriptor)
    assert (error["code"], error["msg"].partition(":")[0]) == (8, field)
    assert setup.workloads.attach_requests == []


@pytest.mark.parametrize("path", [None, "/dev/null"])
def test_a_namespace_that_is_none(setup: CniSetup, path: str | None) -> None:
    descriptor = None if path is None else os.open(path, os.O_RDONLY)
    error = error_of(setup.call("ADD", namespace_fd=descriptor))
    if descriptor is not None:
        os.close(descriptor)
    assert error["code"] == 8
    assert "/run/netns/c1" in error["msg"]
    assert setup.workloads.attach_requests == []


def test_in_a_process_of_its_own_only_if_allowed(namespace_fd: int) -> None:
    setup = CniSetup(namespace_fd, is_resident=False)
    assert error_of(setup.call("ADD", a_network(fallback="never")))["code"] == 11
    assert setup.workloads.attach_requests == []
    stdout_of(setup.call("ADD", a_network(fallback="auto")))
    assert setup.call("DEL", a_network(fallback="never")) == CallReply()


# --- del -------------------------------------------------------------------------------------------------------


def test_del_takes_everything_and_may_be_repeated(setup: CniSetup) -> None:
    assert setup.call("DEL") == CallReply()
    stdout_of(setup.call("ADD"))
    for _ in range(2):
        assert setup.call("DEL") == CallReply()
    assert setup.ipam.held == {}
    assert setup.workloads.attached == {}
    detach = setup.workloads.detach_requests[-1]
    assert (detach.interface, detach.container_id) == (INTERFACE, CONTAINER)
    assert detach.handles == (f"net1.{CONTAINER}", CONTAINER)


@pytest.mark.parametrize(
    "changes",
    [
        {"prevResult": "rubbish"},
        {"prevResult": {"cniVersion": "7.0.0"}},
        {"mtu": "nonsense"},
        {"policy": {"type": "gone"}},
        {"ipam": {"type": "../sh"}},
        {"ipam": {}},
        {"ipam": 5, "args": [], "runtimeConfig": "x"},
        {"nodename": "elsewhere"},
    ],
)
def test_del_needs_no_sound_configuration(setup: CniSetup, changes: dict[str, Any]) -> None:
    stdout_of(setup.call("ADD"))
    assert setup.call("DEL", a_network(**changes), namespace_fd=None, CNI_NETNS="") == CallReply()
    assert setup.workloads.attached == {}


def test_del_of_an_older_container_leaves_the_newer_alone(setup: CniSetup) -> None:
    stdout_of(setup.call("ADD", container="web-1"))
    stdout_of(setup.call("ADD", container="web-10"))
    setup.call("DEL", container="web-1")
    assert [key.workload for key in setup.workloads.attached] == ["web-10"]


def test_del_goes_on_without_the_datastore(setup: CniSetup) -> None:
    stdout_of(setup.call("ADD"))
    setup.records.store.close()
    setup.call("DEL")
    assert [detach.interface for detach in setup.workloads.detach_requests] == [INTERFACE]


# --- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Unavailable("127.0.0.1:2379", "refused"), 11),
        (NotReady("draining"), 11),
        (KernelRefused("add veth", 1), 105),
        (RuntimeError("a defect"), 100),
        (MemoryError(), 100),
        (KeyboardInterrupt(), 100),
    ],
)
def test_every_failure_is_an_error_object(setup: CniSetup, command: str, failure: BaseException, code: int) -> None:
    setup.workloads.failure = failure
    error = error_of(setup.call(command))
    assert (error["code"], error["cniVersion"]) == (code, "1.0.0")


def test_early_versions_get_codes_that_they_know(setup: CniSetup) -> None:
    setup.workloads.failure = NotReady("draining")
    assert error_of(setup.call("ADD", a_network(cniVersion="0.3.1")))["code"] == 100


def test_all_missing_variables_in_one_message(setup: CniSetup) -> None:
    error = error_of(setup.call("ADD", container="", interface="", CNI_NETNS=""))
    assert error["code"] == 4
    assert all(name in error["msg"] for name in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"))


@pytest.mark.parametrize("command", ["add", "UPDATE"])
def test_unknown_commands(setup: CniSetup, command: str) -> None:
    assert error_of(setup.call(command))["code"] == 4


def test_before_it_is_prepared_it_says_so() -> None:
    integration = type(CniSetup(-1).integration)()
    assert error_of(integration.handle(Call(program="calico", environment={"CNI_COMMAND": "ADD"}, stdin=b"{}")))["code"]


# --- version, check, status ------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
def test_version_needs_nothing_else(setup: CniSetup, program: str) -> None:
    call = Call(program=program, environment={"CNI_COMMAND": "VERSION"}, stdin=b'{"cniVersion": "0.4.0"}')
    assert stdout_of(setup.integration.handle(call)) == {"cniVersion": "0.4.0", "supportedVersions": list(VERSIONS)}


def test_no_command_says_what_it_is(setup: CniSetup) -> None:
    reply = setup.integration.handle(Call(program="calico", environment={}, stdin=b""))
    assert (reply.status, reply.stdout) == (0, b"")
    assert VERSIONS[-1].encode() in reply.stderr


@pytest.mark.parametrize(
    ("command", "version"), [("CHECK", "0.3.1"), ("STATUS", "1.0.0"), ("CHECK", "0.1.0"), ("GC", "1.0.0")]
)
@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
def test_commands_newer_than_the_version(setup: CniSetup, program: str, command: str, version: str) -> None:
    error = error_of(setup.call(command, a_network(cniVersion=version), program=program))
    assert error["code"] == 1
    assert command in error["msg"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calico_cni.check, "PATIENCE_S", 0.0)


def check(setup: CniSetup, previous: Any) -> CallReply:
    return setup.call("CHECK", a_network(prevResult=previous))


def test_check_finds_nothing_wrong_after_add_and_after_later_plugins(setup: CniSetup) -> None:
    result = stdout_of(setup.call("ADD"))
    assert check(setup, result) == CallReply()
    result["routes"].append({"dst": "10.0.0.0/8", "gw": "10.1.1.1"})
    result["interfaces"].append({"name": "vlan7"})
    result["ips"].append({"address": "10.7.0.1/24", "interface": 2})
    assert check(setup, result) == CallReply()


@pytest.mark.parametrize(
    ("listed", "is_default_route", "routes"),
    [
        (("0.0.0.0/0", "::/0", "192.0.2.0/24"), True, ("192.0.2.0/24",)),
        (("0.0.0.0/0", "192.0.2.0/24"), False, ("0.0.0.0/0", "192.0.2.0/24")),
        (("192.0.2.0/24", "10.250.0.0/16"), False, ("192.0.2.0/24",)),
        ((), False, ()),
    ],
)
def test_check_looks_for_the_routes_that_the_result_has(
    setup: CniSetup, listed: tuple[str, ...], is_default_route: bool, routes: tuple[str, ...]
) -> None:
    """Another interface of the container may have led there when ours was made, and be gone by now."""
    ipam = {
        "type": "calico-ipam",
        "assign_ipv6": True,
        "routes": [{"dst": "192.0.2.0/24"}, {"dst": "0.0.0.0/0"}],
    }
    result = stdout_of(setup.call("ADD", a_network(ipam=ipam)))
    result["routes"] = [{"dst": each} for each in listed]
    assert setup.call("CHECK", a_network(ipam=ipam, prevResult=result)) == CallReply()
    (request,) = setup.workloads.check_requests
    assert (request.is_default_route, tuple(map(str, request.routes))) == (is_default_route, routes)


@pytest.mark.usefixtures("impatient")
def test_check_names_what_is_missing(setup: CniSetup) -> None:
    result = stdout_of(setup.call("ADD"))
    assert "prevResult" in error_of(check(setup, None))["msg"]
    (key,) = setup.workloads.attached
    setup.ipam.release_by_handle((f"net1.{CONTAINER}",))
    assert "handle" in error_of(check(setup, result))["msg"]
    setup.records.delete(key)
    assert key.path in error_of(check(setup, result))["msg"]
    other = {**result, "ips": [{"address": "10.65.0.77/32", "interface": 1}]}
    assert error_of(check(setup, other))["code"] == 100


@pytest.mark.usefixtures("impatient")
def test_check_looks_at_both_ends_of_the_pair(setup: CniSetup) -> None:
    result = stdout_of(setup.call("ADD"))
    setup.workloads.damage = ("container interface eth0 is down", "sysctl net/x is not 1")
    error = error_of(check(setup, result))
    assert all(damage in error["msg"] for damage in setup.workloads.damage)
    (request,) = setup.workloads.check_requests
    assert (request.interface, request.container_interface) == (INTERFACE, "eth0")
    assert request.addresses == (IPNetwork("10.65.0.1/32"),)


def test_check_has_patience_with_what_is_still_settling(setup: CniSetup) -> None:
    result = stdout_of(setup.call("ADD"))
    setup.workloads.damage = ("host route is missing",)
    timer = threading.Timer(0.2, lambda: setattr(setup.workloads, "damage", ()))
    timer.start()
    assert check(setup, result) == CallReply()
    assert len(setup.workloads.check_requests) > 1


@pytest.mark.usefixtures("impatient")
def test_check_believes_the_agent(setup: CniSetup) -> None:
    result = stdout_of(setup.call("ADD"))
    (key,) = setup.workloads.attached
    status = WorkloadStatusKey(key.host, key.orchestrator, key.workload, key.endpoint)
    setup.records.put(status, EndpointStatus(status="up"))
    assert check(setup, result) == CallReply()
    setup.records.put(status, EndpointStatus(status="error", reason="no room for the set"))
    assert "no room for the set" in error_of(check(setup, result))["msg"]


@pytest.mark.usefixtures("impatient")
def test_check_of_another_network_or_container(setup: CniSetup) -> None:
    result = stdout_of(setup.call("ADD"))
    error = error_of(setup.call("CHECK", a_network(name="net2", prevResult=result)))
    assert "net1" in error["msg"]
    assert "missing" in error_of(setup.call("CHECK", a_network(prevResult=result), container="other"))["msg"]


def test_status_follows_readiness_and_pools(setup: CniSetup) -> None:
    configuration = a_network(cniVersion="1.1.0")
    assert error_of(setup.call("STATUS", configuration))["code"] == 50
    setup.records.put(ReadyKey(), "true")
    error = error_of(setup.call("STATUS", configuration))
    assert "IPv4 pool" in error["msg"]
    cidr = IPNetwork("10.65.0.0/16")
    setup.records.put(PoolKey(cidr), Pool(cidr=cidr, disabled=True))
    assert error_of(setup.call("STATUS", configuration))["code"] == 50
    setup.records.put(PoolKey(cidr), Pool(cidr=cidr))
    assert setup.call("STATUS", configuration) == CallReply()
    setup.records.store.close()
    assert error_of(setup.call("STATUS", configuration))["code"] == 50


@pytest.mark.parametrize(
    ("age_s", "uptime", "is_applied", "code"),
    [(10, 300.0, True, 0), (600, 300.0, True, 51), (1, 0.1, False, 0), (10, 300.0, False, 51)],
)
def test_status_listens_to_the_agent(setup: CniSetup, age_s: int, uptime: float, is_applied: bool, code: int) -> None:
    cidr = IPNetwork("10.65.0.0/16")
    setup.records.put(ReadyKey(), "true")
    setup.records.put(PoolKey(cidr), Pool(cidr=cidr))
    when = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age_s)
    report = FelixStatus(time=when.strftime("%Y-%m-%dT%H:%M:%SZ"), uptime=uptime, first_update=is_applied)
    setup.records.put(FelixLastStatusKey(HOST), report)
    reply = setup.call("STATUS", a_network(cniVersion="1.1.0"))
    assert (error_of(reply)["code"] if reply.status else 0) == code


def test_status_says_what_the_kernel_refused(setup: CniSetup) -> None:
    cidr = IPNetwork("10.65.0.0/16")
    setup.records.put(ReadyKey(), "true")
    setup.records.put(PoolKey(cidr), Pool(cidr=cidr))
    when = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    setup.records.put(FelixLastStatusKey(HOST), FelixStatus(time=when, uptime=300.0, first_update=True))
    configuration = a_network(cniVersion="1.1.0")
    status = NodeStatus(version="1", started=1.0, state="running", failed_checks=("bird: line 7",))
    setup.records.put(NodeStatusKey(HOST), status)
    assert setup.call("STATUS", configuration) == CallReply(), "routing is no matter of policy"
    refused = f"{DATAPLANE_FAILED}: no room for the set"
    setup.records.put(NodeStatusKey(HOST), msgspec.structs.replace(status, failed_checks=(refused,)))
    error = error_of(setup.call("STATUS", configuration))
    assert (error["code"], refused in error["msg"]) == (51, True)


def test_status_counts_free_addresses(setup: CniSetup) -> None:
    cidr = IPNetwork("10.65.0.0/26")
    setup.records.put(ReadyKey(), "true")
    setup.records.put(PoolKey(cidr), Pool(cidr=cidr))
    block = blocks.new_block(cidr, "node2", sequence=1)
    full, _ = blocks.take(block, 64, AllocationAttributes(handle_id="x"))
    setup.records.put(BlockKey(cidr), full)
    configuration = a_network(cniVersion="1.1.0")
    error = error_of(setup.call("STATUS", configuration))
    assert (error["code"], "left" in error["msg"]) == (50, True)
    setup.records.put(BlockKey(cidr), blocks.release(full, [3]).block)
    assert setup.call("STATUS", configuration) == CallReply()
    other = a_network(cniVersion="1.1.0", ipam={"type": "calico-ipam", "ipv4_pools": ["10.66.0.0/16"]})
    assert "10.66.0.0/16" in error_of(setup.call("STATUS", other))["msg"]


# --- log and trace ---------------------------------------------------------------------------------------------


def test_one_line_a_call_with_the_steps_and_without_secrets(
    namespace_fd: int, log_text: io.StringIO, tmp_path: Path
) -> None:
    setup = CniSetup(namespace_fd, state=tmp_path)
    stdout_of(setup.call("ADD", a_network(policy={"k8s_auth_token": "hunter2"}, shade="hunter2")))
    setup.workloads.failure = NotReady("draining")
    setup.call("DEL")
    lines = [json.loads(line) for line in log_text.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["configuration.unknown_keys", "cni.done", "cni.failed"]
    assert lines[0]["keys"] == "shade"
    assert lines[1]["ms"] >= lines[1]["record_ms"] + lines[1]["interface_ms"]
    assert (lines[1]["command"], lines[1]["container"], lines[2]["code"]) == ("ADD", CONTAINER, 11)
    assert "hunter2" not in log_text.getvalue()


@pytest.mark.parametrize(
    ("configuration", "environment"),
    [({}, {"CALICO_TRACE": "1"}), ({}, {"CNI_ARGS": "IgnoreUnknown=1;CALICO_TRACE=1"}), ({"trace": True}, {})],
)
def test_the_trace_goes_to_standard_error(
    setup: CniSetup, configuration: dict[str, object], environment: dict[str, str]
) -> None:
    traced = setup.call("ADD", a_network(**configuration), **environment)
    plain = setup.call("ADD")
    assert (traced.stdout, plain.stderr) == (plain.stdout, b"")
    trace = json.loads(traced.stderr)["calico.trace"]
    assert list(trace["steps"]) == ["record_ms", "interface_ms"]
    assert trace["ms"] >= sum(trace["steps"].values())
    assert (trace["command"], trace["container"]) == ("ADD", CONTAINER)
    setup.workloads.failure = CalicoError("no")
    assert b"calico.trace" in setup.call("DEL", a_network(**configuration), **environment).stderr


@pytest.mark.parametrize("stdin", [b"", b'{"trace": ', b'{"trace": {}}', b'{"trace": "1"}\xff', b'"trace"'])
def test_a_configuration_that_cannot_be_read_asks_for_no_trace(setup: CniSetup, stdin: bytes) -> None:
    assert setup.call("ADD", stdin).stderr == b""


# --- -t --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
@pytest.mark.parametrize(("ready", "code"), [("true", 0), ("false", 50), (None, 50)])
def test_trying_out_asks_the_datastore(setup: CniSetup, program: str, ready: str | None, code: int) -> None:
    setup.records.delete(ReadyKey())
    if ready is not None:
        setup.records.put(ReadyKey(), ready)
    reply = setup.call("TEST", a_network(cniVersion="0.3.1"), program=program)
    assert (reply == CallReply()) is (code == 0)
    if code:
        assert "not ready" in error_of(reply)["msg"]


@pytest.mark.parametrize("command", ["TEST ", "test", "TESTS"])
def test_nothing_else_tries_out(setup: CniSetup, command: str) -> None:
    assert error_of(setup.call(command))["code"] == 4


def test_a_datastore_that_hangs_is_given_up(setup: CniSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calico_cni.status, "TEST_S", 0.05)
    over = threading.Event()
    monkeypatch.setattr(setup.records.store, "get", lambda _: over.wait(30))
    try:
        assert "does not answer" in error_of(setup.call("TEST"))["msg"]
    finally:
        over.set()


def test_del_frees_what_was_given_under_another_interface_prefix(setup: CniSetup) -> None:
    stdout_of(setup.call("ADD"))
    set_prefix(setup, "pod")
    assert setup.call("DEL") == CallReply()
    assert setup.ipam.held == {}


def test_new_interfaces_begin_with_the_first_of_several_prefixes(setup: CniSetup) -> None:
    set_prefix(setup, "pod,cali")
    (first, *_) = stdout_of(setup.call("ADD"))["interfaces"]
    assert first["name"].startswith("pod")
    setup.call("DEL")


def set_prefix(setup: CniSetup, prefix: str) -> None:
    """As a node that was started anew with it."""
    settings = msgspec.structs.replace(setup.context.settings, interface_prefix=prefix)
    setup.integration = CniIntegration()
    setup.integration.prepare(msgspec.structs.replace(setup.context, settings=settings))
