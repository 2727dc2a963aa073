from __future__ import annotations

import json

import pytest

from calico_cni.versions import NEWEST, VERSIONS, known_version
from calico_cni.wire import CommonConfiguration, NetworkConfiguration, parse_configuration, read_version, unknown_keys
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
