"""The datastore seam: a key-value store with one revision, transactions, leases and watches.

Written for drivers (``calico.datastores`` entry points) and for whoever calls them. Keys are ``/``-separated
paths under ``/calico``; values are bytes. The typed view over this is :class:`Records`.

Rules every driver keeps, checked by one contract suite (source: datastore specification, section 6):

* A prefix ends with ``/`` and never matches a sibling: ``/a/b/`` does not return ``/a/bc``.
* All compares of a transaction see one revision, and all its effects get one new revision.
* A watch yields everything after the revision given, once, in order, never split within a revision, or says
  :class:`CompactedAway`; it never skips silently.
* A refused write says what is there now, so that a retry needs no extra read.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from calico_core.model.keys import Key

R = TypeVar("R")

MAX_TRANSACTION_OPERATIONS = 64
"""Portable limit of operations, and of compares, in one transaction (etcd allows 128 by default)."""


class Entry(NamedTuple):
    """One stored value. Revisions are store-wide and strictly increasing. ``lease`` is an opaque id."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int | None = None


class Snapshot(NamedTuple):
    """What a prefix held at one ``revision``, sorted by key."""

    entries: tuple[Entry, ...]
    revision: int


# --- transactions ----------------------------------------------------------------------------------


class Compare(NamedTuple):
    """A precondition on one key. ``mod_revision`` 0 means "absent"."""

    key: str
    mod_revision: int


class NoneNewer(NamedTuple):
    """A precondition on a prefix: no key below it was written after ``revision``."""

    prefix: str
    revision: int


class Put(NamedTuple):
    """Write a key, whatever was there. Without ``lease`` an earlier lease is detached."""

    key: str
    value: bytes
    lease: int | None = None


class Delete(NamedTuple):
    """Remove a key; absent is fine."""

    key: str


Precondition = Compare | NoneNewer
Operation = Put | Delete


def absent(key: str) -> Compare:
    return Compare(key, 0)


def unchanged(entry: Entry) -> Compare:
    return Compare(entry.key, entry.mod_revision)


class TransactionResult(NamedTuple):
    """``committed`` with the new ``revision``; or refused, with ``current``: the entries of the keys asked for in
    ``otherwise``, in that order, None where absent, all as of ``revision``."""

    committed: bool
    revision: int
    current: tuple[Entry | None, ...] = ()


# --- watching --------------------------------------------------------------------------------------


class Event(NamedTuple):
    """One change. ``value`` None is a deletion; ``previous`` None means the key is new."""

    key: str
    value: bytes | None
    previous: bytes | None
    mod_revision: int


class Batch(NamedTuple):
    """All changes of one revision under the watched prefix."""

    revision: int
    events: tuple[Event, ...]


class Progress(NamedTuple):
    """Everything up to ``revision`` was delivered; it moves the resume point on a quiet prefix."""

    revision: int


class CompactedAway(NamedTuple):
    """The watch is over: history it needed is gone. Take a snapshot."""

    oldest: int


class Lost(NamedTuple):
    """The watch is over: connection or buffer lost. Watch again after the last revision seen."""

    reason: str


WatchMessage = Batch | Progress | CompactedAway | Lost


class Watch(abc.ABC):
    """A running watch. One thread reads it; any thread may close it."""

    @abc.abstractmethod
    def next(self, timeout_s: float) -> WatchMessage | None:
        """The next message, or None when ``timeout_s`` passed or the watch was closed by :meth:`close`.

        After :class:`CompactedAway` or :class:`Lost` nothing more comes.
        """

    def ring(self, bell: Callable[[], None]) -> bool:  # noqa: ARG002
        """Have ``bell`` called, from any thread, each time that there is something for ``next(0)``: then a reader of
        several watches needs no thread for each. It may be called for nothing, and once at once. Of such a watch every
        end is told by a message, that of a store closed below it too. False: this kind of watch cannot; wait in
        :meth:`next`."""
        return False

    @abc.abstractmethod
    def close(self) -> None:
        """End the watch and wake its reader. Repeating it is fine."""


class Lease(abc.ABC):
    """Keys put under a lease vanish, as an ordinary deletion, when it expires. For liveness, never as a lock."""

    id: int
    ttl_s: float

    @abc.abstractmethod
    def keep_alive(self) -> bool:
        """Extend by the full TTL; False when the lease is gone (grant a new one and put its keys again)."""

    @abc.abstractmethod
    def revoke(self) -> None:
        """End it now, deleting its keys. Already gone is fine."""


