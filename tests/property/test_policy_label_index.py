"""The label index answers as brute force does, whatever the order of changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calico_core.model.selectors import parse_selector
from calico_core.policy import label_index
from calico_core.policy.label_index import LabelIndex
from calico_core.policy.postings import Query

ITEMS, PARENTS, KEYS, VALUES = range(6), ("p", "q", "r"), ("a", "b", "c"), ("x", "y", "xy")
labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3)
comparisons = st.one_of(
    st.builds(lambda k: f"has({k})", st.sampled_from(KEYS)),
    st.builds(
        lambda k, o, v: f"{k} {o} '{v}'",
        st.sampled_from(KEYS),
        st.sampled_from(["==", "!=", "contains", "starts with", "ends with"]),
        st.sampled_from(VALUES),
    ),
    st.builds(
        lambda k, o, vs: f"{k} {o} {{{', '.join(repr(v) for v in vs)}}}",
        st.sampled_from(KEYS),
        st.sampled_from(["in", "not in"]),
        st.lists(st.sampled_from(VALUES), min_size=1, max_size=3),
    ),
    st.sampled_from(["all()", "global()"]),
)
texts = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(lambda each: f"!({each})", inner),
        st.builds(lambda each: f"({' && '.join(each)})", st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda each: f"({' || '.join(each)})", st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=6,
)
steps = st.one_of(
    st.tuples(
        st.just("item"),
        st.sampled_from(ITEMS),
        st.one_of(labels, labels, st.none()),
        st.lists(st.sampled_from(PARENTS), unique=True, max_size=3).map(tuple),
    ),
    st.tuples(st.just("parent"), st.sampled_from(PARENTS), st.one_of(labels, labels, st.none())),
    st.tuples(st.just("query"), texts),
    st.tuples(st.just("drop"), st.integers(0, 9)),
)


class Brute:
    def __init__(self) -> None:
        self.items: dict[int, tuple[dict[str, str], tuple[str, ...]]] = {}
        self.parents: dict[str, dict[str, str]] = {}

    def matching(self, text: str) -> set[int]:
        selector = parse_selector(text)
        found = set()
        for item, (own, parents) in self.items.items():
            effective: dict[str, str] = {}
            for parent in parents:
                effective.update(self.parents.get(parent, {}))
            effective.update(own)
            if selector.matches(effective):
                found.add(item)
        return found


@pytest.mark.parametrize(
    ("bulk", "algebra", "looks"), [(1, 16, 0), (1, 16, 100), (3, 16, 2), (256, 16, 8), (256, 0, 1)]
)
def test_index_is_brute_force(bulk: int, algebra: int, looks: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_index, "BULK_ITEMS", bulk)
        patch.setattr(label_index, "ALGEBRA_ITEMS", algebra)
        patch.setattr(label_index, "LOOKS_AN_ITEM", looks)
        check_index()


@settings(max_examples=300, deadline=None)
@given(batches=st.lists(st.lists(steps, max_size=8), max_size=6))
def check_index(batches: list[list[tuple[Any, ...]]]) -> None:
    index, brute = LabelIndex(), Brute()
    queries: list[tuple[Query, str]] = []
    accumulated: dict[Query, set[int]] = {}
    for batch in batches:
        for step in batch:
            if step[0] == "item":
                index.expect(1)
                brute.items.pop(step[1], None)
                if step[2] is None:
                    index.remove(step[1])
                else:
                    index.put(step[1], step[2], step[3])
                    brute.items[step[1]] = (step[2], step[3])
            elif step[0] == "parent":
                index.set_parent(step[1], step[2])
                brute.parents[step[1]] = step[2] or {}
            elif step[0] == "query":
                query = index.add_query(parse_selector(step[1]).root)
                queries.append((query, step[1]))
                accumulated[query] = set()
            elif queries:
                query, _ = queries.pop(step[1] % len(queries))
                index.drop_query(query)
                del accumulated[query]
        for query, delta in index.flush().items():
            added, removed = set(delta.added), set(delta.removed)
            assert added or removed
            assert not added & accumulated[query]
            assert removed <= accumulated[query]
            accumulated[query] = (accumulated[query] | added) - removed
        for query, text in queries:
            assert accumulated[query] == set(query.matched) == brute.matching(text), text
        for item in brute.items:
            assert set(index.matching(item)) == {query for query, text in queries if item in brute.matching(text)}
