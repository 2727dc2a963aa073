"""What is one or several behaves as a set does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calico_core.policy.one_or_several import OneOrSeveral, count, each, with_one, without


@given(steps=st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_it_is_a_set(steps: list[tuple[bool, str]]) -> None:
    held: OneOrSeveral[str] = None
    wanted: set[str] = set()
    for is_added, thing in steps:
        if is_added:
            held = with_one(held, thing)
            wanted.add(thing)
        else:
            held = without(held, thing)
            wanted.discard(thing)
        assert set(each(held)) == wanted
        assert count(held) == len(wanted)
        assert isinstance(held, set) == (len(wanted) > 1)
        assert (held is None) == (not wanted)
