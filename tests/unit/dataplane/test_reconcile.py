"""Plans by example; the laws are in the property tests."""

from __future__ import annotations

from calico_core.dataplane.reconcile import Chain, NamedSet, Plan, Table, reconcile


def a_table(**sets: frozenset[int]) -> Table:
    chains = {"base": Chain(("r1",), ("rule one",), "filter forward 0"), "other": Chain(("r2",), ("rule two",))}
    return Table(chains, {name: NamedSet("hosts4", elements) for name, elements in sets.items()})


def test_equal_tables_need_nothing() -> None:
    plan = reconcile(a_table(a=frozenset({1})), a_table(a=frozenset({1})))
    assert not plan
    assert plan.changes == 0


def test_elements_alone() -> None:
    plan = reconcile(a_table(a=frozenset({1, 2})), a_table(a=frozenset({2, 3})))
    assert plan == Plan(removed_elements={"a": frozenset({3})}, added_elements={"a": frozenset({1})})
    assert plan.changes == plan.element_count == 2


def test_other_rules_mean_writing_the_chain_and_no_other() -> None:
    observed = a_table()
    observed.chains["other"] = Chain(("r9",))
    plan = reconcile(a_table(), observed)
    assert plan == Plan(written_chains=("other",))


def test_names_limit_what_is_looked_at() -> None:
    desired, observed = a_table(a=frozenset({1}), b=frozenset({1})), a_table(a=frozenset(), b=frozenset())
    assert reconcile(desired, observed, ["b"]).names == {"b"}


def test_what_is_not_wanted_goes_and_what_is_missing_comes() -> None:
    desired, observed = a_table(new=frozenset({1}), empty=frozenset()), a_table(old=frozenset({2}))
    del desired.chains["other"]
    observed.chains["stray"] = Chain()
    plan = reconcile(desired, observed)
    assert plan == Plan(
        new_sets=("empty", "new"),
        removed_chains=("other", "stray"),
        added_elements={"new": frozenset({1})},
        removed_sets=("old",),
    )


def test_what_cannot_be_changed_in_place_means_a_new_table() -> None:
    hook, kind, unknown = a_table(a=frozenset()), a_table(a=frozenset()), a_table(a=frozenset())
    hook.chains["base"] = Chain(("r1",), (), "filter forward 0 policy drop")
    kind.sets["a"] = NamedSet("ranges4")
    unknown.sets["stray"] = NamedSet("")
    for observed in (hook, kind, unknown, None):
        plan = reconcile(a_table(a=frozenset({7})), observed)
        assert plan.is_rebuild
        assert plan.new_chains == ("base", "other")
        assert plan.added_elements == {"a": frozenset({7})}


def test_what_a_plan_says_of_itself() -> None:
    """The short way for elements alone says the same as the long one."""
    elements = Plan(
        removed_elements={"a": frozenset({1})}, added_elements={"a": frozenset({2, 3}), "b": frozenset({4})}
    )
    assert elements
    assert elements.has_elements_alone
    assert (elements.changes, elements.element_count, elements.names) == (4, 4, {"a", "b"})
    more = Plan(written_chains=("c",), new_chains=("d",), removed_sets=("e",), added_elements={"a": frozenset({2})})
    assert more
    assert not more.has_elements_alone
    assert (more.changes, more.element_count, more.names) == (4, 1, {"a", "c", "d", "e"})
    taking = (elements, more, Plan(is_rebuild=True))
    assert [each.takes_elements for each in (*taking, Plan(added_elements={"a": frozenset({2})}))] == [True] * 3 + [
        False
    ]
