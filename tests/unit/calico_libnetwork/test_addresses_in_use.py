"""What the integration tells the node's collector."""

from __future__ import annotations

from netaddr import IPAddress

from calico_libnetwork.integration import LibnetworkIntegration
from calico_libnetwork.network_record import NetworkKey, NetworkRecord
from tests.unit.calico_libnetwork.conftest import Setup


def test_auxiliary_addresses_of_networks_are_in_use(setup: Setup) -> None:
    assert setup.integration.addresses_in_use() == {}
    record = NetworkRecord(network_id="a" * 64, aux_addresses=(IPAddress("10.65.0.9"),))
    setup.context.records.put(NetworkKey(record.network_id), record)
    assert setup.integration.addresses_in_use() == {IPAddress("10.65.0.9"): "network aaaaaaaaaaaa"}


def test_unprepared_it_names_none() -> None:
    assert LibnetworkIntegration().addresses_in_use() == {}
