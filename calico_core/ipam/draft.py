"""One transaction in the making: blocks, affinities and handles as they are to be, and what that rests on.

Block, affinity and handle go together, so that no crash leaves one without the others. Everything the decision was
made from is compared: correctness comes from there alone. Source: ipam specification 4, "New".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netaddr import IPNetwork

from calico_core.errors import InvalidRecord, InvalidRequest
from calico_core.interfaces.datastore import Compare, Delete, NoneNewer, Operation, Precondition, Put
from calico_core.ipam import blocks
from calico_core.ipam.knowledge import Knowledge, Known
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.addresses import parse_network
from calico_core.model.blocks import Affinity, Block, Handle
from calico_core.model.keys import (
    AFFINITIES,
    RESERVATIONS,
    AffinityKey,
    BlockKey,
    HandleKey,
    HostConfigKey,
    IpamConfigKey,
    PoolKey,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

log = get_logger(__name__)

_CONFIRMED = Affinity()


class Draft:
    """Lives for one attempt. Reads see its own changes first, then what is known of the store."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._blocks: dict[IPNetwork, tuple[Block, int]] = {}  # with the revision each was computed from
        self._affinities: dict[IPNetwork, int] = {}  # ours, to be put over that revision
        self._handles: dict[str, tuple[Handle | None, Known[Handle]]] = {}
        self._made: dict[IPNetwork, None] = {}
        self._reclaimed: dict[IPNetwork, AffinityKey] = {}  # of hosts that lose an empty block, to be deleted
        self._pools: set[IPNetwork] = set()
        self._rests_on_config = False
        self._rests_on_labels = False
        self.rests_on_reservations = False
        self.changes_made = 0

    def fork(self) -> Draft:
        """A copy to try one more request on."""
        twin = Draft(self._knowledge)
        twin._blocks, twin._affinities, twin._handles = dict(self._blocks), dict(self._affinities), dict(self._handles)
        twin._made, twin._reclaimed, twin._pools = dict(self._made), dict(self._reclaimed), set(self._pools)
        twin._rests_on_config, twin._rests_on_labels = self._rests_on_config, self._rests_on_labels
        twin.rests_on_reservations, twin.changes_made = self.rests_on_reservations, self.changes_made
        return twin

    @property
    def weight(self) -> int:
        """Not less than the preconditions, nor than the operations, that it makes in a transaction."""
        blocks_written = len(self._blocks) + len(self._affinities) + len(self._reclaimed)
        return blocks_written + len(self._handles) + len(self._pools) + 5

    def changes(self, cidr: IPNetwork) -> bool:
        return cidr in self._blocks

    def block(self, cidr: IPNetwork) -> Block | None:
        """As it is to be; None when it does not exist, is not known or does not decode."""
        if cidr in self._blocks:
            return self._blocks[cidr][0]
        known = self._knowledge.families[cidr.version].block(cidr)
        return known.record if known else None

    # --- changes -----------------------------------------------------------------------------------

    def rest_on_rules(self, pool: IPNetwork) -> None:
        """The decision holds only while this pool and the configuration stay as they are."""
        self._pools.add(pool)
        self._rests_on_config = True

    def rest_on_config(self) -> None:
        self._rests_on_config = True

    def rest_on_labels(self) -> None:
        """The decision holds only while the host's labels select the same pools."""
        self._rests_on_labels = True

    def rest_on_reservations(self) -> None:
        """The decision holds only while no further address is reserved."""
        self.rests_on_reservations = True

    def rest_on_handle(self, handle: str) -> None:
        """The decision holds only while the handle stays as it is, written or not."""
        known = self._knowledge.handle(handle)
        self._handles.setdefault(handle, (known.record, known))

    def change(self, block: Block) -> None:
        """Write a block, or delete it when it has become disposable."""
        known = self._knowledge.families[block.cidr.version].block(block.cidr)
        self._blocks[block.cidr] = (block, known.mod_revision if known else 0)
        if known is None or known.record is None:
            self._made[block.cidr] = None
        self.changes_made += 1

    def hold(self, block: Block) -> None:
        """As :meth:`change`; and if the block is ours, its affinity record is written too unless both stand already
        (half-done claims of other software are finished that way). The family must be loaded."""
        self.change(block)
        cidr = block.cidr
        if block.owner != self._knowledge.host:
            return
        affinity = self._knowledge.families[cidr.version].affinities.get(cidr)
        known = self._knowledge.families[cidr.version].block(cidr)
        before = known.record if known else None
        is_ours = before is not None and before.owner == block.owner  # and so is its affinity record, as last heard
        if not is_ours or affinity is None or not is_confirmed(affinity):
            self._affinities[cidr] = affinity.mod_revision if affinity else 0
        if before is not None and before.owner not in {None, block.owner}:
            self._reclaimed[cidr] = AffinityKey(before.owner, cidr)  # the block's compare covers it: they go together

    def recount(self, handle: str, cidrs: Iterable[IPNetwork]) -> None:
        """Bring a handle in line with the blocks of this draft. The block is the truth: a count that older software
        left too high is corrected on the way."""
        known = self._knowledge.handle(handle)
        if known.is_malformed:
            raise InvalidRecord(HandleKey(handle).path, "", "does not decode; it is left alone")
        record = self._handles[handle][0] if handle in self._handles else known.record
        counted = dict(record.block) if record else {}
        for cidr in cidrs:
            block = self.block(cidr)
            held = len(blocks.ordinals_of(block, handle)) if block else 0
            counted.pop(str(cidr), None)
            if held:
                counted[str(cidr)] = held
        self._handles[handle] = (Handle(block=counted, id=handle) if counted else None, known)

    # --- the transaction ---------------------------------------------------------------------------

    def preconditions(self) -> tuple[Precondition, ...]:
        return tuple(self._conditions())

    def _conditions(self) -> Iterator[Precondition]:
        families = self._knowledge.families
        if self._rests_on_config:
            yield Compare(IpamConfigKey().path, self._knowledge.config.mod_revision)
        if self._rests_on_labels:
            yield Compare(labels_key(self._knowledge.host).path, self._knowledge.labels.mod_revision)
        if self.rests_on_reservations:
            yield NoneNewer(RESERVATIONS, self._knowledge.reservations_as_of)
        for pool in self._pools:
            yield Compare(PoolKey(pool).path, families[pool.version].pools[pool].mod_revision)
        for cidr, (_block, revision) in self._blocks.items():
            yield Compare(BlockKey(cidr).path, revision)
        for cidr, revision in self._affinities.items():
            yield Compare(AffinityKey(self._knowledge.host, cidr).path, revision)
        for version in self.claimed_versions:
            yield NoneNewer(affinity_prefix(self._knowledge.host, version), families[version].affinities_as_of)
        for handle, (_record, known) in self._handles.items():
            yield Compare(HandleKey(handle).path, known.mod_revision)

    def operations(self) -> tuple[Operation, ...]:
        return tuple(self._operations())

    def _operations(self) -> Iterator[Operation]:
        for cidr, (block, _revision) in self._blocks.items():
            path = BlockKey(cidr).path
            yield Delete(path) if is_disposable(block) else Put(path, codec.encode(block))
        for cidr in self._affinities:
            yield Put(AffinityKey(self._knowledge.host, cidr).path, codec.encode(_CONFIRMED))
        for theirs in self._reclaimed.values():
            yield Delete(theirs.path)
        for handle, (record, known) in self._handles.items():
            path = HandleKey(handle).path
            if record is not None and record != known.record:
                yield Put(path, codec.encode(record))
            elif record is None and known.mod_revision:
                yield Delete(path)

    @property
    def claimed_versions(self) -> tuple[int, ...]:
        """Families in which an affinity of ours is written."""
        return tuple(sorted({cidr.version for cidr in self._affinities}))

    def claimed(self) -> tuple[IPNetwork, ...]:
        """Blocks this draft makes."""
        return tuple(self._made)

    def reclaimed(self) -> tuple[AffinityKey, ...]:
        """Affinities of other hosts, to blocks that this one takes over empty."""
        return tuple(self._reclaimed.values())

    def own(self, version: int) -> list[IPNetwork]:
        """Blocks of this host as they are to be, among those written here."""
        host = self._knowledge.host
        return [cidr for cidr, (block, _) in self._blocks.items() if cidr.version == version and block.owner == host]

    def committed(self, revision: int) -> None:
        """Take the result into what is known, without a read."""
        for cidr, (block, _before) in self._blocks.items():
            family = self._knowledge.families[cidr.version]
            if is_disposable(block):
                family.blocks[cidr] = Known(None, 0, revision)
                family.taken.discard(cidr)
            else:
                family.blocks[cidr] = Known(block, revision, revision)
                family.taken.add(cidr)
        for cidr in self._affinities:
            self._knowledge.families[cidr.version].affinities[cidr] = Known(_CONFIRMED, revision, revision)
        for version in self.claimed_versions:  # none was newer, says the commit, and ours is of this revision
            self._knowledge.families[version].affinities_as_of = revision
        for handle, (record, known) in self._handles.items():
            if record != known.record:
                self._knowledge.learn_handle(handle, record, revision)


def is_confirmed(affinity: Known[Affinity]) -> bool:
    """``pending`` and ``pendingDeletion`` count as absent. Source: ipam specification 2.2."""
    return affinity.record is not None and affinity.record.state == "confirmed" and not affinity.record.deleted


def is_disposable(block: Block) -> bool:
    """Nobody owns it and nobody is in it: it has no reason to exist, on whichever path it became so."""
    return block.is_empty and not block.affinity


def labels_key(host: str) -> HostConfigKey:
    """Where a host's labels are: a JSON map, for pools that select hosts by them."""
    return HostConfigKey(host, "Labels")


def affinity_prefix(host: str, version: int) -> str:
    return f"{AFFINITIES}{host}/ipv{version}/block/"


def handle_blocks(handle: Handle) -> tuple[IPNetwork, ...]:
    """The blocks a handle names; what is no CIDR is skipped."""
    found: list[IPNetwork] = []
    for text in handle.block:
        try:
            found.append(parse_network(text, field="block"))
        except InvalidRequest as error:
            log.warning("ipam.handle_names_no_block", handle=handle.id, reason=error.reason)
    return tuple(found)
