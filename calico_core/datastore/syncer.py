"""Snapshot and watch, made into typed updates in order: what every consumer of the datastore stands on.

::

    wait ──connected, Ready──▶ resync ──one batch──▶ in-sync ──events──▶ in-sync …
      ▲                          ▲                      │ │
      └──────── Ready lost ──────┼──────────────────────┘ │ connection lost: watch again after the last revision
                                 └── history compacted, or another store: new snapshot, only differences

A consumer sees each key's latest value once. A lost connection produces nothing at all, and neither does the batch that
takes ``Ready`` away, as when the whole tree is deleted: what was programmed stays.
Source: datastore specification, sections 5 and 7.
"""

from __future__ import annotations

import enum
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from calico_core.datastore.checks import prefix_end
from calico_core.datastore.feed import WATCH_WAIT_S, Feed
from calico_core.datastore.known_records import KnownRecords, Update
from calico_core.errors import CalicoError
from calico_core.interfaces.datastore import Batch, CompactedAway, Lost, Progress
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from calico_core.interfaces.datastore import Datastore, Entry, Watch, WatchMessage
    from calico_core.model.keys import Key

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 10.0
LASTING_S = 1.0
"""A watch that held as long was worth it: the next attempt comes at once again."""
BETWEEN_RESYNCS_S = 0.5
COALESCED_MESSAGES = 1000
_REVISION_PROBE = "/calico/.revision/"
"""A prefix nobody uses: listing it costs nothing and tells the revision."""

log = get_logger(__name__)


class SyncStatus(enum.StrEnum):
    WAIT = "wait-for-ready"
    RESYNC = "resync"
    IN_SYNC = "in-sync"


class SyncBatch(NamedTuple):
    """Updates with the status they lead to. Everything up to ``revision`` is in what was handed over so far. A
    snapshot is one batch, even when it is empty; a batch without updates otherwise tells of a change of status.

    ``held`` is how many records the consumer had before, so that one who is asked to delete most of them can think
    twice; ``is_snapshot`` tells a snapshot's differences from events.
    """

    updates: tuple[Update, ...]
    status: SyncStatus
    revision: int
    held: int = 0
    is_snapshot: bool = False

    @property
    def deleted(self) -> int:
        """How many of them the consumer no longer has afterwards."""
        return sum(update.record is None for update in self.updates)


class _Anchor(NamedTuple):
    """What was written last, as of what we saw: ``mod_revision`` 0 for a deletion. An empty path: nothing yet."""

    path: str
    mod_revision: int
    revision: int


