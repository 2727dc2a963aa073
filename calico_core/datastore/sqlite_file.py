"""One SQLite file: its schema, its identity, and a small pool of connections to it.

A connection belongs to one call at a time and goes back to the pool, so threads that end leave nothing open. The
file may be deleted under us: every borrowing compares the inode and starts afresh, with a new store id.
Layout: datastore specification, section 9.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from calico_core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = 1
_CREATE = """
CREATE TABLE IF NOT EXISTS kv (
  key TEXT PRIMARY KEY, value BLOB NOT NULL, create_rev INT NOT NULL, mod_rev INT NOT NULL, lease INT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kv_lease ON kv (lease) WHERE lease IS NOT NULL;
CREATE TABLE IF NOT EXISTS change (
  rev INT, seq INT, key TEXT NOT NULL, value BLOB, prev BLOB, at REAL NOT NULL, PRIMARY KEY (rev, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl REAL NOT NULL, expires REAL NOT NULL);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
"""
_NOT_COMMITTED = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY)
"""What a commit may answer (by primary code) that leaves no doubt: the transaction was rolled back."""
_CHECKPOINT_PAGES = 8000
"""SQLite copies its log into the file in the commit that passes this; eight times its own habit, so that whoever
listens does it first, see :meth:`SqliteFile.checkpoint`. Every write to that disk waits while it is done."""
_TURNED_AWAY_S = 0.002
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SqliteFile:
    """``synchronous`` is SQLite's: ``NORMAL`` may lose the last commits in a power cut, but never tears one."""

    def __init__(self, path: str, *, timeout_s: float, synchronous: str = "NORMAL") -> None:
        self.path = path
        self.generation = 0  # grows when the file was replaced
        self._timeout_s, self._synchronous = timeout_s, synchronous
        self._inode: tuple[int, int] | None = None
        self._store_id = ""
        self._idle: deque[sqlite3.Connection] = deque()
        self._writer = threading.Lock()
        self._opening = threading.Lock()
        self._closed = False

    @property
    def store_id(self) -> str:
        """Made when the file was; known after the first borrowing."""
        return self._store_id

    @contextlib.contextmanager
    def borrow(self) -> Iterator[sqlite3.Connection]:
        """A connection outside a transaction. SQLite's errors come out as ``Unavailable``."""
        try:
            connection = self._take()
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(self.path, str(error)) from error
        generation = self.generation
        try:
            yield connection
        except sqlite3.Error as error:
            self._roll_back(connection)
            raise Unavailable(self.path, str(error)) from error
        except BaseException:
            self._roll_back(connection)
            raise
        finally:
            self._give_back(connection, generation)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Several reads of one moment."""
        with self.borrow() as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The only writer among all processes. Committed on leaving, rolled back on an exception.

        The lock takes writers of this process in turn; SQLite's own waiting sleeps, and would let one starve.
        """
        if not self._writer.acquire(timeout=self._timeout_s):
            raise Unavailable(self.path, "another thread is writing")
        try:
            with self.borrow() as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                self._commit(connection)
        finally:
            self._writer.release()

    def checkpoint(self) -> None:
        """Copy the log into the file now, in nobody's way: the disk takes tens of milliseconds for it."""
        with self.borrow() as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def close(self) -> None:
        """Close what is idle; what is in use closes when its call ends."""
        self._closed = True
        self._drain()

    # --- inside --------------------------------------------------------------------------------------------

    def _take(self) -> sqlite3.Connection:
        if self._closed:
            raise Unavailable(self.path, "closed")
        if self._inode is None or self._inode != self._find_inode():
            self._open_file()
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _give_back(self, connection: sqlite3.Connection, generation: int) -> None:
        if self._closed or generation != self.generation:
            connection.close()
            return
        self._idle.append(connection)
        if self._closed:  # meanwhile
            self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _commit(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection)
            is_certain = (error.sqlite_errorcode & 0xFF) in _NOT_COMMITTED
            raise Unavailable(self.path, str(error), maybe_applied=not is_certain) from error

    @staticmethod
    def _roll_back(connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")

    def _find_inode(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)  # noqa: PTH116 - three times as fast as Path.stat, and in every call
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _open_file(self) -> None:
        """Make the file when it is missing, and its tables; note which file it is."""
        with self._opening:
            if self._inode is not None and self._inode == self._find_inode():
                return
            Path(self.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._find_inode() is None:
                _make_empty(self.path)
            inode = self._find_inode()
            connection = self._connect()
            try:
                store_id = self._prepare(connection)
            finally:
                connection.close()
            self._drain()
            self._store_id, self._inode = store_id, inode
            self.generation += 1

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _keep_a_log(self, connection: sqlite3.Connection) -> None:
        """For as long as the file stands. Of several that do so to a new file at once SQLite turns some away without
        letting them wait: each holds what the others want."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(_TURNED_AWAY_S)

    def _prepare(self, connection: sqlite3.Connection) -> str:
        """The store id."""
        self._keep_a_log(connection)
        connection.execute("BEGIN IMMEDIATE")
        meta = _read_meta(connection)
        if meta.get("schema", SCHEMA) != SCHEMA:
            raise Unavailable(
                self.path, f"schema {meta['schema']} was written by another release; this one knows {SCHEMA}"
            )
        boot_id = _boot_id()
        if "store_id" not in meta:
            for statement in _CREATE.split(";"):
                connection.execute(statement)
            fresh = {"schema": SCHEMA, "store_id": uuid.uuid4().hex, "revision": 1, "compacted": 0, "boot_id": boot_id}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", fresh.items())
            meta = dict(fresh)
        elif meta["boot_id"] != boot_id:  # whoever kept these leases alive is gone
            connection.execute("UPDATE lease SET expires = 0")
            connection.execute("UPDATE meta SET value = ? WHERE name = 'boot_id'", (boot_id,))
        connection.execute("COMMIT")
        return str(meta["store_id"])


def _make_empty(path: str) -> None:
    """An empty file that only its owner may read. Made under another name: closing a descriptor of the database itself
    would drop the POSIX locks of every connection this process has to it (fcntl(2)), and the next process to close it
    would think itself the last one and delete the log under us."""
    beside = f"{path}.{uuid.uuid4().hex[:8]}.new"
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        os.link(beside, path)
    except FileExistsError:
        return  # somebody was quicker
    finally:
        Path(beside).unlink()


def _read_meta(connection: sqlite3.Connection) -> dict[str, object]:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is None:
        return {}
    return dict(connection.execute("SELECT name, value FROM meta"))


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return f"since {time.time() - time.monotonic():.0f}"
