"""One SQLite file, several processes: nothing lost, watchers woken, and a writer may die at any moment."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.interfaces.datastore import Batch, DatastoreOptions, Lost, Progress, WatchMessage

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 60.0
_PREAMBLE = """
import sys
import threading
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.errors import Conflict
from calico_core.interfaces.datastore import Batch, DatastoreOptions, Put
store = SqliteDatastore.open("sqlite://" + sys.argv[1], DatastoreOptions())
"""
COUNT = """
for _ in range(100):
    while True:
        entry = store.get("/calico/counter")
        try:
            store.compare_and_swap("/calico/counter", b"%d" % (int(entry.value) + 1), entry.mod_revision)
            break
        except Conflict:
            pass
store.close()
"""
WATCH = """
import time
watch = store.watch("/calico/w/", store.list("/calico/w/").revision)
print("watching", flush=True)
for _ in range(int(sys.argv[2])):
    message = watch.next(20)
    while not isinstance(message, Batch):
        message = watch.next(20)
    print(time.monotonic(), flush=True)
"""
WRITE_PAIRS = """
number = 0
print("writing", flush=True)
while True:
    number += 1
    value = b"%d" % number
    names = ["a", "b", str(number % 50)]
    store.transact([], [Put("/calico/pair/" + name, value) for name in names])
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "private" / "calico.db")


@pytest.fixture
def store(path: str) -> Iterator[SqliteDatastore]:
    store = SqliteDatastore.open(f"sqlite://{path}", DatastoreOptions())
    yield store
    store.close()


@contextlib.contextmanager
def started(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process; if it is still there at the end, it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", _PREAMBLE + script, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_message(watch: object) -> WatchMessage:
    deadline = time.monotonic() + PATIENCE_S
    while (left := deadline - time.monotonic()) > 0:
        message: WatchMessage | None = watch.next(left)  # type: ignore[attr-defined]
        if message is not None and not isinstance(message, Progress):
            return message
    pytest.fail("the watch says nothing")


def test_processes_lose_no_update(store: SqliteDatastore, path: str) -> None:
    start_revision = store.create("/calico/counter", b"0")
    watch = store.watch("/calico/", start_revision)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(COUNT, path)) for _ in range(4)]
        values: list[int] = []
        while not values or values[-1] != 400:
            message = next_message(watch)
            assert isinstance(message, Batch)
            values += [int(event.value or b"-1") for event in message.events]
        assert values == list(range(1, 401))
        for process in processes:
            assert process.wait(PATIENCE_S) == 0


def test_a_second_handle_takes_no_locks_away(store: SqliteDatastore, path: str) -> None:
    """Locks belong to a process, and closing any descriptor of the file drops them all. Without them, the next process
    to leave removes the log that this one goes on writing to."""
    store.put("/calico/a", b"1")
    second = SqliteDatastore.open(f"sqlite://{path}", DatastoreOptions())
    try:
        second.put("/calico/counter", b"0")
        with started(COUNT, path) as process:
            assert process.wait(PATIENCE_S) == 0
        for handle in (store, second):
            entry = handle.get("/calico/counter")
            assert entry is not None
            assert entry.value == b"100"
        store.put("/calico/b", b"2")
    finally:
        second.close()
    store.close()
    third = SqliteDatastore.open(f"sqlite://{path}", DatastoreOptions())
    try:
        assert {entry.key for entry in third.list("/calico/").entries} == {"/calico/a", "/calico/b", "/calico/counter"}
    finally:
        third.close()


def test_a_watcher_in_another_process_is_woken(store: SqliteDatastore, path: str) -> None:
    store.put("/calico/x", b"")
    with started(WATCH, path, "5") as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"
        delays = []
        for number in range(5):
            time.sleep(0.3)  # the watcher has long gone to sleep, whatever its rhythm
            written = time.monotonic()
            store.put("/calico/w/a", b"%d" % number)
            delays.append(float(watcher.stdout.readline()) - written)
        assert watcher.wait(PATIENCE_S) == 0
    # of a poll each second one or the other would pass by luck, not most; a busy machine may hold up one or the other
    assert statistics.median(delays) < 0.5, delays


def test_a_dead_watcher_is_cleared_away(store: SqliteDatastore, path: str) -> None:
    store.put("/calico/x", b"")
    folder = Path(f"{path}.watch")
    with started(WATCH, path, "1") as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        assert len(list(folder.iterdir())) == 1
        watcher.kill()
    store.put("/calico/x", b"")
    assert list(folder.iterdir()) == []


def test_killed_writers_leave_whole_transactions(store: SqliteDatastore, path: str) -> None:
    store.put("/calico/x", b"")
    for round_number in range(20):
        with started(WRITE_PAIRS, path) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            before = store.list("/calico/pair/").revision
            deadline = time.monotonic() + PATIENCE_S
            while store.list("/calico/pair/").revision < before + 5 + round_number:
                assert time.monotonic() < deadline
            writer.send_signal(signal.SIGKILL)
        pair = [store.get("/calico/pair/a"), store.get("/calico/pair/b")]
        assert pair[0] is not None
        assert pair[1] is not None
        assert (pair[0].value, pair[0].mod_revision) == (pair[1].value, pair[1].mod_revision)
    store.close()
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        last, count = connection.execute("SELECT max(rev), count(DISTINCT rev) FROM change").fetchone()
        revision = connection.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()[0]
        assert last == revision == count + 1  # the first revision of a store is 1, and every later one left its changes
        torn = connection.execute(
            "SELECT count(*) FROM (SELECT rev FROM change WHERE rev > 2 GROUP BY rev HAVING count(*) != 3)"
        )
        assert torn.fetchone() == (0,)
    finally:
        connection.close()


def test_a_replaced_file_ends_watches_and_changes_the_identity(store: SqliteDatastore, path: str) -> None:
    store.put("/calico/a", b"1")
    identity = store.identity()
    watch = store.watch("/calico/", store.list("/calico/").revision)
    for file in Path(path).parent.glob("calico.db*"):
        if file.is_file():
            file.unlink()
    assert isinstance(next_message(watch), Lost)
    assert store.get("/calico/a") is None
    assert store.identity() != identity
    store.put("/calico/a", b"2")


def test_only_the_owner_may_read_it(store: SqliteDatastore, path: str) -> None:
    store.put("/calico/a", b"")
    store.watch("/calico/", 0).close()
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(f"{path}-wal").stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(f"{path}.watch").stat().st_mode) == 0o700


def test_leases_end_with_the_boot(store: SqliteDatastore, path: str) -> None:
    lease = store.lease(3600)
    store.put("/calico/a", b"", lease=lease.id)
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = 'another boot' WHERE name = 'boot_id'")
    connection.commit()
    connection.close()
    reopened = SqliteDatastore.open(f"sqlite://{path}", DatastoreOptions())
    try:
        assert reopened.get("/calico/a") is None
    finally:
        reopened.close()


def test_closing_leaves_no_file_and_no_thread(store: SqliteDatastore, path: str) -> None:
    store.put("/calico/a", b"")
    store.watch("/calico/", 0)
    readers = [threading.Thread(target=lambda: store.list("/calico/")) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(PATIENCE_S)
    assert _open_files(path) > 0
    store.close()
    assert _open_files(path) == 0
    assert "sqlite-doorbell" not in {thread.name for thread in threading.enumerate()}
    assert list(Path(f"{path}.watch").iterdir()) == []


def _open_files(path: str) -> int:
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(str(link.readlink()).startswith(path) for link in links if link.exists())
