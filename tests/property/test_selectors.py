"""Laws of the selector language."""

from __future__ import annotations

from collections.abc import Callable

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
    _Parser,
    check_selector,
    is_selector,
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
terms = st.sampled_from(
    [
        "a == 'x'", 'a!="&&"', "a in {'x'}", "a notin{'x','y' , '('}", "a not\tin { ')' }", "a starts with 'x'",
        "a endswith''", "a contains '||'", "has( a )", "all( )", "global()", "has == 'x'", "in in{'x'}",
        "x" * 512 + " in {''}", "x" * 513 + " in {''}", "x" * 512 + "in {''}", f"has({'x' * 513})",
        "a", "a = 'x'", "ain {'x'}", "a starts 'x'", "",
    ]
)  # fmt: skip
pieces = st.recursive(
    terms,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["!", " !", "! ! ", "", "\t"]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        st.tuples(inner, st.sampled_from(["&&", " || ", "||", " && ", "&", " "]), inner).map("".join),
    ),
    max_leaves=6,
)
changes = st.tuples(st.integers(0, 200), st.integers(0, 3), st.sampled_from([*"()!&|=' \"\t\n{},x", "&&", "||", ""]))


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


@settings(max_examples=1000)
@given(text=st.one_of(pieces, symbols, nodes.map(str)), change=st.one_of(st.none(), changes))
def test_what_is_found_good_is_what_parses(text: str, change: tuple[int, int, str] | None) -> None:
    if change is not None:
        place, length, put = change
        place = min(place, len(text))
        text = text[:place] + put + text[place + length :]
    refusals = [refusal(lambda: _Parser(text).parse()), refusal(lambda: check_selector(text))]
    assert refusals[0] == refusals[1]
    assert is_selector(text) is (refusals[0] is None)


def refusal(judge: Callable[[], object]) -> str | None:
    try:
        judge()
    except InvalidSelector as error:
        return str(error)
    return None
