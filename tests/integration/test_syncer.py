"""The syncer over real stores: a snapshot says what the events said, and trouble heals without a phantom delete."""

from __future__ import annotations

import random
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.datastore.sqlite_doorbell import _DataVersion
from calico_core.datastore.syncer import SyncBatch, Syncer, SyncStatus
from calico_core.errors import Unavailable
from calico_core.interfaces.datastore import Datastore, DatastoreOptions, Delete, Entry, Put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import EtcdServer

PATIENCE_S = 20.0
CONFIG = "/calico/v1/config/"
BGP = "/calico/bgp/v1/"
READY = "/calico/v1/Ready"


class Consumer:
    """What a consumer makes of the batches. ``told`` lists every update as (path, record)."""

    def __init__(self) -> None:
        self.batches: list[SyncBatch] = []
        self.state: dict[str, Any] = {}
        self.told: list[tuple[str, Any]] = []
        self._changed = threading.Condition()

    def __call__(self, batch: SyncBatch) -> None:
        with self._changed:
            self.batches.append(batch)
            for update in batch.updates:
                assert update.key.path == update.path
                self.told.append((update.path, update.record))
                if update.record is None:
                    assert update.path in self.state, f"phantom delete of {update.path}"
                    del self.state[update.path]
                else:
                    self.state[update.path] = update.record
            self._changed.notify_all()

    def wait(self, condition: Callable[[Consumer], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), PATIENCE_S), (self.state, self.batches[-3:])

    @property
    def statuses(self) -> list[SyncStatus]:
        return [batch.status for batch in self.batches]


@pytest.fixture
def memory() -> Iterator[MemoryDatastore]:
    store = MemoryDatastore()
    yield store
    store.close()


