"""What only the memory store does: a clock moved by hand, faults on order, stores shared by name."""

from __future__ import annotations

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.errors import Conflict, Unavailable
from calico_core.interfaces.datastore import Batch, DatastoreOptions, Lost


def test_a_name_is_one_store() -> None:
    first = MemoryDatastore.open("memory://shared", DatastoreOptions())
    second = MemoryDatastore.open("memory://shared", DatastoreOptions())
    private = MemoryDatastore.open("memory://", DatastoreOptions())
    first.put("/calico/a", b"1")
    first.close()
    assert second.get("/calico/a") is not None
    assert private.get("/calico/a") is None
    assert private.identity() != second.identity()
    MemoryDatastore.forget("shared")
    assert MemoryDatastore.open("memory://shared", DatastoreOptions()).get("/calico/a") is None
    MemoryDatastore.forget("shared")


def test_leases_follow_the_clock_given() -> None:
    now = 100.0
    store = MemoryDatastore(clock=lambda: now)
    lease = store.lease(30)
    store.put("/calico/a", b"", lease=lease.id)
    now = 129.0
    assert lease.keep_alive()
    now = 158.0
    assert store.get("/calico/a") is not None
    now = 159.0
    assert store.get("/calico/a") is None
    assert not lease.keep_alive()


def test_a_refused_transaction_changes_nothing() -> None:
    store = MemoryDatastore()
    store.faults.refuse(2)
    store.put("/calico/a", b"1")
    with pytest.raises(Unavailable) as refused:
        store.put("/calico/a", b"2")
    assert not refused.value.maybe_applied
    entry = store.get("/calico/a")
    assert entry is not None
    assert entry.value == b"1"
    store.put("/calico/a", b"3")


def test_an_unanswered_transaction_was_applied() -> None:
    store = MemoryDatastore()
    store.faults.apply_unanswered(1)
    with pytest.raises(Unavailable) as refused:
        store.create("/calico/a", b"1")
    assert refused.value.maybe_applied
    assert store.get("/calico/a") is not None


def test_another_writer_slips_in() -> None:
    store = MemoryDatastore()
    revision = store.put("/calico/a", b"1")
    store.faults.before(1, lambda: store.put("/calico/a", b"theirs"))
    with pytest.raises(Conflict) as refused:
        store.compare_and_swap("/calico/a", b"ours", revision)
    assert refused.value.current.value == b"theirs"


def test_broken_watches_say_what_they_had_first() -> None:
    store = MemoryDatastore()
    watch = store.watch("/calico/", store.list("/calico/").revision)
    store.put("/calico/a", b"1")
    store.faults.break_watches("cable cut")
    assert isinstance(watch.next(20), Batch)
    assert watch.next(20) == Lost("cable cut")
    assert watch.next(0) is None


def test_a_store_that_is_down_answers_nothing() -> None:
    store = MemoryDatastore()
    store.faults.down = True
    for call in (lambda: store.get("/calico/a"), lambda: store.list("/calico/"), store.identity):
        with pytest.raises(Unavailable):
            call()
    store.faults.down = False
    assert store.get("/calico/a") is None
