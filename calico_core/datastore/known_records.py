"""The records that a consumer of the datastore was told of, and so what is news to it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from calico_core.errors import InvalidRecord
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.key_paths import parse_key

if TYPE_CHECKING:
    from calico_core.interfaces.datastore import Batch, Entry
    from calico_core.model.keys import Key

log = get_logger(__name__)


class Update(NamedTuple):
    """The latest of one key. ``record`` None: it was deleted, or does not decode any more."""

    key: Key
    path: str
    record: Any | None
    mod_revision: int


class _Known(NamedTuple):
    """What the consumer was told of a path. The hash tells values apart when revisions cannot be compared."""

    key: Key
    mod_revision: int
    value_hash: int
    is_given: bool  # False: it did not decode, the consumer has nothing


class KnownRecords:
    """One thread writes. ``held``: how many records the consumer has. ``bad_records`` maps the paths that do not
    decode to the reason."""

    def __init__(self) -> None:
        self.held = 0
        self.bad_records: dict[str, str] = {}
        self._by_path: dict[str, _Known] = {}

    def count_keys(self) -> Counter[type[Key]]:
        """How many records the consumer has, by kind of key. Any thread; walks all of them."""
        # copying a dict's values is one step for other threads
        return Counter(type(known.key) for known in list(self._by_path.values()) if known.is_given)

    def take_snapshot(self, entries: dict[str, Entry], revision: int, *, is_same_store: bool) -> list[Update]:
        """A snapshot, by path: what differs from what the consumer has, deletions last."""
        updates = [
            update for entry in entries.values() if (update := self._differs(entry, is_same_store=is_same_store))
        ]
        gone = [path for path in self._by_path if path not in entries]
        return [*updates, *(update for path in gone if (update := self._remove(path, revision)))]

    def merge(self, batch: Batch, updates: dict[str, Update], new: set[str]) -> None:
        """Add to ``updates``, in the order of each key's last change. ``new`` holds those of its keys that the
        consumer has not heard of: one that comes and goes unseen is left out."""
        for event in batch.events:
            known = self._by_path.get(event.key)
            if known is not None and event.mod_revision <= known.mod_revision:
                continue  # the snapshot had it already
            if event.key not in updates and (known is None or not known.is_given):
                new.add(event.key)
            if event.value is None:
                update = self._remove(event.key, event.mod_revision)
            else:
                update = self._decode(event.key, event.value, event.mod_revision)
            if update is None:
                continue
            updates.pop(event.key, None)
            if update.record is not None or event.key not in new:
                updates[event.key] = update

    def _differs(self, entry: Entry, *, is_same_store: bool) -> Update | None:
        known = self._by_path.get(entry.key)
        if known is not None and known.value_hash == hash(entry.value):
            if known.mod_revision == entry.mod_revision:
                return None
            if not is_same_store:  # the same value in a rebuilt store
                self._by_path[entry.key] = known._replace(mod_revision=entry.mod_revision)
                return None
        return self._decode(entry.key, entry.value, entry.mod_revision)

    def _decode(self, path: str, value: bytes, mod_revision: int) -> Update | None:
        known = self._by_path.get(path)
        key = known.key if known is not None else parse_key(path)
        if key is None:
            return None
        try:
            record = codec.decode(key, value)
        except InvalidRecord as error:
            log.warning("record.invalid", key=path, path=error.path, reason=error.reason)
            self.bad_records[path] = str(error)
            self.held -= known is not None and known.is_given
            self._by_path[path] = _Known(key, mod_revision, hash(value), is_given=False)
            return Update(key, path, None, mod_revision) if known is not None and known.is_given else None
        self.bad_records.pop(path, None)
        self.held += known is None or not known.is_given
        self._by_path[path] = _Known(key, mod_revision, hash(value), is_given=True)
        return Update(key, path, record, mod_revision)

    def _remove(self, path: str, revision: int) -> Update | None:
        self.bad_records.pop(path, None)
        known = self._by_path.pop(path, None)
        if known is None or not known.is_given:
            return None
        self.held -= 1
        return Update(known.key, path, None, revision)
