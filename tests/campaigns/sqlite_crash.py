"""kill -9 in the middle of every write path of the SQLite driver, as often as asked.

``python tests/campaigns/sqlite_crash.py --kills N --seed S``. A forked child writes without pause; it announces each
operation on a pipe before it begins and acknowledges it before the next. The parent kills it at a random microsecond,
opens the file as the next process would, and compares: whole, and exactly what was acknowledged plus at most the one
operation in flight. Then it writes, and the next child goes on with the same file.

The operations follow from the seed; the microsecond at which a kill falls does not. Last line:
``N kills, T torn, L lost, E extra``; exit status 1 unless the last three are 0.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import select
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.errors import KeyMissing
from calico_core.interfaces.datastore import DatastoreOptions, Delete, Operation, Put
from tests.command_line import positive

ROOT = "/calico/crash/"
BRIEF_S = 0.004
"""TTL of leases that are to run out."""
OPENINGS = ("schema", "open")
"""Kills while the file is opened: a new one, and one that a dead writer left."""
WRITES = ("create", "put", "swap", "delete", "delete_prefix", "transact", "grant", "revoke", "expire", "compact")
KINDS = (*OPENINGS, *WRITES)  # fmt: skip
KILLS_PER_FILE = 60
MOST_DELAY_US = 1500
PATIENCE_S = 30.0
MOST_KEYS = 400
STEPS_A_CHILD = 60
"""Made before the fork, so that the child does nothing but write; it does not live to see the end."""

State = dict[str, tuple[bytes, int]]
"""What the store must hold: value and lease number (0: none; of this campaign, not of the store) by key."""


class Step(NamedTuple):
    """One operation: what it is, what it needs, and the state once it is done."""

    kind: str
    key: str
    value: bytes
    lease: int
    puts: tuple[tuple[str, bytes], ...]
    deletes: tuple[str, ...]
    after: State


def script(seed: str, state: State, favourite: str) -> Iterator[Step]:
    """An endless series of operations from ``state`` on, every second one the favourite if that is a write. Parent
    and child know the same one, so that numbers on a pipe are enough to talk about it."""
    rng = random.Random(seed)
    leases: list[int] = []
    for number in itertools.count(1):
        kind = favourite if number % 2 and favourite in WRITES else rng.choice(WRITES)
        step = _step(kind, f"{seed}.{number}", rng, state, leases)
        if step.kind == "grant":
            leases.append(step.lease)
        elif step.kind == "revoke":
            leases.remove(step.lease)
        yield step
        state = step.after


def _step(kind: str, name: str, rng: random.Random, state: State, leases: list[int]) -> Step:
    keys = sorted(key for key in state if key.startswith(f"{ROOT}k/"))
    value = name.encode() + rng.randbytes(rng.choice((10, 300, 9000)))
    fresh = f"{ROOT}k/{name}"
    if kind in {"swap", "delete"} and not keys:
        kind = "create"
    if kind == "revoke" and not leases:
        kind = "grant"
    key = rng.choice(keys) if keys and kind in {"swap", "delete", "put"} else fresh
    lease = 0
    puts: tuple[tuple[str, bytes], ...] = ((key, value),)
    deletes: tuple[str, ...] = ()
    after = dict(state)
    if kind == "delete":
        puts, deletes = (), (key,)
    elif kind == "delete_prefix":
        puts = ()
        deletes = tuple(path for path in state if path.startswith(f"{ROOT}many/"))
    elif kind == "transact":
        puts = tuple((f"{ROOT}many/{name}/{index}", value) for index in range(rng.randint(2, 30)))
        deletes = tuple(rng.sample(keys, min(len(keys), rng.randint(0, 20))))
    elif kind == "grant":
        lease = rng.getrandbits(60)
        puts = tuple((f"{ROOT}leased/{name}/{index}", value) for index in range(rng.randint(1, 4)))
    elif kind == "revoke":
        lease = rng.choice(leases)
        puts, deletes = (), tuple(path for path, (_, held) in state.items() if held == lease)
    elif kind == "expire":
        key, puts = f"{ROOT}brief/{name}", ()  # it must be gone by the time anybody looks
    elif kind == "compact":
        puts = ()
    for path in deletes:
        del after[path]
    after |= {path: (content, lease) for path, content in puts}
    return Step(kind, key, value, lease, puts, deletes, after)


# --- the child ---------------------------------------------------------------------------------------------


class Writer:
    """Runs a script on the store until it is killed."""

    def __init__(self, path: str, pipe: int) -> None:
        self._store = _open(path)
        self._pipe = pipe
        self._leases: dict[int, int] = {}

    def run(self, steps: list[Step]) -> None:
        for number, step in enumerate(steps, 1):
            os.write(self._pipe, b"b%d\n" % number)
            self._do(step)
            os.write(self._pipe, b"a%d\n" % number)
        signal.pause()

    def _do(self, step: Step) -> None:
        store = self._store
        operations: list[Operation] = [*(Put(*put) for put in step.puts), *(Delete(key) for key in step.deletes)]
        if step.kind == "create":
            store.create(step.key, step.value)
        elif step.kind == "put":
            store.put(step.key, step.value)
        elif step.kind == "swap":
            entry = store.get(step.key)
            assert entry is not None
            store.compare_and_swap(step.key, step.value, entry.mod_revision)
        elif step.kind == "delete":
            assert store.delete(step.key)
        elif step.kind == "delete_prefix":
            assert store.delete_prefix(f"{ROOT}many/") == len(step.deletes)
        elif step.kind == "transact":
            assert store.transact([], operations).committed
        elif step.kind == "grant":
            lease = store.lease(3600)
            self._leases[step.lease] = lease.id
            store.transact([], [Put(key, value, lease.id) for key, value in step.puts])
        elif step.kind == "revoke":
            entry = store.get(step.deletes[0])
            assert entry is not None
            assert entry.lease == self._leases[step.lease]
            # the row expires in one transaction, its keys go in another: the sweep
            store._revoke(entry.lease)
        elif step.kind == "expire":
            self._let_expire(step)
        elif step.kind == "compact":
            store.compact(store.list(f"{ROOT}none/").revision - 3)

    def _let_expire(self, step: Step) -> None:
        lease = self._store.lease(BRIEF_S)
        try:
            self._store.put(step.key, step.value, lease=lease.id)
        except KeyMissing:
            return  # a slow machine: it ran out before
        time.sleep(BRIEF_S)
        while self._store.get(step.key) is not None:  # the reading sweeps
            time.sleep(0.0005)


def _child(path: str, pipe: int, steps: list[Step]) -> None:
    """Never returns."""
    try:
        os.write(pipe, b"b0\n")  # opening: the schema is created, or the log of the last child recovered
        writer = Writer(path, pipe)
        os.write(pipe, b"a0\n")
        writer.run(steps)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


# --- the parent --------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What a look at the file found. ``landed`` says whether the operation in flight is in it."""

    torn: list[str]
    lost: list[str]
    extra: list[str]
    landed: bool


