"""32 writers on 4 hosts against one store, killed between any two datastore calls; then the books are checked.

``nox -s torture -- --operations N --seed S [--store etcd|sqlite] [--members 1|3] [--partitions]``. Its last line is
``N operations, D duplicates, L leaks``; it exits with 1 unless both are 0. Meanwhile members of the etcd cluster are
killed and started again, stopped and resumed, and with ``--partitions`` cut off from the network, one at a time.
``--partitions`` puts each into a network namespace of its own, and needs root.

A *duplicate* is an address whose history admits no order in which nobody took what another held, or which the store
has lost while its holder was never told. A *leak* is an address in the store that nobody holds or without a handle,
and a handle that disagrees with the blocks.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from calico_core.ipam import blocks
from calico_core.model.keys import IPAM
from tests.campaigns.history import Account, account_of, overlaps
from tests.campaigns.islands import HUB, Archipelago, Island, run_in_hub
from tests.campaigns.writer import open_store, run_process
from tests.command_line import positive
from tests.doubles.etcd_cluster import EtcdCluster, Member
from tests.doubles.ipam_store import Contents, add_pool, check_laws, configure, contents

HOSTS = ("host1", "host2", "host3", "host4")
PROCESSES_A_HOST = 2
POOL, POOL_V6 = "10.20.0.0/25", "fd20::/121"

MOST_FAILURES = 20
"""Writer processes that end as nobody asked them to, before the campaign gives up on those that do."""

_fork = multiprocessing.get_context("fork")  # a new process in a few milliseconds: the imports are done


class Plan(NamedTuple):
    operations: int
    seed: int
    store: str = "etcd"
    members: int = 1
    writers: int = 32
    kill_one_in: int = 4000
    """Calls of the datastore after which a writer process kills itself, on average; 0: never."""
    trouble_every_s: float = 4.0
    """Between two blows at writers or members from outside, on average; 0: none."""
    cooldown_s: int = 0
    partitions: bool = False


class Result(NamedTuple):
    operations: int
    duplicates: list[str]
    leaks: list[str]
    failures: list[str]
    refused: int
    uncertain: int
    seconds: float
    kills: int
    member_kills: int
    member_pauses: int
    member_partitions: int

    @property
    def is_clean(self) -> bool:
        return not self.duplicates and not self.leaks and not self.failures

    @property
    def last_line(self) -> str:
        return f"{self.operations} operations, {len(self.duplicates)} duplicates, {len(self.leaks)} leaks"


class Campaign:
    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._dice = random.Random(plan.seed)
        self._cluster: EtcdCluster | Archipelago | None = None
        if plan.store == "etcd":
            self._cluster = (Archipelago if plan.partitions else EtcdCluster)(folder / "etcd", plan.members)
        self._url = self._cluster.url if self._cluster else f"sqlite://{folder}/calico.db"
        self._running: dict[int, BaseProcess] = {}
        self._failures: list[str] = []
        self._lives: dict[int, int] = {}
        self._down: Member | Island | None = None
        self._paused: Member | Island | None = None
        self._cut_off: Island | None = None
        self._down_until = 0.0
        self.kills = self.member_kills = self.member_pauses = self.member_partitions = 0

    def run(self) -> Result:
        """Blocks until every writer has its share."""
        if self._cluster:
            self._cluster.start()
        try:
            self._in_a_child(_prepare, self._url, self._plan.cooldown_s)
            started = time.monotonic()
            self._drive()
            seconds = time.monotonic() - started
            self._recover()
            return self._judge(seconds)
        finally:
            for process in self._running.values():
                process.kill()
                process.join(10)
            if self._cluster:
                self._recover()
                self._cluster.stop()

    # --- driving -----------------------------------------------------------------------------------

    def _drive(self) -> None:
        count = len(HOSTS) * PROCESSES_A_HOST
        finished: set[int] = set()
        next_blow = self._next_blow()
        while len(finished) < count:
            for number in range(count):
                process = self._running.get(number)
                if number in finished or (process is not None and process.exitcode is None):
                    continue
                if process is not None and process.exitcode == 0:
                    finished.add(number)
                    continue
                if process is not None and process.exitcode != -signal.SIGKILL:
                    self._failures.append(f"writer process {number} ended with {process.exitcode}")
                    if len(self._failures) >= MOST_FAILURES:
                        finished.add(number)
                        continue
                self.kills += process is not None
                self._start(number)
            if time.monotonic() >= next_blow:
                self._strike()
                next_blow = self._next_blow()
            if self._down_until and time.monotonic() >= self._down_until:
                self._recover()
            time.sleep(0.01)

    def _start(self, number: int) -> None:
        plan = self._plan
        a_process = plan.writers // (len(HOSTS) * PROCESSES_A_HOST)
        life = self._lives[number] = self._lives.get(number, 0) + 1
        writers = range(number * a_process, (number + 1) * a_process)
        process = _fork.Process(
            target=run_process,
            args=(
                self._url,
                HOSTS[number % len(HOSTS)],
                writers,
                self._folder,
                plan.operations // plan.writers + (plan.operations % plan.writers > 0),
                f"{plan.seed}/{number}/{life}",
                plan.kill_one_in,
            ),
        )
        process.start()
        self._running[number] = process

    def _next_blow(self) -> float:
        every = self._plan.trouble_every_s
        return time.monotonic() + (self._dice.expovariate(1 / every) if every else 1e9)

    def _strike(self) -> None:
        kind = self._dice.choice(["writer", "kill", "pause", *(["partition"] if self._plan.partitions else [])])
        if kind == "writer" or self._cluster is None:
            self._dice.choice(list(self._running.values())).kill()
            return
        if self._down or self._paused or self._cut_off:
            return
        members: Sequence[Member | Island] = self._cluster.members
        member = self._dice.choice(members)
        self._down_until = time.monotonic() + self._dice.uniform(0.2, 3.0 if self._plan.members > 1 else 1.0)
        if kind == "kill":
            member.kill()
            self._down = member
            self.member_kills += 1
        elif kind == "partition" and isinstance(member, Island):
            member.cut_off()
            self._cut_off = member
            self.member_partitions += 1
        else:
            member.signal(signal.SIGSTOP)
            self._paused = member
            self.member_pauses += 1

    def _recover(self) -> None:
        self._down_until = 0.0
        if self._paused is not None:
            self._paused.signal(signal.SIGCONT)
            self._paused = None
        if self._cut_off is not None:
            self._cut_off.mend()
            self._cut_off = None
        if self._down is not None and self._cluster is not None:
            self._down = None
            self._cluster.start()

    # --- judging -----------------------------------------------------------------------------------

    def _judge(self, seconds: float) -> Result:
        accounts = [account_of(self._folder / f"writer-{number}.log") for number in range(self._plan.writers)]
        for account in accounts:
            account.close()
        store = open_store(self._url)
        try:
            found = contents(store)
            leaks = _leaks(found, accounts)
            try:
                check_laws(store)
            except AssertionError as broken:
                leaks = leaks or [f"the store breaks its laws: {broken}"]
        finally:
            store.close()
        return Result(
            operations=sum(account.operations for account in accounts),
            duplicates=_duplicates(found, accounts),
            failures=self._failures,
            leaks=leaks,
            refused=sum(account.refused for account in accounts),
            uncertain=sum(account.uncertain_ends for account in accounts),
            seconds=round(seconds, 1),
            kills=self.kills,
            member_kills=self.member_kills,
            member_pauses=self.member_pauses,
            member_partitions=self.member_partitions,
        )

    def _in_a_child(self, target: object, *arguments: object) -> None:
        """A process that has used the etcd client must not fork afterwards."""
        child = _fork.Process(target=target, args=arguments)  # type: ignore[arg-type]
        child.start()
        child.join(60)
        if child.exitcode != 0:
            raise RuntimeError(f"the store could not be prepared: {child.exitcode}")


def _prepare(url: str, cooldown_s: int) -> None:
    store = open_store(url)
    store.delete_prefix(IPAM)
    add_pool(store, POOL, block_size=29)
    add_pool(store, POOL_V6, block_size=125)
    configure(store, cooldown_s=cooldown_s)
    store.close()


def _duplicates(found: Contents, accounts: list[Account]) -> list[str]:
    problems = overlaps([holding for account in accounts for holding in account.holdings])
    holders = {str(address): handle for address, handle in found.holders().items()}
    for account in accounts:
        problems += account.surprises
        for handle, addresses in account.held.items():
            problems += [
                f"{address} is held by {handle}, the store says {holders.get(address, 'nobody')}"
                for address in addresses
                if holders.get(address) != handle
            ]
    return problems


def _leaks(found: Contents, accounts: list[Account]) -> list[str]:
    held = {address: handle for account in accounts for handle, mine in account.held.items() for address in mine}
    problems = [
        f"{address} of {holder} is held by nobody"
        for address, holder in found.holders().items()
        if held.get(str(address)) != holder
    ]
    counted: dict[str, dict[str, int]] = {}
    for cidr, block in found.blocks.items():
        for handle, number in blocks.counts(block).items():
            counted.setdefault(handle, {})[str(cidr)] = number
    for handle in {*counted, *found.handles}:
        if counted.get(handle) != found.handles.get(handle):
            problems.append(f"{handle}: in blocks {counted.get(handle)}, record {found.handles.get(handle)}")
    owned = {cidr: block.owner for cidr, block in found.blocks.items() if block.owner}
    for cidr in {*owned, *found.affinities}:
        if owned.get(cidr) != found.affinities.get(cidr):
            problems.append(f"{cidr} is owned by {owned.get(cidr)}, affinity says {found.affinities.get(cidr)}")
    return problems


def run(plan: Plan) -> Result:
    with tempfile.TemporaryDirectory(prefix="calico-torture-") as folder:
        return Campaign(plan, Path(folder)).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=positive, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=("etcd", "sqlite"), default="etcd")
    parser.add_argument("--members", type=int, choices=(1, 3), default=1)
    parser.add_argument("--kill-one-in", type=int, default=Plan._field_defaults["kill_one_in"])
    parser.add_argument("--trouble-every-s", type=float, default=Plan._field_defaults["trouble_every_s"])
    parser.add_argument("--cooldown-s", type=int, default=0)
    parser.add_argument("--partitions", action="store_true")
    plan = Plan(**vars(parser.parse_args()))
    if plan.partitions and HUB not in os.environ:
        return run_in_hub([sys.executable, "-m", "tests.campaigns.torture", *sys.argv[1:]])
    logging.disable(logging.CRITICAL)
    result = run(plan)
    for problem in (*result.failures, *result.duplicates[:20], *result.leaks[:20]):
        sys.stdout.write(problem + "\n")
    figures = {
        **plan._asdict(),
        "seconds": result.seconds,
        "operations_per_s": round(result.operations / result.seconds),
        "refused": result.refused,
        "ended_unknown": result.uncertain,
        "writer_kills": result.kills,
        "member_kills": result.member_kills,
        "member_pauses": result.member_pauses,
        "member_partitions": result.member_partitions,
    }
    sys.stdout.write(json.dumps(figures) + "\n" + result.last_line + "\n")
    return 0 if result.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
