"""A cluster of etcd members in trouble: a leader killed, a member deaf, the whole restored from an old snapshot."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.datastore.etcd3_channel import Address, Cluster
from calico_core.datastore.syncer import SyncBatch, Syncer, SyncStatus
from calico_core.errors import KeyExists, Unavailable
from calico_core.interfaces.datastore import Batch, CompactedAway, DatastoreOptions, Progress
from tests.doubles.etcd_cluster import EtcdCluster
from tests.doubles.ports import free_ports

PATIENCE_S = 30.0
CONFIG = "/calico/v1/config/"


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd", getattr(request, "param", 1)) as cluster:
        yield cluster


def test_a_member_that_cannot_start_leaves_none_of_the_others(tmp_path: Path) -> None:
    """What runs on would be found by another test, as a process that nobody waited for."""
    cluster = EtcdCluster(tmp_path / "etcd", 3)
    with (
        socket.create_server(("127.0.0.1", cluster.members[1].client_port)),
        pytest.raises(AssertionError, match="bind"),
    ):
        cluster.start()
    assert [member.process for member in cluster.members] == [None] * 3


class Writer:
    """Creates numbered keys one after the other, as a careful caller would: an uncertain write is looked up before it
    is repeated. Its own thread, its own store."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._store = Etcd3Datastore.open(url, DatastoreOptions(timeout_s=timeout_s))
        self._stop = threading.Event()
        self.acknowledged: list[str] = []
        self.failures: list[Unavailable] = []
        self.slowest_s = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self._store.close()

    def wait_acknowledged(self, more: int) -> float:
        """Seconds until so many more were acknowledged."""
        began, goal = time.monotonic(), len(self.acknowledged) + more
        while len(self.acknowledged) < goal:
            assert self._thread.is_alive()
            assert time.monotonic() < began + PATIENCE_S, self.failures[-3:]
            time.sleep(0.005)
        return time.monotonic() - began

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            key = f"/calico/w/{number}"
            began = time.monotonic()
            try:
                self._store.create(key, b"%d" % number)
            except Unavailable as error:
                self.failures.append(error)
                continue
            except KeyExists:
                assert self.failures, "nobody else writes here"
                assert self.failures[-1].maybe_applied
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.acknowledged.append(key)
            number += 1


@pytest.mark.parametrize("cluster", [3], indirect=True)
@pytest.mark.parametrize("blow", ["kill", "pause"])
def test_a_lost_leader_loses_no_write(cluster: EtcdCluster, blow: str) -> None:
    deadline_s = 5.0
    writer = Writer(cluster.url, deadline_s)
    try:
        writer.wait_acknowledged(100)
        for _ in range(2 if blow == "kill" else 1):
            leader = cluster.leader()
            if blow == "kill":
                leader.kill()
            else:
                leader.signal(signal.SIGSTOP)
            # one call may fail for each member it stood on; the next one serves within its deadline
            assert writer.wait_acknowledged(50) < 2 * deadline_s
            if blow == "kill":
                cluster.start()
            else:
                leader.signal(signal.SIGCONT)
            writer.wait_acknowledged(50)
    finally:
        writer.stop()
    assert writer.slowest_s < deadline_s
    for failure in writer.failures:
        assert failure.endpoint in {member.endpoint for member in cluster.members}
        assert failure.cause
    reader = Etcd3Datastore.open(cluster.url, DatastoreOptions())
    try:
        found = {entry.key for entry in reader.list("/calico/w/").entries}
        assert set(writer.acknowledged) <= found
        assert len(found) <= len(writer.acknowledged) + 1  # and the one in flight when it stopped
    finally:
        reader.close()


# --- restored from a snapshot ------------------------------------------------------------------------------


