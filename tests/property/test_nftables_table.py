"""Laws of the policy table: the way to a state does not matter, and a plan does what it says."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calico_core.dataplane.nftables.builder import TableBuilder
from calico_core.dataplane.nftables.elements import KINDS, NFT_SET_MAP, element_key, merge_ranges, parse_key
from calico_core.dataplane.reconcile import NamedSet, Plan, Table, reconcile
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.hoststate import HostState
from tests.doubles.host_states import host_states, step, whole

OPTIONS = DataplaneOptions(host="h")
# a state takes milliseconds to draw, more on a busy machine
unhurried = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(st.lists(host_states(), min_size=1, max_size=5))
def test_batches_lead_where_the_whole_state_leads(states: list[HostState]) -> None:
    kept, builder = HostState(), TableBuilder(OPTIONS)
    observed = Table(builder.table.chains, builder.table.sets)
    for target in states:
        changes = step(kept, target)
        kept.update(changes)
        names = builder.update(changes, kept)
        fresh = TableBuilder.of(OPTIONS, kept)
        assert builder.table.differences(fresh.table) == []
        assert builder.problems == fresh.problems
        # what the update names is all that differs
        observed.follow(builder.table, names)
        assert not reconcile(builder.table, observed)


@unhurried
@given(host_states(), host_states())
def test_applied_plan_gives_the_desired_table_and_a_second_plan_is_empty(before: HostState, after: HostState) -> None:
    desired, observed = TableBuilder.of(OPTIONS, after).table, TableBuilder.of(OPTIONS, before).table
    reached = carry_out(reconcile(desired, observed), desired, observed)
    assert not reconcile(desired, reached)
    assert reached.names() == desired.names()


@unhurried
@given(host_states())
def test_a_missing_table_is_built(state: HostState) -> None:
    desired = TableBuilder.of(OPTIONS, state).table
    plan = reconcile(desired, None)
    assert plan.is_rebuild
    assert not reconcile(desired, carry_out(plan, desired, Table()))


@unhurried
@given(host_states())
def test_complete_batch_is_the_state(state: HostState) -> None:
    kept = HostState()
    kept.update(whole(state))
    assert TableBuilder.of(OPTIONS, kept).table.differences(TableBuilder.of(OPTIONS, state).table) == []


@unhurried
@given(host_states())
def test_elements_survive_the_kernels_form(state: HostState) -> None:
    for each in TableBuilder.of(OPTIONS, state).table.sets.values():
        kind = KINDS[each.kind]
        for element in each.elements:
            if kind.flags & NFT_SET_MAP:  # the key alone
                assert parse_key(kind, element_key(kind, element)) == element[0]
            elif not kind.name.startswith("ranges"):
                assert parse_key(kind, element_key(kind, element)) == element


@unhurried
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), max_size=12))
def test_merged_ranges_hold_the_same_and_do_not_touch(pairs: list[tuple[int, int]]) -> None:
    ranges = [(first, first + length) for first, length in pairs]
    merged = merge_ranges(ranges)
    assert {value for first, last in ranges for value in range(first, last + 1)} == {
        value for first, last in merged for value in range(first, last + 1)
    }
    assert all(one[1] + 1 < other[0] for one, other in itertools.pairwise(merged))


def carry_out(plan: Plan, desired: Table, observed: Table) -> Table:
    """A kernel of a few lines: it refuses what the real one refuses."""
    reached = Table() if plan.is_rebuild else Table(observed.chains, observed.sets)
    for name in plan.new_sets:
        assert name not in reached.sets
        reached.sets[name] = NamedSet(desired.sets[name].kind, frozenset())
    for name in plan.new_chains:
        assert name not in reached.chains
        reached.chains[name] = desired.chains[name]
    for name, elements in plan.removed_elements.items():
        _change(reached, name, lambda held, elements=elements: held - set(elements), set(elements), True)
    for name in plan.written_chains:
        assert name in reached.chains
        reached.chains[name] = desired.chains[name]
    for name in plan.removed_chains:
        del reached.chains[name]
    for name, elements in plan.added_elements.items():
        _change(reached, name, lambda held, elements=elements: held | set(elements), set(elements), False)
    for name in plan.removed_sets:
        del reached.sets[name]
    _check_references(reached)
    return _comparable(reached, desired)


def _change(table: Table, name: str, result: Any, elements: set[Any], must_hold: bool) -> None:
    held = set(table.sets[name].elements)
    assert (elements <= held) if must_hold else elements.isdisjoint(held)
    table.sets[name] = NamedSet(table.sets[name].kind, frozenset(result(held)))


def _check_references(table: Table) -> None:
    for chain in table.chains.values():
        for rule in chain.rules:
            words = rule.split()
            assert all(word[1:] in table.sets for word in words if word.startswith("@"))
            targets = [words[place + 1] for place, word in enumerate(words) if word in ("jump", "goto")]
            assert all(target in table.chains for target in targets)
    for each in table.sets.values():
        if each.kind == "verdict":
            assert all(chain in table.chains for _, chain in each.elements)


def _comparable(reached: Table, desired: Table) -> Table:
    """Elements in the type the desired table has them in."""
    for name, each in reached.sets.items():
        if name in desired.sets:
            kind_of = type(desired.sets[name].elements)
            reached.sets[name] = NamedSet(each.kind, kind_of(each.elements))
    return reached