@pytest.fixture(params=["memory", "sqlite", "etcd3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Datastore]:
    options = DatastoreOptions(timeout_s=2.0)
    made: Datastore
    if request.param == "memory":
        made = MemoryDatastore(uuid.uuid4().hex)
    elif request.param == "sqlite":
        made = SqliteDatastore.open(f"sqlite://{tmp_path}/calico.db", options)
    else:
        made = Etcd3Datastore.open(request.getfixturevalue("etcd").url, options)
    yield made
    made.close()


@pytest.fixture
def follow() -> Iterator[Callable[..., tuple[Syncer, Consumer]]]:
    running: list[Syncer] = []

    def start(store: Datastore, *prefixes: str, **options: Any) -> tuple[Syncer, Consumer]:
        consumer = Consumer()
        running.append(Syncer(store, prefixes or (CONFIG,), consumer, **options))
        running[-1].start()
        return running[-1], consumer

    yield start
    for syncer in running:
        began = time.monotonic()
        syncer.stop()
        assert time.monotonic() - began < 10
        assert not syncer.is_alive


def stored(store: Datastore, *prefixes: str) -> dict[str, str]:
    return {entry.key: entry.value.decode() for prefix in prefixes for entry in store.list(prefix).entries}


def test_a_snapshot_is_one_batch(store: Datastore, follow: Any) -> None:
    for number in range(50):
        store.put(f"{CONFIG}K{number}", b"%d" % number)
    store.put("/calico/v9/unknown", b"left out")
    syncer, consumer = follow(store, "/calico/")
    assert syncer.wait_in_sync(PATIENCE_S)
    assert consumer.statuses == [SyncStatus.RESYNC, SyncStatus.IN_SYNC]
    assert len(consumer.batches[1].updates) == 50
    assert consumer.state == stored(store, CONFIG)
    store.put(f"{CONFIG}K0", b"changed")
    store.delete(f"{CONFIG}K1")
    consumer.wait(lambda c: c.state == stored(store, CONFIG))
    assert consumer.told[50:] == [(f"{CONFIG}K0", "changed"), (f"{CONFIG}K1", None)]


@pytest.mark.parametrize("seed", range(3))
def test_snapshot_equals_events(store: Datastore, follow: Any, seed: int) -> None:
    chance = random.Random(seed)
    prefixes = (CONFIG, BGP)
    _, early = follow(store, *prefixes)
    paths = [f"{CONFIG}K{number}" for number in range(8)] + [f"{BGP}global/as_num", f"{BGP}host/a/as_num"]
    late: Consumer | None = None
    for step in range(150):
        chosen = chance.sample(paths, chance.randint(1, 3))
        store.transact(
            [], [Delete(path) if chance.random() < 0.3 else Put(path, b"%d" % (step + 1)) for path in chosen]
        )
        if step == 75:
            _, late = follow(store, *prefixes)
    final = stored(store, *prefixes)
    assert late is not None
    for consumer in (early, late):
        consumer.wait(lambda c: c.state == final)


def test_a_bad_record_counts_as_deleted(memory: MemoryDatastore, follow: Any) -> None:
    path = f"{BGP}global/node_mesh"
    memory.put(path, b'{"enabled": "perhaps"}')
    memory.put(f"{BGP}global/as_num", b"64512")
    syncer, consumer = follow(memory, BGP)
    consumer.wait(lambda c: set(c.state) == {f"{BGP}global/as_num"})
    assert set(syncer.bad_records) == {path}
    assert "enabled" in syncer.bad_records[path]
    memory.put(path, b'{"enabled": false}')
    consumer.wait(lambda c: path in c.state)
    assert syncer.bad_records == {}
    memory.put(path, b"{")
    consumer.wait(lambda c: path not in c.state)
    assert set(syncer.bad_records) == {path}
    memory.delete(path)
    memory.put(f"{BGP}global/as_num", b"64513")
    consumer.wait(lambda c: c.state == {f"{BGP}global/as_num": "64513"})
    assert syncer.bad_records == {}


def test_a_key_unseen_is_left_out(memory: MemoryDatastore, follow: Any) -> None:
    entered, release = threading.Event(), threading.Event()
    consumer = Consumer()

    def slow(batch: SyncBatch) -> None:
        consumer(batch)
        if batch.updates:
            entered.set()
            assert release.wait(PATIENCE_S)

    syncer = Syncer(memory, (CONFIG,), slow)
    syncer.start()
    try:
        assert syncer.wait_in_sync(PATIENCE_S)
        memory.put(f"{CONFIG}First", b"1")
        assert entered.wait(PATIENCE_S)
        for number in range(30):
            memory.put(f"{CONFIG}Busy", b"%d" % number)
        memory.put(f"{CONFIG}Brief", b"1")
        memory.delete(f"{CONFIG}Brief")
        release.set()
        consumer.wait(lambda c: c.state.get(f"{CONFIG}Busy") == "29")
    finally:
        release.set()
        syncer.stop()
    assert consumer.told == [(f"{CONFIG}First", "1"), (f"{CONFIG}Busy", "29")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_consumer_ends_it_loudly(memory: MemoryDatastore, caplog: pytest.LogCaptureFixture) -> None:
    def fail(batch: SyncBatch) -> None:
        raise RuntimeError("cannot take it")

    syncer = Syncer(memory, (CONFIG,), fail)
    syncer.start()
    syncer._thread.join(PATIENCE_S)
    assert not syncer.is_alive
    assert "sync.failed" in caplog.messages
    syncer.stop()


def test_broken_watches_heal_from_where_they_were(memory: MemoryDatastore, follow: Any) -> None:
    memory.put(f"{CONFIG}A", b"1")
    syncer, consumer = follow(memory)
    assert syncer.wait_in_sync(PATIENCE_S)
    memory.faults.down = True
    memory.faults.break_watches()
    memory.faults.down = False
    memory.put(f"{CONFIG}B", b"2")
    consumer.wait(lambda c: c.state == {f"{CONFIG}A": "1", f"{CONFIG}B": "2"})
    assert consumer.statuses.count(SyncStatus.RESYNC) == 1
    assert consumer.told == [(f"{CONFIG}A", "1"), (f"{CONFIG}B", "2")]


@pytest.mark.parametrize("prefixes", [(CONFIG,), (CONFIG, BGP)])
def test_a_store_closed_below_it_is_no_reason_to_spin(
    memory: MemoryDatastore, follow: Any, caplog: pytest.LogCaptureFixture, prefixes: tuple[str, ...]
) -> None:
    memory.put(f"{CONFIG}A", b"1")
    syncer, consumer = follow(memory, *prefixes)
    assert syncer.wait_in_sync(PATIENCE_S)
    memory.close()
    deadline = time.monotonic() + PATIENCE_S
    while "sync.unavailable" not in caplog.messages:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert consumer.state == {f"{CONFIG}A": "1"}
    assert caplog.messages.count("sync.watch-lost") <= 2


def test_compaction_brings_only_differences(memory: MemoryDatastore, follow: Any) -> None:
    for name in "ABC":
        memory.put(f"{CONFIG}{name}", b"1")
    syncer, consumer = follow(memory)
    assert syncer.wait_in_sync(PATIENCE_S)
    memory.faults.down = True
    memory.faults.break_watches()
    store = memory._store
    with store.changed:  # the syncer is locked out while the history goes
        memory.faults.down = False
        memory.put(f"{CONFIG}B", b"2")
        memory.delete(f"{CONFIG}C")
        memory.compact(store.revision)
    consumer.wait(lambda c: c.state == {f"{CONFIG}A": "1", f"{CONFIG}B": "2"})
    assert sorted(consumer.told[3:], key=str) == [(f"{CONFIG}B", "2"), (f"{CONFIG}C", None)]
    assert consumer.statuses.count(SyncStatus.RESYNC) == 2


def test_nothing_is_loaded_before_ready(store: Datastore, follow: Any) -> None:
    store.put(f"{CONFIG}A", b"1")
    syncer, consumer = follow(store, "/calico/v1/", ready_key=READY)
    store.put(READY, b"false")
    assert not syncer.wait_in_sync(0.3)
    assert consumer.state == {}
    store.put(READY, b"true")
    consumer.wait(lambda c: c.state == {f"{CONFIG}A": "1", READY: "true"})
    store.delete_prefix("/calico/")
    consumer.wait(lambda c: c.statuses[-1] is SyncStatus.WAIT)
    store.put(f"{CONFIG}B", b"2")
    store.put(READY, b"true")
    consumer.wait(lambda c: c.state == {f"{CONFIG}B": "2", READY: "true"})


def test_what_goes_with_ready_is_not_handed_over(store: Datastore, follow: Any) -> None:
    """One deletion of the whole tree. The snapshot that follows it tells what is gone."""
    store.put(READY, b"true")
    store.put(f"{CONFIG}A", b"1")
    store.put(f"{CONFIG}B", b"1")
    _, consumer = follow(store, "/calico/v1/", ready_key=READY)
    before = {f"{CONFIG}A": "1", f"{CONFIG}B": "1", READY: "true"}
    consumer.wait(lambda c: c.state == before)
    store.transact([], [Delete(path) for path in sorted(before)])
    consumer.wait(lambda c: c.statuses[-1] is SyncStatus.WAIT)
    assert consumer.state == before
    store.transact([], [Put(f"{CONFIG}B", b"1"), Put(READY, b"true")])
    consumer.wait(lambda c: c.state == {f"{CONFIG}B": "1", READY: "true"})
    assert consumer.told[-1] == (f"{CONFIG}A", None)


@pytest.mark.parametrize("busy", [f"{CONFIG}A", f"{BGP}global/as_num"])
def test_what_goes_with_ready_under_another_prefix_is_not_handed_over(store: Datastore, busy: str) -> None:
    """Whichever prefix's batch is read first: the one that was not read last."""
    entered, release = threading.Event(), threading.Event()
    consumer = Consumer()

    def slow(batch: SyncBatch) -> None:
        consumer(batch)
        if batch.updates and not batch.is_snapshot:
            entered.set()
            assert release.wait(PATIENCE_S)

    before = {READY: "true", f"{CONFIG}A": "1", f"{BGP}global/as_num": "1"}
    store.transact([], [Put(path, value.encode()) for path, value in before.items()])
    syncer = Syncer(store, ("/calico/v1/", BGP), slow, ready_key=READY)
    syncer.start()
    try:
        assert syncer.wait_in_sync(PATIENCE_S)
        store.put(busy, b"2")
        assert entered.wait(PATIENCE_S)
        store.transact([], [Delete(path) for path in before])
        release.set()
        consumer.wait(lambda c: c.statuses[-1] is SyncStatus.WAIT)
        assert consumer.state == before | {busy: "2"}
        store.put(READY, b"true")
        consumer.wait(lambda c: c.state == {READY: "true"})
    finally:
        release.set()
        syncer.stop()


def test_a_deletion_beside_ready_is_handed_over(store: Datastore, follow: Any) -> None:
    store.transact([], [Put(READY, b"true"), Put(f"{BGP}global/as_num", b"1")])
    _, consumer = follow(store, "/calico/v1/", BGP, ready_key=READY)
    consumer.wait(lambda c: len(c.state) == 2)
    store.delete(f"{BGP}global/as_num")
    consumer.wait(lambda c: c.state == {READY: "true"})
    assert consumer.statuses.count(SyncStatus.RESYNC) == 1


class SilentOnReady(MemoryDatastore):
    """Fails to say whether it is ready, once."""

    is_silent = False

    def get(self, key: str) -> Entry | None:
        if key == READY and self.is_silent:
            self.is_silent = False
            raise Unavailable("memory", "made to fail")
        return super().get(key)


def test_a_store_that_cannot_say_whether_it_is_ready_loses_nothing() -> None:
    """What was read before the deletion is handed over, and the deletion once the store is back."""
    entered, release = threading.Event(), threading.Event()
    consumer = Consumer()

    def slow(batch: SyncBatch) -> None:
        consumer(batch)
        if batch.updates and not batch.is_snapshot and not entered.is_set():
            entered.set()
            assert release.wait(PATIENCE_S)

    memory = SilentOnReady()
    memory.transact([], [Put(READY, b"true"), Put(f"{BGP}global/as_num", b"1")])
    syncer = Syncer(memory, ("/calico/v1/", BGP), slow, ready_key=READY)
    syncer.start()
    try:
        assert syncer.wait_in_sync(PATIENCE_S)
        memory.put(f"{BGP}global/node_mesh", b'{"enabled": false}')
        assert entered.wait(PATIENCE_S)
        memory.put(f"{CONFIG}A", b"1")
        memory.delete(f"{BGP}global/as_num")
        memory.is_silent = True
        release.set()
        consumer.wait(lambda c: f"{CONFIG}A" in c.state and f"{BGP}global/as_num" not in c.state)
        assert not memory.is_silent
        assert consumer.statuses.count(SyncStatus.RESYNC) == 1
    finally:
        release.set()
        syncer.stop()
        memory.close()


def test_a_rebuilt_store_is_compared_by_value(tmp_path: Path, follow: Any) -> None:
    store = SqliteDatastore.open(f"sqlite://{tmp_path}/calico.db", DatastoreOptions())
    try:
        for name in "ABC":
            store.put(f"{CONFIG}{name}", b"1")
        syncer, consumer = follow(store)
        assert syncer.wait_in_sync(PATIENCE_S)
        syncer_told = len(consumer.told)
        rebuilt = SqliteDatastore.open(f"sqlite://{tmp_path}/new.db", DatastoreOptions())
        rebuilt.transact([], [Put(f"{CONFIG}B", b"2"), Put(f"{CONFIG}A", b"1")])
        rebuilt.close()
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"calico.db{suffix}").unlink()
        (tmp_path / "new.db").rename(tmp_path / "calico.db")
        consumer.wait(lambda c: c.state == {f"{CONFIG}A": "1", f"{CONFIG}B": "2"})
        assert sorted(consumer.told[syncer_told:], key=str) == [(f"{CONFIG}B", "2"), (f"{CONFIG}C", None)]
    finally:
        store.close()


def test_a_replaced_file_is_noticed_whatever_its_number(tmp_path: Path) -> None:
    """The number that SQLite counts commits by starts alike in every file."""
    for name in ("calico.db", "new.db"):
        store = SqliteDatastore.open(f"sqlite://{tmp_path}/{name}", DatastoreOptions())
        store.put(f"{CONFIG}A", b"1")
        store.close()
    version = _DataVersion(f"{tmp_path}/calico.db")
    try:
        assert version.has_changed()
        assert not version.has_changed()
        (tmp_path / "new.db").rename(tmp_path / "calico.db")
        assert version.has_changed()
        assert not version.has_changed()
    finally:
        version.close()


def test_a_restart_of_etcd_heals(etcd: EtcdServer, follow: Any) -> None:
    store = Etcd3Datastore.open(etcd.url, DatastoreOptions(timeout_s=1.0))
    try:
        store.put(f"{CONFIG}A", b"1")
        syncer, consumer = follow(store, CONFIG, BGP)
        assert syncer.wait_in_sync(PATIENCE_S)
        etcd.stop()
        time.sleep(0.5)  # it meets the closed door a few times
        etcd.start()
        writer = Etcd3Datastore.open(etcd.url, DatastoreOptions())
        writer.put(f"{CONFIG}B", b"2")
        writer.put(f"{BGP}global/as_num", b"64512")
        writer.close()
        consumer.wait(lambda c: len(c.state) == 3)
        assert consumer.told[0] == (f"{CONFIG}A", "1")
        assert len(consumer.told) == 3
        assert consumer.statuses.count(SyncStatus.RESYNC) == 1
        assert syncer.status is SyncStatus.IN_SYNC
    finally:
        store.close()


def test_it_starts_before_etcd_does(etcd: EtcdServer, follow: Any) -> None:
    etcd.stop()
    store = Etcd3Datastore.open(etcd.url, DatastoreOptions(timeout_s=1.0))
    try:
        syncer, consumer = follow(store)
        assert not syncer.wait_in_sync(0.3)
        etcd.start()
        assert syncer.wait_in_sync(PATIENCE_S)
        assert consumer.state == {}
    finally:
        store.close()


def test_a_revision_told_means_every_prefix_of_it(store: Datastore, follow: Any) -> None:
    """A transaction over several prefixes may come in several batches; a batch that names its revision, or a later
    one, comes last of them."""
    pairs = [(f"{CONFIG}Pair", f"{BGP}global/as_num")] * 3 + [(f"{BGP}global/as_num", f"{CONFIG}Pair")] * 3
    batches: list[SyncBatch] = []
    heard = threading.Condition()

    def sink(batch: SyncBatch) -> None:
        with heard:
            batches.append(batch)
            heard.notify_all()

    syncer = Syncer(store, (CONFIG, BGP), sink)
    syncer.start()
    try:
        assert syncer.wait_in_sync(PATIENCE_S)
        written: dict[int, bytes] = {}
        for number, pair in enumerate(pairs * 10):
            value = b"%d" % (number + 1)
            written[store.transact([], [Put(key, value) for key in pair]).revision] = value
        last = value.decode()

        def latest() -> dict[str, Any]:
            return {update.path: update.record for batch in batches for update in batch.updates}

        with heard:
            assert heard.wait_for(lambda: set(latest().values()) == {last} and len(latest()) == 2, PATIENCE_S)
            told: dict[str, Any] = {}
            for batch in batches:
                told |= {update.path: update.record for update in batch.updates}
                due = max((revision for revision in written if revision <= batch.revision), default=None)
                if due is not None:
                    for key in pairs[0]:
                        assert int(told[key]) >= int(written[due])
    finally:
        syncer.stop()


def test_a_batch_says_how_much_the_consumer_loses(memory: MemoryDatastore, follow: Any) -> None:
    for number in range(10):
        memory.put(f"{CONFIG}K{number}", b"1")
    memory.put("/calico/v1/ipam/v4/pool/10.0.0.0-8", b"{")  # not given to the consumer, so nothing to lose
    syncer, consumer = follow(memory, "/calico/v1/")
    assert syncer.wait_in_sync(PATIENCE_S)
    snapshot = consumer.batches[-1]
    assert (snapshot.held, snapshot.deleted, snapshot.is_snapshot) == (0, 0, True)
    memory.put(f"{CONFIG}K0", b"2")
    memory.put(f"{CONFIG}New", b"1")
    consumer.wait(lambda c: len(c.state) == 11)
    before = len(consumer.batches)
    memory.delete_prefix(CONFIG)
    consumer.wait(lambda c: not c.state)
    (loss,) = consumer.batches[before:]
    assert (loss.held, loss.deleted, loss.is_snapshot) == (11, 11, False)
    memory.put(f"{CONFIG}Again", b"1")
    consumer.wait(lambda c: len(c.state) == 1)
    assert consumer.batches[-1].held == 0
