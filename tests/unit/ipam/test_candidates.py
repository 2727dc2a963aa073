from __future__ import annotations

import itertools

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.ipam import candidates
from calico_core.model.pools import Pool

POOL = Pool(cidr=IPNetwork("10.0.0.0/20"))


@pytest.mark.parametrize(
    ("pool", "count"),
    [
        (POOL, 64),
        (Pool(cidr=IPNetwork("10.0.0.0/26")), 1),
        (Pool(cidr=IPNetwork("10.0.0.0/28"), block_size=30), 4),
        (Pool(cidr=IPNetwork("10.0.0.0/28"), block_size=32), 16),
        (Pool(cidr=IPNetwork("fd00::/116")), 64),
    ],
)
def test_the_order_visits_every_block_once(pool: Pool, count: int) -> None:
    order = list(candidates.blocks_in_order("hostA", pool))
    assert candidates.block_count(pool) == len(order) == len(set(order)) == count
    assert all(block.prefixlen == pool.block_prefix and block in pool.cidr for block in order)


def test_a_host_always_starts_at_the_same_block_and_hosts_are_spread() -> None:
    first = {host: next(candidates.blocks_in_order(host, POOL)) for host in (f"host{n}" for n in range(40))}
    assert first == {host: next(candidates.blocks_in_order(host, POOL)) for host in first}
    assert len(set(first.values())) > 20


def test_huge_pools_are_walked_lazily() -> None:
    pool = Pool(cidr=IPNetwork("fd80:24e2:f998:72d6::/64"))
    assert candidates.block_count(pool) == 2**58
    found = list(itertools.islice(candidates.blocks_in_order("hostA", pool), 3))
    assert found[1].first - found[0].first == 64
    assert candidates.sorted_for("hostA", pool, reversed(found)) == found


def test_existing_blocks_come_in_the_order_of_the_walk() -> None:
    order = list(candidates.blocks_in_order("hostA", POOL))
    assert candidates.sorted_for("hostA", POOL, sorted(order)) == order


def test_the_block_of_an_address() -> None:
    assert candidates.block_containing(POOL, int(IPAddress("10.0.1.130"))) == IPNetwork("10.0.1.128/26")


def test_salt_moves_the_start_of_single_address_pools() -> None:
    pool = Pool(cidr=IPNetwork("10.0.0.0/24"), block_size=32)
    assert candidates.is_single_address(pool)
    assert len({candidates.first_index("hostA", pool, salt=str(n)) for n in range(50)}) > 20
