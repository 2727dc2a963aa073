"""An immutable set that shares what it can with the one it was made from.

What all endpoints of a host stand in (who may send what, where an interface's packets go) has thousands of elements
and changes by a handful: the next set costs what changed, and so does the difference of the two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from itertools import chain
from operator import is_
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

#: Large enough that a part of a large set is small, small enough that to look at all of them costs nothing.
_PARTS = 64


class PersistentSet(AbstractSet[T]):
    """Hashable elements, in parts by their hash. Equal to any set of the same elements."""

    __slots__ = ("_parts", "_size")

    def __init__(self, elements: Iterable[T] = ()) -> None:
        groups = _by_part(elements)
        self._parts: tuple[frozenset[T], ...] = tuple(frozenset(groups.get(number, ())) for number in range(_PARTS))
        self._size = sum(map(len, self._parts))

    def changed(self, added: Iterable[T], removed: Iterable[T]) -> PersistentSet[T]:
        """A set with these and without those; itself when nothing differs. What is in both stays."""
        coming, going = _by_part(added), _by_part(removed)
        parts, size = list(self._parts), self._size
        for number in coming.keys() | going.keys():
            before = parts[number]
            after = before.difference(going.get(number, ())).union(coming.get(number, ()))
            if after != before:
                parts[number] = after
                size += len(after) - len(before)
        if all(map(is_, parts, self._parts)):
            return self
        made: PersistentSet[T] = PersistentSet.__new__(PersistentSet)
        made._parts, made._size = tuple(parts), size
        return made

    def __contains__(self, element: object) -> bool:
        return element in self._parts[hash(element) % _PARTS]

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        return self._size

    def __sub__(self, other: AbstractSet[object]) -> frozenset[T]:
        if not isinstance(other, PersistentSet):
            return frozenset(element for element in self if element not in other)
        differing = [one - two for one, two in zip(self._parts, other._parts, strict=True) if one is not two]
        return frozenset().union(*differing)

    def __rsub__(self, other: Iterable[object]) -> frozenset[object]:
        return frozenset(element for element in other if element not in self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PersistentSet):
            return self._size == other._size and self._parts == other._parts
        if not isinstance(other, AbstractSet):
            return NotImplemented
        return len(self) == len(other) and all(element in self for element in other)

    def __hash__(self) -> int:
        return self._hash()

    def __repr__(self) -> str:
        return f"PersistentSet({sorted(self, key=repr)})"

    @classmethod
    def _from_iterable(cls, it: Iterable[S]) -> PersistentSet[S]:
        return PersistentSet(it)


def _by_part(elements: Iterable[T]) -> dict[int, list[T]]:
    groups: defaultdict[int, list[T]] = defaultdict(list)
    for element in elements:
        groups[hash(element) % _PARTS].append(element)
    return groups
