"""Which addresses are freed: the planners behind ``release`` and ``release_by_handle``.

A block without owner goes when its last address does, on every path; a block of a host stays, so that the host keeps
its affinity. Source: ipam specification 2.3, 3.2 and 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from calico_core.errors import InvalidRecord
from calico_core.ipam import blocks
from calico_core.ipam.draft import Draft, handle_blocks
from calico_core.ipam.steps import Fresh, Need, Plan, possible_blocks
from calico_core.log import get_logger
from calico_core.model.blocks import Block
from calico_core.model.keys import BlockKey, HandleKey, Key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netaddr import IPAddress, IPNetwork

    from calico_core.ipam.knowledge import Knowledge

log = get_logger(__name__)


class _Freed(NamedTuple):
    """One address to be freed. ``sequence`` tells this assignment from a later one of the same address."""

    address: IPAddress
    cidr: IPNetwork
    sequence: int | None


def plan_release(
    knowledge: Knowledge, addresses: Sequence[IPAddress], handle: str | None, fresh: Fresh, *, room: int
) -> Plan | Need:
    """Free as many of ``addresses`` as ``room`` writes allow; all are checked before the first is freed.

    Raises ``StaleRelease``, only from fresh knowledge, and ``InvalidRecord`` for a block that does not decode.
    """
    located = _locate(knowledge, addresses, fresh)
    if isinstance(located, Need):
        return located
    by_block, was_free = located
    checked: list[tuple[Block, tuple[int, ...]]] = []
    names: dict[str, None] = {}
    for block, ordinals in by_block:
        if BlockKey(block.cidr) not in fresh.keys and not _all_held(block, ordinals, handle):
            return Need(keys=(BlockKey(block.cidr),))
        result = blocks.release(block, ordinals, handle=handle)
        was_free += [blocks.address_at(block, ordinal) for ordinal in result.was_free]
        checked.append((block, result.freed))
        names.update(dict.fromkeys(sorted(result.handles)))
    unread = tuple(HandleKey(name) for name in names if knowledge.handle(name).as_of < 0)
    if unread:
        return Need(keys=unread)

    draft = Draft(knowledge)
    freed: list[_Freed] = []
    counted: set[str] = set()
    is_partial = False
    for block, held in checked:
        affordable, room = _affordable(block, held, counted, room)
        is_partial = is_partial or len(affordable) < len(held)
        freed += _free(draft, block, affordable)
    return Plan(
        tuple(item.address for item in freed), draft, lambda: _are_gone(knowledge, freed), is_partial, tuple(was_free)
    )


def plan_release_by_handle(knowledge: Knowledge, handles: Sequence[str], fresh: Fresh, *, room: int) -> Plan | Need:
    """Free what the handles hold, as far as ``room`` writes allow. A block that does not decode is left alone, with
    the handle's entry for it."""
    if all(knowledge.handle(handle).record is None for handle in handles):
        unread = tuple(HandleKey(handle) for handle in handles if HandleKey(handle) not in fresh.keys)
        if unread:
            return Need(keys=unread)
    need = _unread_blocks(knowledge, handles)
    if need:
        return Need(keys=need)

    draft = Draft(knowledge)
    freed: list[_Freed] = []
    is_partial = False
    for handle in handles:
        known = knowledge.handle(handle)
        if known.is_malformed:
            continue
        cidrs = handle_blocks(known.record) if known.record else ()
        new = [cidr for cidr in cidrs if not draft.changes(cidr)]
        if room < 1 + len(new):
            is_partial = True
            cidrs = tuple(cidrs[: max(room - 1, 0)])
        if is_partial and not cidrs:
            break
        freed += _free_handle(draft, knowledge, handle, cidrs)
        room -= 1 + len(new)
        if is_partial:
            break
    return Plan(tuple(item.address for item in freed), draft, lambda: _are_gone(knowledge, freed), is_partial)