class Campaign:
    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._rng = random.Random(seed)
        self._state: State = {}
        self._path = ""
        self.counts: Counter[str] = Counter()
        self.in_flight: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}

    def run(self, kills: int) -> None:
        for number in range(kills):
            favourite = KINDS[number % len(KINDS)]
            if favourite == "schema" or not self._path or number % KILLS_PER_FILE == 0:
                self._begin_file(number)
            self._kill_once(number, favourite)

    def _begin_file(self, number: int) -> None:
        for old in self._folder.glob("*.db*"):
            for inner in old.iterdir() if old.is_dir() else ():
                inner.unlink()
            old.rmdir() if old.is_dir() else old.unlink()
        self._path = str(self._folder / f"{number}.db")
        self._state = {}

    def _kill_once(self, number: int, favourite: str) -> None:
        seed = f"{self._seed}.{number}"
        acknowledged = 0 if favourite in OPENINGS else self._rng.randint(0, 8)
        most = MOST_DELAY_US * {"schema": 0.7, "open": 0.3, "expire": 6}.get(favourite, 1)
        steps = list(itertools.islice(script(seed, self._state, favourite), STEPS_A_CHILD))
        begun, done = self._run_child(steps, favourite, acknowledged, self._rng.uniform(0, most) / 1e6)
        before = steps[done - 1].after if done > 0 else self._state
        flying = steps[begun - 1] if begun > max(done, 0) else None
        verdict = self._look(before, flying, favourite)
        if verdict.torn or verdict.lost or verdict.extra:
            where = f"kill {number} ({flying.kind if flying else 'between two'})"
            for problem in (*verdict.torn, *verdict.lost, *verdict.extra):
                sys.stdout.write(f"{where}: {problem}\n")
        self.counts.update(torn=bool(verdict.torn), lost=len(verdict.lost), extra=len(verdict.extra))
        if begun > done:
            kind = flying.kind if flying else favourite
            self.in_flight[kind]["landed" if verdict.landed else "not"] += 1
        else:
            self.counts["between"] += 1

    def _run_child(self, steps: list[Step], favourite: str, acknowledged: int, delay_s: float) -> tuple[int, int]:
        """Numbers of the last operation begun and of the last acknowledged; 0 is the opening, -1 not even that."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(self._path, writer, steps)
        os.close(writer)
        marks = b""
        deadline = time.monotonic() + PATIENCE_S
        wanted = b"b0\n" if favourite in OPENINGS else b"a%d\n" % acknowledged
        while wanted not in marks:
            if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                os.kill(pid, signal.SIGKILL)
                raise RuntimeError(f"the child says nothing for {PATIENCE_S:g} s")
            part = os.read(reader, 65536)
            if not part:
                raise RuntimeError("the child ended by itself")
            marks += part
        time.sleep(delay_s)  # not a busy loop: that would hold the very processor the child needs
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        while part := os.read(reader, 65536):
            marks += part
        os.close(reader)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise RuntimeError(f"the child ended by itself: {status}")
        lines = marks.decode().split()
        begun = max((int(line[1:]) for line in lines if line[0] == "b"), default=-1)
        done = max((int(line[1:]) for line in lines if line[0] == "a"), default=-1)
        return begun, done

    def _look(self, before: State, flying: Step | None, favourite: str) -> Verdict:
        time.sleep(BRIEF_S)  # what was leased briefly has run out
        store = _open(self._path)
        try:
            found: State = {entry.key: (entry.value, entry.lease or 0) for entry in store.list(ROOT).entries}
            torn = _integrity(self._path)
            landed = flying is not None and flying.after != before and _same(found, flying.after)
            lost: list[str] = []
            extra: list[str] = []
            if not landed and not _same(found, before):
                lost = [f"lost {key}" for key in before if key not in found or found[key][0] != before[key][0]]
                extra = [f"extra {key}" for key in found if key not in before]
                lost = lost or ([] if extra else ["a lease differs"])
            self._state = dict(flying.after if landed and flying else before)
            if favourite == "compact":
                torn += _watch_sees(store)
            self._go_on(store)
            return Verdict(torn, lost, extra, landed)
        finally:
            store.close()

    def _go_on(self, store: SqliteDatastore) -> None:
        """The file takes writes. Nobody knows the leases of the dead: their keys become plain ones."""
        plain = {key: value for key, (value, lease) in self._state.items() if lease}
        plain[f"{ROOT}k/after-{time.monotonic_ns()}"] = b"next"
        for key, value in plain.items():
            store.put(key, value)
        self._state |= {key: (value, 0) for key, value in plain.items()}
        if len(self._state) > MOST_KEYS:
            store.delete_prefix(ROOT)
            self._state = {}


def _same(found: State, wanted: State) -> bool:
    """Values alike, and leases on the same keys; the numbers of leases are the store's own."""
    return {key: (value, bool(lease)) for key, (value, lease) in found.items()} == {
        key: (value, bool(lease)) for key, (value, lease) in wanted.items()
    }


