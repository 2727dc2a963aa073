"""``calicoctl ipam``: how full, who holds what, and letting go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from calico_core.ipam.allocator import BlockIpam
from calico_core.model.addresses import host_network
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.workloads import AddressRequest

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl


@pytest.fixture
def address(calicoctl: Calicoctl, records: TypedRecords) -> IPAddress:
    calicoctl.ok("pool", "add", "10.65.0.0/24")
    request = AddressRequest(handle="net.c1", num_v4=1, attributes={"orchestrator": "cni"})
    (found,) = BlockIpam(records, "rack-a").auto_assign(request)
    return found


def test_usage_of_pools_and_blocks(calicoctl: Calicoctl, address: IPAddress) -> None:
    (row,) = calicoctl("ipam", "show", "-o", "json").json
    assert (row["cidr"], row["size"], row["used"], row["free"], row["blocks"]) == ("10.65.0.0/24", 256, 1, 255, 1)
    (row,) = calicoctl("ipam", "show", "--blocks", "-o", "json").json
    assert (row["size"], row["used"], row["host"]) == (64, 1, "rack-a")
    assert "0.4 %" in calicoctl.ok("ipam", "show")


def test_who_holds_an_address(calicoctl: Calicoctl, address: IPAddress) -> None:
    found = calicoctl("ipam", "show", str(address), "-o", "json").json
    assert (found["is_assigned"], found["handle"], found["host"], found["endpoint"]) == (
        True, "net.c1", "rack-a", None,
    )  # fmt: skip
    assert found["attributes"]["orchestrator"] == "cni"
    assert "net.c1" in calicoctl.ok("ipam", "show", str(address))
    assert calicoctl.ok("ipam", "show", "10.65.0.255") == "IP 10.65.0.255 is not assigned.\n"
    assert calicoctl("ipam", "show", "10.65.0").code == 2


def test_release(calicoctl: Calicoctl, records: TypedRecords, address: IPAddress) -> None:
    assert calicoctl.ok("ipam", "release", str(address)) == f"Address {address} released.\n"
    assert BlockIpam(records, "rack-a").allocation(address) is None
    assert calicoctl.ok("ipam", "release", str(address)) == f"Address {address} was not assigned.\n"
    assert calicoctl("ipam", "release", "nonsense").code == 2


def test_an_address_of_a_live_endpoint_is_5_unless_forced(
    calicoctl: Calicoctl, records: TypedRecords, address: IPAddress
) -> None:
    key = WorkloadEndpointKey("rack-a", "cni", "pod", "e1")
    records.put(key, WorkloadEndpoint(state="active", name="cali1", ipv4_nets=(host_network(address),)))
    assert calicoctl("ipam", "show", str(address), "-o", "json").json["endpoint"] == "rack-a/e1"
    done = calicoctl("ipam", "release", str(address))
    assert done.code == 5
    assert "rack-a/e1" in done.err
    assert BlockIpam(records, "rack-a").allocation(address) is not None
    calicoctl.ok("ipam", "release", str(address), "--force")
    assert BlockIpam(records, "rack-a").allocation(address) is None
