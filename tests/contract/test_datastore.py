"""The rules of ``interfaces.datastore``, for every driver."""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.errors import Conflict, InvalidSettings, KeyExists, KeyMissing, Unavailable
from calico_core.interfaces.datastore import (
    MAX_TRANSACTION_OPERATIONS,
    Batch,
    CompactedAway,
    Compare,
    Datastore,
    DatastoreOptions,
    Delete,
    Event,
    Lost,
    NoneNewer,
    Progress,
    Put,
    Watch,
    WatchMessage,
    absent,
    unchanged,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE_S = 30.0
DRIVERS: dict[str, type[Datastore]] = {"memory": MemoryDatastore, "sqlite": SqliteDatastore, "etcd3": Etcd3Datastore}


@pytest.fixture(params=["memory", "sqlite", "etcd3"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Datastore]]:
    """Opens one more handle on the same store."""
    opened: list[Datastore] = []
    name = uuid.uuid4().hex
    if request.param == "etcd3":
        url = request.getfixturevalue("etcd").url
    else:
        url = {"memory": f"memory://{name}", "sqlite": f"sqlite://{tmp_path}/{'deep' * 30}/calico.db"}[request.param]

    def make() -> Datastore:
        opened.append(DRIVERS[request.param].open(url, DatastoreOptions()))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
    MemoryDatastore.forget(name)


@pytest.fixture
def store(opener: Callable[[], Datastore]) -> Datastore:
    return opener()


def next_batch(watch: Watch) -> Batch:
    message = next_message(watch)
    assert isinstance(message, Batch), message
    return message


def next_message(watch: Watch) -> WatchMessage:
    """The next that is no progress."""
    deadline = time.monotonic() + PATIENCE_S
    while (left := deadline - time.monotonic()) > 0:
        message = watch.next(left)
        if message is not None and not isinstance(message, Progress):
            return message
    pytest.fail("the watch says nothing")


def no_batch_before(watch: Watch, store: Datastore, marker: str) -> None:
    """Nothing is waiting: the next batch is that of a key written now."""
    revision = store.put(marker, b"marker")
    assert next_batch(watch).revision == revision


# --- reading and writing -------------------------------------------------------------------------------------


def test_what_was_put_is_there(store: Datastore) -> None:
    assert store.get("/calico/a") is None
    first = store.put("/calico/a", b"1")
    second = store.put("/calico/a", b"\x00\xff")
    assert second > first
    entry = store.get("/calico/a")
    assert entry == ("/calico/a", b"\x00\xff", first, second, None)


def test_a_prefix_is_a_folder(store: Datastore) -> None:
    for key in ["/calico/a/b/z", "/calico/a/b/c/d", "/calico/a/bc", "/calico/a/b", "/calico/a/b0", "/calico/a/b-c"]:
        store.put(key, b"")
    revision = store.put("/calico/other", b"")
    snapshot = store.list("/calico/a/b/")
    assert [entry.key for entry in snapshot.entries] == ["/calico/a/b/c/d", "/calico/a/b/z"]
    assert snapshot.revision == revision
    assert store.list("/calico/nothing/").entries == ()


@pytest.mark.parametrize("prefix", ["/calico/a", ""])
def test_a_prefix_without_a_slash_is_refused(store: Datastore, prefix: str) -> None:
    for call in (store.list, store.delete_prefix, lambda given: store.watch(given, 0)):
        with pytest.raises(ValueError, match="must end with '/'"):
            call(prefix)


def test_create_refuses_what_exists_and_shows_it(store: Datastore) -> None:
    revision = store.create("/calico/a", b"1")
    with pytest.raises(KeyExists) as refused:
        store.create("/calico/a", b"2")
    assert refused.value.current == store.get("/calico/a")
    assert refused.value.current.value == b"1"
    assert refused.value.current.mod_revision == revision


def test_swap_needs_the_revision_read(store: Datastore) -> None:
    first = store.create("/calico/a", b"1")
    second = store.compare_and_swap("/calico/a", b"2", first)
    with pytest.raises(Conflict) as refused:
        store.compare_and_swap("/calico/a", b"3", first)
    assert refused.value.current == ("/calico/a", b"2", first, second, None)
    store.delete("/calico/a")
    with pytest.raises(Conflict) as refused:
        store.compare_and_swap("/calico/a", b"3", second)
    assert refused.value.current is None


def test_delete_says_whether_it_was_there(store: Datastore) -> None:
    revision = store.put("/calico/a", b"1")
    assert store.delete("/calico/a")
    assert not store.delete("/calico/a")
    assert not store.delete("/calico/a", mod_revision=revision)
    stale = store.put("/calico/a", b"2")
    fresh = store.put("/calico/a", b"3")
    with pytest.raises(Conflict) as refused:
        store.delete("/calico/a", mod_revision=stale)
    assert refused.value.current.value == b"3"
    assert store.delete("/calico/a", mod_revision=fresh)
    assert store.get("/calico/a") is None


def test_delete_prefix_counts_and_spares_neighbours(store: Datastore) -> None:
    for key in ["/calico/a/1", "/calico/a/2/3", "/calico/ab"]:
        store.put(key, b"")
    assert store.delete_prefix("/calico/a/") == 2
    assert store.delete_prefix("/calico/a/") == 0
    assert [entry.key for entry in store.list("/calico/").entries] == ["/calico/ab"]


def test_a_recreated_key_has_a_new_create_revision(store: Datastore) -> None:
    first = store.create("/calico/a", b"1")
    store.delete("/calico/a")
    second = store.create("/calico/a", b"1")
    entry = store.get("/calico/a")
    assert entry is not None
    assert entry.create_revision == entry.mod_revision == second > first


def test_a_long_list_comes_whole_and_sorted(store: Datastore) -> None:
    names = [f"/calico/many/{number * 7919 % 3001:05}" for number in range(3000)]
    for start in range(0, len(names), MAX_TRANSACTION_OPERATIONS):
        chunk = names[start : start + MAX_TRANSACTION_OPERATIONS]
        assert store.transact([], [Put(name, name.encode()) for name in chunk]).committed
    snapshot = store.list("/calico/many/")
    assert [entry.key for entry in snapshot.entries] == sorted(names)
    assert all(entry.value == entry.key.encode() for entry in snapshot.entries)
    assert store.delete_prefix("/calico/many/") == 3000


# --- transactions --------------------------------------------------------------------------------------------


def test_a_transaction_has_one_revision(store: Datastore) -> None:
    kept = store.put("/calico/keep", b"")
    store.put("/calico/go", b"")
    entry = store.get("/calico/keep")
    assert entry is not None
    result = store.transact(
        [unchanged(entry), absent("/calico/new")],
        [Put("/calico/keep", b"2"), Put("/calico/new", b"1"), Delete("/calico/go"), Delete("/calico/never")],
        ["/calico/keep"],
    )
    assert result.committed
    snapshot = store.list("/calico/")
    assert {entry.key: entry.mod_revision for entry in snapshot.entries} == {
        "/calico/keep": result.revision,
        "/calico/new": result.revision,
    }
    assert result.revision > kept


@pytest.mark.parametrize("broken", [0, 1])
def test_a_refused_transaction_changes_nothing_and_shows_what_is_there(store: Datastore, broken: int) -> None:
    first = store.put("/calico/a", b"1")
    second = store.put("/calico/b", b"2")
    preconditions = [Compare("/calico/a", first), Compare("/calico/b", second)]
    preconditions[broken] = Compare(preconditions[broken].key, 0)
    result = store.transact(
        preconditions, [Put("/calico/a", b"x"), Put("/calico/c", b"x")], ["/calico/c", "/calico/b", "/calico/a"]
    )
    assert not result.committed
    assert result.current == (None, store.get("/calico/b"), store.get("/calico/a"))
    assert result.revision == store.list("/calico/").revision == second


def test_none_newer_sees_writes_below_the_prefix_only(store: Datastore) -> None:
    store.put("/calico/p/a", b"1")
    seen = store.list("/calico/p/").revision
    store.put("/calico/pq", b"1")
    condition = [NoneNewer("/calico/p/", seen)]
    assert store.transact(condition, [Put("/calico/x", b"1")]).committed
    store.put("/calico/p/a", b"2")
    assert not store.transact(condition, [Put("/calico/x", b"2")]).committed
    store.delete_prefix("/calico/p/")
    assert store.transact(condition, [Put("/calico/x", b"3")]).committed
    assert store.transact([NoneNewer("/calico/empty/", 0)], [Put("/calico/x", b"4")]).committed


@pytest.mark.parametrize("second", [Put("/calico/a", b"2"), Delete("/calico/a")])
def test_one_key_twice_is_refused(store: Datastore, second: Put | Delete) -> None:
    with pytest.raises(ValueError, match="twice"):
        store.transact([], [Put("/calico/a", b"1"), second])
    assert store.get("/calico/a") is None


def test_the_portable_limit_holds_and_fits(store: Datastore) -> None:
    puts = [Put(f"/calico/{number:03}", b"") for number in range(MAX_TRANSACTION_OPERATIONS + 1)]
    compares = [absent(put.key) for put in puts]
    for too_many in (lambda: store.transact([], puts), lambda: store.transact(compares, [])):
        with pytest.raises(ValueError, match="at most 64"):
            too_many()
    assert store.transact(compares[:-1], puts[:-1], [put.key for put in puts[:-1]]).committed


def test_a_transaction_without_effect_needs_no_revision(store: Datastore) -> None:
    revision = store.put("/calico/a", b"1")
    assert store.transact([], [Delete("/calico/b")]) == (True, revision, ())


def test_no_update_is_lost_among_threads(store: Datastore) -> None:
    store.create("/calico/counter", b"0")
    errors: list[Exception] = []

    def count() -> None:
        try:
            for _ in range(20):
                while True:
                    entry = store.get("/calico/counter")
                    assert entry is not None
                    try:
                        store.compare_and_swap("/calico/counter", b"%d" % (int(entry.value) + 1), entry.mod_revision)
                        break
                    except Conflict:
                        continue
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    entry = store.get("/calico/counter")
    assert entry is not None
    assert entry.value == b"160"


# --- watching ------------------------------------------------------------------------------------------------


def test_a_watch_tells_what_changed(store: Datastore) -> None:
    start = store.list("/calico/").revision
    watch = store.watch("/calico/w/", start)
    store.put("/calico/wx", b"a neighbour")
    first = store.put("/calico/w/a", b"1")
    second = store.put("/calico/w/a", b"2")
    store.delete("/calico/w/a")
    assert next_batch(watch) == (first, (Event("/calico/w/a", b"1", None, first),))
    assert next_batch(watch) == (second, (Event("/calico/w/a", b"2", b"1", second),))
    gone = next_batch(watch)
    assert gone.events == (Event("/calico/w/a", None, b"2", gone.revision),)
    no_batch_before(watch, store, "/calico/w/end")


def test_a_revision_is_one_batch(store: Datastore) -> None:
    store.put("/calico/w/old", b"1")
    watch = store.watch("/calico/w/", store.list("/calico/").revision)
    puts = [Put(f"/calico/w/{number:02}", b"x") for number in range(40)]
    result = store.transact([], [*puts, Delete("/calico/w/old"), Put("/calico/elsewhere", b"")])
    batch = next_batch(watch)
    assert batch.revision == result.revision
    assert {event.key for event in batch.events} == {"/calico/w/old", *(put.key for put in puts)}
    store.delete_prefix("/calico/w/")
    assert len(next_batch(watch).events) == 40
    no_batch_before(watch, store, "/calico/w/end")


def test_a_watch_resumes_where_it_was_left(store: Datastore) -> None:
    start = store.list("/calico/").revision
    revisions = [store.put("/calico/w/a", b"%d" % number) for number in range(10)]
    with_all = store.watch("/calico/w/", start)
    assert [next_batch(with_all).revision for _ in revisions] == revisions
    resumed = store.watch("/calico/w/", revisions[4])
    assert [next_batch(resumed).revision for _ in revisions[5:]] == revisions[5:]
    no_batch_before(resumed, store, "/calico/w/end")


def test_list_then_watch_misses_nothing_under_load(opener: Callable[[], Datastore]) -> None:
    writer, reader = opener(), opener()
    done = threading.Event()

    def write() -> None:
        for number in range(300):
            writer.transact([], [Put("/calico/w/a", b"%d" % number), Put("/calico/w/b", b"%d" % number)])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        snapshot = reader.list("/calico/w/")
        values = {entry.key: entry.value for entry in snapshot.entries}
        assert len(set(values.values())) <= 1
        watch = reader.watch("/calico/w/", snapshot.revision)
        last = snapshot.revision
        while values.get("/calico/w/a") != b"299":
            batch = next_batch(watch)
            assert batch.revision > last
            assert len(batch.events) == 2
            assert all(event.previous == values.get(event.key) for event in batch.events)
            values |= {event.key: event.value or b"" for event in batch.events}
            last = batch.revision
    finally:
        thread.join(60)
    assert done.is_set()


def test_another_handle_hears_at_once(opener: Callable[[], Datastore]) -> None:
    writer, reader = opener(), opener()
    assert writer.identity() == reader.identity()
    watch = reader.watch("/calico/w/", reader.list("/calico/").revision)
    delays = []
    for _ in range(5):
        heard = threading.Thread(target=lambda: next_batch(watch))
        heard.start()
        began = time.monotonic()
        writer.put("/calico/w/a", b"")
        heard.join(PATIENCE_S)
        delays.append(time.monotonic() - began)
    assert statistics.median(delays) < 0.5, delays  # a busy machine may hold up one or the other


def test_closing_a_watch_wakes_its_reader(store: Datastore) -> None:
    watch = store.watch("/calico/w/", store.list("/calico/").revision)
    answers: list[WatchMessage | None] = []
    reader = threading.Thread(target=lambda: answers.append(watch.next(60)))
    reader.start()
    watch.close()
    reader.join(PATIENCE_S)
    assert answers == [None]
    watch.close()
    store.put("/calico/w/a", b"")
    assert watch.next(0) is None


def test_closing_the_store_ends_its_watches_and_calls(opener: Callable[[], Datastore]) -> None:
    store = opener()
    watch = store.watch("/calico/w/", store.list("/calico/").revision)
    store.close()
    store.close()
    message = watch.next(PATIENCE_S)
    assert message is None or isinstance(message, Lost)
    assert watch.next(0) is None
    with pytest.raises(Unavailable):
        store.get("/calico/a")
    with pytest.raises(Unavailable):
        store.put("/calico/a", b"")


def test_compaction_is_said_never_skipped(store: Datastore) -> None:
    revisions = [store.put("/calico/w/a", b"%d" % number) for number in range(6)]
    current = store.watch("/calico/w/", revisions[-1])
    assert isinstance(store, MemoryDatastore | SqliteDatastore | Etcd3Datastore)
    store.compact(revisions[4])
    message = next_message(store.watch("/calico/w/", revisions[0]))
    assert isinstance(message, CompactedAway)
    assert message.oldest >= revisions[4]
    assert next_batch(store.watch("/calico/w/", revisions[4])).revision == revisions[5]
    no_batch_before(current, store, "/calico/w/end")
    entry = store.get("/calico/w/a")
    assert entry is not None
    assert entry.value == b"5"


# --- leases --------------------------------------------------------------------------------------------------


def test_an_expired_lease_takes_its_keys_along(store: Datastore) -> None:
    watch = store.watch("/calico/w/", store.list("/calico/").revision)
    lease = store.lease(3.0)
    store.put("/calico/w/a", b"1", lease=lease.id)
    store.create("/calico/w/b", b"2", lease=lease.id)
    store.put("/calico/w/kept", b"3", lease=lease.id)
    store.put("/calico/w/kept", b"4")
    entry = store.get("/calico/w/a")
    assert entry is not None
    assert entry.lease == lease.id
    for _ in range(4):
        next_batch(watch)
    gone: set[str] = set()
    while len(gone) < 2:
        events = next_batch(watch).events
        assert all(event.value is None and event.previous is not None for event in events)
        gone |= {event.key for event in events}
    assert gone == {"/calico/w/a", "/calico/w/b"}
    assert [entry.key for entry in store.list("/calico/w/").entries] == ["/calico/w/kept"]
    assert not lease.keep_alive()
    lease.revoke()


def test_a_lease_kept_alive_holds(store: Datastore) -> None:
    lease = store.lease(2.0)
    store.put("/calico/a", b"1", lease=lease.id)
    until = time.monotonic() + 2 * lease.ttl_s
    while time.monotonic() < until:
        assert lease.keep_alive()
        assert store.get("/calico/a") is not None
        time.sleep(0.2)


def test_revoking_deletes_at_once(store: Datastore) -> None:
    lease = store.lease(60)
    store.put("/calico/a", b"1", lease=lease.id)
    lease.revoke()
    assert store.get("/calico/a") is None
    lease.revoke()
    assert not lease.keep_alive()
    with pytest.raises(KeyMissing, match="lease"):
        store.put("/calico/a", b"1", lease=lease.id)


# --- opening -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "url"),
    [
        (MemoryDatastore, "memory://a/b"),
        (MemoryDatastore, "sqlite:///a"),
        (SqliteDatastore, "sqlite://host/path"),
        (SqliteDatastore, "sqlite:///"),
        (SqliteDatastore, "sqlite:///folder/"),
        (SqliteDatastore, "sqlite:///a?synchronous=off"),
        (SqliteDatastore, "sqlite:///a?mode=ro"),
        (Etcd3Datastore, "etcd3://"),
        (Etcd3Datastore, "http://127.0.0.1:2379"),
        (Etcd3Datastore, "etcd3://host:0"),
        (Etcd3Datastore, "etcd3://host:70000"),
        (Etcd3Datastore, "etcd3://a:2379,"),
        (Etcd3Datastore, "etcd3://fd00::1:2379"),
        (Etcd3Datastore, "etcd3://a:2379/path"),
    ],
)
def test_a_bad_url_is_a_bad_setting(driver: type[Datastore], url: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        driver.open(url, DatastoreOptions())
    assert (refused.value.name, refused.value.origin) == ("datastore", "url")
