"""Repairs of what :mod:`check` finds, each a transaction that compares everything it was decided from. Pure.

Only indexes are rewritten (handles, affinities) and empty blocks deleted: which address is held, and by whom, is never
changed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from calico_core.interfaces.datastore import Compare, Delete, Operation, Precondition, Put
from calico_core.ipam import check
from calico_core.ipam.draft import handle_blocks, is_disposable
from calico_core.model import codec
from calico_core.model.blocks import Affinity, Handle
from calico_core.model.keys import AffinityKey, BlockKey, HandleKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPNetwork

    from calico_core.interfaces.datastore import Versioned
    from calico_core.ipam.store_view import StoreView
    from calico_core.model.blocks import Block


class Repair(NamedTuple):
    """``what`` is a sentence for people. A refused transaction means that somebody changed it meanwhile."""

    object: str
    what: str
    preconditions: tuple[Precondition, ...]
    operations: tuple[Operation, ...]


def repairs(store: StoreView) -> tuple[Repair, ...]:
    """In an order in which they may all be carried out: handles, affinities, blocks."""
    return (*_handles(store), *_affinities(store), *_blocks(store))


def _handles(store: StoreView) -> Iterator[Repair]:
    counted = check.handle_counts(store)
    revisions = {found.record.cidr: found.mod_revision for found in store.blocks}
    unknown = store.malformed_blocks
    seen: set[str] = set()
    for found in store.handles:
        assert isinstance(found.key, HandleKey)
        name = found.key.handle
        seen.add(name)
        truth = {str(cidr): number for cidr, number in counted.get(name, {}).items()}
        named = handle_blocks(found.record)
        # what stands in a block that does not decode stays counted as it is
        truth |= {str(cidr): found.record.block.get(str(cidr), 0) for cidr in named if cidr in unknown}
        if (truth and found.record.block == truth) or "\r" in name:
            continue
        involved = {*named, *counted.get(name, {})} - unknown
        yield _rewritten(name, truth, found.mod_revision, {cidr: revisions.get(cidr, 0) for cidr in involved})
    for name, per_block in counted.items():
        if name not in seen and HandleKey(name).path not in store.malformed:
            truth = {str(cidr): number for cidr, number in per_block.items()}
            yield _rewritten(name, truth, 0, {cidr: revisions[cidr] for cidr in per_block})


def _rewritten(name: str, truth: dict[str, int], revision: int, involved: dict[IPNetwork, int]) -> Repair:
    path = HandleKey(name).path
    compares = (Compare(path, revision), *(Compare(BlockKey(cidr).path, seen) for cidr, seen in involved.items()))
    if not truth:
        return Repair(name, f"delete the handle {name}: it holds nothing", compares, (Delete(path),))
    write = Put(path, codec.encode(Handle(block=truth, id=name)))
    return Repair(name, f"count {sum(truth.values())} addresses for the handle {name}", compares, (write,))


def _affinities(store: StoreView) -> Iterator[Repair]:
    standing: dict[IPNetwork, Versioned[Block]] = {found.record.cidr: found for found in store.blocks}
    named = {check.affinity_key(found) for found in store.affinities}
    for found in store.affinities:
        key = check.affinity_key(found)
        block = standing.get(key.cidr)
        if key.cidr in store.malformed_blocks:
            continue
        compares = (
            Compare(key.path, found.mod_revision),
            Compare(BlockKey(key.cidr).path, block.mod_revision if block else 0),
        )
        if block is None or block.record.owner != key.host:
            yield Repair(key.path, f"forget that {key.host} has {key.cidr}: it has not", compares, (Delete(key.path),))
        elif found.record != Affinity():
            yield Repair(key.path, f"confirm that {key.host} has {key.cidr}", compares, (_confirmed(key),))
    for cidr, owned in standing.items():
        if owned.record.owner is None:
            continue
        key = AffinityKey(owned.record.owner, cidr)
        if key not in named and key.path not in store.malformed:
            compares = (Compare(key.path, 0), Compare(BlockKey(cidr).path, owned.mod_revision))
            yield Repair(str(cidr), f"record that {key.host} has {cidr}", compares, (_confirmed(key),))


def _confirmed(key: AffinityKey) -> Put:
    return Put(key.path, codec.encode(Affinity()))


def _blocks(store: StoreView) -> Iterator[Repair]:
    for found in store.blocks:
        if is_disposable(found.record):
            path = BlockKey(found.record.cidr).path
            what = f"delete the block {found.record.cidr}: it is empty and nobody's"
            yield Repair(str(found.record.cidr), what, (Compare(path, found.mod_revision),), (Delete(path),))