class Syncer:
    """Follows ``prefixes`` and calls ``sink`` in its own thread.

    With ``ready_key``, which must lie under a prefix, nothing is loaded until its value is ``true``. A transaction
    over several prefixes may arrive as one batch for each; so that none tells of what went with the ready key before
    its own prefix does, the key is read before deletions of another prefix are believed. An exception from the sink
    ends the syncer, logged; the supervisor sees :attr:`is_alive`.
    """

    def __init__(
        self,
        store: Datastore,
        prefixes: tuple[str, ...],
        sink: Callable[[SyncBatch], None],
        *,
        ready_key: str = "",
        name: str = "syncer",
    ) -> None:
        for prefix in prefixes:
            prefix_end(prefix)
            if any(other != prefix and other.startswith(prefix) for other in prefixes):
                raise ValueError(f"prefixes {prefixes} overlap")
        if ready_key and not ready_key.startswith(prefixes):
            raise ValueError(f"ready_key {ready_key!r} is under none of {prefixes}")
        self._store, self._prefixes, self._sink, self._ready_key = store, prefixes, sink, ready_key
        self._known = KnownRecords()
        self._after: dict[str, int] = {}  # by prefix: seen up to here; empty means a snapshot is due
        self._identity = ""
        self._highest = 0  # revision
        self._anchor = _Anchor("", 0, 0)
        self._is_ready = not ready_key
        self._status = SyncStatus.WAIT
        self._last_resync = float("-inf")
        self._stop = threading.Event()
        self._in_sync = threading.Event()
        self._is_following = False
        self._feed: Feed | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def status(self) -> SyncStatus:
        return self._status

    @property
    def is_following(self) -> bool:
        """Whether it hears of changes at this moment: in sync, and not cut off."""
        return self._is_following

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def bad_records(self) -> Mapping[str, str]:
        """The paths that do not decode, and why."""
        return self._known.bad_records

    def count_keys(self) -> Counter[type[Key]]:
        """How many records the consumer has, by kind of key. Any thread; walks all of them."""
        return self._known.count_keys()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """The sink is not called after this returns, unless it is called from the sink itself. Repeating is fine."""
        self._stop.set()
        feed = self._feed
        if feed is not None:
            feed.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def wait_in_sync(self, timeout_s: float) -> bool:
        """Whether a first snapshot was handed over within the time."""
        return self._in_sync.wait(timeout_s)

    # --- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stop.is_set():
            try:
                self._prepare()
                began = time.monotonic()
                self._follow()
                if time.monotonic() - began > LASTING_S:
                    backoff_s = FIRST_BACKOFF_S
            except CalicoError as error:
                log.warning("sync.unavailable", error=error, retry_within_s=backoff_s)
            except Exception:
                log.exception("sync.failed")
                raise
            self._stop.wait(random.uniform(0, backoff_s))
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)

    def _prepare(self) -> None:
        """Have a snapshot to go on from: the one we have, when the store still continues it."""
        identity = self._store.identity()
        revision = self._store.list(_REVISION_PROBE).revision
        is_same_store = identity == self._identity and revision >= self._highest
        if self._after and is_same_store and self._is_anchored():
            return
        if self._after and not is_same_store:
            log.warning("sync.store-changed", was=self._identity, now=identity, revision=revision)
        self._resync(identity, is_same_store=is_same_store)

    def _is_anchored(self) -> bool:
        """Whether the last thing seen is still so. A store restored from an old snapshot keeps its identity, and other
        writers may have carried its revision past ours before we are back; then what we saw last is not in it. If that
        key was merely written again meanwhile, a snapshot is taken for nothing."""
        if not self._anchor.path:
            return True
        entry = self._store.get(self._anchor.path)
        is_so = (entry.mod_revision if entry is not None else 0) == self._anchor.mod_revision
        if not is_so:
            log.info("sync.anchor-moved", key=self._anchor.path, was=self._anchor.mod_revision)
        return is_so

    def _resync(self, identity: str, *, is_same_store: bool) -> None:
        """A new snapshot; hand over what differs from what the consumer has."""
        if self._stop.wait(max(0.0, self._last_resync + BETWEEN_RESYNCS_S - time.monotonic())):
            return
        self._last_resync = time.monotonic()
        self._after.clear()
        if not is_same_store:
            self._identity = ""  # until its snapshot was taken, should that fail
        if self._ready_key and not self._find_ready():
            return
        self._tell(SyncStatus.RESYNC)
        snapshots = {prefix: self._store.list(prefix) for prefix in self._prefixes}
        entries = {entry.key: entry for snapshot in snapshots.values() for entry in snapshot.entries}
        if self._ready_key and not _says_ready(entries.get(self._ready_key)):
            return  # it went meanwhile
        held = self._known.held
        revision = min((snapshot.revision for snapshot in snapshots.values()), default=0)
        updates = self._known.take_snapshot(entries, revision, is_same_store=is_same_store)
        self._identity = identity
        self._after = {prefix: snapshot.revision for prefix, snapshot in snapshots.items()}
        self._highest = revision
        last = max(entries.values(), key=lambda entry: entry.mod_revision, default=None)
        self._anchor = (
            _Anchor(last.key, last.mod_revision, last.mod_revision) if last is not None else _Anchor("", 0, 0)
        )
        self._status = SyncStatus.IN_SYNC
        log.info("sync.in-sync", prefixes=self._prefixes, revision=revision, updates=len(updates))
        self._sink(SyncBatch(tuple(updates), SyncStatus.IN_SYNC, revision, held, is_snapshot=True))
        self._in_sync.set()

    def _find_ready(self) -> bool:
        """Wait for the ready key; False when stopped, or when the wait must begin again."""
        parent = self._ready_key.rpartition("/")[0] + "/"
        after = self._store.list(_REVISION_PROBE).revision
        self._is_ready = _says_ready(self._store.get(self._ready_key))
        if self._is_ready:
            return True
        self._tell(SyncStatus.WAIT)
        with Feed({parent: self._store.watch(parent, after)}, self._stop) as feed:
            self._feed = feed
            while not self._is_ready and not self._stop.is_set():
                found = feed.next(WATCH_WAIT_S)
                if found is None:
                    continue
                if not isinstance(found[1], Batch):
                    if isinstance(found[1], Progress):
                        continue
                    return False
                self._note_ready(parent, found[1])
        return self._is_ready and not self._stop.is_set()

    def _follow(self) -> None:
        """Hand over events until the watches end. A snapshot is due afterwards when ``_after`` is empty."""
        if not self._after:
            return
        watches: dict[str, Watch] = {}
        try:
            for prefix, after in self._after.items():
                watches[prefix] = self._store.watch(prefix, after)
        except BaseException:
            for watch in watches.values():
                watch.close()
            raise
        with Feed(watches, self._stop) as feed:
            self._feed = feed
            self._is_following = True
            try:
                while not self._stop.is_set() and self._after:
                    found = feed.next(WATCH_WAIT_S)
                    if found is not None and not self._take(feed, found):
                        return
            finally:
                self._is_following = False

    def _take(self, feed: Feed, first: tuple[str, WatchMessage]) -> bool:
        """Hand over a message with those already waiting, the latest of each key. False when the watch is over."""
        updates: dict[str, Update] = {}
        new: set[str] = set()
        held = self._known.held
        found: tuple[str, WatchMessage] | None = first
        taken = 0
        while found is not None:
            prefix, message = found
            if isinstance(message, Lost | CompactedAway):
                break
            if isinstance(message, Batch):
                try:
                    self._note_ready(prefix, message)
                except CalicoError as error:  # what came before is handed over all the same
                    found = (prefix, Lost(str(error)))
                    break
                if not self._is_ready:  # what is gone with it is not believed: the next snapshot says what is so
                    found = None
                    break
                self._known.merge(message, updates, new)
                self._note_anchor(message)
            self._after[prefix] = max(self._after[prefix], message.revision)
            taken += 1
            found = feed.next(0) if taken < COALESCED_MESSAGES else None
        self._highest = max(self._highest, *self._after.values())
        if updates:
            self._sink(SyncBatch(tuple(updates.values()), SyncStatus.IN_SYNC, min(self._after.values()), held))
        if found is not None:
            self._note_end(found[1])
            return False
        return self._is_still_ready()

    def _note_end(self, message: WatchMessage) -> None:
        if isinstance(message, CompactedAway):
            log.warning("sync.compacted", oldest=message.oldest)
            self._after.clear()
        elif isinstance(message, Lost):
            log.warning("sync.watch-lost", reason=message.reason)

    # --- status --------------------------------------------------------------------------------------------

    def _note_anchor(self, batch: Batch) -> None:
        last = batch.events[-1]
        if batch.revision >= self._anchor.revision:
            self._anchor = _Anchor(last.key, last.mod_revision if last.value is not None else 0, batch.revision)

    def _note_ready(self, prefix: str, batch: Batch) -> None:
        if self._ready_key.startswith(prefix):
            for event in batch.events:
                if event.key == self._ready_key:
                    self._is_ready = event.value == b"true"
        elif self._ready_key and any(event.value is None for event in batch.events):
            self._is_ready = _says_ready(self._store.get(self._ready_key))

    def _is_still_ready(self) -> bool:
        if self._is_ready:
            return True
        log.warning("sync.not-ready", key=self._ready_key)
        self._after.clear()
        self._tell(SyncStatus.WAIT)
        return False

    def _tell(self, status: SyncStatus) -> None:
        if status is not self._status or status is SyncStatus.RESYNC:
            self._status = status
            self._sink(SyncBatch((), status, max(self._after.values(), default=0)))


def _says_ready(entry: Entry | None) -> bool:
    return entry is not None and entry.value == b"true"