class Consumer:
    """The state that a syncer's batches lead to."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.batches: list[SyncBatch] = []
        self._changed = threading.Condition()

    def __call__(self, batch: SyncBatch) -> None:
        with self._changed:
            self.batches.append(batch)
            for update in batch.updates:
                if update.record is None:
                    del self.state[update.path]
                else:
                    self.state[update.path] = update.record
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), self.state


@pytest.mark.parametrize("overtaken", [False, True], ids=["revision-backwards", "revision-overtaken"])
def test_a_store_restored_from_an_old_snapshot_is_read_anew(
    cluster: EtcdCluster, tmp_path: Path, overtaken: bool
) -> None:
    """Its identity stays the same; when others have written meanwhile, even its revision looks as if nothing had
    happened."""
    store = Etcd3Datastore.open(cluster.url, DatastoreOptions(timeout_s=1.0))
    consumer = Consumer()
    syncer = Syncer(store, (CONFIG,), consumer)
    try:
        store.put(f"{CONFIG}Kept", b"1")
        store.put(f"{CONFIG}Changed", b"1")
        store.put(f"{CONFIG}Revived", b"1")
        cluster.save(tmp_path / "snapshot")
        store.put(f"{CONFIG}Changed", b"2")
        store.put(f"{CONFIG}Vanishes", b"1")
        before = store.identity()
        syncer.start()
        assert syncer.wait_in_sync(PATIENCE_S)
        store.delete(f"{CONFIG}Revived")  # the last thing seen
        consumer.wait(lambda: len(consumer.state) == 3)
        told = len(consumer.batches)
        cluster.stop()
        wait_for_silence(consumer, syncer)
        if overtaken:
            _restore_and_write(cluster, tmp_path / "snapshot")
        else:
            cluster.restore(tmp_path / "snapshot")
        consumer.wait(lambda: consumer.state.get(f"{CONFIG}Changed") == "1")
        assert store.identity() == before
        expected = {f"{CONFIG}Kept": "1", f"{CONFIG}Changed": "1", f"{CONFIG}Revived": "1"}
        consumer.wait(lambda: {path: consumer.state.get(path) for path in expected} == expected)
        assert f"{CONFIG}Vanishes" not in consumer.state
        snapshot = next(batch for batch in consumer.batches[told:] if batch.is_snapshot)
        assert (snapshot.held, snapshot.deleted) == (3, 1)
        assert f"{CONFIG}Kept" not in {update.path for update in snapshot.updates}
        store.put(f"{CONFIG}After", b"1")  # and events go on
        consumer.wait(lambda: f"{CONFIG}After" in consumer.state)
    finally:
        syncer.stop()
        store.close()


def _restore_and_write(cluster: EtcdCluster, snapshot: Path) -> None:
    """The syncer is kept out until others have carried the revision beyond what it saw: it knows another address."""
    inside = cluster.members[0]
    inside.process = None
    kept_out, inside.client_port = inside.client_port, free_ports(1)[0]
    inside.endpoint = f"127.0.0.1:{inside.client_port}"
    cluster.restore(snapshot)
    other = Etcd3Datastore.open(cluster.url, DatastoreOptions())
    try:
        for number in range(10):
            other.put(f"{CONFIG}New{number}", b"1")
    finally:
        other.close()
    cluster.stop()
    inside.client_port = kept_out
    inside.endpoint = f"127.0.0.1:{kept_out}"
    cluster.start()


def wait_for_silence(consumer: Consumer, syncer: Syncer) -> None:
    """A dead store takes nothing from the consumer."""
    before = dict(consumer.state)
    time.sleep(0.5)  # it meets the closed door a few times
    assert consumer.state == before
    assert syncer.status is SyncStatus.IN_SYNC


# --- watches -----------------------------------------------------------------------------------------------


def test_an_idle_watch_learns_how_far_the_store_is(cluster: EtcdCluster) -> None:
    """So that compaction of what it never needed does not end it when it must resume."""
    (member,) = cluster.members
    addresses = (Address("127.0.0.1", member.client_port),)
    store = Etcd3Datastore(Cluster(addresses, DatastoreOptions(), secure=False), ask_progress_after_s=0.2)
    try:
        start = store.put("/calico/quiet/a", b"1")
        watch = store.watch("/calico/quiet/", start)
        for number in range(20):
            store.put("/calico/busy/a", b"%d" % number)
        last = store.put("/calico/busy/a", b"last")
        assert next_progress(watch) >= last
        store.compact(last)
        resumed = store.watch("/calico/quiet/", last)
        revision = store.put("/calico/quiet/a", b"2")
        for each in (watch, resumed):
            batch = next_batch(each)
            assert batch.revision == revision
        too_old = store.watch("/calico/quiet/", start)
        assert isinstance(too_old.next(PATIENCE_S), CompactedAway)
    finally:
        store.close()


def test_progress_never_overtakes_an_event(cluster: EtcdCluster) -> None:
    (member,) = cluster.members
    addresses = (Address("127.0.0.1", member.client_port),)
    store = Etcd3Datastore(Cluster(addresses, DatastoreOptions(), secure=False), ask_progress_after_s=0.3)
    try:
        watch = store.watch("/calico/a/", store.put("/calico/a/0", b""))
        written: list[int] = []
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                written.append(store.put("/calico/a/0", b"x"))
                time.sleep(0.4 if len(written) % 3 == 2 else 0.01)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        seen: list[int] = []
        promised = progressed = 0
        deadline = time.monotonic() + PATIENCE_S
        try:
            while progressed < 8:
                assert time.monotonic() < deadline, progressed
                message = watch.next(0.02)
                if isinstance(message, Progress):
                    promised, progressed = message.revision, progressed + 1
                elif isinstance(message, Batch):
                    assert message.revision > promised
                    seen.append(message.revision)
        finally:
            stop.set()
            thread.join(PATIENCE_S)
        assert seen == written[: len(seen)]
    finally:
        store.close()


def test_a_compacted_deletion_is_no_silence(cluster: EtcdCluster) -> None:
    """Compaction at the very revision of a deletion takes the deletion along: a watch that needs it must hear that."""
    store = Etcd3Datastore.open(cluster.url, DatastoreOptions())
    try:
        store.put("/calico/a", b"1")
        store.delete("/calico/a")
        revision = store.list("/calico/").revision
        store.compact(revision)
        watch = store.watch("/calico/", revision - 1)
        assert isinstance(watch.next(PATIENCE_S), CompactedAway)
        resumed = store.watch("/calico/", revision)
        store.put("/calico/b", b"1")
        assert [event.key for event in next_batch(resumed).events] == ["/calico/b"]
    finally:
        store.close()


def next_progress(watch: Any) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        message = watch.next(0.1)
        assert not isinstance(message, Batch)
        if isinstance(message, Progress):
            return message.revision
    pytest.fail("no progress")


def next_batch(watch: Any) -> Batch:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        message = watch.next(0.1)
        if isinstance(message, Batch):
            return message
        assert message is None or isinstance(message, Progress), message
    pytest.fail("no batch")
