"""Items with labels of their own and labels of their parents: what :mod:`label_index` looks up.

An item is a dense integer. Own labels win over inherited ones, later parents over earlier ones.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from types import MappingProxyType

from pyroaring import BitMap

from calico_core.model.selectors import Labels

NO_LABELS: Labels = MappingProxyType({})


class LabelledItems:
    """``asked``: the labels that somebody asks for; it may change, see :meth:`forget_gifts`. Read the bitmaps, never
    change them."""

    def __init__(self, asked: Container[str]) -> None:
        self.all = BitMap()
        self.several = BitMap()
        """Items with more than one parent: what a change of one parent means for them is found one by one."""
        self._asked = asked
        self._labels: list[Labels] = []
        self._parents: list[tuple[str, ...]] = []
        self._shapes: dict[tuple[str, ...], BitMap] = {}
        """Items by the names of their own labels: a cluster has few of these, and who has a label is then known at
        once."""
        self._members: dict[str, BitMap] = {}
        self._given: dict[str, Labels] = {}
        self._gifts: dict[str, Labels] = {}
        """Of a parent's labels those that are asked for; most parents then give nothing. A cache."""

    @property
    def looks(self) -> int:
        """How many shapes and parents are looked at to find who has a label."""
        return len(self._shapes) + len(self._given)

    def own(self, item: int) -> Labels:
        return self._labels[item]

    def labels(self, item: int) -> Labels:
        """Own over inherited. Of the inherited ones only what is asked for."""
        own = self._labels[item]
        merged: dict[str, str] | None = None
        for parent in self._parents[item]:
            gift = self._gifts.get(parent)
            if gift is None:
                gift = self._gifts[parent] = self._gift(parent)
            if gift:
                merged = {**merged, **gift} if merged else dict(gift)
        if merged is None:
            return own
        merged.update(own)
        return merged

    def _gift(self, parent: str) -> Labels:
        given = self._given.get(parent)
        if given is None:
            return NO_LABELS
        return {label: value for label, value in given.items() if label in self._asked}

    def forget_gifts(self) -> None:
        """Other labels are asked for."""
        self._gifts.clear()

    def is_same(self, item: int, labels: Labels, parents: tuple[str, ...]) -> bool:
        return labels == self._labels[item] and parents == self._parents[item]

    def put(self, item: int, labels: Labels, parents: tuple[str, ...]) -> None:
        """One that is not there."""
        if item == len(self._labels):
            self._labels.append(labels)
            self._parents.append(parents)
        else:
            missing = item + 1 - len(self._labels)
            if missing > 0:
                self._labels += [NO_LABELS] * missing
                self._parents += [()] * missing
            self._labels[item] = labels
            self._parents[item] = parents
        self.all.add(item)
        shape = tuple(labels)
        alike = self._shapes.get(shape)
        if alike is None:
            alike = self._shapes[shape] = BitMap()
        alike.add(item)
        for parent in parents:
            members = self._members.get(parent)
            if members is None:
                members = self._members[parent] = BitMap()
            members.add(item)
        if len(parents) > 1:
            self.several.add(item)

    def remove(self, item: int) -> None:
        """One that is there."""
        self.all.discard(item)
        shape = tuple(self._labels[item])
        alike = self._shapes[shape]
        alike.discard(item)
        if not alike:
            del self._shapes[shape]
        self.several.discard(item)
        for parent in self._parents[item]:
            members = self._members.get(parent)
            if members is None:
                continue
            members.discard(item)
            if not members:
                del self._members[parent]
                self._gifts.pop(parent, None)
        self._labels[item] = NO_LABELS
        self._parents[item] = ()

    # --- parents -------------------------------------------------------------------------------------

    def members(self, parent: str) -> BitMap | None:
        """None: it has none."""
        return self._members.get(parent)

    def given(self, parent: str) -> Labels:
        return self._given.get(parent, NO_LABELS)

    def give(self, parent: str, labels: Labels) -> None:
        if labels:
            self._given[parent] = labels
        else:
            self._given.pop(parent, None)
        self._gifts.pop(parent, None)

    # --- of one label --------------------------------------------------------------------------------

    def with_own(self, label: str) -> BitMap:
        return BitMap.union(BitMap(), *(alike for shape, alike in self._shapes.items() if label in shape))

    def heirs(self, label: str) -> Iterator[tuple[BitMap, str]]:
        """Members of each parent that gives the label, and the value it gives."""
        for parent, given in self._given.items():
            value = given.get(label)
            members = None if value is None else self._members.get(parent)
            if value is not None and members is not None:
                yield members, value

    def inherited(self, item: int, label: str) -> str | None:
        for parent in reversed(self._parents[item]):
            value = self.given(parent).get(label)
            if value is not None:
                return value
        return None
