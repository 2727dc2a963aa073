"""The order in which a host tries the blocks of a pool.

Every process of one host starts at the same place, so that they converge on one block instead of claiming several;
different hosts start far apart, so that they rarely meet. Source: ipam specification 3.3.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from netaddr import IPNetwork

from calico_core.model.addresses import WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from calico_core.model.pools import Pool


def block_count(pool: Pool) -> int:
    return int(1 << (pool.block_prefix - pool.cidr.prefixlen))


def is_single_address(pool: Pool) -> bool:
    return pool.block_prefix == WIDTH[pool.cidr.version]


def block_at(pool: Pool, index: int) -> IPNetwork:
    version = pool.cidr.version
    first = pool.cidr.first + (index << (WIDTH[version] - pool.block_prefix))
    return IPNetwork((first, pool.block_prefix), version=version)


def block_containing(pool: Pool, address: int) -> IPNetwork:
    """The block an address of the pool belongs to."""
    return block_at(pool, _index(pool, address))


def blocks_in_order(
    host: str, pool: Pool, *, salt: str = "", reserved: Iterable[IPNetwork] = ()
) -> Iterator[IPNetwork]:
    """The blocks of the pool but those wholly ``reserved``, lazily: an IPv6 /64 has 2^58 of them. ``salt`` moves the
    start, for blocks of a single address, where converging only makes processes collide."""
    count = block_count(pool)
    start = first_index(host, pool, salt=salt)
    holes = _whole_blocks(pool, reserved)
    for begin, end in ((start, count), (0, start)):
        index = begin
        while index < end:
            beyond = next((last + 1 for first, last in holes if first <= index <= last), None)
            if beyond is None:
                yield block_at(pool, index)
            index = beyond if beyond is not None else index + 1


def _whole_blocks(pool: Pool, reserved: Iterable[IPNetwork]) -> list[tuple[int, int]]:
    """Ranges of block numbers with no address outside ``reserved``, as far as one CIDR covers them: first and last."""
    found: list[tuple[int, int]] = []
    for cidr in reserved:
        first, last = max(cidr.first, pool.cidr.first), min(cidr.last, pool.cidr.last)
        if cidr.version == pool.cidr.version and first <= last and cidr.prefixlen <= pool.block_prefix:
            found.append((_index(pool, first), _index(pool, last)))
    return found


def sorted_for(host: str, pool: Pool, blocks: Iterable[IPNetwork]) -> list[IPNetwork]:
    """Existing blocks of the pool in the order of :func:`blocks_in_order`, without walking the pool."""
    count, start = block_count(pool), first_index(host, pool)
    return sorted(blocks, key=lambda block: (_index(pool, block.first) - start) % count)


def first_index(host: str, pool: Pool, *, salt: str = "") -> int:
    digest = hashlib.sha256(f"{host}{pool.cidr}{salt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % block_count(pool)


def _index(pool: Pool, address: int) -> int:
    return int((address - pool.cidr.first) >> (WIDTH[pool.cidr.version] - pool.block_prefix))
