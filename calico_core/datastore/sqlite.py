"""The store of one host: a SQLite file shared by that host's processes. Never put it on a network file system.

``sqlite:///var/lib/calico/calico.db``, optionally with ``?synchronous=full``. Mapping: datastore specification,
section 9. A write is one ``BEGIN IMMEDIATE`` transaction; a watch reads the table of changes when the doorbell
rings, so it buffers nothing.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from calico_core.datastore.checks import check_transaction, prefix_end
from calico_core.datastore.sqlite_changes import ChangedKeys
from calico_core.datastore.sqlite_doorbell import Doorbell
from calico_core.datastore.sqlite_file import SqliteFile
from calico_core.errors import InvalidSettings, KeyMissing, Unavailable
from calico_core.interfaces.datastore import (
    Batch,
    CompactedAway,
    Compare,
    Datastore,
    Delete,
    Entry,
    Event,
    Lease,
    Lost,
    Progress,
    Put,
    Snapshot,
    TransactionResult,
    Watch,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from calico_core.interfaces.datastore import DatastoreOptions, Operation, Precondition, WatchMessage

KEPT_CHANGES = 10_000
KEPT_S = 3600.0
COMPACT_EVERY = 512
"""Writes between two looks at what may be forgotten."""
_CHECKPOINT_REVISIONS = 250
"""An attach writes some twenty pages: this many stay well below what SQLite lets a writer wait for."""
READ_REVISIONS = 1000
"""Revisions a watch reads at once; whole ones, so that none is split."""

_ENTRY = "SELECT key, value, create_rev, mod_rev, lease FROM kv"


class SqliteDatastore(Datastore):
    """Several processes and threads may use the same file, each through a handle of its own or a shared one."""

    def __init__(self, path: str, *, timeout_s: float = 5.0, synchronous: str = "NORMAL") -> None:
        self._file = SqliteFile(path, timeout_s=max(timeout_s, 5.0), synchronous=synchronous)
        self._doorbell = Doorbell(path, self._tend, ChangedKeys(self._file).take)
        self._checkpointed = 0
        self._closed = False

    @classmethod
    def open(cls, url: str, options: DatastoreOptions) -> SqliteDatastore:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        synchronous = query.pop("synchronous", ["normal"])[-1].upper()
        path = unquote(parts.path)
        if parts.scheme != "sqlite" or parts.netloc or not path.strip("/") or path.endswith("/"):
            raise InvalidSettings("datastore", "url", f"{url!r} is not of the form sqlite:///path/to/file")
        if query or synchronous not in {"NORMAL", "FULL"}:
            raise InvalidSettings("datastore", "url", f"{url!r}: the only option is synchronous=normal or =full")
        return cls(path, timeout_s=options.timeout_s, synchronous=synchronous)

    def get(self, key: str) -> Entry | None:
        with self._file.borrow() as connection:
            entry = _find(connection, key)
        if entry is None or entry.lease is None:
            return entry
        self._sweep()
        with self._file.borrow() as connection:
            return _find(connection, key)

    def list(self, prefix: str) -> Snapshot:
        snapshot = self._list(prefix)
        if any(entry.lease is not None for entry in snapshot.entries) and self._sweep():
            return self._list(prefix)
        return snapshot

    def transact(
        self,
        preconditions: Sequence[Precondition],
        operations: Sequence[Operation],
        otherwise: Sequence[str] = (),
    ) -> TransactionResult:
        check_transaction(preconditions, operations, otherwise)
        with self._file.writing() as connection:
            before = _revision(connection)
            swept = _sweep_expired(connection, before)
            if not all(_holds(connection, condition) for condition in preconditions):
                current = tuple(_find(connection, key) for key in otherwise)
                result = TransactionResult(committed=False, revision=swept, current=current)
            else:
                revision = _apply(connection, operations, swept)
                result = TransactionResult(committed=True, revision=revision)
            if result.revision % COMPACT_EVERY == 0:
                _compact_old(connection, result.revision)
        if result.revision != before:
            changed = frozenset(operation.key for operation in operations)
            self._doorbell.ring(changed if swept == before else None)
        return result

    def lease(self, ttl_s: float) -> Lease:
        with self._file.writing() as connection:
            cursor = connection.execute("INSERT INTO lease (ttl, expires) VALUES (?, ?)", (ttl_s, time.time() + ttl_s))
            assert cursor.lastrowid is not None
        self._listen()  # its thread sweeps
        return _SqliteLease(self, cursor.lastrowid, ttl_s)

    def watch(self, prefix: str, after: int) -> Watch:
        prefix_end(prefix)
        with self._file.borrow():  # the file is there, and its generation known
            generation = self._file.generation
        self._listen()
        return _SqliteWatch(self, prefix, after, generation)

    def delete_prefix(self, prefix: str) -> int:
        end = prefix_end(prefix)
        with self._file.writing() as connection:
            before = _revision(connection)
            swept = _sweep_expired(connection, before)
            keys = [
                row[0] for row in connection.execute("SELECT key FROM kv WHERE key >= ? AND key < ?", (prefix, end))
            ]
            revision = _apply(connection, [Delete(key) for key in keys], swept)
        if revision != before:
            self._doorbell.ring()
        return len(keys)

    def identity(self) -> str:
        with self._file.borrow():
            return self._file.store_id

    def close(self) -> None:
        self._closed = True
        self._doorbell.close()
        self._file.close()

    def compact(self, revision: int) -> None:
        """Forget the changes up to ``revision``. Old ones go by themselves: those neither among the newest 10,000
        nor of the last hour."""
        with self._file.writing() as connection:
            _compact(connection, min(revision, _revision(connection)))
        self._doorbell.ring()

    # --- inside --------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            self._doorbell.listen()
        except OSError as error:
            raise Unavailable(self._file.path, str(error)) from error

    def _list(self, prefix: str) -> Snapshot:
        end = prefix_end(prefix)
        with self._file.reading() as connection:
            rows = connection.execute(f"{_ENTRY} WHERE key >= ? AND key < ? ORDER BY key", (prefix, end)).fetchall()
            return Snapshot(tuple(map(Entry._make, rows)), _revision(connection))

    def _sweep(self) -> bool:
        """Delete what expired leases held: True if there was any."""
        with self._file.borrow() as connection:
            expired = connection.execute("SELECT 1 FROM lease WHERE expires <= ?", (time.time(),)).fetchone()
        if expired is None:
            return False
        with self._file.writing() as connection:
            _sweep_expired(connection, _revision(connection))
        self._doorbell.ring()
        return True

    def _tend(self) -> None:
        """About once a second, in the listening thread."""
        self._sweep()
        with self._file.borrow() as connection:
            revision = _revision(connection)
        if abs(revision - self._checkpointed) >= _CHECKPOINT_REVISIONS:  # another file may be at an earlier one
            self._checkpointed = revision
            self._file.checkpoint()

    def _extend(self, lease: int, ttl_s: float) -> bool:
        with self._file.writing() as connection:
            now = time.time()
            updated = connection.execute(
                "UPDATE lease SET expires = ? WHERE id = ? AND expires > ?", (now + ttl_s, lease, now)
            )
            return updated.rowcount == 1

    def _revoke(self, lease: int) -> None:
        with self._file.writing() as connection:
            connection.execute("UPDATE lease SET expires = 0 WHERE id = ?", (lease,))
        self._sweep()

    def _read_changes(self, prefix: str, after: int, generation: int) -> tuple[Sequence[WatchMessage], int]:
        """What a watch has to say next, and the revision it has read up to."""
        with self._file.reading() as connection:
            if generation != self._file.generation:
                return [Lost("the database file was replaced")], after
            meta = dict(connection.execute("SELECT name, value FROM meta WHERE name IN ('revision', 'compacted')"))
            if after < meta["compacted"]:
                return [CompactedAway(meta["compacted"])], after
            upto = min(meta["revision"], after + READ_REVISIONS)
            rows = connection.execute(
                "SELECT rev, key, value, prev FROM change WHERE rev > ? AND rev <= ? AND key >= ? AND key < ?"
                " ORDER BY rev, seq",
                (after, upto, prefix, prefix_end(prefix)),
            ).fetchall()
        batches: dict[int, list[Event]] = {}
        for revision, key, value, previous in rows:
            batches.setdefault(revision, []).append(Event(key, value, previous, revision))
        return [Batch(revision, tuple(events)) for revision, events in batches.items()], max(upto, after)


class _SqliteLease(Lease):
    def __init__(self, store: SqliteDatastore, number: int, ttl_s: float) -> None:
        self._store = store
        self.id, self.ttl_s = number, ttl_s

    def keep_alive(self) -> bool:
        return self._store._extend(self.id, self.ttl_s)  # noqa: SLF001 - halves of one driver

    def revoke(self) -> None:
        self._store._revoke(self.id)  # noqa: SLF001


class _SqliteWatch(Watch):
    def __init__(self, store: SqliteDatastore, prefix: str, after: int, generation: int) -> None:
        self._store, self._prefix, self._generation = store, prefix, generation
        self._doorbell = store._doorbell  # noqa: SLF001
        self._read = self._reported = after
        self._ready: deque[WatchMessage] = deque()
        self._over = False  # the last message was taken
        self._closed = False

    def next(self, timeout_s: float) -> WatchMessage | None:
        deadline = time.monotonic() + timeout_s
        while not self._is_ended:
            heard = self._doorbell.count
            message = self._take()
            if message is not None:
                return None if self._is_ended and not self._over else message
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return self._progress()
            self._doorbell.wait(self._prefix, heard, lambda: self._is_ended, remaining)
        return None

    def close(self) -> None:
        self._closed = True
        self._doorbell.wake()

    @property
    def _is_ended(self) -> bool:
        return self._over or self._closed or self._store._closed  # noqa: SLF001

    def _take(self) -> WatchMessage | None:
        while not self._ready:
            before = self._read
            try:
                messages, self._read = self._store._read_changes(self._prefix, before, self._generation)  # noqa: SLF001
            except Unavailable as error:
                messages = [Lost(error.cause)]
            self._ready.extend(messages)
            if not messages and self._read < before + READ_REVISIONS:
                return None
        message = self._ready.popleft()
        if isinstance(message, Batch):
            self._reported = message.revision
        else:
            self._over = True
        return message

    def _progress(self) -> Progress | None:
        if self._read <= self._reported:
            return None
        self._reported = self._read
        return Progress(self._read)


# --- inside a transaction ----------------------------------------------------------------------------------


def _find(connection: sqlite3.Connection, key: str) -> Entry | None:
    row = connection.execute(f"{_ENTRY} WHERE key = ?", (key,)).fetchone()
    return Entry._make(row) if row else None


def _revision(connection: sqlite3.Connection) -> int:
    value = connection.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()[0]
    assert isinstance(value, int)
    return value


def _holds(connection: sqlite3.Connection, condition: Precondition) -> bool:
    if isinstance(condition, Compare):
        row = connection.execute("SELECT mod_rev FROM kv WHERE key = ?", (condition.key,)).fetchone()
        return (row[0] if row else 0) == condition.mod_revision
    newer = connection.execute(
        "SELECT 1 FROM kv WHERE key >= ? AND key < ? AND mod_rev > ? LIMIT 1",
        (condition.prefix, prefix_end(condition.prefix), condition.revision),
    )
    return newer.fetchone() is None


def _apply(connection: sqlite3.Connection, operations: Sequence[Operation], revision: int) -> int:
    """The new revision; ``revision`` when nothing changed."""
    new, now = revision + 1, time.time()
    changes: list[tuple[int, int, str, bytes | None, bytes | None, float]] = []
    for operation in operations:
        old = _find(connection, operation.key)
        if isinstance(operation, Put):
            _require_lease(connection, operation.lease)
            created = old.create_revision if old else new
            connection.execute(
                "INSERT INTO kv VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
                " value = excluded.value, mod_rev = excluded.mod_rev, lease = excluded.lease",
                (operation.key, operation.value, created, new, operation.lease),
            )
            previous = old.value if old else None
            changes.append((new, len(changes), operation.key, operation.value, previous, now))
        elif old is not None:
            connection.execute("DELETE FROM kv WHERE key = ?", (operation.key,))
            changes.append((new, len(changes), operation.key, None, old.value, now))
    if not changes:
        return revision
    connection.executemany("INSERT INTO change VALUES (?, ?, ?, ?, ?, ?)", changes)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (new,))
    return new


def _require_lease(connection: sqlite3.Connection, lease: int | None) -> None:
    if lease is not None and connection.execute("SELECT 1 FROM lease WHERE id = ?", (lease,)).fetchone() is None:
        raise KeyMissing(f"lease {lease}")


def _sweep_expired(connection: sqlite3.Connection, revision: int) -> int:
    """The revision after deleting what expired leases held."""
    expired = connection.execute("SELECT id FROM lease WHERE expires <= ?", (time.time(),)).fetchall()
    if not expired:
        return revision
    keys: list[str] = []
    for (lease,) in expired:
        keys += (row[0] for row in connection.execute("SELECT key FROM kv WHERE lease = ? ORDER BY key", (lease,)))
        connection.execute("DELETE FROM lease WHERE id = ?", (lease,))
    return _apply(connection, [Delete(key) for key in keys], revision)


def _compact_old(connection: sqlite3.Connection, revision: int) -> None:
    last = connection.execute(
        "SELECT max(rev) FROM change WHERE rev <= ? AND at < ?", (revision - KEPT_CHANGES, time.time() - KEPT_S)
    ).fetchone()[0]
    if last is not None:
        _compact(connection, last)


def _compact(connection: sqlite3.Connection, revision: int) -> None:
    connection.execute("DELETE FROM change WHERE rev <= ?", (revision,))
    connection.execute(
        "UPDATE meta SET value = max(value, ?) WHERE name = 'compacted'",
        (revision,),
    )
