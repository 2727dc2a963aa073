"""Wakes the watches of other processes when one commits.

Each process with a watch binds a datagram UNIX socket in ``<db>.watch/``; a writer sends a byte to every socket it
finds there and removes those nobody listens on any more (datastore specification, section 9). The thread here looks
which keys that concerns, once for all watches: a node has six, and each that woke for nothing would stand in the way
of an attach. It also looks at ``PRAGMA data_version`` once a second, in case a writer died between its commit and the
ring, and sweeps expired leases.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import sqlite3
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from calico_core.errors import DatastoreError
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAFETY_NET_S = 1.0
_REMEMBERED_RINGS = 256
_SETTLED_NS = 100_000_000
log = get_logger(__name__)


class Doorbell:
    """``count`` grows after every commit anyone made, and who waits for what it changed wakes, nobody else. ``sweep``
    runs about once a second in the listening thread, which starts with the first :meth:`listen`; ``take_keys`` runs
    there after others rang: what was changed since the last time, or None when that is not known."""

    def __init__(
        self, path: str, sweep: Callable[[], object], take_keys: Callable[[], frozenset[str] | None] = lambda: None
    ) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._sleepers: dict[threading.Condition, str] = {}  # with the prefix that each waits for
        self._rings: deque[frozenset[str] | None] = deque(maxlen=_REMEMBERED_RINGS)
        self._path, self._folder = path, Path(f"{path}.watch")
        self._sweep, self._take_keys = sweep, take_keys
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._listed: tuple[str, ...] = ()
        self._listed_ns = 0
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def ring(self, keys: frozenset[str] | None = None) -> None:
        """Something was committed here: wake everybody. Never blocks, never fails. ``keys`` are those it changed;
        None: not known."""
        self._notify(keys)
        names = self._others()
        if not names:
            return
        with contextlib.suppress(OSError), _reachable(self._folder) as base:
            for name in names:
                self._send(f"{base}/{name}", self._folder / name)

    def listen(self) -> None:
        """Start hearing other processes; what they commit after this returns is heard. Repeating it is fine."""
        with self._starting:
            if self._thread is not None or self._closed:
                return
            self._folder.mkdir(mode=0o700, exist_ok=True)
            ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            ear.setblocking(False)
            try:
                with _reachable(self._folder) as base:
                    ear.bind(f"{base}/{self._name}")
            except BaseException:
                ear.close()
                raise
            self._thread = threading.Thread(target=self._run, args=(ear,), name="sqlite-doorbell", daemon=True)
            self._thread.start()

    def close(self) -> None:
        with self._starting:
            if self._closed:
                return
            self._closed = True
        if self._thread is not None:
            with contextlib.suppress(OSError), _reachable(self._folder) as base:
                self._sender.sendto(b"!", f"{base}/{self._name}")
            self._thread.join(2 * SAFETY_NET_S)
        self._sender.close()
        self._notify()

    def wait(self, prefix: str, heard: int, is_over: Callable[[], bool], timeout_s: float) -> None:
        """Until a commit after the count ``heard`` may have changed a key below ``prefix``, or ``is_over`` says so
        after a :meth:`wake`."""
        sleeper = threading.Condition(self._lock)
        with sleeper:
            self._sleepers[sleeper] = prefix
            try:
                sleeper.wait_for(lambda: is_over() or self.concerns(prefix, heard), timeout_s)
            finally:
                del self._sleepers[sleeper]

    def wake(self) -> None:
        """Everybody shall ask whether it is over."""
        with self._lock:
            for sleeper in self._sleepers:
                sleeper.notify()

    def concerns(self, prefix: str, heard: int) -> bool:
        """Whether a commit after the count ``heard`` may have changed a key below ``prefix``."""
        missed = self.count - heard
        if missed > len(self._rings):
            return True
        latest = itertools.islice(reversed(self._rings), missed)
        return any(_is_below(prefix, keys) for keys in latest)

    def _notify(self, keys: frozenset[str] | None = None) -> None:
        with self._lock:
            self.count += 1
            self._rings.append(keys)
            for sleeper, prefix in self._sleepers.items():
                if _is_below(prefix, keys):
                    sleeper.notify()

    def _others(self) -> tuple[str, ...]:
        """Who listens in other processes. The folder is read again only after it has changed: every write asks."""
        try:
            changed_ns = os.stat(self._folder).st_mtime_ns  # noqa: PTH116
            if changed_ns != self._listed_ns:
                names = os.listdir(self._folder)  # noqa: PTH208
                self._listed = tuple(name for name in names if name != self._name)
                # a file's time is as coarse as the clock's tick: what comes in the same tick has the same
                is_settled = time.time_ns() - changed_ns > _SETTLED_NS
                self._listed_ns = changed_ns if is_settled else 0
        except OSError:
            return ()
        return self._listed

    def _send(self, address: str, path: Path) -> None:
        try:
            self._sender.sendto(b"!", address)
        except OSError as error:
            # A full queue means the listener has unread rings, which is as good.
            if error.errno == errno.ECONNREFUSED:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _run(self, ear: socket.socket) -> None:
        version = _DataVersion(self._path)
        poller = select.poll()
        poller.register(ear, select.POLLIN)
        tended = float("-inf")
        try:
            while not self._closed:
                heard = poller.poll(max(0.0, tended + SAFETY_NET_S - time.monotonic()) * 1000)
                if heard:
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            ear.recv(16)
                if self._closed:
                    return
                is_time = time.monotonic() - tended >= SAFETY_NET_S
                if heard or (is_time and version.has_changed()):
                    self._notify(self._take_keys())
                if is_time:
                    tended = time.monotonic()
                    with contextlib.suppress(DatastoreError):  # the next call reports it to somebody who asked
                        self._sweep()
        except Exception:
            log.exception("datastore.doorbell-failed", path=self._path)
        finally:
            version.close()
            ear.close()
            with contextlib.suppress(OSError):
                (self._folder / self._name).unlink()


class _DataVersion:
    """Whether another connection committed since the last look. One connection of its own: the number is only
    comparable within a connection."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._last: int | None = None

    def has_changed(self) -> bool:
        """True for the first look at a file, too: one that replaced another may well have the other's number."""
        try:
            inode = Path(self._path).stat().st_ino
            if self._connection is None or inode != self._inode:
                self.close()
                self._last = None
                self._connection = sqlite3.connect(f"file:{self._path}?mode=rw", uri=True, timeout=0.1)
                self._inode = inode
            version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        except (OSError, sqlite3.Error):
            return True  # let the watches look, and tell what they find
        changed, self._last = version != self._last, version
        return bool(changed)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_below(prefix: str, keys: frozenset[str] | None) -> bool:
    """Whether one of them may be; None: it is not known which."""
    return keys is None or any(key.startswith(prefix) for key in keys)


@contextlib.contextmanager
def _reachable(folder: Path) -> Iterator[str]:
    """``folder`` under a short name: a socket's path has 108 bytes at most (unix(7)), a database's has not."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
