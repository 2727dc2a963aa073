"""What ``calicoctl pool`` does to addresses in use: told, and the same after a crash at any point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from calico_core.errors import NoPools
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.keys import POOLS
from calico_core.model.workloads import AddressRequest
from tests.doubles.ipam_store import check_laws, contents

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl

POOL = "10.65.0.0/24"


@pytest.fixture
def addresses(calicoctl: Calicoctl, records: TypedRecords) -> list[IPAddress]:
    """One on each of two hosts; a third host has an empty block."""
    calicoctl.ok("pool", "add", POOL, "--block-size", "28")
    found = [assign(records, "h1", "rack-a"), assign(records, "h2", "rack-b")]
    assign(records, "h3", "rack-c")
    BlockIpam(records, "rack-c").release_by_handle(["h3"])
    assert len(contents(records.store).blocks) == 3
    return found


def assign(records: TypedRecords, handle: str, host: str) -> IPAddress:
    (address,) = BlockIpam(records, host).auto_assign(AddressRequest(handle=handle, num_v4=1))
    return address


def pools(records: TypedRecords) -> dict[str, bool]:
    return {str(found.record.cidr): found.record.disabled for found in records.list(POOLS)}


def test_removal_keeps_addresses_and_gives_up_blocks(
    calicoctl: Calicoctl, records: TypedRecords, addresses: list[IPAddress]
) -> None:
    done = calicoctl("pool", "remove", POOL)
    assert done.code == 0
    assert done.out == f"pool {POOL} removed, 3 blocks given up\n"
    for address, handle in zip(addresses, ("h1", "h2"), strict=True):
        assert f"{address}  {handle}" in done.err
    assert pools(records) == {}
    found = check_laws(records.store)
    assert found.affinities == {}
    assert len(found.blocks) == 2
    assert found.holders() == dict(zip(addresses, ("h1", "h2"), strict=True))
    BlockIpam(records, "rack-a").release_by_handle(["h1", "h2"])
    assert contents(records.store).blocks == {}
    assert calicoctl("pool", "remove", POOL).code == 4


def test_an_interrupted_removal_is_finished_by_the_next(
    calicoctl: Calicoctl, records: TypedRecords, addresses: list[IPAddress]
) -> None:
    """Cut off after disabling, and again after the first block: what stands between is sound and gives nothing out."""
    calicoctl.ok("pool", "disable", POOL)
    first = min(contents(records.store).blocks)
    BlockIpam(records, "rack-a").release_affinity(first, contents(records.store).affinities[first])
    check_laws(records.store)
    with pytest.raises(NoPools):
        assign(records, "h9", "rack-d")
    calicoctl.ok("pool", "remove", POOL)
    assert pools(records) == {}
    assert set(check_laws(records.store).holders()) == set(addresses)


def test_disable_and_enable(calicoctl: Calicoctl, records: TypedRecords, addresses: list[IPAddress]) -> None:
    assert calicoctl.ok("pool", "disable", POOL) == f"pool {POOL} disabled\n"
    with pytest.raises(NoPools):
        assign(records, "h9", "rack-a")
    assert set(contents(records.store).holders()) == set(addresses)
    assert calicoctl.ok("pool", "disable", POOL) == f"pool {POOL} unchanged: it is disabled\n"
    assert calicoctl.ok("pool", "enable", POOL) == f"pool {POOL} enabled\n"
    assign(records, "h9", "rack-a")
    assert calicoctl("pool", "enable", POOL, "10.99.0.0/16").code == 4


@pytest.mark.parametrize(("cidr", "word"), [("10.65.0.0/25", "shrink"), ("10.65.0.0/16", "grow")])
def test_a_pool_neither_shrinks_nor_grows(
    calicoctl: Calicoctl, records: TypedRecords, addresses: list[IPAddress], cidr: str, word: str
) -> None:
    done = calicoctl("pool", "add", cidr)
    assert done.code == 5
    assert word in done.err
    assert "pool" in done.err.splitlines()[-1], "it says what to do instead"
    assert pools(records) == {POOL: False}


def test_blocks_of_a_removed_pool_are_not_cut_anew(
    calicoctl: Calicoctl, records: TypedRecords, addresses: list[IPAddress]
) -> None:
    calicoctl("pool", "remove", POOL)
    done = calicoctl("pool", "add", POOL)
    assert done.code == 5
    assert "--block-size 28" in done.err
    assert pools(records) == {}
    calicoctl.ok("pool", "add", POOL, "--block-size", "28")
    calicoctl("pool", "remove", POOL)
    BlockIpam(records, "rack-a").release_by_handle(["h1", "h2"])
    calicoctl.ok("pool", "add", POOL)


def test_removal_loses_no_pool_of_somebody_else(calicoctl: Calicoctl, records: TypedRecords) -> None:
    calicoctl.ok("pool", "add", POOL, "10.66.0.0/24")
    kept = assign(records, "h", "rack-a")
    other = "10.66.0.0/24" if kept in contents(records.store).holders() and str(kept).startswith("10.65") else POOL
    done = calicoctl("pool", "remove", other)
    assert done.err == ""
    assert kept in contents(records.store).holders()
    assert check_laws(records.store).affinities
