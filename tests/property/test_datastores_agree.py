"""Law: whatever transactions come, the SQLite store and the memory store hold, refuse and tell the same."""

from __future__ import annotations

import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.interfaces.datastore import Batch, Compare, Datastore, DatastoreOptions, Delete, NoneNewer, Put

KEYS = ["/calico/a", "/calico/a/b", "/calico/a/c", "/calico/a-b", "/calico/ab/c"]
PREFIXES = ["/calico/", "/calico/a/", "/calico/ab/"]
key = st.sampled_from(KEYS)
operation = st.builds(Put, key, st.binary(max_size=2), st.none()) | st.builds(Delete, key)
revision = st.integers(0, 12)
precondition = st.builds(Compare, key, revision) | st.builds(NoneNewer, st.sampled_from(PREFIXES), revision)
transaction = st.tuples(
    st.lists(precondition, max_size=2),
    st.lists(operation, max_size=3, unique_by=lambda operation: operation.key),
    st.lists(key, max_size=2),
)
step = transaction | st.sampled_from(PREFIXES)  # a prefix stands for its deletion


def take(store: Datastore, given_step: object) -> object:
    if isinstance(given_step, str):
        return store.delete_prefix(given_step)
    return store.transact(*given_step)  # type: ignore[misc]


def told(store: Datastore, prefix: str, after: int) -> list[Batch]:
    watch = store.watch(prefix, after)
    batches = []
    while isinstance(message := watch.next(0), Batch):
        batches.append(message)
    watch.close()
    return batches


@settings(max_examples=60, deadline=None)
@given(st.lists(step, max_size=15), st.integers(1, 8))
def test_memory_and_sqlite_agree(steps: list[object], after: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory = MemoryDatastore()
        sqlite = SqliteDatastore.open(f"sqlite://{folder}/calico.db", DatastoreOptions())
        try:
            for taken in steps:
                assert take(memory, taken) == take(sqlite, taken)
            for prefix in PREFIXES:
                assert memory.list(prefix) == sqlite.list(prefix)
                assert told(memory, prefix, after) == told(sqlite, prefix, after)
        finally:
            sqlite.close()
            memory.close()
