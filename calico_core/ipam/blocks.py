"""What can be done to one block, as functions from block to block. Called by the planners of this package.

Blocks are immutable on purpose: each attempt of a transaction computes from the very state it compares against, so a
lost race leaves nothing behind to be written by the next attempt. Source: ipam specification 2.1 and 3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.errors import AddressInUse, StaleRelease
from calico_core.model.blocks import AllocationAttributes, Block

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Released(NamedTuple):
    """``freed`` in the order given; ``was_free`` were free already; ``handles`` had at least one of the freed."""

    block: Block
    freed: tuple[int, ...]
    was_free: tuple[int, ...]
    handles: frozenset[str]


def new_block(cidr: IPNetwork, owner: str | None, *, sequence: int) -> Block:
    """An empty block. ``sequence`` comes from the clock in nanoseconds, so that a block which is deleted and made
    again never repeats a number that somebody may still hold."""
    return Block(
        cidr=cidr,
        affinity=_affinity(owner),
        allocations=(None,) * cidr.size,
        unallocated=tuple(range(cidr.size)),
        sequence_number=sequence,
    )


def take(block: Block, count: int, attributes: AllocationAttributes) -> tuple[Block, tuple[int, ...]]:
    """Assign up to ``count`` addresses, the longest free first; the ordinals taken, fewer when the block fills up."""
    ordinals = free_ordinals(block)[: max(count, 0)]
    return (_assign(block, ordinals, attributes), ordinals) if ordinals else (block, ())


def take_ordinal(block: Block, ordinal: int, attributes: AllocationAttributes) -> Block:
    """Assign one address of the caller's choice. Raises ``AddressInUse`` with its holder."""
    current = attributes_at(block, ordinal)
    if current is not None:
        raise AddressInUse(str(address_at(block, ordinal)), current.handle_id)
    return _assign(block, (ordinal,), attributes)


def release(block: Block, ordinals: Iterable[int], *, handle: str | None = None) -> Released:
    """Free addresses; they join the end of the queue in the order given. Repeats in ``ordinals`` count once.

    With ``handle``, an address held by another raises ``StaleRelease`` and nothing is freed. When all were free
    already the block comes back unchanged.
    """
    freed: list[int] = []
    was_free: list[int] = []
    handles: set[str] = set()
    for ordinal in dict.fromkeys(ordinals):
        current = attributes_at(block, ordinal)
        if current is None:
            was_free.append(ordinal)
            continue
        if handle is not None and not same_handle(current.handle_id, handle):
            raise StaleRelease(str(address_at(block, ordinal)), handle, current.handle_id or "nobody known")
        freed.append(ordinal)
        if current.handle_id is not None:
            handles.add(current.handle_id)
    if freed:
        block = _free(block, freed)
    return Released(block, tuple(freed), tuple(was_free), frozenset(handles))


def with_owner(block: Block, owner: str | None) -> Block:
    """The block with affinity to ``owner``, or to nobody."""
    return msgspec.structs.replace(
        block, affinity=_affinity(owner), host_affinity=None, sequence_number=block.sequence_number + 1
    )


# --- questions -------------------------------------------------------------------------------------


def free_ordinals(block: Block) -> tuple[int, ...]:
    """In the order in which they will be given out."""
    return block.unallocated or ()


def attributes_at(block: Block, ordinal: int) -> AllocationAttributes | None:
    """None when the address is free. Raises ``IndexError`` outside the block."""
    if ordinal < 0:
        raise IndexError(ordinal)
    index = block.allocations[ordinal]
    return None if index is None else block.attributes[index]


def ordinals_of(block: Block, handle: str) -> tuple[int, ...]:
    """What a handle holds here, ascending."""
    indexes = {index for index, held in enumerate(block.attributes) if same_handle(held.handle_id, handle)}
    return tuple(ordinal for ordinal, index in enumerate(block.allocations) if index in indexes) if indexes else ()


def counts(block: Block) -> dict[str, int]:
    """Addresses per handle; those without a handle are not counted."""
    result: dict[str, int] = {}
    for index in block.allocations:
        handle = block.attributes[index].handle_id if index is not None else None
        if handle is not None:
            result[handle] = result.get(handle, 0) + 1
    return result


def addresses_of(block: Block, handle: str) -> tuple[IPAddress, ...]:
    return tuple(address_at(block, ordinal) for ordinal in ordinals_of(block, handle))


def address_at(block: Block, ordinal: int) -> IPAddress:
    return IPAddress(block.cidr.first + ordinal, block.cidr.version)


def ordinal_of(block: Block, address: IPAddress) -> int:
    return int(address) - int(block.cidr.first)


def same_handle(stored: str | None, handle: str) -> bool:
    """Tooling on Windows stored handles with ``\\r`` and more behind them: that part is not compared."""
    return stored is not None and (stored == handle or stored.split("\r", 1)[0] == handle)


# --- inside ----------------------------------------------------------------------------------------


def _affinity(owner: str | None) -> str | None:
    return None if owner is None else f"host:{owner}"


def _assign(block: Block, ordinals: Sequence[int], attributes: AllocationAttributes) -> Block:
    entries = list(block.attributes)
    try:
        index = entries.index(attributes)
    except ValueError:
        index = len(entries)
        entries.append(attributes)
    allocations = list(block.allocations)
    sequence = block.sequence_number + 1
    sequences = dict(block.sequence_for_allocation)
    for ordinal in ordinals:
        allocations[ordinal] = index
        sequences[str(ordinal)] = sequence
    taken = set(ordinals)
    queue = tuple(ordinal for ordinal in free_ordinals(block) if ordinal not in taken)
    return _rebuilt(block, allocations, queue, entries, sequences)


def _free(block: Block, ordinals: Sequence[int]) -> Block:
    allocations = list(block.allocations)
    sequences = dict(block.sequence_for_allocation)
    for ordinal in ordinals:
        allocations[ordinal] = None
        sequences.pop(str(ordinal), None)
    queue = (*free_ordinals(block), *ordinals)
    return _rebuilt(block, allocations, queue, list(block.attributes), sequences)


def _rebuilt(
    block: Block,
    allocations: list[int | None],
    queue: tuple[int, ...],
    entries: list[AllocationAttributes],
    sequences: dict[str, int],
) -> Block:
    """One sequence number further, without the attributes nobody refers to; the rest are renumbered in order."""
    used = sorted({index for index in allocations if index is not None})
    numbers = {old: new for new, old in enumerate(used)}
    return msgspec.structs.replace(
        block,
        allocations=tuple(None if index is None else numbers[index] for index in allocations),
        unallocated=queue,
        attributes=tuple(entries[index] for index in used),
        sequence_number=block.sequence_number + 1,
        sequence_for_allocation=sequences,
    )
