"""Which items match which selectors, kept right by differences.

An item is a dense integer with labels of its own and parents (an endpoint and its profiles); it has its parents'
labels too. Own labels win over inherited ones, later parents over earlier ones. Source: felix specification 4.2, 12.3.

Queries are answered by bitmap algebra over postings. A batch of many items evaluates each query once; a change of few
items tests them against the queries filed under their labels, so that the cost of one endpoint does not depend on how
many selectors stand. A parent's change moves all its items from posting to posting at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import msgspec
from pyroaring import BitMap

from calico_core.model.selectors import Labels, Node
from calico_core.policy.labelled_items import NO_LABELS, LabelledItems
from calico_core.policy.one_or_several import each
from calico_core.policy.postings import EMPTY, Posting, Postings, Query

BULK_ITEMS = 256
"""From here on a batch is worth an evaluation of every query: gathering candidates costs about 3 µs an item."""
LOOKS_AN_ITEM = 8
"""An item costs about as much as so many shapes or parents looked at for one label: where these are fewer, postings
are filled label by label, else item by item."""
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
        self._postings = Postings()
        self._items = LabelledItems(self._postings.keys)
        self._queries: set[Query] = set()
        self._unfiled: set[Query] = set()
        self._next_number = 0
        self._stale: set[str] = set()
        """Labels of which more is asked for than the postings hold."""
        self._unposted = BitMap()
        """Items of a batch of many that the postings do not hold yet."""
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
        if self._items.all:
            self._stale |= stale
        if len(self._postings.keys) != labels_before:
            self._items.forget_gifts()
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
        if item not in self._items.all:
            return ()
        return [query for query in self._candidates(self._items.labels(item)) if item in query.matched]

    # --- items ---------------------------------------------------------------------------------------

    def expect(self, count: int) -> None:
        """So many items come in this batch. With many, nothing is worked out for each."""
        if count >= BULK_ITEMS:
            self._is_bulk = True

    def put(self, item: int, labels: Labels, parents: tuple[str, ...]) -> None:
        """A new item, or other labels or parents of one."""
        items = self._items
        if item in items.all:
            if items.is_same(item, labels, parents):
                return
            self.remove(item)
        items.put(item, labels, parents)
        if self._is_bulk:
            self._unposted.add(item)
            return
        effective = items.labels(item) if parents else labels
        self._post(item, labels, effective)
        self._test(item, effective)

    def remove(self, item: int) -> None:
        items = self._items
        if item not in items.all:
            return
        if item in self._unposted:
            self._unposted.discard(item)
        else:
            effective = items.labels(item)
            self._postings.discard(item, effective)
            if not self._is_bulk:
                self._test(item, effective)
        items.remove(item)

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
        items = self._items
        before, after = items.given(parent), labels or NO_LABELS
        members = items.members(parent)
        changed = [] if members is None else self._changed(before, after)
        if members is None or not changed:
            items.give(parent, after)
            return
        self._fill_postings()
        several = {item: items.labels(item) for item in members & items.several}
        items.give(parent, after)
        single = members - items.several
        for label in changed:
            heirs = single - self._postings.keys[label].own
            if heirs:
                self._move(label, heirs, before.get(label), after.get(label))
        for item, old in several.items():
            new = items.labels(item)
            for label in changed:
                if old.get(label) != new.get(label):
                    self._move(label, BitMap([item]), old.get(label), new.get(label))

    def _changed(self, before: Labels, after: Labels) -> list[str]:
        """Labels of which something is asked."""
        asked = self._postings.keys
        return [label for label in {**before, **after} if label in asked and before.get(label) != after.get(label)]

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
        return IndexFigures(len(self._items.all), filed, unfiled, self._matches, self._mismatches, self._evaluations)

    # --- answers -------------------------------------------------------------------------------------

    def flush(self) -> dict[Query, Delta]:
        """The queries whose items changed since the last flush."""
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
                labels = effective[item] = self._items.labels(item)
            if item in self._items.all and node.matches(labels):
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
            items = self._items.all - items
        if items == before:
            return None
        query.matched = items if is_negated else BitMap(items)
        return Delta(query.matched - before, before - items)

    def _fill_postings(self) -> None:
        """For whatever is newly asked for, and for new items of a batch of many. Adding again what is there does no
        harm."""
        if self._stale:
            stale = self._stale & self._postings.keys.keys()
            self._fill(stale, self._items.all)
            self._stale.clear()
        else:
            stale = set()
        if self._is_bulk and self._unposted:
            self._fill(self._postings.keys.keys() - stale, self._unposted)
            self._unposted.clear()

    def _fill(self, labels: Collection[str], items: BitMap) -> None:
        if len(labels) * self._items.looks <= LOOKS_AN_ITEM * len(items):
            for label in labels:
                self._fill_label(label, items)
            return
        for item in items:
            self._post(item, self._items.own(item), self._items.labels(item))

    def _post(self, item: int, own: Labels, effective: Labels) -> None:
        if effective is own:
            self._postings.add_own(item, own)
        else:
            self._postings.add(item, effective)
            self._postings.mark_own(item, own)

    def _fill_label(self, label: str, items: BitMap) -> None:
        key, known = self._postings.keys[label], self._items
        holders = known.with_own(label)
        if items is not known.all:
            holders &= items
        key.fill(holders, [known.own(item)[label] for item in holders.to_array()] if key.values or key.texts else [])
        given = list(known.heirs(label))
        if not given:
            return
        heirs = items - key.own
        single = heirs - known.several
        for members, value in given:
            for posting in key.of(value):
                posting.update(members & single)
        for item in heirs & known.several:
            inherited = known.inherited(item, label)
            if inherited is not None:
                key.add(item, inherited)
