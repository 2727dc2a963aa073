"""Addresses of endpoints, and the containment of networks."""

from __future__ import annotations

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.policies import NetworkSet
from calico_core.policy.members import V6, addresses_of, outermost


def test_addresses_of_records() -> None:
    one = WorkloadEndpoint(state="active", name="cali0", ipv4_nets=(IPNetwork("10.0.0.1/32"),))
    both = WorkloadEndpoint(
        state="active", name="cali0", ipv4_nets=(IPNetwork("10.0.0.1/32"),), ipv6_nets=(IPNetwork("::5/128"),)
    )
    zero = NetworkSet(nets=(IPNetwork("0.0.0.0/32"), IPNetwork("::/128"), IPNetwork("10.0.0.0/31")))
    host = HostEndpoint(expected_ipv4_addrs=(IPAddress("10.0.0.9"),), expected_ipv6_addrs=(IPAddress("::9"),))
    assert addresses_of(one) == (0x0A000001, ())
    assert addresses_of(both) == ((0x0A000001, V6 | 5), ())
    assert addresses_of(zero) == ((0, V6), (IPNetwork("10.0.0.0/31"),))
    assert addresses_of(host) == ((0x0A000009, V6 | 9), ())
    assert addresses_of(HostEndpoint(name="eth0")) == ((), ())


@pytest.mark.parametrize(
    ("nets", "kept"),
    [
        ((), ()),
        (("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"), ("10.0.0.0/8",)),
        (("10.1.2.0/24", "10.0.0.0/8", "11.0.0.0/8"), ("10.0.0.0/8", "11.0.0.0/8")),
        (("10.0.0.0/24", "10.0.1.0/24"), ("10.0.0.0/24", "10.0.1.0/24")),
        (("0.0.0.0/0", "10.0.0.0/8", "::/0", "fd00::/8"), ("0.0.0.0/0", "::/0")),
        (("0.0.0.0/0", "fd00::/8"), ("0.0.0.0/0", "fd00::/8")),
    ],
)
def test_outermost(nets: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert outermost(map(IPNetwork, nets)) == frozenset(map(IPNetwork, kept))
