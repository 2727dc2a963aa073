"""The typed view over any driver: keys of ``model.keys``, records of ``model``. A value that does not decode is left
out of lists, counted and named, never a reason to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calico_core.errors import InvalidRecord
from calico_core.interfaces.datastore import Versioned
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.key_paths import parse_key

if TYPE_CHECKING:
    from calico_core.interfaces.datastore import Datastore, Entry
    from calico_core.model.keys import Key

log = get_logger(__name__)


class TypedRecords:
    """``interfaces.datastore.Records`` over ``store``. ``bad_records`` maps the paths that did not decode, when last
    read, to the reason."""

    def __init__(self, store: Datastore) -> None:
        self._store = store
        self.bad_records: dict[str, str] = {}

    @property
    def store(self) -> Datastore:
        return self._store

    def get(self, key: Key) -> Versioned[Any] | None:
        """Raises ``InvalidRecord`` when the value does not decode."""
        entry = self._store.get(key.path)
        if entry is None:
            self.bad_records.pop(key.path, None)
            return None
        try:
            record = codec.decode(key, entry.value)
        except InvalidRecord as error:
            self._note_bad(entry.key, error)
            raise
        self.bad_records.pop(entry.key, None)
        return Versioned(key, record, entry.mod_revision)

    def list(self, prefix: str) -> tuple[Versioned[Any], ...]:
        entries = self._store.list(prefix).entries
        found = tuple(versioned for entry in entries if (versioned := self._decode(entry)) is not None)
        present = {entry.key for entry in entries}
        for path in [path for path in self.bad_records if path.startswith(prefix) and path not in present]:
            self.bad_records.pop(path, None)
        return found

    def create(self, key: Key, record: Any) -> int:
        return self._store.create(key.path, codec.encode(record))

    def put(self, key: Key, record: Any, *, lease: int | None = None) -> int:
        return self._store.put(key.path, codec.encode(record), lease=lease)

    def swap(self, previous: Versioned[Any], record: Any) -> int:
        return self._store.compare_and_swap(previous.key.path, codec.encode(record), previous.mod_revision)

    def delete(self, key: Key, *, mod_revision: int | None = None) -> bool:
        return self._store.delete(key.path, mod_revision=mod_revision)

    def _decode(self, entry: Entry) -> Versioned[Any] | None:
        key = parse_key(entry.key)
        if key is None:  # of a version or a component we do not know
            return None
        try:
            record = codec.decode(key, entry.value)
        except InvalidRecord as error:
            self._note_bad(entry.key, error)
            return None
        self.bad_records.pop(entry.key, None)
        return Versioned(key, record, entry.mod_revision)

    def _note_bad(self, path: str, error: InvalidRecord) -> None:
        if self.bad_records.get(path) != str(error):
            log.warning("record.invalid", key=path, path=error.path, reason=error.reason)
        self.bad_records[path] = str(error)
