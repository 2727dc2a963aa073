"""Addresses of endpoints, and the containment of networks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork
from pyroaring import BitMap

from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.policies import NetworkSet
from calico_core.policy.members import V6, MemberTable, addresses_of, outermost


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


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 60), max_size=3, unique=True)), max_size=20),
    wanted=st.one_of(
        st.sets(st.integers(0, 40)),
        st.tuples(st.integers(0, 20), st.integers(21, 41)).map(lambda ends: set(range(*ends))),
        st.tuples(st.integers(0, 20), st.integers(21, 41), st.sets(st.integers(0, 40), max_size=6)).map(
            lambda drawn: set(range(*drawn[:2])) - drawn[2]
        ),
    ),
)
def test_the_addresses_of_items(steps: list[tuple[int, list[int]]], wanted: set[int]) -> None:
    """Scattered, in one piece, and in one with gaps; an address may have several owners. Past 50 they are IPv6."""
    table, held = MemberTable(), {item: (item,) for item in range(41)}
    for item in held:
        table.put(item, item, ())
    for item, drawn in steps:
        hosts = tuple(V6 | each if each > 50 else each for each in drawn)
        table.replace(item, hosts[0] if len(hosts) == 1 and hosts[0] < V6 else hosts, ())
        held[item] = hosts
    found = {host for item in wanted for host in held[item]}
    v4, v6 = table.collect(BitMap(wanted))
    assert set(v4) == {host for host in found if host < V6}
    assert v6 == {host - V6 for host in found if host >= V6}
    for host in (each | family for each in range(61) for family in (0, V6)):
        assert table.is_owned(host, BitMap(wanted)) == (host in found)
