"""What can be done to one block, as functions from block to block. Called by the planners of this package.

Blocks are immutable on purpose: each attempt of a transaction computes from the very state it compares against, so a
lost race leaves nothing behind to be written by the next attempt. Source: ipam specification 2.1 and 3.2.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.errors import AddressInUse, StaleRelease
from calico_core.model.blocks import AllocationAttributes, Block

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


class Released(NamedTuple):
    """``freed`` in the order given; ``was_free`` were free already; ``handles`` had at least one of the freed."""

    block: Block
    freed: tuple[int, ...]
    was_free: tuple[int, ...]
    handles: frozenset[str]


def new_block(cidr: IPNetwork, owner: str | None, *, sequence: int) -> Block:
    """An empty block. ``sequence`` is the clock in nanoseconds, so that a block which is deleted and made again never
    repeats a number that somebody may still hold; it is also the time of the claim."""
    return Block(
        cidr=cidr,
        affinity=_affinity(owner),
        allocations=(None,) * cidr.size,
        unallocated=tuple(range(cidr.size)),
        sequence_number=sequence,
        affinity_claim_time=moment(sequence),
    )


def take(
    block: Block, count: int, attributes: AllocationAttributes, *, reserved: Collection[int] = ()
) -> tuple[Block, tuple[int, ...]]:
    """Assign up to ``count`` addresses, the longest free first; the ordinals taken, fewer when the block fills up.
    ``reserved`` ordinals keep their place in the queue."""
    free = free_ordinals(block)
    if reserved:
        free = tuple(ordinal for ordinal in free if ordinal not in reserved)
    ordinals = free[: max(count, 0)]
    return (_assign(block, ordinals, attributes), ordinals) if ordinals else (block, ())


def take_ordinal(block: Block, ordinal: int, attributes: AllocationAttributes) -> Block:
    """Assign one address of the caller's choice. Raises ``AddressInUse`` with its holder."""
    current = attributes_at(block, ordinal)
    if current is not None:
        raise AddressInUse(str(address_at(block, ordinal)), current.handle_id)
    return _assign(block, (ordinal,), attributes)


def release(
    block: Block,
    ordinals: Iterable[int],
    *,
    handle: str | None = None,
    sequences: Mapping[int, int | None] | None = None,
    cooling_since: datetime | None = None,
) -> Released:
    """Free addresses; they join the end of the queue in the order given. Repeats in ``ordinals`` count once.

    With ``handle``, or a number in ``sequences``, an address held by another or assigned at another number raises
    ``StaleRelease`` and nothing is freed. With ``cooling_since`` they are kept out of the queue until :func:`cooled`.
    When all were free already the block comes back unchanged.
    """
    freed: list[int] = []
    was_free: list[int] = []
    handles: set[str] = set()
    for ordinal in dict.fromkeys(ordinals):
        current = attributes_at(block, ordinal)
        if current is None:
            was_free.append(ordinal)
            continue
        _require_same(block, ordinal, current, handle, sequences or {})
        freed.append(ordinal)
        if current.handle_id is not None:
            handles.add(current.handle_id)
    if freed:
        block = _free(block, freed, cooling_since)
    return Released(block, tuple(freed), tuple(was_free), frozenset(handles))


def cooled(block: Block, now: datetime, cooldown_s: float) -> Block:
    """The block with what was released ``cooldown_s`` ago or earlier back in the queue, oldest first.

    A stamp further ahead of ``now`` than one cool-down is the work of a wrong clock and does not hold.
    """
    since = [held.cooling_since for held in block.attributes]
    if not any(since):
        return block
    ready: list[tuple[datetime, int]] = []
    for ordinal, index in enumerate(block.allocations):
        released = since[index] if index is not None else None
        if released is not None and abs((now - released).total_seconds()) >= cooldown_s:
            ready.append((released, ordinal))
    return _free(block, [ordinal for _released, ordinal in sorted(ready)], None) if ready else block


def with_owner(block: Block, owner: str | None, *, claimed_at: datetime | None = None) -> Block:
    """The block with affinity to ``owner``, or to nobody. ``claimed_at`` when that is new."""
    return msgspec.structs.replace(
        block,
        affinity=_affinity(owner),
        host_affinity=None,
        sequence_number=block.sequence_number + 1,
        affinity_claim_time=claimed_at or block.affinity_claim_time,
    )


# --- questions -------------------------------------------------------------------------------------


def free_ordinals(block: Block) -> tuple[int, ...]:
    """In the order in which they will be given out."""
    return block.unallocated or ()


def attributes_at(block: Block, ordinal: int) -> AllocationAttributes | None:
    """None when the address is free, if only for cooling down. Raises ``IndexError`` outside the block."""
    if ordinal < 0:
        raise IndexError(ordinal)
    index = block.allocations[ordinal]
    if index is None or block.attributes[index].cooling_since is not None:
        return None
    return block.attributes[index]


def sequence_at(block: Block, ordinal: int) -> int | None:
    """What tells this assignment of an address from others of it. None: free, or assigned by older software."""
    return block.sequence_for_allocation.get(str(ordinal))


def ordinals_of(block: Block, handle: str) -> tuple[int, ...]:
    """What a handle holds here, ascending."""
    indexes = {index for index, held in enumerate(block.attributes) if same_handle(held.handle_id, handle)}
    return tuple(ordinal for ordinal, index in enumerate(block.allocations) if index in indexes) if indexes else ()


def ordinals_on(block: Block, host: str) -> tuple[int, ...]:
    """What was assigned for workloads of a host, ascending; also in blocks of other hosts."""
    indexes = {index for index, held in enumerate(block.attributes) if (held.secondary or {}).get("node") == host}
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


def moment(clock_ns: int) -> datetime:
    """A clock in nanoseconds as records tell the time."""
    return datetime.fromtimestamp(clock_ns // 1_000_000_000, UTC).replace(microsecond=clock_ns // 1000 % 1_000_000)


# --- inside ----------------------------------------------------------------------------------------


def _affinity(owner: str | None) -> str | None:
    return None if owner is None else f"host:{owner}"


def _require_same(
    block: Block,
    ordinal: int,
    current: AllocationAttributes,
    handle: str | None,
    sequences: Mapping[int, int | None],
) -> None:
    holder = current.handle_id or "nobody known"
    if handle is not None and not same_handle(current.handle_id, handle):
        raise StaleRelease(str(address_at(block, ordinal)), handle, holder)
    if ordinal not in sequences:
        return
    expected, found = sequences[ordinal], sequence_at(block, ordinal)
    if expected != found:
        raise StaleRelease(str(address_at(block, ordinal)), f"assignment {expected}", f"{found}, of {holder}")


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


def _free(block: Block, ordinals: Sequence[int], cooling_since: datetime | None) -> Block:
    allocations = list(block.allocations)
    entries = list(block.attributes)
    sequences = dict(block.sequence_for_allocation)
    if cooling_since is not None:
        entries.append(AllocationAttributes(released_at=cooling_since))
    for ordinal in ordinals:
        allocations[ordinal] = None if cooling_since is None else len(entries) - 1
        sequences.pop(str(ordinal), None)
    queue = free_ordinals(block)
    return _rebuilt(block, allocations, queue if cooling_since else (*queue, *ordinals), entries, sequences)


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
