"""The store of tests and laboratories: one process, nothing on disk, same rules as the real ones.

``memory://name`` is one store for everybody in the process who opens that name; it outlives its handles until
:meth:`MemoryDatastore.forget`. ``memory://`` alone is private. ``faults`` makes a store fail in the ways a real
one does, which is how crash tests of allocators are written (datastore specification, section 10).
"""

from __future__ import annotations

import bisect
import threading
import time
import uuid
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from calico_core.datastore.checks import check_transaction, prefix_end
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
    from collections.abc import Callable, Sequence

    from calico_core.interfaces.datastore import DatastoreOptions, Operation, Precondition, WatchMessage


class Faults:
    """What goes wrong next. Transactions count from 1, starting with the next one; each fault strikes once.

    ``down`` makes every call raise ``Unavailable`` until it is unset.
    """

    def __init__(self, store: _Store) -> None:
        self._store = store
        self._refused: set[int] = set()
        self._unanswered: set[int] = set()
        self._before: dict[int, Callable[[], None]] = {}
        self._count = 0
        self.down = False

    def refuse(self, nth: int) -> None:
        """The ``nth`` transaction from now raises ``Unavailable`` and changes nothing."""
        self._refused.add(self._count + nth)

    def apply_unanswered(self, nth: int) -> None:
        """The ``nth`` transaction from now is applied, and raises ``Unavailable(maybe_applied=True)``."""
        self._unanswered.add(self._count + nth)

    def before(self, nth: int, action: Callable[[], None]) -> None:
        """Run ``action`` just ahead of the ``nth`` transaction from now: another writer slips in between.

        Its own transactions are counted from the moment it runs.
        """
        self._before[self._count + nth] = action

    def break_watches(self, reason: str = "connection lost") -> None:
        """Every running watch says ``Lost`` after what it already had."""
        self._store.break_watches(reason)

    def arrive(self) -> int:
        """Count a transaction, and run what was to come ahead of it. Its number."""
        with self._store.changed:
            self._count += 1
            number = self._count
            action = self._before.pop(number, None)
        if action is not None:
            action()
        return number

    def strikes(self, number: int) -> str:
        """``refuse``, ``unanswered`` or nothing, for the transaction of that number."""
        if number in self._refused:
            self._refused.discard(number)
            return "refuse"
        if number in self._unanswered:
            self._unanswered.discard(number)
            return "unanswered"
        return ""


class _Grant:
    """A lease as the store sees it. ``expires`` is on the store's clock."""

    __slots__ = ("expires", "keys", "ttl_s")

    def __init__(self, ttl_s: float, expires: float) -> None:
        self.ttl_s, self.expires = ttl_s, expires
        self.keys: set[str] = set()


