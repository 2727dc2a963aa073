"""A block against a dictionary and a list. Source: ipam specification 12, invariants 1, 2, 8 and 12 to 15."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from netaddr import IPNetwork

from calico_core.errors import AddressInUse, StaleRelease
from calico_core.ipam import blocks
from calico_core.model import codec
from calico_core.model.blocks import AllocationAttributes
from calico_core.model.keys import BlockKey

SIZE = 8
CIDR = IPNetwork("10.0.0.8/29")
HANDLES = st.sampled_from([None, "a", "b", "c"])
NOTES = st.sampled_from([None, {"node": "x"}, {"node": "y", "ports": [1]}])
ORDINALS = st.integers(0, SIZE - 1)


class BlockMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.block = blocks.new_block(CIDR, "hostA", sequence=100)
        self.held: dict[int, AllocationAttributes] = {}
        self.queue = list(range(SIZE))
        self.sequence = 100

    @rule(count=st.integers(0, SIZE + 1), handle=HANDLES, notes=NOTES)
    def take(self, count: int, handle: str | None, notes: dict[str, object] | None) -> None:
        attributes = AllocationAttributes(handle_id=handle, secondary=notes)
        self.block, taken = blocks.take(self.block, count, attributes)
        assert list(taken) == self.queue[:count]
        del self.queue[:count]
        self.held.update(dict.fromkeys(taken, attributes))

    @rule(ordinal=ORDINALS, handle=HANDLES, notes=NOTES)
    def take_ordinal(self, ordinal: int, handle: str | None, notes: dict[str, object] | None) -> None:
        attributes = AllocationAttributes(handle_id=handle, secondary=notes)
        if ordinal in self.held:
            with pytest.raises(AddressInUse) as refusal:
                blocks.take_ordinal(self.block, ordinal, attributes)
            assert refusal.value.holder == self.held[ordinal].handle_id
            return
        self.block = blocks.take_ordinal(self.block, ordinal, attributes)
        self.queue.remove(ordinal)
        self.held[ordinal] = attributes

    @rule(ordinals=st.lists(ORDINALS, max_size=5), handle=HANDLES)
    def release(self, ordinals: list[int], handle: str | None) -> None:
        strangers = [o for o in ordinals if o in self.held and handle not in {None, self.held[o].handle_id}]
        if strangers:
            with pytest.raises(StaleRelease):
                blocks.release(self.block, ordinals, handle=handle)
            return
        result = blocks.release(self.block, ordinals, handle=handle)
        expected = [ordinal for ordinal in dict.fromkeys(ordinals) if ordinal in self.held]
        assert list(result.freed) == expected
        assert set(result.was_free) == set(ordinals) - set(expected)
        assert blocks.release(result.block, ordinals).block is result.block, "twice is once"
        for ordinal in expected:
            del self.held[ordinal]
        self.queue += expected
        self.block = result.block

    @rule(owner=st.sampled_from([None, "hostA", "hostB"]))
    def give(self, owner: str | None) -> None:
        self.block = blocks.with_owner(self.block, owner)
        assert self.block.owner == owner

    @rule()
    def store_and_load(self) -> None:
        loaded = codec.decode(BlockKey(CIDR), codec.encode(self.block))
        assert loaded == self.block
        self.block = loaded

    @invariant()
    def is_the_model(self) -> None:
        block = self.block
        found = {ordinal: blocks.attributes_at(block, ordinal) for ordinal in range(SIZE)}
        assert {ordinal: held for ordinal, held in found.items() if held is not None} == self.held
        assert list(blocks.free_ordinals(block)) == self.queue
        assert {index for index in block.allocations if index is not None} == set(range(len(block.attributes)))
        assert set(block.sequence_for_allocation) == {str(ordinal) for ordinal in self.held}
        handles = [held.handle_id for held in self.held.values() if held.handle_id is not None]
        assert blocks.counts(block) == {handle: handles.count(handle) for handle in handles}
        for handle in ("a", "b", "c"):
            expected = sorted(o for o, held in self.held.items() if held.handle_id == handle)
            assert list(blocks.ordinals_of(block, handle)) == expected
        assert block.sequence_number >= self.sequence
        self.sequence = block.sequence_number


BlockMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBlock = BlockMachine.TestCase
