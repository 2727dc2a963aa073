"""What the label index counts of itself."""

from __future__ import annotations

from calico_core.model.selectors import parse_selector
from calico_core.policy.label_index import BULK_ITEMS, LabelIndex


def test_single_changes_are_tests_and_a_bulk_is_algebra() -> None:
    index = LabelIndex()
    index.add_query(parse_selector("a == 'x'").root)
    index.add_query(parse_selector("!has(b)").root)
    index.flush()
    begun = index.figures()
    assert (begun.items, begun.filed + begun.unfiled, begun.evaluations) == (0, 2, 2)
    index.put(0, {"a": "x"}, ())
    index.put(1, {"b": "y"}, ())
    index.flush()
    # the first is filed under its label and tested for item 0 alone; the second is tested for both
    single = index.figures()
    assert (single.items, single.filed, single.unfiled) == (2, 1, 1)
    assert (single.matches, single.mismatches, single.evaluations) == (2, 1, 2)
    index.expect(BULK_ITEMS)
    for item in range(2, 2 + BULK_ITEMS):
        index.put(item, {"a": "x"}, ())
    index.flush()
    bulk = index.figures()
    assert bulk.items == 2 + BULK_ITEMS
    assert (bulk.matches, bulk.mismatches, bulk.evaluations) == (2, 1, 4)
