"""The store as this package uses it, with every round trip counted: what an assignment costs is a promise."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from calico_core.interfaces.datastore import (
    MAX_TRANSACTION_OPERATIONS,
    Compare,
    Entry,
    Operation,
    Precondition,
    Snapshot,
    TransactionResult,
)
from calico_core.model.keys import IpamConfigKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from calico_core.interfaces.datastore import Datastore
    from calico_core.model.keys import Key

# A revision no store will reach: the compare fails, and so the keys are read together, at one revision.
_NEVER = Compare(IpamConfigKey().path, 2**62)


class RoundTrips:
    """Safe for several threads. ``transactions`` counts writes tried, ``reads`` everything else."""

    def __init__(self, store: Datastore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.transactions = 0
        self.reads = 0

    def read(self, keys: Sequence[Key]) -> Iterator[tuple[Key, Entry | None, int]]:
        """Each key with its entry and the revision of reading; one revision for up to 64 keys."""
        for start in range(0, len(keys), MAX_TRANSACTION_OPERATIONS):
            part = keys[start : start + MAX_TRANSACTION_OPERATIONS]
            entries, revision = self._read_part([key.path for key in part])
            for key, entry in zip(part, entries, strict=True):
                yield key, entry, revision

    def read_paths(self, paths: Sequence[str]) -> tuple[dict[str, Entry | None], int]:
        """The entries, and the lowest revision at which one of them was read."""
        found: dict[str, Entry | None] = {}
        revisions: list[int] = []
        for start in range(0, len(paths), MAX_TRANSACTION_OPERATIONS):
            part = paths[start : start + MAX_TRANSACTION_OPERATIONS]
            entries, revision = self._read_part(part)
            found.update(zip(part, entries, strict=True))
            revisions.append(revision)
        return found, min(revisions, default=0)

    def _read_part(self, paths: Sequence[str]) -> tuple[tuple[Entry | None, ...], int]:
        self._count(reads=1)
        result = self._store.transact([_NEVER], [], paths)
        return result.current, result.revision

    def list(self, prefix: str) -> Snapshot:
        self._count(reads=1)
        return self._store.list(prefix)

    def transact(
        self, preconditions: Sequence[Precondition], operations: Sequence[Operation], otherwise: Sequence[str]
    ) -> TransactionResult:
        self._count(transactions=1)
        return self._store.transact(preconditions, operations, otherwise)

    def _count(self, *, reads: int = 0, transactions: int = 0) -> None:
        with self._lock:
            self.reads += reads
            self.transactions += transactions
