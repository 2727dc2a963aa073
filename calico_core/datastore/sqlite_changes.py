"""Which keys other processes changed, so that of several watches only those wake whose business it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.errors import Unavailable

if TYPE_CHECKING:
    from calico_core.datastore.sqlite_file import SqliteFile

_MOST_KEYS = 256


class ChangedKeys:
    """Reads the table of changes on. One thread."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._generation = 0
        self._upto = 0
        """A revision; 0: not known yet."""

    def take(self) -> frozenset[str] | None:
        """The keys of all commits since the last time, whoever made them. None: any may have changed. The first time,
        with another file, when history was forgotten, when there are many, and when nobody can say."""
        try:
            with self._file.reading() as connection:
                generation = self._file.generation
                meta = dict(connection.execute("SELECT name, value FROM meta WHERE name IN ('revision', 'compacted')"))
                after, self._upto = self._upto, meta["revision"]
                is_known = generation == self._generation and 0 < after <= self._upto and meta["compacted"] <= after
                self._generation = generation
                if not is_known:
                    return None
                rows = connection.execute(
                    "SELECT key FROM change WHERE rev > ? AND rev <= ? LIMIT ?", (after, self._upto, _MOST_KEYS + 1)
                ).fetchall()
        except Unavailable:
            self._upto = 0
            return None
        return frozenset(key for (key,) in rows) if len(rows) <= _MOST_KEYS else None
