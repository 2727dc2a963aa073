"""Laws of the selector language."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from calico_core.errors import InvalidSelector
from calico_core.model.selectors import (
    All,
    And,
    Equal,
    Global,
    Has,
    In,
    Node,
    Not,
    NotEqual,
    NotIn,
    Or,
    TextMatch,
    parse_selector,
)

labels = st.sampled_from(["a", "b", "has", "in", "projectcalico.org/name", "x-1._/"])
values = st.one_of(st.sampled_from(["x", "y", ""]), st.text(st.characters(exclude_characters='"\n')))
sets = st.lists(values, min_size=1, max_size=3, unique=True).map(lambda each: tuple(sorted(each)))
leaves: st.SearchStrategy[Node] = st.one_of(
    st.builds(Equal, labels, values),
    st.builds(NotEqual, labels, values),
    st.builds(In, labels, sets),
    st.builds(NotIn, labels, sets),
    st.builds(TextMatch, labels, st.sampled_from(["contains", "starts with", "ends with"]), values),
    st.builds(Has, labels),
    st.sampled_from([All(), Global()]),
)


def negate(node: Node) -> Node:
    return node.operand if isinstance(node, Not) else Not(node)


nodes = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(negate),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: And(tuple(each))),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: Or(tuple(each))),
    ),
    max_leaves=8,
)
some_labels = st.dictionaries(labels, st.sampled_from(["x", "y", "", "xy"]))
symbols = st.lists(
    st.sampled_from(
        ["a", "'x'", "==", "!=", "in", "not", "{", "}", ",", "(", ")", "!", "&&", "||", "has(", "all()", " "]
    )
).map("".join)


@given(node=nodes, given_labels=some_labels)
def test_canonical_text_parses_to_the_same(node: Node, given_labels: dict[str, str]) -> None:
    selector = parse_selector(str(node))
    assert selector.root == node
    assert parse_selector(selector.canonical) == selector
    assert selector.matches(given_labels) is node.matches(given_labels)


@settings(max_examples=500)
@given(text=st.one_of(st.text(), symbols))
def test_any_text_parses_or_names_a_place(text: str) -> None:
    refusal, selector = None, None
    try:
        selector = parse_selector(text)
    except InvalidSelector as error:
        refusal = error
    if refusal is not None:
        assert 0 <= refusal.position <= len(text)
    if selector is not None:
        assert parse_selector(selector.canonical) == selector
