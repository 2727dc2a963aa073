"""Data of the old library: it loads, serves, and survives our writing it. Source: ipam specification 2.1 and 12."""

from __future__ import annotations

import json

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.keys import AffinityKey, BlockKey, HandleKey
from tests.doubles.ipam_store import a_request, add_pool, contents

CIDR = IPNetwork("10.5.0.0/26")
BLOCK, AFFINITY, HANDLE = BlockKey(CIDR).path, AffinityKey("hostA", CIDR).path, HandleKey("h1").path


def an_old_block(**changes: object) -> bytes:
    """As libcalico 0.15 wrote it: one address without handle, two of h1, and .3 given back after .4 was taken."""
    document = {
        "cidr": "10.5.0.0/26",
        "affinity": "host:hostA",
        "strict_affinity": False,
        "allocations": [0, 1, 1, None, 2, *[None] * 59],
        "unallocated": [*range(5, 64), 3],
        "attributes": [
            {"handle_id": None, "secondary": None},
            {"handle_id": "h1", "secondary": {"node": "hostA"}},
            {"handle_id": None},
        ],
    }
    document.update(changes)
    return json.dumps({name: value for name, value in document.items() if value != "absent"}).encode()


def a_store(block: bytes) -> MemoryDatastore:
    store = MemoryDatastore()
    add_pool(store, "10.5.0.0/24")
    store.put(BLOCK, block)
    store.put(AFFINITY, b"")
    store.put(HANDLE, b'{"id": "h1", "block": {"10.5.0.0/26": 3}}')  # one too many, as old writers could leave it
    return store


@pytest.mark.parametrize(
    "changes", [{}, {"unallocated": "absent"}, {"affinity": "absent", "hostAffinity": "hostA"}], ids=str
)
def test_an_old_block_serves_and_survives(changes: dict[str, object]) -> None:
    store = a_store(an_old_block(**changes))
    ipam = BlockIpam.open(TypedRecords(store), "hostA")
    assert ipam.by_handle("h1") == (IPAddress("10.5.0.1"), IPAddress("10.5.0.2"))
    assert ipam.allocation(IPAddress("10.5.0.4")) == (IPAddress("10.5.0.4"), None, {}, None)

    (new,) = ipam.auto_assign(a_request("h2", 1))
    assert new == IPAddress("10.5.0.3" if "unallocated" in changes else "10.5.0.5")
    written = json.loads(store.get(BLOCK).value)
    assert len(written["allocations"]) == 64
    assert written["affinity"] == "host:hostA"
    assert written["attributes"][0] == {"handle_id": None, "secondary": None}
    assert written["allocations"][:3] == [0, 1, 1]
    assert contents(store).blocks[CIDR].sequence_number == 1

    assert ipam.release([IPAddress("10.5.0.0"), IPAddress("10.5.0.4")]) == ()
    assert set(ipam.release_by_handle(["h1"])) == {IPAddress("10.5.0.1"), IPAddress("10.5.0.2")}
    found = contents(store)
    assert found.holders() == {new: "h2"}
    assert found.handles == {"h2": {"10.5.0.0/26": 1}}
    assert len(found.blocks) == 1


def test_a_handle_of_old_data_gets_what_it_holds() -> None:
    store = a_store(an_old_block())
    ipam = BlockIpam.open(TypedRecords(store), "hostB")
    assert ipam.auto_assign(a_request("h1", 1)) == (IPAddress("10.5.0.1"),)


def test_a_block_nobody_owns_goes_with_its_last_address() -> None:
    store = a_store(an_old_block(affinity=""))
    store.delete(AFFINITY)
    ipam = BlockIpam.open(TypedRecords(store), "hostA")
    ipam.release_by_handle(["h1"])
    assert store.get(BLOCK) is not None
    ipam.release([IPAddress("10.5.0.0"), IPAddress("10.5.0.4")])
    assert store.get(BLOCK) is None


@pytest.mark.parametrize("value", [b"", b'{"state": "pending"}', b'{"state": "pendingDeletion"}'])
def test_an_affinity_left_without_its_block_is_taken_over(value: bytes) -> None:
    store = MemoryDatastore()
    add_pool(store, "10.5.0.0/24")
    store.put(AFFINITY, value)
    ipam = BlockIpam.open(TypedRecords(store), "hostA")
    assert ipam.auto_assign(a_request("a", 1)) == (IPAddress("10.5.0.0"),)
    assert contents(store).blocks[CIDR].owner == "hostA"
    assert json.loads(store.get(AFFINITY).value)["state"] == "confirmed"


def test_a_handle_naming_a_block_that_is_gone_is_cleaned_up() -> None:
    store = MemoryDatastore()
    store.put(HANDLE, b'{"id": "h1", "block": {"10.5.0.0/26": 1}}')
    ipam = BlockIpam.open(TypedRecords(store), "hostA")
    assert ipam.by_handle("h1") == ()
    assert ipam.release_by_handle(["h1"]) == ()
    assert store.get(HANDLE) is None


def test_nulls_and_older_names_are_understood() -> None:
    """Programs in Go write null for a list that is empty; documents before "handle_id" said "primary"."""
    empty = a_store(an_old_block(allocations=[None] * 64, unallocated=[*range(64)], attributes=None))
    empty.delete(HANDLE)
    assert BlockIpam.open(TypedRecords(empty), "hostA").auto_assign(a_request("a", 1)) == (IPAddress("10.5.0.0"),)

    renamed = a_store(an_old_block(attributes=[{"primary": None}, {"primary": "h1", "secondary": None}, {}]))
    ipam = BlockIpam.open(TypedRecords(renamed), "hostA")
    assert ipam.by_handle("h1") == (IPAddress("10.5.0.1"), IPAddress("10.5.0.2"))
    ipam.auto_assign(a_request("h2", 1))
    assert json.loads(renamed.get(BLOCK).value)["attributes"][1] == {"handle_id": "h1", "secondary": None}


def test_a_deleted_block_counts_as_absent_and_may_be_made_anew() -> None:
    store = a_store(an_old_block(deleted=True))
    store.delete(HANDLE)
    store.delete(AFFINITY)
    ipam = BlockIpam.open(TypedRecords(store), "hostB")
    assert ipam.allocation(IPAddress("10.5.0.1")) is None
    assert ipam.release([IPAddress("10.5.0.1")]) == (IPAddress("10.5.0.1"),)
    assert ipam.auto_assign(a_request("a", 0, 0, "10.5.0.1")) == (IPAddress("10.5.0.1"),)
    found = contents(store).blocks[CIDR]
    assert (found.deleted, found.owner) == (False, "hostB")


def test_what_newer_programs_keep_in_a_block_survives() -> None:
    claimed = "2024-03-01T10:00:00Z"
    attributes = [
        {"handle_id": "h1", "secondary": {"node": "hostA"}, "alternateOwnerAttrs": {"vm": "b"}},
        {"handle_id": None, "secondary": None, "releasedAt": "2024-03-01T11:00:00Z"},
    ]
    block = an_old_block(
        allocations=[0, 1, *[None] * 62], unallocated=[*range(2, 64)], attributes=attributes, affinityClaimTime=claimed
    )
    store = a_store(block)
    store.put("/calico/ipam/v2/config", b'{"ipCooldownSeconds": 1200}')
    BlockIpam(TypedRecords(store), "hostA", clock_ns=lambda: 1_709_290_860 * 10**9).auto_assign(a_request("a", 1))
    written = json.loads(store.get(BLOCK).value)
    assert written["affinityClaimTime"] == claimed
    assert written["attributes"][:2] == attributes
    assert written["allocations"][:3] == [0, 1, 2]
