"""Bitmaps of items by label: what the standing queries ask of each label, and nothing else.

Labels that no query names are not indexed. Most labels of a large cluster (pod hashes, tenant ids) are never selected
by, and of those that are, only few values: a snapshot then costs one dictionary look-up a label. The price is a pass
over the items when a query names something new, made once for all that a batch brings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import compress

from pyroaring import BitMap

from calico_core.model.selectors import (
    All,
    And,
    Equal,
    Global,
    Has,
    In,
    Labels,
    Node,
    Not,
    NotEqual,
    NotIn,
    Or,
    TextMatch,
)
from calico_core.policy.one_or_several import OneOrSeveral, count, with_one, without

EMPTY = BitMap()
"""Never changed."""
Atom = Has | Equal | TextMatch
"""A test of one label that an item passes only by having it."""
Term = tuple[str, str | None]
"""A label with a value, or with None for any value."""
NAMESPACE = "projectcalico.org/namespace"
Result = tuple[BitMap, bool]
"""Items, or with True all items but these. The bitmap may be a posting: never change it."""


class Query:
    """A standing selector. ``matched`` is the label index's own: read it, never change it."""

    __slots__ = ("filed", "matched", "node", "number")

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.number = number
        self.matched = EMPTY
        self.filed: int | None = None
        """Which of its :func:`requirements` it is filed under; None: it has none."""


class Posting:
    """The items that pass one atom, the queries that ask for it and, of a value, those that are filed under it."""

    __slots__ = ("filed", "items", "queries")

    def __init__(self) -> None:
        self.items = EMPTY
        self.queries: OneOrSeveral[Query] = None
        self.filed: OneOrSeveral[Query] = None

    def add(self, item: int) -> None:
        if self.items is EMPTY:  # of most selectors of a large cluster nothing ever passes here
            self.items = BitMap()
        self.items.add(item)

    def update(self, items: BitMap | list[int]) -> None:
        if items:
            if self.items is EMPTY:
                self.items = BitMap()
            self.items.update(items)

    def subtract(self, items: BitMap) -> None:
        if self.items is not EMPTY:
            self.items -= items


class KeyPostings:
    """All that is asked of one label. ``own``: items that carry it themselves, whatever their parents say. ``filed``:
    queries filed under the label with any value."""

    __slots__ = ("filed", "own", "present", "texts", "values")

    def __init__(self) -> None:
        self.own = BitMap()
        self.present: Posting | None = None
        self.values: dict[str, Posting] = {}
        self.texts: dict[TextMatch, Posting] = {}
        self.filed: OneOrSeveral[Query] = None

    def __bool__(self) -> bool:
        return bool(self.present or self.values or self.texts)

    def of(self, value: str) -> Iterator[Posting]:
        """The postings of an item with this value."""
        if self.present is not None:
            yield self.present
        posting = self.values.get(value)
        if posting is not None:
            yield posting
        for text, posting in self.texts.items():
            if text.accepts(value):
                yield posting

    def add(self, item: int, value: str) -> None:
        # as :meth:`of`, unrolled: a snapshot comes through here once for each endpoint and label
        if self.present is not None:
            self.present.add(item)
        posting = self.values.get(value)
        if posting is not None:
            posting.add(item)
        if self.texts:
            for text, posting in self.texts.items():
                if text.accepts(value):
                    posting.add(item)

    def fill(self, items: BitMap, values: list[str]) -> None:
        """Many items that carry the label themselves, each with its value, in their order."""
        self.own |= items
        if self.present is not None:
            self.present.update(items)
        distinct = set(values)
        if len(distinct) == 1:
            for value in distinct & self.values.keys():
                self.values[value].update(items)
        elif distinct:
            asked = list(map(self.values.__contains__, values))
            wanted: defaultdict[str, list[int]] = defaultdict(list)
            for item, value in zip(compress(items.to_array(), asked), compress(values, asked), strict=True):
                wanted[value].append(item)
            for value, found in wanted.items():
                self.values[value].update(found)
        for text, posting in self.texts.items():
            accepted = {value for value in distinct if text.accepts(value)}
            posting.update(list(compress(items.to_array(), map(accepted.__contains__, values))))

    def discard(self, item: int, value: str) -> None:
        for posting in self.of(value):
            if posting.items is not EMPTY:
                posting.items.discard(item)


