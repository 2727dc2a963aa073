"""The store of tests and laboratories: one process, nothing on disk, same rules as the real ones.

``memory://name`` is one store for everybody in the process who opens that name; it outlives its handles until
:meth:`MemoryDatastore.forget`. ``memory://`` alone is private. ``faults`` makes a store fail in the ways a real
one does, which is how crash tests of allocators are written (datastore specification, section 10).
"""

from __future__ import annotations

import bisect
import threading
import time
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from calico_core.datastore.checks import check_transaction, prefix_end
from calico_core.datastore.memory_state import Faults, Grant, Locked, MemoryState
from calico_core.errors import InvalidSettings, KeyMissing, Unavailable
from calico_core.interfaces.datastore import (
    Batch,
    CompactedAway,
    Datastore,
    Delete,
    Entry,
    Lease,
    Lost,
    Progress,
    Put,
    Snapshot,
    TransactionResult,
    Watch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from calico_core.interfaces.datastore import DatastoreOptions, Operation, Precondition, WatchMessage


class MemoryDatastore(Datastore):
    """One handle on a store in this process. ``clock`` counts seconds, for leases; waiting follows real time, and
    a clock moved by hand is noticed by the next call."""

    _named: ClassVar[dict[str, MemoryState]] = {}
    _named_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        if not name:
            self._store = MemoryState(name, clock)
        else:
            with self._named_lock:
                if name not in self._named:
                    self._named[name] = MemoryState(name, clock)
                self._store = self._named[name]
        self._closed = False

    @classmethod
    def open(cls, url: str, options: DatastoreOptions) -> MemoryDatastore:  # noqa: ARG003 - nothing to connect to
        parts = urlsplit(url)
        if parts.scheme != "memory" or parts.path not in {"", "/"} or parts.query:
            raise InvalidSettings("datastore", "url", f"{url!r} is not of the form memory://name")
        return cls(parts.netloc)

    @classmethod
    def forget(cls, name: str) -> None:
        """Drop a named store: who opens the name next finds it empty. Unknown is fine."""
        with cls._named_lock:
            cls._named.pop(name, None)

    @property
    def faults(self) -> Faults:
        """Shared by every handle of the store."""
        return self._store.faults

    def compact(self, revision: int) -> None:
        """Forget the changes up to ``revision``."""
        store = self._store
        with store.changed:
            store.compacted = max(store.compacted, min(revision, store.revision))
            keep = bisect.bisect_right(store.changes, store.compacted, key=lambda batch: batch.revision)
            del store.changes[:keep]
            store.changed.notify_all()

    def get(self, key: str) -> Entry | None:
        with self._ready() as store:
            return store.entries.get(key)

    def list(self, prefix: str) -> Snapshot:
        with self._ready() as store:
            return Snapshot(tuple(store.entries[key] for key in store.range(prefix)), store.revision)

    def transact(
        self,
        preconditions: Sequence[Precondition],
        operations: Sequence[Operation],
        otherwise: Sequence[str] = (),
    ) -> TransactionResult:
        check_transaction(preconditions, operations, otherwise)
        number = self.faults.arrive()
        with self._ready() as store:
            strike = self.faults.strikes(number)
            if strike == "refuse":
                raise Unavailable(store.endpoint, f"transaction {number} made to fail")
            if not all(store.holds(condition) for condition in preconditions):
                return TransactionResult(
                    committed=False,
                    revision=store.revision,
                    current=tuple(store.entries.get(key) for key in otherwise),
                )
            for operation in operations:
                if isinstance(operation, Put) and operation.lease is not None and operation.lease not in store.leases:
                    raise KeyMissing(f"lease {operation.lease}")
            revision = store.apply(operations)
            if strike == "unanswered":
                raise Unavailable(store.endpoint, f"transaction {number} made to time out", maybe_applied=True)
            return TransactionResult(committed=True, revision=revision)

    def lease(self, ttl_s: float) -> Lease:
        with self._ready() as store:
            number, store.next_lease = store.next_lease, store.next_lease + 1
            store.leases[number] = Grant(ttl_s, store.clock() + ttl_s)
            store.changed.notify_all()  # sleeping watches learn of the earlier expiry
            return _MemoryLease(store, number, ttl_s)

    def watch(self, prefix: str, after: int) -> Watch:
        prefix_end(prefix)
        with self._ready() as store:
            return _MemoryWatch(self, store, prefix, after)

    def delete_prefix(self, prefix: str) -> int:
        with self._ready() as store:
            keys = store.range(prefix)
            store.apply([Delete(key) for key in keys])
            return len(keys)

    def identity(self) -> str:
        with self._ready() as store:
            return store.identity

    def close(self) -> None:
        with self._store.changed:
            self._closed = True
            self._store.changed.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._closed

    def _ready(self) -> Locked:
        return Locked(self._store, is_closed=self._closed)


class _MemoryLease(Lease):
    def __init__(self, store: MemoryState, number: int, ttl_s: float) -> None:
        self._store = store
        self.id, self.ttl_s = number, ttl_s

    def keep_alive(self) -> bool:
        with Locked(self._store, is_closed=False) as store:
            grant = store.leases.get(self.id)
            if grant is None:
                return False
            grant.expires = store.clock() + grant.ttl_s
            return True

    def revoke(self) -> None:
        with Locked(self._store, is_closed=False) as store:
            store.end_lease(self.id)


class _MemoryWatch(Watch):
    """Reads the list of changes when asked; nothing is buffered, so nothing overflows."""

    def __init__(self, handle: MemoryDatastore, store: MemoryState, prefix: str, after: int) -> None:
        self._handle, self._store, self._prefix = handle, store, prefix
        self._seen = self._reported = after
        self._breaks = store.break_count
        self._ended = False

    def next(self, timeout_s: float) -> WatchMessage | None:
        deadline = time.monotonic() + timeout_s
        with self._store.changed:
            while True:
                if self._ended or self._handle.is_closed:
                    return None
                message = self._take()
                if message is not None:
                    return message
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return self._progress()
                self._store.changed.wait(max(min(remaining, self._store.next_expiry_s()), 0.001))

    def _take(self) -> WatchMessage | None:
        store = self._store
        store.sweep()
        if self._seen < store.compacted:
            self._ended = True
            return CompactedAway(store.compacted)
        start = bisect.bisect_right(store.changes, self._seen, key=lambda batch: batch.revision)
        for position in range(start, len(store.changes)):
            batch = store.changes[position]
            self._seen = batch.revision
            events = tuple(event for event in batch.events if event.key.startswith(self._prefix))
            if events:
                self._reported = batch.revision
                return Batch(batch.revision, events)
        if self._breaks != store.break_count:
            self._ended = True
            return Lost(store.break_reason)
        return None

    def _progress(self) -> Progress | None:
        if self._seen <= self._reported:
            return None
        self._reported = self._seen
        return Progress(self._seen)

    def close(self) -> None:
        with self._store.changed:
            self._ended = True
            self._store.changed.notify_all()
