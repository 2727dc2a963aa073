"""What a limit of sets counts."""

from __future__ import annotations

import pytest
from netaddr import IPNetwork

from calico_core.model.hoststate import AddressSet, PortMember
from calico_core.model.set_size import address_count, port_count


@pytest.mark.parametrize(
    ("members", "count"),
    [
        ([], 0),
        (["10.0.0.1/32", "10.0.0.2/32", "fd00::1/128"], 2),
        (["10.0.0.1/32", "fd00::1/128", "fd00::/64", "fd01::/64"], 3),
        (["10.0.0.1/32", "10.0.0.0/24"], 2),
        (["0.0.0.0/0", "10.0.0.1/32"], 3),
    ],
)
def test_addresses_and_networks_of_the_family_with_the_most(members: list[str], count: int) -> None:
    assert address_count(AddressSet.of(map(IPNetwork, members))) == count


def test_ports() -> None:
    assert port_count(()) == 0
    assert port_count({PortMember(4, 1, 6, 80), PortMember(4, 1, 6, 81), PortMember(6, 1, 6, 80)}) == 2
