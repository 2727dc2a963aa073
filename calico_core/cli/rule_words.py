"""Rules as words: what ``profile NAME rule add`` takes and ``rule show`` prints. Pure.

::

    ACTION [log-prefix W] [ip 4|6] [[not] PROTOCOL] [[not] type N [code N]] [from SIDE] [to SIDE]
    SIDE = {[not] ports LIST | [not] tag T | [not] cidr C | [not] selector 'EXPR'}
    LIST = item {"," item}    item = port | low:high | low-high | name of a port

``from`` and ``to`` may come in any order, as may the words inside them; printing is canonical.
``parse_rule(render_rule(rule).split…) == rule``. Source: calicoctl specification 3.1 and 5.8.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from calico_core.cli.field_words import with_what_is_right
from calico_core.errors import InvalidRequest
from calico_core.model import codec
from calico_core.model.numbers import decimal
from calico_core.model.rules import PROTOCOLS, Rule

_ACTIONS = ("allow", "deny", "reject", "log", "next-tier", "pass")
_SIDES = {"from": "src", "to": "dst"}
_NUMBERS = re.compile(r"^(\d+)-(\d+)$")
_SIDE_WORDS = "ports LIST, tag T, cidr C or selector 'EXPR'"


def parse_rule(words: Sequence[str]) -> Rule:
    """Raises ``InvalidRequest`` that names the word and what could stand there."""
    return _Words(words).rule()


def render_rule(rule: Rule) -> str:
    """Canonical words; quoted where a shell needs it."""
    parts: list[str] = [rule.action]
    if rule.log_prefix is not None:
        parts += ["log-prefix", rule.log_prefix]
    if rule.ip_version is not None:
        parts += ["ip", str(rule.ip_version)]
    if rule.protocol is not None:
        parts.append(str(rule.protocol))
    if rule.not_protocol is not None:
        parts += ["not", str(rule.not_protocol)]
    for prefix, kind, code in (
        ((), rule.icmp_type, rule.icmp_code),
        (("not",), rule.not_icmp_type, rule.not_icmp_code),
    ):
        if kind is not None:
            parts += [*prefix, "type", str(kind)]
            if code is not None:
                parts += ["code", str(code)]
    for word, side in _SIDES.items():
        matches = _render_side(rule, side)
        if matches:
            parts += [word, *matches]
    return " ".join(shlex.quote(part) for part in parts)


def _render_side(rule: Rule, side: str) -> list[str]:
    parts: list[str] = []
    for prefix, negated in ((), ""), (("not",), "not_"):
        ports = getattr(rule, f"{negated}{side}_ports")
        if ports is not None:
            parts += [*prefix, "ports", ",".join(map(str, ports))]
        tag = getattr(rule, f"{negated}{side}_tag")
        if tag is not None:
            parts += [*prefix, "tag", tag]
        nets = [getattr(rule, f"{negated}{side}_net"), *(getattr(rule, f"{negated}{side}_nets") or ())]
        found = [str(net) for net in nets if net is not None]
        if found:
            parts += [*prefix, "cidr", ",".join(found)]
        selector = getattr(rule, f"{negated}{side}_selector")
        if selector is not None:
            parts += [*prefix, "selector", selector]
    return parts


class _Words:
    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._at = 0
        self._fields: dict[str, Any] = {}

    def rule(self) -> Rule:
        action = self._next(f"an action: {', '.join(_ACTIONS)}")
        if action not in _ACTIONS:
            raise self._fault(self._at - 1, f"expected an action: {', '.join(_ACTIONS)}")
        self._set("action", "next-tier" if action == "pass" else action)
        while self._at < len(self._words):
            self._match()
        try:
            rule: Rule = codec.from_builtins(Rule, self._fields)
        except InvalidRequest as error:
            found = with_what_is_right(Rule, error)
            field = found.field.removeprefix("$") or "rule"
            raise InvalidRequest(field if field == "rule" else f"rule: {field}", found.reason) from error
        return rule

    def _match(self) -> None:
        word = self._words[self._at]
        if word in _SIDES:
            self._at += 1
            self._side(_SIDES[word])
            return
        start = self._at
        negation = self._negation()
        word = self._next("a match")
        if word == "type":
            self._set(f"{negation}icmp_type", self._number("an ICMP type"))
            if self._at < len(self._words) and self._words[self._at] == "code":
                self._at += 1
                self._set(f"{negation}icmp_code", self._number("an ICMP code"))
        elif word.lower() in PROTOCOLS:
            self._set(f"{negation}protocol", word.lower())
        elif (number := decimal(word)) is not None:
            self._set(f"{negation}protocol", number)
        elif word == "ip" and not negation:
            self._set("ip_version", self._number("4 or 6"))
        elif word == "log-prefix" and not negation:
            self._set("log_prefix", self._next("a prefix"))
        else:
            known = ", ".join(sorted(PROTOCOLS))
            raise self._fault(start, f"expected a protocol ({known} or a number), type, ip, log-prefix, from or to")

    def _side(self, side: str) -> None:
        while self._at < len(self._words) and self._words[self._at] not in _SIDES:
            start = self._at
            negation = self._negation()
            word = self._next(_SIDE_WORDS)
            if word == "ports":
                self._set(f"{negation}{side}_ports", self._ports())
            elif word in {"tag", "selector"}:
                self._set(f"{negation}{side}_{word}", self._next(f"a {word}"))
            elif word == "cidr":
                nets = self._next("a CIDR").split(",")
                if len(nets) == 1:
                    self._set(f"{negation}{side}_net", nets[0])
                else:
                    self._set(f"{negation}{side}_nets", nets)
            else:
                raise self._fault(start, f"expected {_SIDE_WORDS}")

    def _ports(self) -> list[int | str]:
        items = self._next("a list of ports such as 80,8000:8080,http").split(",")
        numbers = [(item, decimal(item)) for item in items]
        return [_NUMBERS.sub(r"\1:\2", item) if number is None else number for item, number in numbers]

    def _negation(self) -> str:
        if self._words[self._at] in {"not", "!"}:
            self._at += 1
            return "!"
        return ""

    def _number(self, what: str) -> int:
        word = self._next(what)
        number = decimal(word)
        if number is None:
            raise self._fault(self._at - 1, f"expected {what}")
        return number

    def _next(self, wanted: str) -> str:
        if self._at >= len(self._words):
            raise self._fault(self._at, f"expected {wanted}")
        self._at += 1
        return self._words[self._at - 1]

    def _set(self, field: str, value: Any) -> None:
        if field in self._fields:
            raise self._fault(self._at - 1, f"{field.replace('_', ' ')} stands twice")
        self._fields[field] = value

    def _fault(self, at: int, reason: str) -> InvalidRequest:
        text = " ".join(self._words)
        caret = len(" ".join(self._words[:at])) + (1 if at else 0)
        return InvalidRequest("rule", f"{reason}\n  {text}\n  {' ' * caret}^")
