"""Reference counts over a batch."""

from __future__ import annotations

from calico_core.policy.active import References
from calico_core.policy.dense_ids import DenseIds


def test_changes_are_net_of_the_batch() -> None:
    references: References[str] = References()
    references.hold(["a", "a", "b"])
    assert references.take_changes() == (["a", "b"], [])
    references.release(["a"])
    assert references.take_changes() == ([], [])
    references.release(["a", "b"])
    references.hold(["b", "c"])
    references.hold(["d"])
    references.release(["d"])
    assert references.take_changes() == (["c"], ["a"])
    assert "b" in references
    assert "a" not in references
    assert len(references) == 2


def test_a_number_given_back_means_the_same_until_the_batch_ends() -> None:
    ids: DenseIds[str] = DenseIds()
    assert (ids.assign("a"), ids.assign("b"), ids.assign("a")) == (0, 1, 0)
    assert ids.release("a") == 0
    assert ids.release("a") is None
    assert ids.assign("c") == 2
    ids.end_batch()
    assert ids.assign("d") == 0
    assert (ids.key(0), ids.find("a"), len(ids)) == ("d", None, 3)