class Postings:
    """The labels that are asked for."""

    def __init__(self) -> None:
        self.keys: dict[str, KeyPostings] = {}

    def want(self, query: Query) -> set[str]:
        """The labels of which something is asked that nobody asked before: those postings are empty as yet."""
        stale: set[str] = set()
        for atom in atoms(query.node):
            key = self.keys.get(atom.label)
            if key is None:
                key = self.keys[atom.label] = KeyPostings()
            posting = _find(key, atom)
            if posting is None:
                posting = Posting()
                stale.add(atom.label)
                if isinstance(atom, Has):
                    key.present = posting
                elif isinstance(atom, Equal):
                    key.values[atom.value] = posting
                else:
                    key.texts[atom] = posting
            posting.queries = with_one(posting.queries, query)
        return stale

    def release(self, query: Query) -> None:
        for atom in atoms(query.node):
            key = self.keys.get(atom.label)
            posting = _find(key, atom) if key is not None else None
            if key is None or posting is None:
                continue
            posting.queries = without(posting.queries, query)
            if posting.queries is not None:
                continue
            if isinstance(atom, Has):
                key.present = None
            elif isinstance(atom, Equal):
                del key.values[atom.value]
            else:
                del key.texts[atom]
            if not key:
                del self.keys[atom.label]

    def add(self, item: int, labels: Labels) -> None:
        keys = self.keys
        for label, value in labels.items():
            key = keys.get(label)
            if key is not None:
                key.add(item, value)

    def add_own(self, item: int, labels: Labels) -> None:
        """Labels that no parent contributes to: as :meth:`add`, and they are the item's own."""
        keys = self.keys
        for label, value in labels.items():
            key = keys.get(label)
            if key is not None:
                key.own.add(item)
                key.add(item, value)

    def mark_own(self, item: int, labels: Labels) -> None:
        for label in labels:
            key = self.keys.get(label)
            if key is not None:
                key.own.add(item)

    def discard(self, item: int, labels: Labels) -> None:
        """Own or inherited."""
        for label, value in labels.items():
            key = self.keys.get(label)
            if key is not None:
                key.own.discard(item)
                key.discard(item, value)

    def file(self, query: Query) -> None:
        """File the query under the required terms that fewest queries are filed under."""
        options = requirements(query.node)
        if not options:
            return
        query.filed = 0 if len(options) == 1 else min(range(len(options)), key=lambda at: self._crowd(options[at]))
        for place in map(self._place, options[query.filed]):
            place.filed = with_one(place.filed, query)

    def _crowd(self, option: tuple[Term, ...]) -> tuple[int, bool]:
        filed = sum(count(place.filed) for place in map(self._place, option))
        return filed + len(option), option[0][1] is None

    def _place(self, term: Term) -> KeyPostings | Posting:
        """Where queries are filed under it."""
        label, value = term
        key = self.keys[label]
        return key if value is None else key.values[value]

    def unfile(self, query: Query) -> None:
        if query.filed is None:
            return
        for place in map(self._place, requirements(query.node)[query.filed]):
            place.filed = without(place.filed, query)

    def filed(self, labels: Labels) -> set[Query]:
        """The queries filed under one of these labels."""
        found: set[Query] = set()
        for label, value in labels.items():
            key = self.keys.get(label)
            if key is None:
                continue
            # without a loop over the two: each update of an endpoint comes through here
            held = key.filed
            if isinstance(held, set):
                found |= held
            elif held is not None:
                found.add(held)
            posting = key.values.get(value)
            held = None if posting is None else posting.filed
            if isinstance(held, set):
                found |= held
            elif held is not None:
                found.add(held)
        return found

    def evaluate(self, node: Node) -> Result:
        """Set algebra over the tree. Negations stay symbolic, so ``a && !b`` never counts all items."""
        kind = type(node)
        if kind is Equal or kind is NotEqual:
            assert isinstance(node, Equal | NotEqual)
            return self.keys[node.label].values[node.value].items, kind is NotEqual
        if isinstance(node, And):
            return _negate(_union([_negate(self.evaluate(each)) for each in node.operands]))
        if isinstance(node, Or):
            return _union([self.evaluate(each) for each in node.operands])
        if isinstance(node, Not):
            return _negate(self.evaluate(node.operand))
        if isinstance(node, Has | Global):
            posting = self.keys[node.label if isinstance(node, Has) else NAMESPACE].present
            assert posting is not None
            return posting.items, isinstance(node, Global)
        if isinstance(node, In | NotIn):
            values = self.keys[node.label].values
            return BitMap.union(EMPTY, *(values[value].items for value in node.values)), isinstance(node, NotIn)
        if isinstance(node, TextMatch):
            return self.keys[node.label].texts[node].items, False
        assert isinstance(node, All), node
        return EMPTY, True


def atoms(node: Node) -> Iterator[Atom]:
    """The atoms of a tree, some of them more than once."""
    if isinstance(node, Has | Equal | TextMatch):
        yield node
    elif isinstance(node, NotEqual):
        yield Equal(node.label, node.value)
    elif isinstance(node, In | NotIn):
        for value in node.values:
            yield Equal(node.label, value)
    elif isinstance(node, Global):
        yield Has(NAMESPACE)
    elif isinstance(node, Not):
        yield from atoms(node.operand)
    elif isinstance(node, And | Or):
        for operand in node.operands:
            yield from atoms(operand)


def requirements(node: Node) -> list[tuple[Term, ...]]:
    """Each option: an item that matches has at least one of its terms."""
    if isinstance(node, Equal):
        return [((node.label, node.value),)]
    if isinstance(node, In):
        return [tuple((node.label, value) for value in node.values)]
    if isinstance(node, Has | TextMatch):
        return [((node.label, None),)]
    if isinstance(node, And):
        return [option for operand in node.operands for option in requirements(operand)]
    if isinstance(node, Or):
        options = [requirements(operand) for operand in node.operands]
        if not all(options):
            return []
        shortest = (min(option, key=len) for option in options)
        return [tuple(dict.fromkeys(term for option in shortest for term in option))]
    return []


def _find(key: KeyPostings, atom: Atom) -> Posting | None:
    if isinstance(atom, Has):
        return key.present
    if isinstance(atom, Equal):
        return key.values.get(atom.value)
    return key.texts.get(atom)


def _negate(result: Result) -> Result:
    return result[0], not result[1]


def _union(results: list[Result]) -> Result:
    """``not x or y`` = ``not (x and not y)``."""
    plain = [items for items, is_negated in results if not is_negated]
    negated = [items for items, is_negated in results if is_negated]
    union = BitMap.union(EMPTY, *plain)
    if not negated:
        return union, False
    common = negated[0] if len(negated) == 1 else BitMap.intersection(*sorted(negated, key=len))
    return (common - union if union else common), True