class _Store:
    """The state handles share. ``changed`` is its one lock, and wakes watches."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.endpoint = f"memory://{name}"
        self.identity = uuid.uuid4().hex
        self.clock = clock
        self.changed = threading.Condition(threading.RLock())
        self.faults = Faults(self)
        self.entries: dict[str, Entry] = {}
        self.keys: list[str] = []  # sorted
        self.revision = 1
        self.compacted = 0  # changes up to here are gone
        self.changes: list[Batch] = []  # by revision
        self.leases: dict[int, _Grant] = {}
        self.next_lease = 1
        self.break_count = 0
        self.break_reason = ""

    def require_up(self) -> None:
        if self.faults.down:
            raise Unavailable(self.endpoint, "made to fail")

    def range(self, prefix: str) -> list[str]:
        end = prefix_end(prefix)
        return self.keys[bisect.bisect_left(self.keys, prefix) : bisect.bisect_left(self.keys, end)]

    def holds(self, condition: Precondition) -> bool:
        if isinstance(condition, Compare):
            entry = self.entries.get(condition.key)
            return (entry.mod_revision if entry else 0) == condition.mod_revision
        return all(self.entries[key].mod_revision <= condition.revision for key in self.range(condition.prefix))

    def apply(self, operations: Sequence[Operation]) -> int:
        """The new revision; the old one when nothing changed."""
        revision = self.revision + 1
        events = [event for operation in operations if (event := self._apply_one(operation, revision))]
        if events:
            self.revision = revision
            self.changes.append(Batch(revision, tuple(events)))
            self.changed.notify_all()
        return self.revision

    def _apply_one(self, operation: Operation, revision: int) -> Event | None:
        old = self.entries.get(operation.key)
        if old is not None and old.lease is not None and old.lease in self.leases:
            self.leases[old.lease].keys.discard(old.key)
        if isinstance(operation, Put):
            if operation.lease is not None:
                self.leases[operation.lease].keys.add(operation.key)
            if old is None:
                bisect.insort(self.keys, operation.key)
            created = old.create_revision if old else revision
            self.entries[operation.key] = Entry(operation.key, operation.value, created, revision, operation.lease)
            return Event(operation.key, operation.value, old.value if old else None, revision)
        if old is None:
            return None
        del self.entries[operation.key]
        del self.keys[bisect.bisect_left(self.keys, operation.key)]
        return Event(operation.key, None, old.value, revision)

    def sweep(self) -> None:
        """Delete what expired leases held."""
        now = self.clock()
        for lease in [lease for lease, grant in self.leases.items() if grant.expires <= now]:
            self.end_lease(lease)

    def end_lease(self, lease: int) -> None:
        grant = self.leases.pop(lease, None)
        if grant is not None:
            self.apply([Delete(key) for key in sorted(grant.keys)])

    def next_expiry_s(self) -> float:
        """Seconds until a lease may expire."""
        return min((grant.expires for grant in self.leases.values()), default=float("inf")) - self.clock()

    def break_watches(self, reason: str) -> None:
        with self.changed:
            self.break_count += 1
            self.break_reason = reason
            self.changed.notify_all()


class MemoryDatastore(Datastore):
    """One handle on a store in this process. ``clock`` counts seconds, for leases; waiting follows real time, and
    a clock moved by hand is noticed by the next call."""

    _named: ClassVar[dict[str, _Store]] = {}
    _named_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        if not name:
            self._store = _Store(name, clock)
        else:
            with self._named_lock:
                if name not in self._named:
                    self._named[name] = _Store(name, clock)
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
            store.leases[number] = _Grant(ttl_s, store.clock() + ttl_s)
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

    def _ready(self) -> _Locked:
        return _Locked(self._store, is_closed=self._closed)


class _Locked:
    """The store under its lock, up, with expired leases swept."""

    __slots__ = ("_is_closed", "_store")

    def __init__(self, store: _Store, *, is_closed: bool) -> None:
        self._store, self._is_closed = store, is_closed

    def __enter__(self) -> _Store:
        if self._is_closed:
            raise Unavailable(self._store.endpoint, "closed")
        self._store.changed.acquire()
        try:
            self._store.require_up()
            self._store.sweep()
        except BaseException:
            self._store.changed.release()
            raise
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.changed.release()


class _MemoryLease(Lease):
    def __init__(self, store: _Store, number: int, ttl_s: float) -> None:
        self._store = store
        self.id, self.ttl_s = number, ttl_s

    def keep_alive(self) -> bool:
        with _Locked(self._store, is_closed=False) as store:
            grant = store.leases.get(self.id)
            if grant is None:
                return False
            grant.expires = store.clock() + grant.ttl_s
            return True

    def revoke(self) -> None:
        with _Locked(self._store, is_closed=False) as store:
            store.end_lease(self.id)


class _MemoryWatch(Watch):
    """Reads the list of changes when asked; nothing is buffered, so nothing overflows."""

    def __init__(self, handle: MemoryDatastore, store: _Store, prefix: str, after: int) -> None:
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
