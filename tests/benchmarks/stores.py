"""The datastores that the benchmarks compare: a real etcd of its own, and a file of SQLite."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.interfaces.datastore import Datastore, DatastoreOptions
from tests.doubles.etcd_cluster import EtcdCluster


def open_store(url: str, *, timeout_s: float) -> Datastore:
    driver = SqliteDatastore if url.startswith("sqlite:") else Etcd3Datastore
    return driver.open(url, DatastoreOptions(timeout_s=timeout_s))


@contextmanager
def both() -> Iterator[dict[str, str]]:
    """Their URLs by name."""
    with tempfile.TemporaryDirectory(prefix="calico-bench-") as folder, EtcdCluster(Path(folder) / "etcd") as cluster:
        yield {"etcd": cluster.url, "sqlite": f"sqlite://{folder}/calico.db"}
