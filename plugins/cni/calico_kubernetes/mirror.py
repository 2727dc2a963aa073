"""Those records of the datastore that are ours to keep right, in memory, kept up to date by a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from calico_core.errors import CalicoError
from calico_core.interfaces.datastore import Batch, CompactedAway, Datastore, Delete, Lost
from calico_core.log import get_logger
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import V1
from calico_kubernetes.desired import Change, Stored, is_ours

_POLL_S = 1.0
_RETRY_S = 1.0

log = get_logger(__name__)


class Mirror:
    """``changed`` is called, in the mirror's thread, after each change and after a listing."""

    def __init__(self, store: Datastore, changed: Callable[[], None]) -> None:
        self._store = store
        self._changed = changed
        self._lock = threading.Lock()
        self._records: dict[str, Stored] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kube-mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_POLL_S + 1)

    def records(self) -> dict[str, Stored] | None:
        """By path; None before the first listing."""
        with self._lock:
            return None if self._records is None else dict(self._records)

    def note(self, changes: list[Change], revision: int) -> None:
        """Writes of ours that were committed, ahead of the watch, lest they be made again."""
        with self._lock:
            for change in changes:
                value = None if isinstance(change.operation, Delete) else change.operation.value
                self._put(change.key, value, revision)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow(self._list())
            except CalicoError as error:
                log.warning("mirror.interrupted", reason=str(error))
            except Exception:
                log.exception("mirror.failed")
            self._stop.wait(_RETRY_S)

    def _list(self) -> int:
        found = self._store.list(V1)
        records = {
            entry.key: Stored(entry.value, entry.mod_revision)
            for entry in found.entries
            if is_ours(parse_key(entry.key))
        }
        with self._lock:
            self._records = records
        self._changed()
        return found.revision

    def _follow(self, revision: int) -> None:
        """Until a listing is needed again."""
        watch = self._store.watch(V1, revision)
        try:
            while not self._stop.is_set():
                message = watch.next(_POLL_S)
                if isinstance(message, CompactedAway | Lost):
                    return
                if isinstance(message, Batch):
                    self._take(message)
        finally:
            watch.close()

    def _take(self, batch: Batch) -> None:
        events = [event for event in batch.events if is_ours(parse_key(event.key))]
        with self._lock:
            for event in events:
                self._put(event.key, event.value, event.mod_revision)
        if events:
            self._changed()

    def _put(self, path: str, value: bytes | None, revision: int) -> None:
        assert self._records is not None
        held = self._records.get(path)
        if held is not None and held.mod_revision > revision:
            return  # noted already
        if value is None:
            self._records.pop(path, None)
        else:
            self._records[path] = Stored(value, revision)
