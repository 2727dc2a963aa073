"""Which items match which selectors, kept right by differences.

An item is a dense integer with labels of its own and parents (an endpoint and its profiles); it has its parents'
labels too. Own labels win over inherited ones, later parents over earlier ones. Source: felix specification 4.2, 12.3.

Queries are answered by bitmap algebra over postings. A batch of many items evaluates each query once; a change of few
items tests them against the queries filed under their labels, so that the cost of one endpoint does not depend on how
many selectors stand. A parent's change moves all its items from posting to posting at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import NamedTuple

import msgspec
from pyroaring import BitMap

from calico_core.model.selectors import Labels, Node
from calico_core.policy.one_or_several import each
from calico_core.policy.postings import EMPTY, Posting, Postings, Query

NO_LABELS: Labels = MappingProxyType({})
BULK_ITEMS = 256
"""From here on a batch is worth an evaluation of every query: gathering candidates costs about 3 µs an item."""
FEW_LABELS = 6
"""Up to here postings are filled label by label; beyond, in one pass over every label of every item."""
ALGEBRA_ITEMS = 16
"""From here on one query is evaluated as a whole: a test of one item costs about as much as an operation on bitmaps."""


class IndexFigures(NamedTuple):
    """Sizes now, and totals since the start. ``unfiled``: queries that every change of an item tests."""

    items: int
    filed: int
    unfiled: int
    matches: int
    mismatches: int
    """Tests of one item against one query."""
    evaluations: int
    """Of one query over all items."""


class Delta(msgspec.Struct, frozen=True):
    """How the items of one query changed over a batch. Read the bitmaps, never change them."""

    added: BitMap
    removed: BitMap


class LabelIndex:
    """Changes are noted as they come and answered by :meth:`flush`, once a batch."""

    def __init__(self) -> None:
        self._all = BitMap()
        self._labels: list[Labels] = []
        self._parents: list[tuple[str, ...]] = []
        self._shapes: dict[tuple[str, ...], BitMap] = {}
        """Items by the names of their own labels: a cluster has few of these, and who has a label is then known at
        once."""
        self._parent_labels: dict[str, Labels] = {}
        self._gifts: dict[str, Labels] = {}
        """Of a parent's labels those that some query names; most parents then give nothing. A cache."""
        self._members: dict[str, BitMap] = {}
        self._several = BitMap()
        """Items with more than one parent: what a change of one parent means for them is found one by one."""
        self._postings = Postings()
        self._queries: set[Query] = set()
        self._unfiled: set[Query] = set()
        self._next_number = 0
        self._stale: set[str] = set()
        """Labels of which more is asked for than the postings hold."""
        self._matches = self._mismatches = self._evaluations = 0
        # Of the batch under way.
        self._is_bulk = False
        self._to_evaluate: set[Query] = set()
        self._to_test: dict[Query, set[int]] = {}

    # --- queries -------------------------------------------------------------------------------------

    def add_query(self, node: Node) -> Query:
        """Its items come as added with the next flush."""
        query = Query(node, self._next_number)
        self._next_number += 1
        self._queries.add(query)
        labels_before = len(self._postings.keys)
        stale = self._postings.want(query)
        if self._all:
            self._stale |= stale
        if len(self._postings.keys) != labels_before:
            self._gifts.clear()
        self._postings.file(query)
        if query.filed is None:
            self._unfiled.add(query)
        self._to_evaluate.add(query)
        return query

    def drop_query(self, query: Query) -> None:
        self._queries.remove(query)
        self._postings.unfile(query)
        self._postings.release(query)
        self._unfiled.discard(query)
        self._to_evaluate.discard(query)
        self._to_test.pop(query, None)

    def matching(self, item: int) -> Iterable[Query]:
        """The queries the item matches, as of the last flush, provided its labels have not changed since."""
        if item not in self._all:
            return ()
        return [query for query in self._candidates(self.labels(item)) if item in query.matched]

    # --- items ---------------------------------------------------------------------------------------

    def labels(self, item: int) -> Labels:
        """Own over inherited. Of the inherited ones only what queries name."""
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
        given = self._parent_labels.get(parent)
        if given is None:
            return NO_LABELS
        wanted = self._postings.keys
        return {label: value for label, value in given.items() if label in wanted}

    def expect(self, count: int) -> None:
        """So many items come in this batch. With many, nothing is worked out for each."""
        if count >= BULK_ITEMS:
            self._is_bulk = True

    def put(self, item: int, labels: Labels, parents: tuple[str, ...]) -> None:
        """A new item, or other labels or parents of one."""
        if item in self._all:
            if labels == self._labels[item] and parents == self._parents[item]:
                return
            self.remove(item)
        if item == len(self._labels):
            self._labels.append(labels)
            self._parents.append(parents)
        else:
            self._make_room(item)
            self._labels[item] = labels
            self._parents[item] = parents
        self._all.add(item)
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
            self._several.add(item)
        effective = self.labels(item) if parents else labels
        if effective is labels:
            self._postings.add_own(item, labels)
        else:
            self._postings.add(item, effective)
            self._postings.mark_own(item, labels)
        if not self._is_bulk:
            self._test(item, effective)

    def _make_room(self, item: int) -> None:
        missing = item + 1 - len(self._labels)
        if missing > 0:
            self._labels += [NO_LABELS] * missing
            self._parents += [()] * missing

    def remove(self, item: int) -> None:
        if item not in self._all:
            return
        effective = self.labels(item)
        self._postings.discard(item, effective)
        if not self._is_bulk:
            self._test(item, effective)
        self._all.discard(item)
        shape = tuple(self._labels[item])
        alike = self._shapes[shape]
        alike.discard(item)
        if not alike:
            del self._shapes[shape]
        self._several.discard(item)
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

    def _test(self, item: int, labels: Labels) -> None:
        to_test = self._to_test
        for query in self._candidates(labels):
            items = to_test.get(query)
            if items is None:
                to_test[query] = {item}
            else:
                items.add(item)

    def _candidates(self, labels: Labels) -> set[Query]:
        found = self._postings.filed(labels)
        if self._unfiled:
            found |= self._unfiled
        return found

    # --- parents -------------------------------------------------------------------------------------

    def set_parent(self, parent: str, labels: Labels | None) -> None:
        """None: the parent contributes nothing."""
        before = self._parent_labels.get(parent, NO_LABELS)
        after = labels or NO_LABELS
        changed = [
            label
            for label in {**before, **after}
            if label in self._postings.keys and before.get(label) != after.get(label)
        ]
        members = self._members.get(parent) if changed else None
        if members is not None and self._stale:
            self._fill_postings()
        several = {item: self.labels(item) for item in members & self._several} if members is not None else {}
        if after:
            self._parent_labels[parent] = after
        else:
            self._parent_labels.pop(parent, None)
        self._gifts.pop(parent, None)
        if members is None:
            return
        single = members - self._several
        for label in changed:
            heirs = single - self._postings.keys[label].own
            if heirs:
                self._move(label, heirs, before.get(label), after.get(label))
        for item, old in several.items():
            new = self.labels(item)
            for label in changed:
                if old.get(label) != new.get(label):
                    self._move(label, BitMap([item]), old.get(label), new.get(label))

    def _move(self, label: str, items: BitMap, before: str | None, after: str | None) -> None:
        """Items that inherit the label see another value of it; None: no value."""
        key = self._postings.keys[label]
        left: set[Posting] = set() if before is None else set(key.of(before))
        entered: set[Posting] = set() if after is None else set(key.of(after))
        for posting in left - entered:
            posting.subtract(items)
            self._to_evaluate.update(each(posting.queries))
        for posting in entered - left:
            posting.update(items)
            self._to_evaluate.update(each(posting.queries))

    def figures(self) -> IndexFigures:
        """For metrics; any thread."""
        unfiled = len(self._unfiled)
        filed = len(self._queries) - unfiled
        return IndexFigures(len(self._all), filed, unfiled, self._matches, self._mismatches, self._evaluations)

    # --- answers -------------------------------------------------------------------------------------

    def flush(self) -> dict[Query, Delta]:
        """The queries whose items changed since the last flush."""
        if self._stale:
            self._fill_postings()
        if self._is_bulk:
            self._to_evaluate = set(self._queries)
            self._to_test.clear()
        deltas: dict[Query, Delta] = {}
        effective: dict[int, Labels] = {}
        for query, items in self._to_test.items():
            if query in self._to_evaluate:
                continue
            if len(items) > ALGEBRA_ITEMS:
                self._to_evaluate.add(query)
                continue
            delta = self._tested(query, items, effective)
            if delta is not None:
                deltas[query] = delta
        self._evaluations += len(self._to_evaluate)
        for query in self._to_evaluate:
            delta = self._evaluated(query)
            if delta is not None:
                deltas[query] = delta
        self._is_bulk = False
        self._to_evaluate = set()
        self._to_test = {}
        return deltas

    def _tested(self, query: Query, items: set[int], effective: dict[int, Labels]) -> Delta | None:
        added: list[int] = []
        removed: list[int] = []
        matching, matched, node = 0, query.matched, query.node
        for item in items:
            labels = effective.get(item)
            if labels is None:
                labels = effective[item] = self.labels(item)
            if item in self._all and node.matches(labels):
                matching += 1
                if item not in matched:
                    added.append(item)
            elif item in matched:
                removed.append(item)
        self._matches += matching
        self._mismatches += len(items) - matching
        if not added and not removed:
            return None
        if matched is EMPTY:
            matched = query.matched = BitMap()
        # a bitmap costs some microseconds to make, and most of these would be empty
        for item in added:
            matched.add(item)
        for item in removed:
            matched.discard(item)
        return Delta(BitMap(added) if added else EMPTY, BitMap(removed) if removed else EMPTY)

    def _evaluated(self, query: Query) -> Delta | None:
        items, is_negated = self._postings.evaluate(query.node)
        before = query.matched
        if items is EMPTY and before is EMPTY and not is_negated:
            return None
        if is_negated:
            items = self._all - items
        if items == before:
            return None
        query.matched = items if is_negated else BitMap(items)
        return Delta(query.matched - before, before - items)

    def _fill_postings(self) -> None:
        """For whatever is newly asked for. Adding again what is there does no harm."""
        stale = [label for label in self._stale if label in self._postings.keys]
        self._stale.clear()
        if len(stale) <= FEW_LABELS:
            for label in stale:
                self._fill_label(label)
            return
        for item in self._all:
            own = self._labels[item]
            effective = self.labels(item)
            if effective is own:
                self._postings.add_own(item, own)
            else:
                self._postings.add(item, effective)
                self._postings.mark_own(item, own)

    def _fill_label(self, label: str) -> None:
        key, labels = self._postings.keys[label], self._labels
        holders = BitMap.union(EMPTY, *(items for shape, items in self._shapes.items() if label in shape))
        key.fill(holders, [labels[item][label] for item in holders.to_array()] if key.values or key.texts else [])
        givers = [
            (members, given[label])
            for parent, given in self._parent_labels.items()
            if label in given and (members := self._members.get(parent)) is not None
        ]
        for members, value in givers:
            heirs = members - self._several - key.own
            for posting in key.of(value):
                posting.update(heirs)
        if givers:
            for item in self._several - key.own:
                inherited = self.labels(item).get(label)
                if inherited is not None:
                    key.add(item, inherited)
