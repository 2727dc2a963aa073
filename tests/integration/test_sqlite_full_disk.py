"""A disk that fills up under the SQLite store: writes say so, nothing is lost or half-done, and it heals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.errors import Unavailable
from calico_core.interfaces.datastore import Batch, DatastoreOptions, Put

pytestmark = pytest.mark.needs_root

DISK = "/mnt"
"""A tmpfs of 1 MiB, in a mount namespace that nobody else sees."""


def test_a_full_disk() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a tmpfs")
    script = f"mount -t tmpfs -o size=1m,mode=700 none {DISK} && exec {sys.executable} {__file__}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["written"] > 20
    assert "full" in report["cause"]
    assert report["refused"] >= 5
    assert report["after"] == 1


def inside() -> None:
    """What the child does; an assertion that fails ends it."""
    ballast = Path(DISK, "ballast")
    ballast.write_bytes(b"x" * 300_000)
    store = SqliteDatastore.open(f"sqlite://{DISK}/calico.db", DatastoreOptions())
    watch = store.watch("/calico/", 1)
    acknowledged: dict[str, bytes] = {}
    refused: list[Unavailable] = []
    number = 0
    while len(refused) < 5:
        assert number < 1000
        value = b"%d" % number * 2000
        pair = {f"/calico/a/{number}": value, f"/calico/b/{number}": value}
        try:
            store.transact([], [Put(*item) for item in pair.items()])
            acknowledged |= pair
        except Unavailable as error:
            refused.append(error)
        number += 1
    written = len(acknowledged)
    for error in refused:
        assert not error.maybe_applied
        assert error.endpoint.endswith("calico.db")
    for call in (lambda: store.delete_prefix("/calico/a/"), lambda: store.put("/calico/big", b"x" * 100_000)):
        with pytest.raises(Unavailable) as full:
            call()
        assert not full.value.maybe_applied
    assert {entry.key: entry.value for entry in store.list("/calico/").entries} == acknowledged  # reads go on
    assert seen(watch, written) == acknowledged
    ballast.unlink()
    after = store.create("/calico/after", b"1")
    entry = store.get("/calico/after")
    assert entry is not None
    assert entry.mod_revision == after
    assert after == 2 + written // 2  # no revision was used up by what was refused
    assert seen(watch, 1) == {"/calico/after": b"1"}
    store.close()
    reopened = SqliteDatastore.open(f"sqlite://{DISK}/calico.db", DatastoreOptions())
    held = {entry.key: entry.value for entry in reopened.list("/calico/").entries}
    assert held == acknowledged | {"/calico/after": b"1"}
    with reopened._file.borrow() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    reopened.close()
    print(json.dumps({"written": written, "cause": refused[0].cause, "refused": len(refused), "after": 1}))


def seen(watch: object, count: int) -> dict[str, bytes]:
    """What the next ``count`` events brought."""
    found: dict[str, bytes] = {}
    while len(found) < count:
        message = watch.next(30)  # type: ignore[attr-defined]
        assert isinstance(message, Batch), message
        found |= {event.key: event.value for event in message.events if event.value is not None}
    return found


if __name__ == "__main__":
    inside()
