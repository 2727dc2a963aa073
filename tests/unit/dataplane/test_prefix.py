from __future__ import annotations

import pytest
from netaddr import IPAddress

from calico_core.dataplane.linux.prefix import host_prefix, network_of, parse_prefix, prefix_of
from calico_core.model.addresses import parse_network


@pytest.mark.parametrize("text", ["10.0.0.1/32", "10.0.0.0/8", "0.0.0.0/0", "fd00::1/128", "fd00::/64", "::/0"])
def test_a_network_survives_both_ways(text):
    network = parse_network(text)
    assert network_of(prefix_of(network)) == network
    assert str(prefix_of(network)) == text
    assert parse_prefix(text) == prefix_of(network)


def test_an_address_becomes_a_host_prefix():
    assert str(host_prefix(IPAddress("10.0.0.1"))) == "10.0.0.1/32"
    assert host_prefix(IPAddress("fd00::1")).is_host
    assert not parse_prefix("10.0.0.0/31").is_host