class Datastore(abc.ABC):
    """A driver. Safe for use from several threads. Every call is bounded in time and raises
    :class:`calico_core.errors.Unavailable` when the store does not answer.

    A driver is made with ``Driver.open(url, options)`` and closed with :meth:`close`.
    """

    @classmethod
    @abc.abstractmethod
    def open(cls, url: str, options: DatastoreOptions) -> Datastore:
        """Connect. ``url`` has the driver's name as scheme: ``etcd3://h1:2379,h2:2379``, ``sqlite:///path``,
        ``memory://name``. Raises ``InvalidSettings`` on a bad URL; need not reach the store yet."""

    @abc.abstractmethod
    def get(self, key: str) -> Entry | None: ...

    @abc.abstractmethod
    def list(self, prefix: str) -> Snapshot:
        """Everything under ``prefix`` (which ends with ``/``) at one revision."""

    @abc.abstractmethod
    def transact(
        self,
        preconditions: Sequence[Precondition],
        operations: Sequence[Operation],
        otherwise: Sequence[str] = (),
    ) -> TransactionResult:
        """All or nothing. Two operations on one key are refused with ``ValueError``.
        On refusal ``otherwise`` keys are read at the same revision."""

    @abc.abstractmethod
    def lease(self, ttl_s: float) -> Lease: ...

    @abc.abstractmethod
    def watch(self, prefix: str, after: int) -> Watch:
        """Changes under ``prefix`` with revision greater than ``after``."""

    @abc.abstractmethod
    def delete_prefix(self, prefix: str) -> int:
        """Remove everything under ``prefix``; how many keys went."""

    @abc.abstractmethod
    def identity(self) -> str:
        """Which store this is. It changes when the store was rebuilt, so that cached revisions can be dropped."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free everything; running watches end. Repeating it is fine."""

    # What follows is the same for every driver: one transaction each.

    def create(self, key: str, value: bytes, *, lease: int | None = None) -> int:
        """Write a new key; its revision. Raises ``KeyExists`` with the current entry."""
        from calico_core.errors import KeyExists

        result = self.transact([absent(key)], [Put(key, value, lease)], [key])
        if not result.committed:
            raise KeyExists(key, result.current[0])
        return result.revision

    def put(self, key: str, value: bytes, *, lease: int | None = None) -> int:
        """Write whatever was there; the new revision."""
        return self.transact([], [Put(key, value, lease)]).revision

    def compare_and_swap(self, key: str, value: bytes, mod_revision: int) -> int:
        """Replace the value read at ``mod_revision``; the new revision. Raises ``Conflict`` with what is there."""
        from calico_core.errors import Conflict

        result = self.transact([Compare(key, mod_revision)], [Put(key, value)], [key])
        if not result.committed:
            raise Conflict(key, result.current[0])
        return result.revision

    def delete(self, key: str, *, mod_revision: int | None = None) -> bool:
        """Remove a key: True if it was there. With ``mod_revision``, only that version, else ``Conflict``
        (absent counts as already deleted)."""
        from calico_core.errors import Conflict

        if mod_revision is None:
            current = self.get(key)
            if current is None:
                return False
            self.transact([], [Delete(key)])
            return True
        result = self.transact([Compare(key, mod_revision)], [Delete(key)], [key])
        if result.committed:
            return True
        if result.current[0] is None:
            return False
        raise Conflict(key, result.current[0])


class DatastoreOptions(NamedTuple):
    """Connection options beside the URL; a driver ignores those it has no use for."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: str = ""
    timeout_s: float = 5.0


# --- typed view ------------------------------------------------------------------------------------


class Versioned(NamedTuple, Generic[R]):
    """A decoded record with the revision to swap it against."""

    key: Key
    record: R
    mod_revision: int


class Records(Protocol):
    """The typed view every component uses: keys of ``model.keys``, records of ``model``. Implemented by
    ``datastore.records``; handed to integrations in their context."""

    @property
    def store(self) -> Datastore:
        """The bytes underneath, for transactions over several keys."""

    def get(self, key: Key) -> Versioned[Any] | None:
        """Raises ``InvalidRecord`` when the value does not decode."""

    def list(self, prefix: str) -> tuple[Versioned[Any], ...]:
        """Every decodable record of a known key under ``prefix``; others are logged, counted and left out."""

    def create(self, key: Key, record: Any) -> int: ...

    def put(self, key: Key, record: Any, *, lease: int | None = None) -> int: ...

    def swap(self, previous: Versioned[Any], record: Any) -> int: ...

    def delete(self, key: Key, *, mod_revision: int | None = None) -> bool: ...
