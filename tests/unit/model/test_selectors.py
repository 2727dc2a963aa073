"""The selector language: what matches, what is refused and where, and which texts are one selector."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from calico_core.errors import InvalidSelector
from calico_core.model.selectors import Node, _Parser, check_selector, is_selector, parse_selector

# Felix specification 4.3: the label absent, with the value asked for, with another.
TRUTH = [
    ("a == 'v'", False, True, False),
    ("a != 'v'", True, False, True),
    ("a in {'v', 'w'}", False, True, False),
    ("a not in {'v', 'w'}", True, False, True),
    ("a contains 'v'", False, True, False),
    ("a starts with 'v'", False, True, False),
    ("a ends with 'v'", False, True, False),
    ("has(a)", False, True, True),
    ("!has(a)", True, False, False),
    ("!(a == 'v')", True, False, True),
    ("!a == 'v'", True, False, True),
    ("!!a == 'v'", False, True, False),
    ("!(a != 'v')", False, True, False),
    ("!a contains 'v'", True, False, True),
    ("all()", True, True, True),
    ("!all()", False, False, False),
    ("", True, True, True),
    (" \t", True, True, True),
    ("global()", True, True, True),
]


@pytest.mark.parametrize(("text", "absent", "same", "other"), TRUTH)
def test_truth_table(text: str, absent: bool, same: bool, other: bool) -> None:
    assert is_selector(text)
    selector = parse_selector(text)
    assert selector.matches({"b": "v"}) is absent
    assert selector.matches({"a": "v"}) is same
    assert selector.matches({"a": "other"}) is other


@pytest.mark.parametrize(
    ("text", "labels", "matches"),
    [
        ("a == 'x' || b == 'y' && c == 'z'", {"a": "x"}, True),
        ("(a == 'x' || b == 'y') && c == 'z'", {"a": "x"}, False),
        ("a == 'x' && b == 'y' || c == 'z'", {"c": "z"}, True),
        ("a in {'x'} && b == 'y'", {"a": "x", "b": "y"}, True),
        ("a contains 'b'", {"a": "abc"}, True),
        ("a starts with 'b'", {"a": "abc"}, False),
        ("a ends with 'bc'", {"a": "abc"}, True),
        ("a == ''", {"a": ""}, True),
        ("global()", {"projectcalico.org/namespace": "n"}, False),
        ("in in {'x'} && has == 'y' && not not in {'z'}", {"in": "x", "has": "y"}, True),
    ],
)
def test_precedence_and_words(text: str, labels: dict[str, str], matches: bool) -> None:
    assert parse_selector(text).matches(labels) is matches


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("a", 1),
        ("a ==", 4),
        ("a == b", 5),
        ("'a' == a", 0),
        ("a = 'b'", 2),
        ("a == 'x' & b == 'y'", 9),
        ("a == 'x' | b == 'y'", 9),
        ("a == 'x", 5),
        ("a == \"x'", 5),
        ("has (a)", 4),
        ("has()", 4),
        ("has(a", 5),
        ("all (", 4),
        ("all(a)", 4),
        ("(a == 'x'", 9),
        ("a == 'x')", 8),
        ("a in {}", 6),
        ("a in {'x',}", 10),
        ("a in {'x' 'y'}", 10),
        ("a in 'x'", 5),
        ("a == 'x' b", 9),
        ("a not 'x'", 6),
        ("a starts 'x'", 9),
        ("a contains x", 11),
        ("a containsx 'y'", 2),
        ("!", 1),
        ("&& a == 'x'", 0),
        ("a == 'x' &&", 11),
        ("a == 'x'\n", 8),
        ("\na == 'x'", 0),
        ("a == 'x' &&\nb == 'y'", 11),
        ("a@b == 'x'", 1),
        ("(" * 101 + "all()" + ")" * 101, 100),
        ("x" * 513 + " == 'y'", 0),
        (f"has({'x' * 513})", 4),
    ],
)
@pytest.mark.parametrize("judge", [parse_selector, check_selector])
def test_invalid_texts_name_the_place(judge: Callable[[str], object], text: str, position: int) -> None:
    assert not is_selector(text)
    with pytest.raises(InvalidSelector) as caught:
        judge(text)
    assert caught.value.position == position
    assert caught.value.text == text


@pytest.mark.parametrize(
    "same",
    [
        ["a == 'x'", 'a == "x"', "a=='x'", "  a  ==\t'x' ", "(a == 'x')", "!!a == 'x'", "!(!(a == 'x'))"],
        ["a in {'x', 'y'}", "a in{'y','x'}", "a in {'x','y','x'}"],
        ["a not in {'x'}", "a notin {'x'}", "a not  in{'x'}"],
        ["a starts with 'x'", "a startswith 'x'", "a starts\twith'x'"],
        ["", "all()", " ", "(all( ))"],
        ["a == 'x' && b == 'y' || has(c)", "((a == 'x') && b == 'y') || has( c )"],
    ],
)
def test_equal_selectors_are_one_object(same: list[str]) -> None:
    selectors = {parse_selector(text) for text in same}
    assert len(selectors) == 1
    assert len(selectors.pop().id) == 16


def test_ids_are_stable_over_restarts() -> None:
    assert parse_selector("role == 'db'").id == "5c457b94d91b7894"


def test_quotes_within_strings() -> None:
    assert parse_selector("a == 'say \"x\"'").canonical == "a == 'say \"x\"'"
    assert parse_selector('a == "it\'s"').matches({"a": "it's"})


@pytest.mark.parametrize(
    "text",
    [
        "a == 'b'",
        ' \ta=="b" ',
        "a.b/c-d_1==''",
        """a == "it's" """,
        "has == 'x'",
        "not == 'x'",
        f"{'l' * 512} == 'b'",
        f"{'l' * 513} == 'b'",
        "a == 'b' || c == 'd'",
        "a == b",
        "a == 'b",
        "a == 'b\n'",
        "a == 'b'\n",
        "a = 'b'",
        "a === 'b'",
        "== 'b'",
        "a == 'b' 'c'",
        "ä == 'b'",
    ],
)
def test_the_short_way_of_an_equality_is_the_long_one(text: str) -> None:
    assert outcome(lambda: parse_selector(text).root) == outcome(lambda: _Parser(text).parse())


@pytest.mark.parametrize(
    ("piece", "end"),
    [
        ("!", ""),
        (" ", "x"),
        ("! ", "a"),
        ("x", " == y"),
        ("x", ""),
        ("a == 'b' && ", ""),
        ("a == 'b' || !has(c) && ", "d"),
        ("a in {'x'} && ", "a in {'x'"),
        ("'x', ", ""),
        ("\"'", ""),
        ("(a == 'b' && c == 'd') || ", "e"),
        ("((a == 'b') && !(c == 'd')) || ", "e"),
        ("(a == 'b' && ", ""),
        ("(", ""),
        ("(!", "a"),
        ("has(", ""),
        ("not in ", "{"),
    ],
)
@pytest.mark.parametrize("start", ["", "a == 'b' && (", "a in {", "a == "])
def test_a_long_bad_text_is_refused_in_one_reading(start: str, piece: str, end: str) -> None:
    text = start + piece * (200_000 // len(piece)) + end
    started = time.process_time()
    assert not is_selector(text)
    assert time.process_time() - started < 10  # one reading takes 0.1 s, one for each term a quarter of an hour


def outcome(parse: Callable[[], Node]) -> Node | str:
    try:
        return parse()
    except InvalidSelector as error:
        return str(error)
