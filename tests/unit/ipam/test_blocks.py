from __future__ import annotations

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.errors import AddressInUse, StaleRelease
from calico_core.ipam import blocks
from calico_core.model import codec
from calico_core.model.blocks import AllocationAttributes, Block
from calico_core.model.keys import BlockKey

CIDR = IPNetwork("10.1.2.64/26")


def held_by(handle: str | None, **secondary: str) -> AllocationAttributes:
    return AllocationAttributes(handle_id=handle, secondary=secondary or None)


def a_block(*handles: str) -> Block:
    """One address for each handle, in order."""
    block = blocks.new_block(CIDR, "hostA", sequence=1000)
    for handle in handles:
        block, _taken = blocks.take(block, 1, held_by(handle))
    return block


@pytest.mark.parametrize(
    ("cidr", "size"), [("10.0.0.0/26", 64), ("10.0.0.8/29", 8), ("10.0.0.1/32", 1), ("fd00::/122", 64)]
)
def test_a_new_block_is_empty_and_owned(cidr: str, size: int) -> None:
    block = blocks.new_block(IPNetwork(cidr), "hostA", sequence=7)
    assert block.owner == "hostA"
    assert block.affinity == "host:hostA"
    assert blocks.free_ordinals(block) == tuple(range(size))
    assert block.is_empty
    assert block.sequence_number == 7


def test_the_first_address_of_a_block_is_its_base() -> None:
    block, taken = blocks.take(a_block(), 2, held_by("h"))
    assert [blocks.address_at(block, ordinal) for ordinal in taken] == [IPAddress("10.1.2.64"), IPAddress("10.1.2.65")]
    assert blocks.ordinal_of(block, IPAddress("10.1.2.65")) == 1


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (-1, 0), (1, 1), (64, 64), (65, 64)])
def test_take_gives_what_there_is(asked: int, given: int) -> None:
    block, taken = blocks.take(a_block(), asked, held_by("h"))
    assert len(taken) == given
    assert blocks.counts(block) == ({"h": given} if given else {})


def test_released_addresses_are_used_last() -> None:
    block = a_block("a", "b", "c")
    block = blocks.release(block, [1, 0]).block
    block, taken = blocks.take(block, 63, held_by("d"))
    assert taken == (*range(3, 64), 1, 0)


def test_taking_an_exact_address_leaves_the_queue_in_order() -> None:
    block = blocks.take_ordinal(a_block(), 1, held_by("x"))
    assert blocks.take(block, 2, held_by("y"))[1] == (0, 2)


def test_an_exact_address_that_is_held_names_its_holder() -> None:
    with pytest.raises(AddressInUse) as refusal:
        blocks.take_ordinal(a_block("a"), 0, held_by("b"))
    assert (refusal.value.address, refusal.value.holder) == ("10.1.2.64", "a")


@pytest.mark.parametrize("ordinal", [-1, 64])
def test_ordinals_end_with_the_block(ordinal: int) -> None:
    with pytest.raises(IndexError):
        blocks.take_ordinal(a_block(), ordinal, held_by("a"))


def test_equal_attributes_are_kept_once_and_renumbered() -> None:
    block = a_block("a", "b", "a", "c")
    assert [held.handle_id for held in block.attributes] == ["a", "b", "c"]
    block = blocks.release(block, [1]).block
    assert [held.handle_id for held in block.attributes] == ["a", "c"]
    assert block.allocations[:4] == (0, None, 0, 1)


def test_sequence_numbers_grow_and_mark_allocations() -> None:
    block = a_block("a", "b")
    assert block.sequence_number == 1002
    assert block.sequence_for_allocation == {"0": 1001, "1": 1002}
    block = blocks.release(block, [0]).block
    assert block.sequence_number == 1003
    assert block.sequence_for_allocation == {"1": 1002}
    assert blocks.with_owner(block, None).sequence_number == 1004


def test_release_reports_what_was_free_and_counts_repeats_once() -> None:
    result = blocks.release(a_block("a", "b"), [1, 5, 1, 0, 5])
    assert (result.freed, result.was_free, result.handles) == ((1, 0), (5,), {"a", "b"})
    assert blocks.free_ordinals(result.block)[-2:] == (1, 0)


def test_releasing_what_is_free_changes_nothing() -> None:
    block = a_block("a")
    assert blocks.release(block, [3, 4]).block is block


@pytest.mark.parametrize(("stored", "named"), [("a", "a"), ("a\r\nx", "a")])
def test_release_with_the_right_handle(stored: str, named: str) -> None:
    block, _taken = blocks.take(a_block(), 1, held_by(stored))
    assert blocks.ordinals_of(block, named) == (0,)
    assert blocks.release(block, [0], handle=named).freed == (0,)


@pytest.mark.parametrize("stored", ["other", None])
def test_a_stale_release_frees_nothing(stored: str | None) -> None:
    block, _taken = blocks.take(a_block("a"), 1, held_by(stored))
    with pytest.raises(StaleRelease) as refusal:
        blocks.release(block, [0, 1], handle="a")
    assert refusal.value.address == "10.1.2.65"


def test_questions() -> None:
    block = a_block("a", "b", "a")
    assert blocks.addresses_of(block, "a") == (IPAddress("10.1.2.64"), IPAddress("10.1.2.66"))
    assert blocks.addresses_of(block, "nobody") == ()
    assert blocks.counts(block) == {"a": 2, "b": 1}
    assert blocks.attributes_at(block, 1) == held_by("b")
    assert blocks.attributes_at(block, 3) is None


def test_a_block_survives_the_wire() -> None:
    block = a_block("a", "b")
    assert codec.decode(BlockKey(CIDR), codec.encode(block)) == block
