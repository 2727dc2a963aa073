from __future__ import annotations

import json

import msgspec
import pytest

from calico_cni.interface_mode import may_share_interface
from calico_cni.results import Result, decode_result
from calico_cni.versions import NEWEST, VERSIONS, known_version
from calico_cni.wire import (
    CommonConfiguration,
    NetworkConfiguration,
    is_of_kubernetes,
    parse_configuration,
    read_version,
    unknown_keys,
)
from calico_core.errors import InvalidRequest
from tests.doubles.cni import a_network


def parsed(**changes: object) -> NetworkConfiguration:
    return parse_configuration(json.dumps(a_network(**changes)).encode(), NetworkConfiguration)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_accepted(version: str) -> None:
    assert parsed(cniVersion=version).version == version


@pytest.mark.parametrize("absent", [None, ""])
def test_no_version_is_the_first(absent: str | None) -> None:
    assert parsed(cniVersion=absent).version == "0.1.0"


@pytest.mark.parametrize(
    ("written", "meant"), [(True, True), ("true", True), ("False", False), ("1", True), (0, False)]
)
def test_booleans_may_be_words(written: object, meant: bool) -> None:
    assert parsed(ipam={"type": "calico-ipam", "assign_ipv6": written}).ipam.assign_ipv6 is meant


@pytest.mark.parametrize("written", [1450, "1450"])
def test_numbers_may_be_words(written: object) -> None:
    assert parsed(mtu=written).mtu == 1450


@pytest.mark.parametrize(
    "key",
    ["policy", "args", "dns", "runtimeConfig", "kubernetes", "mtu", "interface_mode", "capabilities", "prevResult"],
)
def test_null_is_as_if_the_key_were_not_there(key: str) -> None:
    absent = a_network(orchestrator="k8s")
    stdin = json.dumps({**absent, key: None}).encode()
    expected = parse_configuration(json.dumps(absent).encode(), NetworkConfiguration)
    found = parse_configuration(stdin, NetworkConfiguration)
    assert not found.has_prev_result
    assert msgspec.structs.replace(found, prev_result=expected.prev_result) == expected
    assert is_of_kubernetes(stdin)
    assert unknown_keys(stdin) == ()


def test_null_inside_of_a_key() -> None:
    found = parsed(policy={"type": None}, ipam={"type": "calico-ipam", "assign_ipv4": None, "ipv4_pools": None})
    assert (found.policy.type, found.ipam.assign_ipv4, found.ipam.ipv4_pools) == ("", True, None)
    stdin = json.dumps({"cniVersion": "0.2.0", "interface_mode": None, "ipam": {"type": "calico-ipam"}}).encode()
    assert may_share_interface(stdin)
    with pytest.raises(InvalidRequest, match=r"ipam\.ipv4_pools\[0\]"):
        parsed(ipam={"type": "calico-ipam", "ipv4_pools": [None]})


def test_null_in_what_goes_on_as_it_came() -> None:
    previous = {"cniVersion": "1.0.0", "ips": [], "routes": None}
    whole = {**a_network(prevResult=previous), "args": None, "cni.dev/valid-attachments": None}
    found = parse_configuration(json.dumps(whole).encode(), NetworkConfiguration)
    assert json.loads(bytes(found.prev_result)) == previous
    assert bytes(found.valid_attachments) == b"null"
    assert decode_result(bytes(found.prev_result), "1.0.0") == Result()


def test_a_configuration_of_the_first_reference_plugin_is_accepted() -> None:
    stdin = b"""{
      "name": "calico-k8s-network", "type": "calico", "etcd_authority": "10.0.0.1:2379", "log_level": "debug",
      "log_level_stderr": "info", "hostname": "node1",
      "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "false"},
      "policy": {"k8s_api_root": "https://10.100.0.1:443/api/v1/"}}"""
    configuration = parse_configuration(stdin, NetworkConfiguration)
    assert (configuration.hostname, configuration.version) == ("node1", "0.1.0")
    assert unknown_keys(stdin) == ()


def test_unknown_keys_are_legal_and_known_by_name() -> None:
    stdin = json.dumps(a_network(shade="blue", ipam={"type": "calico-ipam", "depth": 3})).encode()
    parse_configuration(stdin, NetworkConfiguration)
    assert unknown_keys(stdin) == ("shade", "ipam.depth")


@pytest.mark.parametrize(
    ("key", "meant", "written"),
    [
        ("policy", "type", "typ"),
        ("kubernetes", "kubeconfig", "kubecfg"),
        ("container_settings", "allow_ip_forwarding", "allow_ip_forward"),
        ("feature_control", "floating_ips", "floating_ip"),
    ],
)
def test_a_slip_inside_of_a_key_is_named(key: str, meant: str, written: str) -> None:
    assert unknown_keys(json.dumps(a_network(**{key: {meant: "true"}})).encode()) == ()
    assert unknown_keys(json.dumps(a_network(**{key: {written: "true"}})).encode()) == (f"{key}.{written}",)


def test_what_another_ipam_plugin_is_told_is_its_own() -> None:
    ipam = {"type": "host-local", "dataDir": "/run/x", "rangeStart": "10.0.0.5"}
    assert unknown_keys(json.dumps(a_network(ipam=ipam)).encode()) == ()


def test_of_another_plugin_only_what_concerns_us_is_judged() -> None:
    stdin = b'{"name": "net1", "type": "bridge", "mtu": {"odd": 1}, "ipam": {"type": "calico-ipam"}}'
    assert parse_configuration(stdin, CommonConfiguration).ipam.type == "calico-ipam"


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b"{}", "0.1.0"),
        (b"rubbish", NEWEST),
        (b'{"cniVersion": "7.0.0"}', NEWEST),
    ],
)
def test_the_version_to_answer_in(stdin: bytes, version: str) -> None:
    assert known_version(read_version(stdin)) == version
