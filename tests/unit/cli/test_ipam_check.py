"""``calicoctl ipam check`` and ``heal``: what they find, what they say, what they change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.ipam.allocator import BlockIpam
from calico_core.model.addresses import host_network
from calico_core.model.blocks import Handle
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import AffinityKey, HandleKey, WorkloadEndpointKey
from calico_core.model.workloads import AddressRequest
from tests.doubles.ipam_store import check_laws, contents

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl

HOST = "rack-far"  # its kernel is not this one's


@pytest.fixture
def address(calicoctl: Calicoctl, records: TypedRecords) -> IPAddress:
    """In use by an endpoint of another host."""
    calicoctl.ok("pool", "add", "10.65.0.0/24")
    attributes = {"orchestrator": "cni", "node": HOST}
    (found,) = BlockIpam(records, HOST).auto_assign(AddressRequest(handle="net1.c1", num_v4=1, attributes=attributes))
    write_endpoint(records, found)
    return found


def write_endpoint(records: TypedRecords, address: IPAddress, name: str = "c1") -> None:
    record = WorkloadEndpoint(
        state="active", name="cali1", ipv4_nets=(host_network(address),), container_id=name, network="net1",
        ifname="eth0",
    )  # fmt: skip
    records.put(WorkloadEndpointKey(HOST, "cni", name, "e1"), record)


def codes(calicoctl: Calicoctl, *options: str) -> dict[str, str]:
    return {row["object"]: row["code"] for row in calicoctl("ipam", "check", "-o", "json", *options).json}


def test_a_sound_store(calicoctl: Calicoctl, address: IPAddress) -> None:
    done = calicoctl("ipam", "check", "--exit-code")
    assert (done.code, done.out) == (0, "")
    assert "nothing found" in done.err
    assert "kernel was not looked at" in done.err
    assert calicoctl("ipam", "check", "-o", "json").json == []
    assert calicoctl.ok("ipam", "heal") == "Nothing to heal.\n"


def test_findings_and_the_exit_code(calicoctl: Calicoctl, records: TypedRecords, address: IPAddress) -> None:
    records.delete(WorkloadEndpointKey(HOST, "cni", "c1", "e1"))
    done = calicoctl("ipam", "check")
    assert done.code == 0
    assert "address-without-endpoint" in done.out
    assert str(address) in done.out
    assert "1 warning" in done.err
    assert calicoctl("ipam", "check", "--exit-code").code == 6
    (row,) = calicoctl("ipam", "check", "-o", "json").json
    assert set(row) == {"code", "severity", "object", "detail", "fix"}


def test_information_alone_is_no_problem(calicoctl: Calicoctl, records: TypedRecords, address: IPAddress) -> None:
    BlockIpam(records, HOST).auto_assign(AddressRequest(handle="foreign", num_v4=1, attributes={"node": HOST}))
    done = calicoctl("ipam", "check", "--exit-code")
    assert done.code == 0
    assert "address-unproven" in done.out


def test_an_endpoint_that_a_restored_store_forgot_gets_its_address_again(
    calicoctl: Calicoctl, records: TypedRecords, address: IPAddress
) -> None:
    records.store.delete_prefix("/calico/ipam/v2/")  # as if from before the attach
    assert codes(calicoctl) == {str(address): "endpoint-address-free"}
    planned = calicoctl("ipam", "heal")
    assert str(address) in planned.out
    assert "--yes" in planned.err
    assert contents(records.store).holders() == {}
    assert "by the handle net1.c1" in calicoctl.ok("ipam", "heal", "--yes")
    assert contents(records.store).holders() == {address: "net1.c1"}
    found = BlockIpam(records, HOST).allocation(address)
    assert found is not None
    assert (found.attributes["node"], found.attributes["orchestrator"]) == (HOST, "cni")
    assert codes(calicoctl) == {}
    check_laws(records.store)


def test_an_address_that_two_endpoints_carry_is_nobodys_to_give(
    calicoctl: Calicoctl, records: TypedRecords, address: IPAddress
) -> None:
    records.store.delete_prefix("/calico/ipam/v2/")
    write_endpoint(records, address, "c2")
    assert calicoctl.ok("ipam", "heal", "--yes") == "Nothing to heal.\n"
    assert contents(records.store).holders() == {}


def test_an_address_outside_every_pool_is_not_ours_to_manage(calicoctl: Calicoctl, records: TypedRecords) -> None:
    write_endpoint(records, IPAddress("172.30.0.5"))
    assert codes(calicoctl) == {}


def test_what_cannot_be_assigned_again_is_named_and_is_1(
    calicoctl: Calicoctl, records: TypedRecords, address: IPAddress
) -> None:
    records.store.delete_prefix("/calico/ipam/v2/")
    calicoctl.ok("pool", "disable", "10.65.0.0/24")
    done = calicoctl("ipam", "heal", "--yes")
    assert done.code == 1
    assert str(address) in done.err


def test_indexes_are_put_right(calicoctl: Calicoctl, records: TypedRecords, address: IPAddress) -> None:
    (cidr,) = contents(records.store).blocks
    records.put(HandleKey("net1.c1"), Handle(block={str(cidr): 5}, id="net1.c1"))
    records.put(HandleKey("ghost"), Handle(block={str(cidr): 1}, id="ghost"))
    records.delete(AffinityKey(HOST, cidr))
    before = codes(calicoctl)
    assert set(before.values()) == {"handle-count-mismatch", "handle-empty", "block-without-affinity"}
    calicoctl.ok("ipam", "heal")
    assert codes(calicoctl) == before
    calicoctl.ok("ipam", "heal", "--yes")
    assert codes(calicoctl) == {}
    check_laws(records.store)
    assert contents(records.store).holders() == {address: "net1.c1"}


def test_a_record_that_does_not_decode_is_named_and_left_alone(
    calicoctl: Calicoctl, records: TypedRecords, address: IPAddress
) -> None:
    path = HandleKey("broken").path
    records.store.put(path, b"?")
    assert codes(calicoctl) == {path: "record-malformed"}
    calicoctl.ok("ipam", "heal", "--yes")
    assert records.store.get(path) is not None


def test_borrowed_addresses(calicoctl: Calicoctl, records: TypedRecords, address: IPAddress) -> None:
    (cidr,) = contents(records.store).blocks
    wanted = IPAddress(IPNetwork(cidr).last)
    request = AddressRequest(handle="b", num_v4=1, requested=(wanted,), attributes={"node": "rack-b"})
    BlockIpam(records, "rack-b").auto_assign(request)
    (row,) = calicoctl("ipam", "show", "--borrowed", "-o", "json").json
    assert (row["address"], row["host"], row["owner"], row["handle"]) == (str(wanted), "rack-b", HOST, "b")
