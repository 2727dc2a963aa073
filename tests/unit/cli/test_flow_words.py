"""Flows in words: what is read, what is refused and where it says so."""

from __future__ import annotations

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.cli.failure import Missing, Refused
from calico_core.cli.flow_words import (
    FlowWords,
    Party,
    common_addresses,
    find_party,
    icmp_of,
    parse_flow,
    parse_icmp,
    protocol_of,
)
from calico_core.errors import InvalidRequest
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.0.1:1,10.0.0.2:80,tcp", FlowWords("10.0.0.1", 1, "10.0.0.2", 80, "tcp")),
        ("[fd00::1]:1, [fd00::2]:53 ,udp", FlowWords("fd00::1", 1, "fd00::2", 53, "udp")),
        ("fd00::1,fd00::2,icmp", FlowWords("fd00::1", None, "fd00::2", None, "icmp")),
        ("host:rack,web-1:80,tcp", FlowWords("host:rack", None, "web-1", 80, "tcp")),
    ],
)
def test_flows(text: str, words: FlowWords) -> None:
    assert parse_flow(text) == words


@pytest.mark.parametrize("text", ["", "a,b", "a:1,b:2,", "a:1,b:99999,tcp", "[fd00::1]:x,b,tcp"])
def test_flows_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_flow(text)
    assert caught.value.field == "--flow"


def test_protocols() -> None:
    icmp = parse_icmp("3/1")
    assert protocol_of(None, has_port=True, icmp=None, version=4) == 6
    assert protocol_of(None, has_port=False, icmp=icmp, version=6) == 58
    assert protocol_of("icmp", has_port=False, icmp=None, version=6) == 58
    assert protocol_of("47", has_port=False, icmp=None, version=4) == 47
    assert icmp_of(1, None, 4) == (8, 0)
    assert icmp_of(58, icmp, 6) == (3, 1)
    assert icmp_of(6, None, 4) is None
    for word, has_port, kind, version, field in (
        ("icmpv6", False, None, 4, "--protocol"),
        ("tcp", False, icmp, 4, "--icmp"),
        ("icmp", True, None, 4, "--port"),
        ("nonsense", False, None, 4, "protocol"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            protocol_of(word, has_port=has_port, icmp=kind, version=version)
        assert caught.value.field == field
    with pytest.raises(InvalidRequest, match="TYPE/CODE"):
        parse_icmp("echo")


def test_parties() -> None:
    key = WorkloadEndpointKey("h", "cni", "pod-one", "0123abcd")
    other = WorkloadEndpointKey("h", "cni", "pod-two", "0123ffff")
    bare = WorkloadEndpointKey("h", "cni", "bare", "eeee")
    endpoints = {
        key: WorkloadEndpoint(
            state="active", name="cali0", ipv4_nets=(IPNetwork("10.0.0.1/32"),), ipv6_nets=(IPNetwork("fd00::1/128"),)
        ),
        other: WorkloadEndpoint(state="active", name="cali1", ipv6_nets=(IPNetwork("fd00::2/128"),)),
        bare: WorkloadEndpoint(state="active", name="cali2"),
    }
    hosts = {IPAddress("192.0.2.1"): "h"}
    both = Party((IPAddress("10.0.0.1"), IPAddress("fd00::1")), key)
    for word in ("0123abcd", "0123a", "pod-one"):
        assert find_party(word, endpoints, hosts) == both
    assert find_party("10.0.0.1", endpoints, hosts) == Party((IPAddress("10.0.0.1"),))
    assert find_party("host:h", endpoints, hosts) == Party((IPAddress("192.0.2.1"),))
    with pytest.raises(Refused, match="2 endpoints"):
        find_party("pod-", endpoints, hosts)
    with pytest.raises(Refused, match="no address"):
        find_party("bare", endpoints, hosts)
    for word in ("012", "nobody", "host:elsewhere"):
        with pytest.raises(Missing):
            find_party(word, endpoints, hosts)

    six = find_party("pod-two", endpoints, hosts)
    assert common_addresses(both, six, None) == (IPAddress("fd00::1"), IPAddress("fd00::2"))
    assert common_addresses(both, both, 6)[0] == IPAddress("fd00::1")
    with pytest.raises(InvalidRequest, match="in common"):
        common_addresses(six, find_party("host:h", endpoints, hosts), None)
