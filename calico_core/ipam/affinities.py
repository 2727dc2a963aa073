"""Giving blocks to hosts and taking them away, on an operator's word. Rare, so nothing is cached here.

Block and affinity record change in one transaction; there is no pending state for a crash to leave behind.
Source: ipam specification 3, 4 and 7.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from calico_core.errors import AffinityHeld, InvalidRequest, OutsidePools
from calico_core.interfaces.datastore import Compare, Delete, Entry, Operation, Precondition, Put
from calico_core.ipam import blocks, candidates
from calico_core.ipam.decoding import decode_or_none
from calico_core.ipam.draft import affinity_prefix, is_disposable
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.blocks import Affinity, Block
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import POOLS, AffinityKey, BlockKey, Key, PoolKey
from calico_core.model.pools import Pool

if TYPE_CHECKING:
    from netaddr import IPNetwork

    from calico_core.ipam.races import Races
    from calico_core.ipam.round_trips import RoundTrips

log = get_logger(__name__)

_BLOCKS_AT_ONCE = 20
_MOST_BLOCKS = 4096


class _Change(NamedTuple):
    preconditions: tuple[Precondition, ...]
    operations: tuple[Operation, ...]


class Affinities:
    """Stateless; safe for several threads."""

    def __init__(self, round_trips: RoundTrips, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._round_trips = round_trips
        self._clock_ns = clock_ns

    def claim(self, cidr: IPNetwork, host: str, races: Races) -> None:
        """Every block of ``cidr``. One that another host holds does not stop the others; the first such is raised as
        ``AffinityHeld`` at the end."""
        pool = self._pool_around(cidr)
        size = 1 << (pool.block_prefix - cidr.prefixlen) if cidr.prefixlen <= pool.block_prefix else 0
        if not 0 < size <= _MOST_BLOCKS:
            raise InvalidRequest("cidr", f"{cidr} must span 1 to {_MOST_BLOCKS} blocks of /{pool.block_prefix}")
        first = candidates.block_containing(pool, cidr.first)
        held: AffinityHeld | None = None
        for number in range(size):
            block = candidates.block_containing(pool, first.first + number * first.size)
            try:
                self._claim_block(block, pool, host, races)
            except AffinityHeld as error:
                held = held or error
        if held is not None:
            raise held

    def release(self, cidr: IPNetwork, host: str, races: Races) -> None:
        """Every block of ``cidr`` that the host has."""
        listing = self._round_trips.list(affinity_prefix(host, cidr.version))
        named = [key.cidr for entry in listing.entries if isinstance(key := parse_key(entry.key), AffinityKey)]
        inside = [block for block in named if cidr.first <= block.first and block.last <= cidr.last]
        if cidr not in inside and cidr.size <= _MOST_BLOCKS:
            inside.append(cidr)  # a block of the host whose affinity record was lost
        self._release_blocks(inside, host, races)

    def release_all(self, host: str, races: Races) -> None:
        for version in (4, 6):
            listing = self._round_trips.list(affinity_prefix(host, version))
            named = [key.cidr for entry in listing.entries if isinstance(key := parse_key(entry.key), AffinityKey)]
            self._release_blocks(named, host, races)

    # --- inside ------------------------------------------------------------------------------------

    def _pool_around(self, cidr: IPNetwork) -> Pool:
        usable: list[Pool] = []
        for entry in self._round_trips.list(f"{POOLS}v{cidr.version}/pool/").entries:
            key = parse_key(entry.key)
            pool = decode_or_none(key, entry) if isinstance(key, PoolKey) else None
            if isinstance(pool, Pool) and pool.is_assignable:
                usable.append(pool)
        for pool in usable:
            if pool.cidr.first <= cidr.first and cidr.last <= pool.cidr.last:
                return pool
        raise OutsidePools(str(cidr), tuple(str(pool.cidr) for pool in usable))

    def _claim_block(self, cidr: IPNetwork, pool: Pool, host: str, races: Races) -> None:
        keys = (BlockKey(cidr), AffinityKey(host, cidr), PoolKey(pool.cidr))
        while True:
            found = {key: entry for key, entry, _revision in self._round_trips.read(keys)}
            if not _is_still_assignable(found[keys[2]], keys[2]):
                raise OutsidePools(str(cidr))
            entry = found[keys[0]]
            standing: Block | None = codec.decode(keys[0], entry.value) if entry else None
            is_new = standing is None or standing.deleted
            block = self._fresh_block(cidr, host) if standing is None or standing.deleted else standing
            if block.affinity and block.owner != host:
                raise AffinityHeld(str(cidr), block.owner or block.affinity)
            operations = [Put(keys[1].path, codec.encode(Affinity()))]
            if is_new or block.owner != host:
                claimed_at = blocks.moment(self._clock_ns())
                owned = block if is_new else blocks.with_owner(block, host, claimed_at=claimed_at)
                operations.append(Put(keys[0].path, codec.encode(owned)))
            elif _is_confirmed(found[keys[1]], keys[1]):
                return
            if self._is_committed(_Change(_compares(found), tuple(operations))):
                log.info("ipam.affinity_claimed", block=str(cidr), host=host)
                return
            races.lost()

    def _fresh_block(self, cidr: IPNetwork, host: str) -> Block:
        return blocks.new_block(cidr, host, sequence=self._clock_ns())

    def _release_blocks(self, cidrs: Sequence[IPNetwork], host: str, races: Races) -> None:
        for start in range(0, len(cidrs), _BLOCKS_AT_ONCE):
            part = cidrs[start : start + _BLOCKS_AT_ONCE]
            keys: list[Key] = [key for cidr in part for key in (BlockKey(cidr), AffinityKey(host, cidr))]
            while True:
                found = {key: entry for key, entry, _revision in self._round_trips.read(keys)}
                change = _release_change(found, host)
                if not change.operations or self._is_committed(change):
                    break
                races.lost()

    def _is_committed(self, change: _Change) -> bool:
        return self._round_trips.transact(change.preconditions, change.operations, ()).committed


def _release_change(found: dict[Key, Entry | None], host: str) -> _Change:
    operations: list[Operation] = []
    for key, entry in found.items():
        if entry is None:
            continue
        if isinstance(key, AffinityKey):
            operations.append(Delete(key.path))
            continue
        block = decode_or_none(key, entry)
        if not isinstance(block, Block) or block.owner != host:
            continue
        ownerless = blocks.with_owner(block, None)
        empty = is_disposable(ownerless)
        operations.append(Delete(key.path) if empty else Put(key.path, codec.encode(ownerless)))
        log.info("ipam.affinity_released", block=str(block.cidr), host=host, deleted=empty)
    return _Change(_compares(found), tuple(operations))


def _compares(found: dict[Key, Entry | None]) -> tuple[Compare, ...]:
    return tuple(Compare(key.path, entry.mod_revision if entry else 0) for key, entry in found.items())


def _is_confirmed(entry: Entry | None, key: Key) -> bool:
    affinity = decode_or_none(key, entry) if entry else None
    return isinstance(affinity, Affinity) and affinity.state == "confirmed" and not affinity.deleted


def _is_still_assignable(entry: Entry | None, key: Key) -> bool:
    pool = decode_or_none(key, entry) if entry else None
    return isinstance(pool, Pool) and pool.is_assignable
