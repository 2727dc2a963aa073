"""A persistent set against a plain one: whatever was changed, and whatever it is compared with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calico_core.dataplane.persistent_set import PersistentSet

_ELEMENTS = st.frozensets(st.integers(0, 300), max_size=120)


@given(_ELEMENTS, st.lists(st.tuples(_ELEMENTS, _ELEMENTS), max_size=6))
def test_any_changes_end_where_a_plain_set_does(
    first: frozenset[int], changes: list[tuple[frozenset[int], frozenset[int]]]
) -> None:
    found, plain = PersistentSet(first), first
    for added, removed in changes:
        before, kept = found, frozenset(plain)
        found, plain = found.changed(added, removed), (plain - removed) | added
        assert found == plain
        assert plain == found
        assert (len(found), frozenset(found)) == (len(plain), plain)
        assert all((value in found) == (value in plain) for value in range(301))
        assert frozenset(before) == kept, "the set it was made from has changed"


@given(_ELEMENTS, _ELEMENTS, _ELEMENTS)
def test_differences_are_those_of_plain_sets_whoever_stands_on_either_side(
    one: frozenset[int], two: frozenset[int], more: frozenset[int]
) -> None:
    base = PersistentSet(one)
    for left, right in (
        (base, PersistentSet(two)), (base, two), (one, PersistentSet(two)), (base, base.changed(more, two)),
    ):  # fmt: skip
        assert left - right == frozenset(left) - frozenset(right)
        assert right - left == frozenset(right) - frozenset(left)
        assert (left == right) == (frozenset(left) == frozenset(right))
        assert left != frozenset(left) | {301}


@given(_ELEMENTS, _ELEMENTS)
def test_a_change_that_changes_nothing_gives_the_same_set(one: frozenset[int], two: frozenset[int]) -> None:
    base = PersistentSet(one)
    assert base.changed(one, two - one) is base
