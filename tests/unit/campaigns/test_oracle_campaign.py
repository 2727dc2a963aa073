"""A difference of opinions that does not repeat is told like any other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis.errors import Flaky

from tests.campaigns.oracle.bench import Bench
from tests.campaigns.oracle.campaign import FIND, Difference, Disagreement, Oracle, ask_random

PROBE = Difference({"src": "10.0.0.1"}, "packet", "allow", "allow", "allow", "deny")


class Prepared(Oracle):
    """Opinions differ in the cases of these numbers."""

    def __init__(self, *differing: int, fault: Exception | None = None) -> None:
        super().__init__(Bench("nftables"))
        self._differing, self._fault, self._number = frozenset(differing), fault, 0

    def _ask(self, case: dict[str, Any]) -> None:
        self._number += 1
        self.verdicts += 1
        if self._number in self._differing:
            raise self._fault or Disagreement([PROBE], {"number": self._number})


def test_once_and_not_again() -> None:
    result = ask_random(Prepared(3), cases=10, seed=1)
    assert result.disagreement is not None
    assert result.disagreement.case == {"number": 3}
    assert not result.has_repeated
    assert result.last_line.endswith(" verdicts, 1 differ")


def test_again_and_again() -> None:
    result = ask_random(Prepared(*range(3, 1000)), cases=10, seed=1, phases=FIND)
    assert result.disagreement is not None
    assert (result.has_repeated, result.differ) == (True, 1)


def test_no_difference() -> None:
    result = ask_random(Prepared(), cases=10, seed=1)
    assert (result.disagreement, result.last_line) == (None, "10 verdicts, 0 differ")


def test_what_fails_otherwise_is_no_difference_of_opinions() -> None:
    with pytest.raises(Flaky):
        ask_random(Prepared(3, fault=RuntimeError("the bench is broken")), cases=10, seed=1)
