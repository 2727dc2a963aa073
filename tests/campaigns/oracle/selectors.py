"""Selectors once more, read from the specification (felix 4.3) and evaluated as they stand: slow, short, and nobody's
code but the oracle's."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""[ \t]*(?:(?P<op>\|\||&&|==|!=|!|\(|\)|\{|\}|,)|(?P<text>'[^']*'|"[^"]*")|(?P<word>[A-Za-z0-9_./-]+))"""
)

NAMESPACE = "projectcalico.org/namespace"


class BadSelector(ValueError):
    """It is not of the grammar."""


def matches(selector: str, labels: dict[str, str]) -> bool:
    tokens = _tokens(selector)
    if not tokens:
        return True
    reader = _Reader(tokens, labels)
    found = reader.either()
    if reader.tokens:
        raise BadSelector(selector)
    return found


def _tokens(selector: str) -> list[str]:
    found: list[str] = []
    rest = selector.rstrip(" \t")
    while rest:
        match = _TOKEN.match(rest)
        if match is None:
            raise BadSelector(selector)
        found.append(match[0].strip(" \t"))
        rest = rest[match.end() :]
    return found


class _Reader:
    """Evaluates while it reads."""

    def __init__(self, tokens: list[str], labels: dict[str, str]) -> None:
        self.tokens, self._labels = tokens, labels

    def either(self) -> bool:
        found = self._all()
        while self._skip("||"):
            found = self._all() or found
        return found

    def _all(self) -> bool:
        found = self._one()
        while self._skip("&&"):
            found = self._one() and found
        return found

    def _one(self) -> bool:
        if self._skip("!"):
            return not self._one()
        if self._skip("("):
            found = self.either()
            self._expect(")")
            return found
        return self._comparison(self._take())

    def _comparison(self, label: str) -> bool:
        if label in ("all", "global") and self._skip("("):
            self._expect(")")
            return label == "all" or NAMESPACE not in self._labels
        if label == "has" and self._skip("("):
            asked = self._take()
            self._expect(")")
            return asked in self._labels
        value = self._labels.get(label)
        operator = self._take()
        if operator in ("not", "starts", "ends"):
            operator += " " + self._take()
        if operator in ("in", "not in"):
            inside = value in self._set()
            return inside if operator == "in" else not inside
        text = self._text()
        if operator == "!=":
            return value != text
        if value is None:
            return False
        if operator not in _WITH_VALUE:
            raise BadSelector(operator)
        return _WITH_VALUE[operator](value, text)

    def _set(self) -> set[str | None]:
        self._expect("{")
        found: set[str | None] = {self._text()}
        while self._skip(","):
            found.add(self._text())
        self._expect("}")
        return found

    def _text(self) -> str:
        text = self._take()
        if text[0] not in "'\"":
            raise BadSelector(text)
        return text[1:-1]

    def _take(self) -> str:
        if not self.tokens:
            raise BadSelector("it ends too early")
        return self.tokens.pop(0)

    def _skip(self, token: str) -> bool:
        if self.tokens and self.tokens[0] == token:
            del self.tokens[0]
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._skip(token):
            raise BadSelector(token)


_WITH_VALUE = {
    "==": str.__eq__,
    "contains": str.__contains__,
    "starts with": str.startswith,
    "ends with": str.endswith,
}