def _free_handle(draft: Draft, knowledge: Knowledge, handle: str, cidrs: Sequence[IPNetwork]) -> list[_Freed]:
    freed: list[_Freed] = []
    settled: list[IPNetwork] = []
    for cidr in cidrs:
        known = knowledge.families[cidr.version].block(cidr)
        if known is not None and known.is_malformed:
            continue
        block = draft.block(cidr)
        if block is not None:
            freed += _free(draft, block, blocks.ordinals_of(block, handle))
        settled.append(cidr)
    draft.rest_on_handle(handle)
    draft.recount(handle, settled)
    return freed


def _free(draft: Draft, block: Block, ordinals: Sequence[int]) -> list[_Freed]:
    if not ordinals:
        return []
    result = blocks.release(block, ordinals)
    draft.change(result.block)
    for name in sorted(result.handles):
        draft.recount(name, (block.cidr,))
    sequences = block.sequence_for_allocation
    return [_Freed(blocks.address_at(block, o), block.cidr, sequences.get(str(o))) for o in result.freed]


def _locate(
    knowledge: Knowledge, addresses: Sequence[IPAddress], fresh: Fresh
) -> tuple[list[tuple[Block, list[int]]], list[IPAddress]] | Need:
    """The block of each address, with no help from pools: they may be gone."""
    by_block: dict[IPNetwork, tuple[Block, list[int]]] = {}
    nowhere: list[IPAddress] = []
    unread: list[Key] = []
    for address in dict.fromkeys(addresses):
        family = knowledge.families[address.version]
        known = family.block_of(address)
        if known is not None and known.record is not None:
            block = known.record
            by_block.setdefault(block.cidr, (block, []))[1].append(blocks.ordinal_of(block, address))
            continue
        keys = possible_blocks(address)
        unread += [key for key in keys if key not in fresh.keys]
        for key in keys:
            broken = family.block(key.cidr)
            if broken is not None and broken.is_malformed:
                raise InvalidRecord(key.path, "", "does not decode; it is left alone")
        nowhere.append(address)
    if unread:
        return Need(keys=tuple(dict.fromkeys(unread)))
    return list(by_block.values()), nowhere


def _affordable(block: Block, ordinals: Sequence[int], counted: set[str], room: int) -> tuple[list[int], int]:
    """Those of ``ordinals`` for which the transaction has room, and the room left: a write for the block and one for
    each handle not yet in it."""
    chosen: list[int] = []
    for ordinal in ordinals:
        held = blocks.attributes_at(block, ordinal)
        name = held.handle_id if held else None
        cost = (0 if chosen else 1) + (1 if name is not None and name not in counted else 0)
        if cost > room:
            break
        room -= cost
        chosen.append(ordinal)
        if name is not None:
            counted.add(name)
    return chosen, room


def _all_held(block: Block, ordinals: Sequence[int], handle: str | None) -> bool:
    held = [blocks.attributes_at(block, ordinal) for ordinal in ordinals]
    return all(item is not None and (handle is None or blocks.same_handle(item.handle_id, handle)) for item in held)


def _unread_blocks(knowledge: Knowledge, handles: Sequence[str]) -> tuple[Key, ...]:
    """Handles and their blocks, when one of the blocks is not known as of its handle's last change."""
    keys: list[Key] = []
    is_behind = False
    for handle in handles:
        known = knowledge.handle(handle)
        keys.append(HandleKey(handle))
        for cidr in handle_blocks(known.record) if known.record else ():
            block = knowledge.families[cidr.version].block(cidr)
            is_behind = is_behind or block is None or block.as_of < known.mod_revision
            keys.append(BlockKey(cidr))
    return tuple(dict.fromkeys(keys)) if is_behind else ()


def _are_gone(knowledge: Knowledge, freed: Sequence[_Freed]) -> bool:
    for item in freed:
        known = knowledge.families[item.cidr.version].block(item.cidr)
        if known is None or known.is_malformed:
            return False
        block = known.record
        if block is None:
            continue
        ordinal = blocks.ordinal_of(block, item.address)
        held = blocks.attributes_at(block, ordinal)
        if held is not None and block.sequence_for_allocation.get(str(ordinal)) == item.sequence:
            return False
    return True
