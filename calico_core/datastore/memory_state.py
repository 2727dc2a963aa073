"""The state that the handles of a memory store share, and the faults it can be made to have."""

from __future__ import annotations

import bisect
import threading
import uuid
from typing import TYPE_CHECKING

from calico_core.datastore.checks import prefix_end
from calico_core.errors import Unavailable
from calico_core.interfaces.datastore import Batch, Compare, Delete, Entry, Event, Put

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from calico_core.interfaces.datastore import Operation, Precondition


class Faults:
    """What goes wrong next. Transactions count from 1, starting with the next one; each fault strikes once.

    ``down`` makes every call raise ``Unavailable`` until it is unset.
    """

    def __init__(self, store: MemoryState) -> None:
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


class Grant:
    """A lease as the store sees it. ``expires`` is on the store's clock."""

    __slots__ = ("expires", "keys", "ttl_s")

    def __init__(self, ttl_s: float, expires: float) -> None:
        self.ttl_s, self.expires = ttl_s, expires
        self.keys: set[str] = set()


class MemoryState:
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
        self.leases: dict[int, Grant] = {}
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


class Locked:
    """The store under its lock, up, with expired leases swept."""

    __slots__ = ("_is_closed", "_store")

    def __init__(self, store: MemoryState, *, is_closed: bool) -> None:
        self._store, self._is_closed = store, is_closed

    def __enter__(self) -> MemoryState:
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
