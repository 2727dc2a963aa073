"""One family's share of a request: from which blocks its addresses come.

Order: exact addresses, blocks of this host, a block nobody has, and last a block of somebody else.
Source: ipam specification 3.1, 4 and 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
from calico_core.ipam.steps import Fresh, Need
from calico_core.log import get_logger
from calico_core.model.addresses import contains
from calico_core.model.blocks import AllocationAttributes, Block, IpamConfig
from calico_core.model.keys import AffinityKey, BlockKey, IpamConfigKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress, IPNetwork

    from calico_core.ipam.draft import Draft
    from calico_core.ipam.knowledge import Family, Knowledge
    from calico_core.model.pools import Pool
    from calico_core.model.workloads import AddressRequest

log = get_logger(__name__)

DEFAULT_BLOCKS_PER_HOST = 20
_CLAIMS_BEFORE_LISTING = 3


class Unknown(Exception):
    """No error: it carries what must be read first out of the depth of a plan."""

    def __init__(self, need: Need) -> None:
        super().__init__()
        self.need = need


class Context(NamedTuple):
    """What both families of one attempt share. ``seed`` numbers new blocks."""

    knowledge: Knowledge
    request: AddressRequest
    fresh: Fresh
    seed: int
    draft: Draft
    attributes: AllocationAttributes


class FamilyAssignment:
    """Lives for one attempt. A "no" from knowledge older than this call is an :class:`Unknown` first."""

    def __init__(self, context: Context, family: Family, held: list[IPAddress]) -> None:
        """``held``: what the handle has already in this family."""
        self._family = family
        self._held = held
        self._pools: list[Pool] = []
        self._knowledge, self._request, self._fresh, self._seed, self._draft, self._attributes = context

    def choose(self) -> list[IPAddress]:
        version = self._family.version
        chosen = [address for address in dict.fromkeys(self._request.requested) if address.version == version]
        number = self._request.num_v4 if version == 4 else self._request.num_v6
        wanted = max(number, len(chosen))
        missing = [address for address in chosen if address not in self._held]
        chosen += [address for address in self._held if address not in chosen][: wanted - len(chosen)]
        if missing or len(chosen) < wanted:
            self._pools = self._eligible_pools()
            for address in missing:
                self._take_exact(address)
            chosen += self._take_any(wanted - len(chosen))
        return chosen

    # --- pools and rules ---------------------------------------------------------------------------

    @property
    def _config(self) -> IpamConfig:
        known = self._knowledge.config
        if known.is_malformed:
            raise InvalidRecord(IpamConfigKey().path, "", "does not decode; nothing is assigned until it does")
        return known.record or IpamConfig()

    def _eligible_pools(self) -> list[Pool]:
        """In the order asked for, or by address."""
        usable = {
            cidr: known.record
            for cidr, known in sorted(self._family.pools.items())
            if known.record is not None and known.record.is_assignable
        }
        requested = self._request.pools_v4 if self._family.version == 4 else self._request.pools_v6
        available = tuple(str(cidr) for cidr in usable)
        if not requested and not usable:
            self._refuse(NoPools(self._family.version))
        unusable = tuple(str(cidr) for cidr in requested if cidr not in usable)
        if unusable:
            self._refuse(NoPools(self._family.version, unusable, available))
        return [usable[cidr] for cidr in requested] if requested else list(usable.values())

    def _pool_of(self, cidr: IPNetwork) -> Pool | None:
        return next((pool for pool in self._pools if _covers(pool.cidr, cidr)), None)

    def _refuse(self, error: IpamError) -> None:
        """A "no" for which the pools and rules must be fresh."""
        if self._family.version not in self._fresh.loaded:
            raise Unknown(Need(load=(self._family.version,)))
        raise error

    # --- exact addresses ---------------------------------------------------------------------------

    def _take_exact(self, address: IPAddress) -> None:
        pool = next((pool for pool in self._pools if contains(pool.cidr, address)), None)
        if pool is None:
            self._refuse(OutsidePools(str(address), tuple(str(pool.cidr) for pool in self._pools)))
            return
        cidr = candidates.block_containing(pool, int(address))
        known = self._family.block(cidr)
        if known is None:
            raise Unknown(Need(keys=(BlockKey(cidr), AffinityKey(self._knowledge.host, cidr))))
        if known.is_malformed:
            raise InvalidRecord(BlockKey(cidr).path, "", "does not decode; it is left alone")
        block = self._draft.block(cidr)
        if block is None:
            if self._blocks_left() <= 0:
                self._refuse(PoolExhausted(self._family.version, 1, 0, self._limit_reason()))
            block = blocks.new_block(cidr, self._knowledge.host, sequence=self._seed)
        elif block.owner != self._knowledge.host and self._config.strict_affinity:
            self._require_fresh(cidr)
            self._refuse(AffinityHeld(str(cidr), block.owner or "nobody, and strict affinity is on"))
        current = blocks.attributes_at(block, blocks.ordinal_of(block, address))
        if current is not None:
            self._require_fresh(cidr)
            if not blocks.same_handle(current.handle_id, self._request.handle):
                raise AddressInUse(str(address), current.handle_id)
            self._write(
                pool, blocks.with_owner(block, block.owner)
            )  # ours, and its handle record was lost: put it back
            return
        self._write(pool, blocks.take_ordinal(block, blocks.ordinal_of(block, address), self._attributes))

    def _require_fresh(self, cidr: IPNetwork) -> None:
        if BlockKey(cidr) not in self._fresh.keys and self._family.version not in self._fresh.listed:
            raise Unknown(Need(keys=(BlockKey(cidr),)))

    # --- any address -------------------------------------------------------------------------------

    def _take_any(self, wanted: int) -> list[IPAddress]:
        taken: list[IPAddress] = []
        for source in (self._own_blocks, self._new_blocks, self._foreign_blocks):
            if len(taken) == wanted:
                return taken
            for pool, block in source():
                changed, ordinals = blocks.take(block, wanted - len(taken), self._attributes)
                taken += [blocks.address_at(changed, ordinal) for ordinal in ordinals]
                if ordinals:
                    self._write(pool, changed)
                if len(taken) == wanted:
                    return taken
        self._refuse(PoolExhausted(self._family.version, wanted, len(taken), self._shortage()))
        return taken

    def _write(self, pool: Pool, block: Block) -> None:
        self._draft.rest_on_rules(pool.cidr)
        self._draft.hold(block)
        self._draft.recount(self._request.handle, (block.cidr,))

    def _own_blocks(self) -> Iterator[tuple[Pool, Block]]:
        """The block says who owns it; the affinity record is only where to look."""
        unknown = [
            cidr for cidr, known in self._family.affinities.items() if known.mod_revision and not self._is_known(cidr)
        ]
        if unknown:
            raise Unknown(Need(keys=tuple(BlockKey(cidr) for cidr in unknown)))
        for cidr in self._own():
            pool, block = self._pool_of(cidr), self._draft.block(cidr)
            if pool is not None and block is not None and blocks.free_ordinals(block):
                yield pool, block

    def _own(self) -> list[IPNetwork]:
        """Those of the store and those that this attempt makes."""
        host = self._knowledge.host
        known = [cidr for cidr, known in self._family.blocks.items() if known.record and known.record.owner == host]
        return known + [cidr for cidr in self._draft.claimed() if cidr.version == self._family.version]

    def _is_known(self, cidr: IPNetwork) -> bool:
        return self._family.block(cidr) is not None

    def _new_blocks(self) -> Iterator[tuple[Pool, Block]]:
        if not self._config.auto_allocate_blocks:
            return
        for pool in self._pools:
            for cidr in self._unclaimed(pool):
                if self._blocks_left() <= 0:
                    return
                yield pool, blocks.new_block(cidr, self._knowledge.host, sequence=self._seed)

    def _unclaimed(self, pool: Pool) -> Iterator[IPNetwork]:
        """Blocks believed to be free. First those for which older software left us an affinity without a block."""
        version = self._family.version
        if self._fresh.claims_lost >= _CLAIMS_BEFORE_LISTING and version not in self._fresh.listed:
            raise Unknown(Need(listing=(version,)))
        left_over = [
            cidr
            for cidr, affinity in self._family.affinities.items()
            if affinity.mod_revision and _covers(pool.cidr, cidr) and cidr.prefixlen == pool.block_prefix
        ]
        for cidr in left_over:
            known = self._family.block(cidr)
            if known is not None and known.mod_revision == 0 and self._draft.block(cidr) is None:
                yield cidr
        inside = sum(1 for cidr in self._family.taken if _covers(pool.cidr, cidr))
        if inside >= candidates.block_count(pool):
            return
        salt = str(self._seed) if candidates.is_single_address(pool) else ""
        for cidr in candidates.blocks_in_order(self._knowledge.host, pool, salt=salt):
            if cidr not in self._family.taken and self._draft.block(cidr) is None:
                yield cidr

    def _foreign_blocks(self) -> Iterator[tuple[Pool, Block]]:
        """Borrowing. Only after a listing of this call has shown that no block is left to claim."""
        if self._config.strict_affinity:
            return
        if self._family.version not in self._fresh.listed:
            raise Unknown(Need(listing=(self._family.version,)))
        for pool in self._pools:
            there = [cidr for cidr in self._family.taken if _covers(pool.cidr, cidr)]
            for cidr in candidates.sorted_for(self._knowledge.host, pool, there):
                block = self._draft.block(cidr)
                if block is not None and block.owner != self._knowledge.host and blocks.free_ordinals(block):
                    self._tell_of_borrowing(pool, block)
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
        return f"no free address in {pools}"


def _covers(pool: IPNetwork, cidr: IPNetwork) -> bool:
    return bool(pool.version == cidr.version and pool.first <= cidr.first and cidr.last <= pool.last)
