"""What only the SQLite driver does by itself: forget old changes, and refuse a file it does not understand."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from calico_core.datastore import sqlite
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.datastore.sqlite_changes import ChangedKeys
from calico_core.datastore.sqlite_doorbell import Doorbell
from calico_core.datastore.sqlite_file import SqliteFile
from calico_core.errors import Unavailable
from calico_core.interfaces.datastore import Batch, CompactedAway, DatastoreOptions, Put
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteDatastore]:
    store = SqliteDatastore.open(f"sqlite://{tmp_path}/calico.db", DatastoreOptions())
    yield store
    store.close()


def write_past_a_look(store: SqliteDatastore) -> int:
    """The last revision; the changes were looked at on the way."""
    return max(store.put("/calico/a", b"%d" % number) for number in range(sqlite.COMPACT_EVERY))


def test_old_changes_are_forgotten(store: SqliteDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "KEPT_CHANGES", 100)
    monkeypatch.setattr(sqlite, "KEPT_S", 0.0)
    last = write_past_a_look(store)
    assert isinstance(store.watch("/calico/", 0).next(20), CompactedAway)
    assert isinstance(store.watch("/calico/", last - 100).next(20), Batch)


@pytest.mark.parametrize(("kept_changes", "kept_s"), [(100_000, 0.0), (1, 3600.0)])
def test_a_change_is_kept_when_either_rule_keeps_it(
    store: SqliteDatastore, monkeypatch: pytest.MonkeyPatch, kept_changes: int, kept_s: float
) -> None:
    monkeypatch.setattr(sqlite, "KEPT_CHANGES", kept_changes)
    monkeypatch.setattr(sqlite, "KEPT_S", kept_s)
    write_past_a_look(store)
    message = store.watch("/calico/", 0).next(20)
    assert isinstance(message, Batch)
    assert message.events[0].value == b"0"


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "calico.db"
    file.write_bytes(b"this is no database, whatever its name says" * 100)
    store = SqliteDatastore.open(f"sqlite://{file}", DatastoreOptions())
    with pytest.raises(Unavailable, match="not a database"):
        store.get("/calico/a")
    store.close()
    assert file.read_bytes().startswith(b"this is no database")


def test_another_schema_is_refused(store: SqliteDatastore, tmp_path: Path) -> None:
    store.put("/calico/a", b"")
    store.close()
    connection = sqlite3.connect(tmp_path / "calico.db")
    connection.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")
    connection.commit()
    connection.close()
    later = SqliteDatastore.open(f"sqlite://{tmp_path}/calico.db", DatastoreOptions())
    with pytest.raises(Unavailable, match="schema 99"):
        later.get("/calico/a")
    later.close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = SqliteDatastore.open(f"sqlite://{tmp_path}/file/calico.db", DatastoreOptions())
    with pytest.raises(Unavailable, match=r"Not a directory|File exists"):
        store.put("/calico/a", b"")
    store.close()


def test_a_commit_here_concerns_only_watches_of_its_keys(tmp_path: Path) -> None:
    bell = Doorbell(str(tmp_path / "db"), lambda: None)
    bell.ring(frozenset({"/a/1", "/b/2"}))
    heard = bell.count
    assert not bell.concerns("/a/", heard)
    bell.ring(frozenset({"/c/1"}))
    assert [bell.concerns(prefix, heard) for prefix in ("/a/", "/c/", "/")] == [False, True, True]
    assert bell.concerns("/a/", heard - 1), "what was rung earlier and not heard counts"
    bell.ring()
    assert bell.concerns("/a/", heard), "nobody knows what that was"
    for _ in range(1000):
        bell.ring(frozenset({"/c/1"}))
    assert bell.concerns("/a/", heard), "too long ago to be remembered"
    bell.close()


def test_a_ring_wakes_only_who_waits_for_its_keys(tmp_path: Path) -> None:
    bell = Doorbell(str(tmp_path / "db"), lambda: None)
    asked = {"/a/": 0, "/c/": 0}

    def wait(prefix: str) -> None:
        def is_over() -> bool:
            asked[prefix] += 1
            return False

        bell.wait(prefix, bell.count, is_over, 30)

    sleepers = {prefix: threading.Thread(target=wait, args=(prefix,)) for prefix in asked}
    for sleeper in sleepers.values():
        sleeper.start()
    while min(asked.values()) < 1:
        time.sleep(0.001)
    bell.ring(frozenset({"/a/1"}))
    sleepers["/a/"].join(10)
    assert not sleepers["/a/"].is_alive()
    assert sleepers["/c/"].is_alive()
    assert asked["/c/"] == 1
    bell.wake()
    while asked["/c/"] < 2:
        time.sleep(0.001)
    bell.ring()
    sleepers["/c/"].join(10)
    assert not sleepers["/c/"].is_alive()
    bell.close()


def test_a_ring_from_elsewhere_wakes_only_who_waits_for_what_changed(tmp_path: Path) -> None:
    changed: list[frozenset[str] | None] = []

    def take() -> frozenset[str] | None:
        return changed.pop(0) if changed else frozenset()

    here = Doorbell(str(tmp_path / "db"), lambda: None, take)
    elsewhere = Doorbell(str(tmp_path / "db"), lambda: None)
    here.listen()
    try:
        for keys, woken in ((frozenset({"/c/1"}), ["/c/"]), (None, ["/a/", "/c/"])):
            heard = here.count
            changed.append(keys)
            elsewhere.ring(frozenset({"/of/nobody/here"}))
            eventually(lambda heard=heard: here.concerns("/c/", heard))  # type: ignore[misc]
            assert [prefix for prefix in ("/a/", "/c/") if here.concerns(prefix, heard)] == woken
    finally:
        here.close()
        elsewhere.close()


def test_which_keys_changed_since_the_last_time(store: SqliteDatastore, tmp_path: Path) -> None:
    file = SqliteFile(str(tmp_path / "calico.db"), timeout_s=5)
    changes = ChangedKeys(file)
    store.put("/calico/a", b"1")
    assert changes.take() is None, "it has just come"
    assert changes.take() == frozenset()
    store.transact([], [Put("/calico/a", b"2"), Put("/calico/b", b"2")])
    last = store.put("/calico/c", b"2")
    store.delete("/calico/b")
    assert changes.take() == {"/calico/a", "/calico/b", "/calico/c"}
    assert changes.take() == frozenset()
    store.compact(last)
    store.put("/calico/d", b"3")
    assert changes.take() == {"/calico/d"}, "what was forgotten it had read"
    store.compact(store.put("/calico/e", b"4"))
    assert changes.take() is None, "some of it was forgotten"
    for number in range(300):
        store.put(f"/calico/{number}", b"5")
    assert changes.take() is None, "too many to ask of each"
    assert changes.take() == frozenset()
    for end in ("", "-wal", "-shm"):
        Path(f"{file.path}{end}").unlink(missing_ok=True)
    store.put("/calico/a", b"1")
    assert changes.take() is None, "another file"
    store.put("/calico/f", b"6")
    assert changes.take() == {"/calico/f"}
    file.close()


def test_who_listens_copies_the_log_into_the_file_before_a_writer_has_to(
    store: SqliteDatastore, tmp_path: Path
) -> None:
    file = tmp_path / "calico.db"
    store.watch("/calico/", store.put("/calico/a", b"1"))
    size = file.stat().st_size
    for number in range(300):
        store.put(f"/calico/{number}", b"1" * 1000)
    eventually(lambda: file.stat().st_size > size)


def test_who_opens_a_new_file_waits_for_others_that_do(store: SqliteDatastore, tmp_path: Path) -> None:
    file = tmp_path / "calico.db"
    file.touch(mode=0o600)
    other = sqlite3.connect(file, isolation_level=None)
    failures: list[Exception] = []

    def put() -> None:
        try:
            store.put("/calico/a", b"1")
        except Unavailable as error:
            failures.append(error)

    other.execute("BEGIN IMMEDIATE")  # SQLite lets nobody wait for its end who would change how the file is kept
    thread = threading.Thread(target=put)
    thread.start()
    try:
        thread.join(0.3)
        assert thread.is_alive()
    finally:
        other.execute("ROLLBACK")
        other.close()
        thread.join(20)
    assert failures == []
    found = store.get("/calico/a")
    assert found is not None
    assert found.value == b"1"
