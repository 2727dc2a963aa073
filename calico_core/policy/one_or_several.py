"""Sets that mostly have one member: such a set is the member itself, and none is None.

A set of one costs 216 bytes and a place on the collector's rounds, and a cluster of a hundred thousand selectors would
have three for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, TypeVar

ThingT = TypeVar("ThingT")
OneOrSeveral: TypeAlias = ThingT | set[ThingT] | None
"""Of things that are no sets. Change it by what the functions give back."""


def each(held: OneOrSeveral[ThingT]) -> Iterable[ThingT]:
    if held is None:
        return ()
    return held if isinstance(held, set) else (held,)


def count(held: OneOrSeveral[ThingT]) -> int:
    if held is None:
        return 0
    return len(held) if isinstance(held, set) else 1


def with_one(held: OneOrSeveral[ThingT], thing: ThingT) -> OneOrSeveral[ThingT]:
    if held is None:
        return thing
    if isinstance(held, set):
        held.add(thing)
        return held
    return held if held == thing else {held, thing}


def without(held: OneOrSeveral[ThingT], thing: ThingT) -> OneOrSeveral[ThingT]:
    if isinstance(held, set):
        held.discard(thing)
        return held if len(held) > 1 else held.pop()
    return None if held == thing else held
