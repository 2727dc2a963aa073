"""Which sets are beyond the limit, and what is said of them."""

from __future__ import annotations

import pytest

from calico_core.dataplane.set_limit import SetLimit
from calico_core.model.hoststate import SetId

ONE, TWO = SetId("tag-1"), SetId("tag-2")


def test_a_set_turns_when_it_passes_the_limit_and_when_it_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    problems: dict[str, str] = {"other": "stays"}
    limit = SetLimit(2, problems)
    assert not limit.note(ONE, 2)
    assert limit.note(ONE, 3)
    assert not limit.note(ONE, 9), "it was beyond before"
    assert ONE in limit
    assert TWO not in limit
    assert problems.keys() == {"other", ONE}
    assert limit.note(ONE, 2)
    assert ONE not in limit
    assert problems == {"other": "stays"}
    assert [each.getMessage() for each in caplog.records] == ["set.too_large", "set.within_limit"]


def test_a_set_that_goes_takes_what_was_said_of_it_along() -> None:
    problems: dict[str, str] = {}
    limit = SetLimit(0, problems)
    assert limit.note(ONE, 1)
    limit.forget(ONE)
    limit.forget(TWO)
    assert problems == {}
    assert limit.note(ONE, 1), "it is a new one"
