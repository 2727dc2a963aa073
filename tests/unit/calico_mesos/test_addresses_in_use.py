"""What the integration tells the node's collector."""

from __future__ import annotations

import pytest
from netaddr import IPAddress

from calico_core.errors import InvalidRecord
from calico_mesos.container import ContainerKey
from calico_mesos.integration import MesosIntegration
from tests.unit.calico_mesos.conftest import CONTAINER, HOST, Setup


def test_addresses_of_isolated_containers_are_in_use_until_the_cleanup() -> None:
    setup = Setup()
    assert setup.integration.addresses_in_use() == {}
    setup.isolate()
    assert setup.integration.addresses_in_use() == {IPAddress("10.65.0.9"): f"container {CONTAINER}"}
    setup.records.put(ContainerKey("node2", "other"), setup.records.get(ContainerKey(HOST, CONTAINER)).record)
    assert len(setup.integration.addresses_in_use()) == 1, "those of other hosts are not ours to name"
    setup.ask("cleanup", hostname=HOST, container_id=CONTAINER)
    assert setup.integration.addresses_in_use() == {}


def test_a_record_that_does_not_decode_means_that_nobody_knows() -> None:
    setup = Setup()
    setup.records.store.put(ContainerKey(HOST, "broken").path, b"?")
    with pytest.raises(InvalidRecord):
        setup.integration.addresses_in_use()


def test_unprepared_it_names_none() -> None:
    assert MesosIntegration().addresses_in_use() == {}
