"""Which addresses are freed: the planners behind ``release`` and ``release_by_handle``.

A block without owner goes when its last address does, on every path; a block of a host stays, so that the host keeps
its affinity. Source: ipam specification 2.3, 3.2 and 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from calico_core.errors import InvalidRecord
from calico_core.interfaces.datastore import MAX_TRANSACTION_OPERATIONS
from calico_core.ipam import blocks
from calico_core.ipam.draft import Draft, handle_blocks
from calico_core.ipam.steps import Fresh, Need, Plan, both, possible_blocks
from calico_core.log import get_logger
from calico_core.model.blocks import Block
from calico_core.model.keys import BlockKey, HandleKey, IpamConfigKey, Key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from netaddr import IPAddress, IPNetwork

    from calico_core.ipam.knowledge import Knowledge

log = get_logger(__name__)


class Release(NamedTuple):
    """What is common to the planners. ``room``: operations of the transaction that the caller needs for itself.
    ``now_ns``: the clock, from which what is freed begins to cool down."""

    knowledge: Knowledge
    sequences: Mapping[IPAddress, int | None]
    now_ns: int
    used: int = 0

    def room(self, draft: Draft) -> int:
        return MAX_TRANSACTION_OPERATIONS - self.used - draft.weight


class _Freed(NamedTuple):
    """One address to be freed. ``sequence`` tells this assignment from a later one of the same address."""

    address: IPAddress
    cidr: IPNetwork
    sequence: int | None


def plan_release(
    release: Release, addresses: Sequence[IPAddress], handle: str | None, fresh: Fresh, draft: Draft
) -> Plan | Need:
    """Free as many of ``addresses`` as a transaction holds; all are checked before the first is freed.

    Raises ``StaleRelease``, only from fresh knowledge, and ``InvalidRecord`` for a block that does not decode.
    """
    return _with_config(release.knowledge, _plan_release(release, addresses, handle, fresh, draft))


def _plan_release(
    release: Release, addresses: Sequence[IPAddress], handle: str | None, fresh: Fresh, draft: Draft
) -> Plan | Need:
    knowledge = release.knowledge
    located = _locate(knowledge, addresses, fresh)
    if isinstance(located, Need):
        return located
    by_block, was_free = located
    checked: list[tuple[Block, tuple[int, ...]]] = []
    names: dict[str, None] = {}
    for block, ordinals in by_block:
        numbers = _numbers(release, block, ordinals)
        if BlockKey(block.cidr) not in fresh.keys and not _all_held(block, ordinals, handle, numbers):
            return Need(keys=(BlockKey(block.cidr),))
        result = blocks.release(block, ordinals, handle=handle, sequences=numbers)
        was_free += [blocks.address_at(block, ordinal) for ordinal in result.was_free]
        checked.append((block, result.freed))
        names.update(dict.fromkeys(sorted(result.handles)))
    unread = tuple(HandleKey(name) for name in names if knowledge.handle(name).as_of < 0)
    if unread:
        return Need(keys=unread)

    room = release.room(draft)
    freed: list[_Freed] = []
    counted: set[str] = set()
    is_partial = False
    for block, held in checked:
        affordable, room = _affordable(block, held, counted, room)
        is_partial = is_partial or len(affordable) < len(held)
        freed += _free(release, draft, block, affordable)
    return Plan(tuple(item.address for item in freed), lambda: _are_gone(knowledge, freed), is_partial, tuple(was_free))


def plan_release_by_handle(release: Release, handles: Sequence[str], fresh: Fresh, draft: Draft) -> Plan | Need:
    """Free what the handles hold, as far as a transaction has room. An address named in ``sequences`` at another number
    is the next owner's and stays; so does a block that does not decode, with the handle's entry for it."""
    return _with_config(release.knowledge, _plan_release_by_handle(release, handles, fresh, draft))


def _plan_release_by_handle(release: Release, handles: Sequence[str], fresh: Fresh, draft: Draft) -> Plan | Need:
    knowledge = release.knowledge
    if all(knowledge.handle(handle).record is None for handle in handles):
        unread = tuple(HandleKey(handle) for handle in handles if HandleKey(handle) not in fresh.keys)
        if unread:
            return Need(keys=unread)
    need = _unread_blocks(knowledge, handles)
    if need:
        return Need(keys=need)

    room = release.room(draft)
    freed: list[_Freed] = []
    is_partial = False
    for handle in handles:
        known = knowledge.handle(handle)
        if known.is_malformed:
            continue
        cidrs = handle_blocks(known.record) if known.record else ()
        doubtful = [cidr for cidr in cidrs if BlockKey(cidr) not in fresh.keys and _is_stale(release, handle, cidr)]
        if doubtful:
            return Need(keys=(HandleKey(handle), *(BlockKey(cidr) for cidr in doubtful)))
        new = [cidr for cidr in cidrs if not draft.changes(cidr)]
        if room < 1 + len(new):
            is_partial = True
            cidrs = tuple(cidrs[: max(room - 1, 0)])
        if is_partial and not cidrs:
            break
        freed += _free_handle(release, draft, handle, cidrs)
        room -= 1 + len(new)
        if is_partial:
            break
    return Plan(tuple(item.address for item in freed), lambda: _are_gone(knowledge, freed), is_partial)


def plan_sweep(release: Release, cidrs: Sequence[IPNetwork], fresh: Fresh, draft: Draft) -> Plan | Need:
    """Give back what has cooled down in these blocks, which nobody writes otherwise. As far as there is room."""
    unread = tuple(BlockKey(cidr) for cidr in cidrs if BlockKey(cidr) not in fresh.keys)
    if unread:
        return Need(keys=(*unread, IpamConfigKey()))
    for cidr in cidrs:
        block = draft.block(cidr)
        if block is None:
            continue
        changed = _cooled(release, block)
        if changed is not block:
            draft.rest_on_config()
            draft.change(changed)
    return Plan((), lambda: False)


def _with_config(knowledge: Knowledge, step: Plan | Need) -> Plan | Need:
    """How long addresses cool down must be known too: it is read on the way."""
    if knowledge.config.as_of >= 0:
        return step
    need = Need(keys=(IpamConfigKey(),))
    return both(step, need) if isinstance(step, Need) else need


def _cooldown_s(knowledge: Knowledge) -> int:
    """A configuration that does not decode must not keep anybody from giving addresses back."""
    return knowledge.config.record.cooldown_s if knowledge.config.record else 0


def _cooled(release: Release, block: Block) -> Block:
    return blocks.cooled(block, blocks.moment(release.now_ns), _cooldown_s(release.knowledge))


def _free_handle(release: Release, draft: Draft, handle: str, cidrs: Sequence[IPNetwork]) -> list[_Freed]:
    freed: list[_Freed] = []
    settled: list[IPNetwork] = []
    for cidr in cidrs:
        known = release.knowledge.families[cidr.version].block(cidr)
        if known is not None and known.is_malformed:
            continue
        block = draft.block(cidr)
        if block is not None:
            held = blocks.ordinals_of(block, handle)
            numbers = _numbers(release, block, held)
            mine = [o for o in held if o not in numbers or numbers[o] == blocks.sequence_at(block, o)]
            freed += _free(release, draft, block, mine)
        settled.append(cidr)
    draft.rest_on_handle(handle)
    draft.recount(handle, settled)
    return freed


def _is_stale(release: Release, handle: str, cidr: IPNetwork) -> bool:
    """Whether an address would be left alone for its number, by what is known."""
    known = release.knowledge.families[cidr.version].block(cidr)
    block = known.record if known else None
    if block is None or not release.sequences:
        return False
    numbers = _numbers(release, block, blocks.ordinals_of(block, handle))
    return any(blocks.sequence_at(block, ordinal) != number for ordinal, number in numbers.items())


def _numbers(release: Release, block: Block, ordinals: Sequence[int]) -> dict[int, int | None]:
    """What the caller expects of these ordinals, of those it expects something of."""
    named = {ordinal: blocks.address_at(block, ordinal) for ordinal in ordinals} if release.sequences else {}
    return {o: release.sequences[address] for o, address in named.items() if address in release.sequences}


def _free(release: Release, draft: Draft, block: Block, ordinals: Sequence[int]) -> list[_Freed]:
    if not ordinals:
        return []
    cooldown_s = _cooldown_s(release.knowledge)
    since = blocks.moment(release.now_ns) if cooldown_s else None
    result = blocks.release(_cooled(release, block), ordinals, cooling_since=since)
    draft.rest_on_config()
    draft.change(result.block)
    for name in sorted(result.handles):
        draft.recount(name, (block.cidr,))
    return [_Freed(blocks.address_at(block, o), block.cidr, blocks.sequence_at(block, o)) for o in result.freed]


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


def _all_held(block: Block, ordinals: Sequence[int], handle: str | None, numbers: Mapping[int, int | None]) -> bool:
    if any(blocks.sequence_at(block, ordinal) != number for ordinal, number in numbers.items()):
        return False
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
        if held is not None and blocks.sequence_at(block, ordinal) == item.sequence:
            return False
    return True
