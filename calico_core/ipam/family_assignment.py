"""One family's share of a request: from which blocks its addresses come.

Order: exact addresses, blocks of this host, a block nobody has, an idle block of another host, which changes hands,
and last single addresses in a block of somebody else. Source: ipam specification 3.1, 4, 5 and 9.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from calico_core.errors import (
    AddressInUse,
    AffinityHeld,
    InvalidRecord,
    IpamError,
    NoPools,
    OutsidePools,
    PoolExhausted,
)
from calico_core.ipam import blocks, candidates
from calico_core.ipam.draft import labels_key
from calico_core.ipam.steps import Fresh, Need
from calico_core.log import get_logger
from calico_core.model.addresses import contains
from calico_core.model.blocks import AllocationAttributes, Block, IpamConfig
from calico_core.model.keys import AffinityKey, BlockKey, HandleKey, IpamConfigKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress, IPNetwork

    from calico_core.ipam.draft import Draft
    from calico_core.ipam.knowledge import Family, Knowledge
    from calico_core.model.pools import Pool
    from calico_core.model.workloads import AddressRequest

log = get_logger(__name__)

DEFAULT_BLOCKS_PER_HOST = 20
RECLAIM_AFTER_S = 60.0
"""Since the claim of an empty block, before another host may take it: a block changes hands at most that often."""
_CLAIMS_BEFORE_LISTING = 3


class Unknown(Exception):
    """No error: it carries what must be read first out of the depth of a plan."""

    def __init__(self, need: Need) -> None:
        super().__init__()
        self.need = need


class Context(NamedTuple):
    """What both families of one attempt share. ``now_ns`` numbers new blocks."""

    knowledge: Knowledge
    request: AddressRequest
    fresh: Fresh
    now_ns: int
    draft: Draft
    attributes: AllocationAttributes


class FamilyAssignment:
    """Lives for one attempt. A "no" from knowledge older than this call is an :class:`Unknown` first."""

    def __init__(self, context: Context, family: Family, held: list[IPAddress]) -> None:
        """``held``: what the handle has already in this family."""
        self._family = family
        self._held = held
        self._pools: list[Pool] = []
        self._knowledge, self._request, self._fresh, self._now_ns, self._draft, self._attributes = context
        self._now = blocks.moment(self._now_ns)
        self._reserved = self._knowledge.reserved(family.version)

    def choose(self) -> list[IPAddress]:
        version = self._family.version
        chosen = [address for address in dict.fromkeys(self._request.requested) if address.version == version]
        number = self._request.num_v4 if version == 4 else self._request.num_v6
        wanted = max(number, len(chosen))
        missing = [address for address in chosen if address not in self._held]
        chosen += [address for address in self._held if address not in chosen][: wanted - len(chosen)]
        if missing or len(chosen) < wanted:
            usable = self._usable_pools()
            for address in missing:
                self._take_exact(address, usable)
            if len(chosen) < wanted:
                self._pools = usable if self._requested_pools else self._selected(usable)
                chosen += self._take_any(wanted - len(chosen))
        return chosen

    # --- pools and rules ---------------------------------------------------------------------------

    @property
    def _config(self) -> IpamConfig:
        known = self._knowledge.config
        if known.is_malformed:
            raise InvalidRecord(IpamConfigKey().path, "", "does not decode; nothing is assigned until it does")
        return known.record or IpamConfig()

    @property
    def _requested_pools(self) -> tuple[IPNetwork, ...]:
        return self._request.pools_v4 if self._family.version == 4 else self._request.pools_v6

    def _usable_pools(self) -> list[Pool]:
        """Enabled and for this use: those asked for, in that order, or all by address."""
        use = self._request.use
        enabled = {
            cidr: known.record
            for cidr, known in sorted(self._family.pools.items())
            if known.record is not None and known.record.is_assignable
        }
        usable = {cidr: pool for cidr, pool in enabled.items() if pool.gives(use)}
        requested = self._requested_pools
        available = tuple(f"{cidr}{'' if cidr in usable else f' (not for {use.lower()}s)'}" for cidr in enabled)
        if not requested and not usable:
            self._refuse(NoPools(self._family.version, (), available))
        unusable = tuple(str(cidr) for cidr in requested if cidr not in usable)
        if unusable:
            self._refuse(NoPools(self._family.version, unusable, available))
        return [usable[cidr] for cidr in requested] if requested else list(usable.values())

    def _selected(self, pools: list[Pool]) -> list[Pool]:
        """Those that are for this host, by its labels."""
        if not any(pool.node_selector for pool in pools):
            return pools
        labels = self._labels()
        self._draft.rest_on_labels()
        selected = [pool for pool in pools if pool.is_for(labels)]
        if not selected:
            self._require_fresh_labels()
            self._refuse(NoPools(self._family.version, (), tuple(f"{p.cidr} ({p.node_selector})" for p in pools)))
        return selected

    def _labels(self) -> dict[str, str]:
        known, key = self._knowledge.labels, labels_key(self._knowledge.host)
        if known.as_of < 0:
            raise Unknown(Need(keys=(key,)))
        try:
            return msgspec.json.decode(known.record or "{}", type=dict[str, str])
        except msgspec.DecodeError as error:
            self._require_fresh_labels()
            raise InvalidRecord(key.path, "", f"is not a JSON map of texts: {error}") from error

    def _require_fresh_labels(self) -> None:
        key = labels_key(self._knowledge.host)
        if key not in self._fresh.keys:
            raise Unknown(Need(keys=(key,)))

    def _pool_of(self, cidr: IPNetwork) -> Pool | None:
        return next((pool for pool in self._pools if _covers(pool.cidr, cidr)), None)

    def _refuse(self, error: IpamError) -> None:
        """A "no" for which the pools and rules must be fresh."""
        if self._family.version not in self._fresh.loaded:
            raise Unknown(Need(load=(self._family.version,)))
        raise error

    # --- exact addresses ---------------------------------------------------------------------------

    def _take_exact(self, address: IPAddress, usable: list[Pool]) -> None:
        """Whatever is reserved, cooling down or for other hosts: who names an address knows what he does."""
        pool = next((pool for pool in usable if contains(pool.cidr, address)), None)
        if pool is None:
            self._refuse(OutsidePools(str(address), tuple(str(pool.cidr) for pool in usable)))
            return
        self._require_sizes(pool)
        of_other_size = (cidr for cidr in self._odd_blocks(pool) if contains(cidr, address))
        cidr = next(of_other_size, None) or candidates.block_containing(pool, int(address))
        known = self._family.block(cidr)
        if known is None:
            raise Unknown(Need(keys=(BlockKey(cidr), AffinityKey(self._knowledge.host, cidr))))
        if known.is_malformed:
            raise InvalidRecord(BlockKey(cidr).path, "", "does not decode; it is left alone")
        block = self._draft.block(cidr)
        if block is None:
            if self._blocks_left() <= 0:
                self._refuse(PoolExhausted(self._family.version, 1, 0, self._limit_reason()))
            block = blocks.new_block(cidr, self._knowledge.host, sequence=self._now_ns)
        elif block.owner != self._knowledge.host and self._config.strict_affinity:
            self._require_fresh(cidr)
            self._refuse(AffinityHeld(str(cidr), block.owner or "nobody, and strict affinity is on"))
        current = blocks.attributes_at(block, blocks.ordinal_of(block, address))
        if current is not None:
            self._require_fresh(cidr)
            if blocks.same_handle(current.handle_id, self._request.handle):
                self._write(pool, blocks.with_owner(block, block.owner))  # ours; its handle's record was lost
                return
            if current.handle_id is None or current.handle_id not in self._request.takes_over:
                raise AddressInUse(str(address), current.handle_id)
            self._take_from(current.handle_id, pool, block, address)
            return
        self._write(pool, blocks.take_ordinal(block, blocks.ordinal_of(block, address), self._attributes))

    def _take_from(self, holder: str, pool: Pool, block: Block, address: IPAddress) -> None:
        if self._knowledge.handle(holder).as_of < 0:
            raise Unknown(Need(keys=(HandleKey(holder),)))
        ordinal = blocks.ordinal_of(block, address)
        freed = blocks.release(block, (ordinal,), handle=holder).block
        self._write(pool, blocks.take_ordinal(freed, ordinal, self._attributes))
        self._draft.recount(holder, (block.cidr,))

    def _require_fresh(self, cidr: IPNetwork) -> None:
        if BlockKey(cidr) not in self._fresh.keys and self._family.version not in self._fresh.listed:
            raise Unknown(Need(keys=(BlockKey(cidr),)))

    # --- any address -------------------------------------------------------------------------------

    def _take_any(self, wanted: int) -> list[IPAddress]:
        taken: list[IPAddress] = []
        self._draft.rest_on_reservations()
        for source in (self._own_blocks, self._new_blocks, self._idle_blocks, self._foreign_blocks):
            if len(taken) == wanted:
                return taken
            for pool, block in source():
                reserved = self._reserved_ordinals(block)
                changed, ordinals = blocks.take(block, wanted - len(taken), self._attributes, reserved=reserved)
                taken += [blocks.address_at(changed, ordinal) for ordinal in ordinals]
                if ordinals:
                    if source == self._foreign_blocks:
                        self._tell_of_borrowing(pool, block)
                    self._write(pool, changed)
                if len(taken) == wanted:
                    return taken
        self._refuse(PoolExhausted(self._family.version, wanted, len(taken), self._shortage()))
        return taken

    def _write(self, pool: Pool, block: Block) -> None:
        self._draft.rest_on_rules(pool.cidr)
        self._draft.hold(block)
        self._draft.recount(self._request.handle, (block.cidr,))

    def _reserved_ordinals(self, block: Block) -> frozenset[int]:
        found: set[int] = set()
        for cidr in self._reserved:
            first, last = max(cidr.first, block.cidr.first), min(cidr.last, block.cidr.last)
            found.update(range(first - block.cidr.first, last - block.cidr.first + 1))
        return frozenset(found)

    def _standing(self, cidr: IPNetwork) -> Block | None:
        """A block as this attempt finds it, with what has cooled down back in the queue."""
        block = self._draft.block(cidr)
        return blocks.cooled(block, self._now, self._config.cooldown_s) if block is not None else None

    def _own_blocks(self) -> Iterator[tuple[Pool, Block]]:
        """The block says who owns it; the affinity record is only where to look."""
        unknown = [
            cidr for cidr, known in self._family.affinities.items() if known.mod_revision and not self._is_known(cidr)
        ]
        if unknown:
            raise Unknown(Need(keys=tuple(BlockKey(cidr) for cidr in unknown)))
        for cidr in self._own():
            pool, block = self._pool_of(cidr), self._standing(cidr)
            if pool is not None and block is not None and blocks.free_ordinals(block):
                yield pool, block

    def _own(self) -> list[IPNetwork]:
        """Those of the store and those that this attempt makes."""
        host = self._knowledge.host
        known = [cidr for cidr, known in self._family.blocks.items() if known.record and known.record.owner == host]
        return list(dict.fromkeys([*known, *self._draft.own(self._family.version)]))

    def _is_known(self, cidr: IPNetwork) -> bool:
        return self._family.block(cidr) is not None

    def _new_blocks(self) -> Iterator[tuple[Pool, Block]]:
        if not self._config.auto_allocate_blocks:
            return
        for pool in self._pools:
            for cidr in self._unclaimed(pool):
                if self._blocks_left() <= 0:
                    return
                yield pool, blocks.new_block(cidr, self._knowledge.host, sequence=self._now_ns)

    def _unclaimed(self, pool: Pool) -> Iterator[IPNetwork]:
        """Blocks believed to be free. First those for which older software left us an affinity without a block."""
        self._require_sizes(pool)
        version = self._family.version
        if self._fresh.claims_lost >= _CLAIMS_BEFORE_LISTING and version not in self._fresh.listed:
            raise Unknown(Need(listing=(version,)))
        odd_blocks = self._odd_blocks(pool)
        left_over = [
            cidr
            for cidr, affinity in self._family.affinities.items()
            if affinity.mod_revision and _covers(pool.cidr, cidr) and cidr.prefixlen == pool.block_prefix
        ]
        for cidr in left_over:
            known = self._family.block(cidr)
            is_gone = known is not None and known.record is None and not known.is_malformed
            if is_gone and self._draft.block(cidr) is None and _is_clear(cidr, odd_blocks):
                yield cidr
        inside = sum(1 for cidr in self._family.taken if _covers(pool.cidr, cidr)) - len(odd_blocks)
        if inside >= candidates.block_count(pool):
            return
        salt = str(self._now_ns) if candidates.is_single_address(pool) else ""
        for cidr in candidates.blocks_in_order(self._knowledge.host, pool, salt=salt, reserved=self._reserved):
            is_free = cidr not in self._family.taken and self._draft.block(cidr) is None
            if is_free and _is_clear(cidr, odd_blocks):
                yield cidr

    def _require_sizes(self, pool: Pool) -> None:
        """A pool that was rewritten may hold blocks of another size: they must be known before a block is made beside
        them. A block that is made meanwhile by the old size is refused, because claims compare the pool."""
        if self._family.listed_as_of < self._family.rewritten.get(pool.cidr, -1):
            raise Unknown(Need(listing=(self._family.version,)))

    def _odd_blocks(self, pool: Pool) -> list[IPNetwork]:
        inside = [cidr for cidr in self._family.taken if cidr.prefixlen != pool.block_prefix]
        return [cidr for cidr in inside if _covers(pool.cidr, cidr)]

    def _idle_blocks(self) -> Iterator[tuple[Pool, Block]]:
        """Empty blocks of other hosts, and of nobody, that change hands."""
        if not self._config.auto_allocate_blocks:
            return
        host, latest = self._knowledge.host, self._now - timedelta(seconds=RECLAIM_AFTER_S)
        for pool, block in self._others():
            if self._blocks_left() <= 0:
                return
            claimed = block.affinity_claim_time
            if block.is_empty and (not block.affinity or (block.owner and (claimed is None or claimed <= latest))):
                yield pool, blocks.with_owner(block, host, claimed_at=self._now)

    def _foreign_blocks(self) -> Iterator[tuple[Pool, Block]]:
        """Borrowing."""
        if self._config.strict_affinity:
            return
        yield from self._others()

    def _others(self) -> Iterator[tuple[Pool, Block]]:
        """Blocks that are not ours and have room. Only after a listing of this call has shown that none is left to
        claim."""
        if self._family.version not in self._fresh.listed:
            raise Unknown(Need(listing=(self._family.version,)))
        for pool in self._pools:
            there = [cidr for cidr in self._family.taken if _covers(pool.cidr, cidr)]
            for cidr in candidates.sorted_for(self._knowledge.host, pool, there):
                block = self._standing(cidr)
                if block is not None and block.owner != self._knowledge.host and blocks.free_ordinals(block):
                    yield pool, block

    def _tell_of_borrowing(self, pool: Pool, block: Block) -> None:
        """Once a pool: whoever filters /32 routes loses these addresses."""
        if pool.cidr not in self._family.borrowed_from:
            self._family.borrowed_from.add(pool.cidr)
            log.warning("ipam.borrowing", pool=str(pool.cidr), owner=block.owner, host=self._knowledge.host)

    # --- limits ------------------------------------------------------------------------------------

    @property
    def _limit(self) -> int:
        return self._config.max_blocks_per_host or DEFAULT_BLOCKS_PER_HOST

    def _blocks_left(self) -> int:
        return self._limit - len(self._own())

    def _limit_reason(self) -> str:
        return f"{self._knowledge.host} has its limit of {self._limit} blocks"

    def _shortage(self) -> str:
        """Why there is no more, for people. Only after everything there is was looked at."""
        version = self._family.version
        if version not in self._fresh.listed:
            raise Unknown(Need(load=(version,), listing=(version,)))
        pools = ", ".join(str(pool.cidr) for pool in self._pools)
        if not self._config.auto_allocate_blocks:
            return f"no free address in the blocks of {self._knowledge.host}, and automatic allocation of blocks is off"
        if self._blocks_left() <= 0:
            return self._limit_reason()
        if self._config.strict_affinity:
            return f"strict affinity is on and no block is free in {pools}"
        cooling = self._config.cooldown_s
        return f"no free address in {pools}" + (f" that was released {cooling} s ago or earlier" if cooling else "")


def _is_clear(cidr: IPNetwork, others: list[IPNetwork]) -> bool:
    return not any(_covers(other, cidr) or _covers(cidr, other) for other in others)


def _covers(pool: IPNetwork, cidr: IPNetwork) -> bool:
    return bool(pool.version == cidr.version and pool.first <= cidr.first and cidr.last <= pool.last)