def _integrity(path: str) -> list[str]:
    """What is wrong inside: SQLite's own check, and that history and state tell the same."""
    connection = sqlite3.connect(path)
    try:
        problems = [str(row[0]) for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        revisions = {row[0] for row in connection.execute("SELECT DISTINCT rev FROM change")}
        kept = set(range(max(meta["compacted"], 1) + 1, meta["revision"] + 1))
        if revisions != kept:
            problems.append(f"history has gaps: {sorted(revisions ^ kept)[:5]}")
        differing = connection.execute(
            "SELECT kv.key FROM kv JOIN meta ON meta.name = 'compacted' LEFT JOIN change"
            " ON change.rev = kv.mod_rev AND change.key = kv.key"
            " WHERE kv.mod_rev > meta.value AND change.value IS NOT kv.value"
        )
        problems += [f"history and state differ: {key}" for (key,) in differing]
        orphans = connection.execute(
            "SELECT key FROM kv WHERE lease IS NOT NULL AND lease NOT IN (SELECT id FROM lease)"
        )
        problems += [f"no lease for {key}" for (key,) in orphans]
        return problems
    finally:
        connection.close()


def _watch_sees(store: SqliteDatastore) -> list[str]:
    """A watch from the oldest kept revision brings everything up to now."""
    revision = store.put(f"{ROOT}brief/probe", b"")
    watch = store.watch(ROOT, revision - 1)
    try:
        message = watch.next(30)
    finally:
        watch.close()
        store.delete(f"{ROOT}brief/probe")
    return [] if getattr(message, "revision", 0) == revision else [f"the watch says {message}"]


def _open(path: str) -> SqliteDatastore:
    return SqliteDatastore.open(f"sqlite://{path}", DatastoreOptions())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=positive, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--folder", type=Path, help="Where the files are made: a disk of your choice.")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="calico-crash-", dir=arguments.folder) as folder:
        campaign = Campaign(Path(folder), arguments.seed)
        campaign.run(arguments.kills)
    counts = campaign.counts
    for kind, flights in campaign.in_flight.items():
        sys.stdout.write(f"{kind}: killed in flight {flights.total()}, of which in the file {flights['landed']}\n")
    seconds = time.monotonic() - began
    sys.stdout.write(f"between two operations: {counts['between']}; seed {arguments.seed}; {seconds:.1f} s\n")
    sys.stdout.write(
        f"{arguments.kills} kills, {counts['torn']} torn, {counts['lost']} lost, {counts['extra']} extra\n"
    )
    return 1 if counts["torn"] or counts["lost"] or counts["extra"] else 0


if __name__ == "__main__":
    sys.exit(main())
