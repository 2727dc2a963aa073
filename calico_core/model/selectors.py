"""The label expression language. Source: felix specification 4.3.

::

    or    = and { "||" and }
    and   = unary { "&&" unary }
    unary = { "!" } ( comparison | "(" or ")" )
    comparison = label ("==" | "!=" | "contains" | "starts with" | "ends with") string
               | label ["not"] "in" "{" string { "," string } "}"
               | "has(" label ")" | "all()" | "global()"

An empty text is ``all()``. ``!=`` and ``not in`` are true when the label is missing. Equal selectors have one
canonical text, hence one id: blanks are single, literals of a set sorted, double negation collapsed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Literal

import msgspec

from calico_core.errors import InvalidSelector

Labels = Mapping[str, str]


class Node(msgspec.Struct, frozen=True):
    """One node of the tree. ``str()`` gives its canonical text."""

    def matches(self, labels: Labels) -> bool:
        raise NotImplementedError


class All(Node, frozen=True):
    """Every endpoint."""

    def matches(self, labels: Labels) -> bool:  # noqa: ARG002
        return True

    def __str__(self) -> str:
        return "all()"


class Global(Node, frozen=True):
    """Endpoints without a namespace. Workloads here have none, so as for :class:`All` but for its text."""

    def matches(self, labels: Labels) -> bool:
        return "projectcalico.org/namespace" not in labels

    def __str__(self) -> str:
        return "global()"


class Has(Node, frozen=True):
    label: str

    def matches(self, labels: Labels) -> bool:
        return self.label in labels

    def __str__(self) -> str:
        return f"has({self.label})"


class Equal(Node, frozen=True):
    label: str
    value: str

    def matches(self, labels: Labels) -> bool:
        return labels.get(self.label) == self.value

    def __str__(self) -> str:
        return f"{self.label} == {_quote(self.value)}"


class NotEqual(Node, frozen=True):
    label: str
    value: str

    def matches(self, labels: Labels) -> bool:
        return labels.get(self.label) != self.value

    def __str__(self) -> str:
        return f"{self.label} != {_quote(self.value)}"


class In(Node, frozen=True):
    label: str
    values: tuple[str, ...]

    def matches(self, labels: Labels) -> bool:
        return labels.get(self.label) in self.values

    def __str__(self) -> str:
        return f"{self.label} in {{{', '.join(map(_quote, self.values))}}}"


class NotIn(Node, frozen=True):
    label: str
    values: tuple[str, ...]

    def matches(self, labels: Labels) -> bool:
        return labels.get(self.label) not in self.values

    def __str__(self) -> str:
        return f"{self.label} not in {{{', '.join(map(_quote, self.values))}}}"


TextOperator = Literal["contains", "starts with", "ends with"]


class TextMatch(Node, frozen=True):
    """A test on the text of a value; false when the label is missing."""

    label: str
    operator: TextOperator
    value: str

    def accepts(self, value: str) -> bool:
        if self.operator == "contains":
            return self.value in value
        return value.startswith(self.value) if self.operator == "starts with" else value.endswith(self.value)

    def matches(self, labels: Labels) -> bool:
        value = labels.get(self.label)
        return value is not None and self.accepts(value)

    def __str__(self) -> str:
        return f"{self.label} {self.operator} {_quote(self.value)}"


class Not(Node, frozen=True):
    operand: Node

    def matches(self, labels: Labels) -> bool:
        return not self.operand.matches(labels)

    def __str__(self) -> str:
        return f"!{self.operand}"


class And(Node, frozen=True):
    operands: tuple[Node, ...]

    def matches(self, labels: Labels) -> bool:
        for operand in self.operands:  # noqa: SIM110 (a generator costs as much as three operands)
            if not operand.matches(labels):
                return False
        return True

    def __str__(self) -> str:
        return f"({' && '.join(map(str, self.operands))})"


class Or(Node, frozen=True):
    operands: tuple[Node, ...]

    def matches(self, labels: Labels) -> bool:
        for operand in self.operands:  # noqa: SIM110
            if operand.matches(labels):
                return True
        return False

    def __str__(self) -> str:
        return f"({' || '.join(map(str, self.operands))})"


class Selector(msgspec.Struct, frozen=True):
    """A parsed expression. ``canonical`` identifies it."""

    root: Node
    canonical: str

    @property
    def id(self) -> str:
        """A short stable hash of the canonical text."""
        return hashlib.sha256(self.canonical.encode(errors="surrogatepass")).hexdigest()[:16]

    def matches(self, labels: Labels) -> bool:
        return self.root.matches(labels)


_TOKEN = re.compile(
    r"""[ \t]*(?:
        (?P<string>"[^"\n]*"|'[^'\n]*')
      | (?P<symbol>\|\||&&|==|!=|[!(){},])
      | (?P<word>[A-Za-z0-9_./-]+)
      | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_EQUAL = re.compile(r"""[ \t]*([A-Za-z0-9_./-]{1,512})[ \t]*==[ \t]*("[^"\n]*"|'[^'\n]*')[ \t]*\Z""")
_MAX_LABEL = 512
_MAX_DEPTH = 100
_FLAT_DEPTH = 2


@lru_cache(maxsize=65536)
def is_selector(text: str) -> bool:
    """Whether :func:`parse_selector` takes it, at a tenth of the cost: no tree is made, and no reason is looked for."""
    if _EQUAL.match(text) is not None or _grammar().match(text) is not None:
        return True
    # with so few, no parenthesis can be deeper than the expression goes, and it takes what there is
    if text.count("(") <= _FLAT_DEPTH:
        return False
    try:
        parse_selector(text)
    except InvalidSelector:
        return False
    return True


def check_selector(text: str) -> None:
    """Raise ``InvalidSelector(text, position)`` for what is none."""
    if not is_selector(text):
        parse_selector(text)


@lru_cache(maxsize=65536)
def parse_selector(text: str) -> Selector:
    """Parse, or raise ``InvalidSelector(text, position)``. Repeated texts cost one dictionary look-up."""
    # by far the most are of this form, and a cluster may have a hundred thousand of them
    plain = _EQUAL.match(text)
    root = Equal(plain[1], plain[2][1:-1]) if plain is not None else _Parser(text).parse()
    canonical = str(root)
    return Selector(root, canonical[1:-1] if isinstance(root, And | Or) else canonical)


@cache
def _grammar() -> re.Pattern[str]:
    """The grammar with ``_FLAT_DEPTH`` parentheses inside each other, compiled when it is first needed (4 ms).

    Nothing is read twice, so that the time grows as the text does: runs of characters are never given back, and what
    a term begins with says what it is. Possessive groups would do the same, were they right before Python 3.11.5.
    """
    blanks, label = r"[ \t]*+", r"[A-Za-z0-9_./-]{1,512}+"
    string = r"""(?:"[^"\n]*+"|'[^'\n]*+')"""
    words = rf"(?:contains|(?:starts|ends){blanks}with){blanks}{string}"
    members = rf"(?:not{blanks})?in{blanks}\{{{blanks}{string}{blanks}(?:,{blanks}{string}{blanks})*\}}"
    term = rf"has\({blanks}{label}{blanks}\)|(?:all|global)\({blanks}\)"
    # a word follows a label after a blank only, or it would be part of the label
    term += rf"|{label}(?:{blanks}[!=]={blanks}{string}|[ \t]++(?:{words}|{members}))"
    expression, unary = "", term
    for _ in range(_FLAT_DEPTH + 1):
        # after a term comes an operator, or the end that is looked for next; an operator is not the last
        expression = rf"(?:[ \t!]*+(?:{unary}){blanks}(?:&&|\|\||(?![^)])))+(?<![&|])"
        unary = rf"{term}|\({expression}\)"
    return re.compile(rf"(?:{expression}|{blanks})\Z")


def _quote(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


class _Parser:
    """Recursive descent over one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0
        self._kind = ""
        self._token = ""
        self._start = 0
        self._advance()

    def parse(self) -> Node:
        if self._kind == "end":
            return All()
        node = self._or()
        if self._kind != "end":
            raise self._fault("expected && or || or the end")
        return node

    def _or(self) -> Node:
        operands = [self._and()]
        while self._token == "||" and self._kind == "symbol":
            self._advance()
            operands.append(self._and())
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def _and(self) -> Node:
        operands = [self._unary()]
        while self._token == "&&" and self._kind == "symbol":
            self._advance()
            operands.append(self._unary())
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def _unary(self) -> Node:
        is_negated = False
        while self._kind == "symbol" and self._token == "!":
            is_negated = not is_negated
            self._advance()
        node = self._primary()
        if not is_negated:
            return node
        # "!(!x)" is "x" as "!!x" is: equal selectors have one text
        return node.operand if isinstance(node, Not) else Not(node)

    def _primary(self) -> Node:
        if self._kind == "symbol" and self._token == "(":
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise self._fault(f"more than {_MAX_DEPTH} parentheses inside each other")
            self._advance()
            node = self._or()
            self._expect(")")
            self._depth -= 1
            return node
        if self._kind != "word":
            raise self._fault("expected a label, has(…), all() or a parenthesis")
        word, end = self._token, self._position
        if self._text[end : end + 1] == "(" and word in {"has", "all", "global"}:
            return self._call(word)
        return self._comparison(self._label())

    def _call(self, word: str) -> Node:
        self._advance()
        self._expect("(")
        if word == "has":
            if self._kind != "word":
                raise self._fault("has( needs a label")
            label = self._label()
            self._expect(")")
            return Has(label)
        self._expect(")")
        return All() if word == "all" else Global()

    def _comparison(self, label: str) -> Node:
        operator = self._token
        if self._kind == "symbol" and operator in {"==", "!="}:
            self._advance()
            value = self._string()
            return Equal(label, value) if operator == "==" else NotEqual(label, value)
        if self._kind != "word":
            raise self._fault(f"label {label} needs an operator such as == or in")
        start = self._start
        self._advance()
        if operator == "in":
            return In(label, self._set())
        if operator in {"not", "notin"}:
            if operator == "not":
                self._word("in")
            return NotIn(label, self._set())
        if operator == "contains":
            return TextMatch(label, "contains", self._string())
        if operator in {"starts", "ends"}:
            self._word("with")
            return TextMatch(label, "starts with" if operator == "starts" else "ends with", self._string())
        if operator in {"startswith", "endswith"}:
            return TextMatch(label, "starts with" if operator[0] == "s" else "ends with", self._string())
        raise InvalidSelector(self._text, start, f"{operator!r} is not an operator")

    def _label(self) -> str:
        label = self._token
        if len(label) > _MAX_LABEL:
            raise self._fault(f"label is longer than {_MAX_LABEL} characters")
        self._advance()
        return label

    def _set(self) -> tuple[str, ...]:
        self._expect("{")
        values = {self._string()}
        while self._kind == "symbol" and self._token == ",":
            self._advance()
            values.add(self._string())
        self._expect("}")
        return tuple(sorted(values))

    def _string(self) -> str:
        if self._kind != "string":
            raise self._fault("expected a quoted string")
        value = self._token[1:-1]
        self._advance()
        return value

    def _word(self, wanted: str) -> None:
        if self._kind != "word" or self._token != wanted:
            raise self._fault(f"expected {wanted!r}")
        self._advance()

    def _expect(self, symbol: str) -> None:
        if self._kind != "symbol" or self._token != symbol:
            raise self._fault(f"expected {symbol!r}")
        self._advance()

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            position = (
                self._position + len(self._text[self._position :]) - len(self._text[self._position :].lstrip(" \t"))
            )
            raise InvalidSelector(self._text, position, "unexpected character")
        self._kind = match.lastgroup or ""
        self._token = match[self._kind]
        self._start = match.start(self._kind)
        self._position = match.end()

    def _fault(self, reason: str) -> InvalidSelector:
        return InvalidSelector(self._text, self._start, reason)
