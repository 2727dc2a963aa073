"""Policy calculation on a full snapshot: the peers' rows 2a to 2i, each in a process of its own.

``python tests/benchmarks/bench_policy.py [2a … 2i] [--rounds N]`` prints a JSON line a row, with the yardsticks taken
before and after by the parent. Records are made beforehand and not timed; the caches of selectors and of compiled
rules are emptied, so that parsing and compiling them is inside the time. A round starts with an empty calculator,
applies all records as one batch, flushes and counts what came; the counts are checked. Rows 2d, 2e and 2f then delete
the local endpoints one by one, each in a batch of its own, and must end with nothing.

Wall clock and CPU time are both told: on a machine that others use only the latter, divided by a yardstick's CPU time,
means anything. The records are input and frozen for the collector, which therefore does not walk them; in one more
round they are not, and each full collection walks all of them. The agent freezes what it has when its first snapshot
is in the kernel, after the calculation. ``max_rss_mb`` is that of the process after the first round, records and all.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from calico_core.model.hoststate import HostChanges
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.selectors import parse_selector
from calico_core.policy import rules
from calico_core.policy.resolver import PolicyResolver
from tests.benchmarks import policy_inputs, yardsticks
from tests.benchmarks.policy_inputs import HOST, Counts, Updates


class Row(NamedTuple):
    """``aim``: of the CPU time ÷ that of the yardstick ``alloc``."""

    name: str
    make: Callable[[], tuple[Updates, Counts]]
    aim: float
    aim_rss_mb: int
    """Half of the peer's."""
    deletes: bool = False


ROWS = {
    "2a": Row("tags", policy_inputs.tags, 4, 650),
    "2b": Row("network sets 1,000", lambda: policy_inputs.network_sets(1_000), 0.7, 150),
    "2c": Row("network sets 10,000", lambda: policy_inputs.network_sets(10_000), 5, 1070),
    "2d": Row("tags, then delete", policy_inputs.tags, 5.2, 715, deletes=True),
    "2e": Row("network sets 1,000, then delete", lambda: policy_inputs.network_sets(1_000), 0.91, 146, deletes=True),
    "2f": Row("network sets 10,000, then delete", lambda: policy_inputs.network_sets(10_000), 6.5, 1070, deletes=True),
    "2g": Row("isolated customers 1,000", lambda: policy_inputs.customers(1_000), 0.12, 36),
    "2h": Row("isolated customers 10,000", lambda: policy_inputs.customers(10_000), 1.2, 112),
    "2i": Row("isolated customers 100,000", lambda: policy_inputs.customers(100_000), 12, 855),
}


class Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """Wall, CPU."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def counts_of(changes: HostChanges) -> Counts:
    return Counts(
        sets=len(changes.sets),
        members=sum(len(change.added) for change in changes.sets),
        rule_lists=len(changes.rules),
        rules=sum(len(each.inbound) + len(each.outbound) for each in changes.rules),
        workloads=len(changes.workloads),
        listed=sum(
            len(tier.policies)
            for workload in changes.workloads
            for policies in (workload.inbound, workload.outbound)
            for tier in policies.tiers
        ),
    )


def one_round(updates: Updates, expected: Counts, *, deletes: bool) -> tuple[float, float]:
    """Wall and CPU seconds."""
    local = [key for key, _ in updates if isinstance(key, WorkloadEndpointKey) and key.host == HOST]
    parse_selector.cache_clear()
    rules._compile.cache_clear()
    gc.collect()
    clock = Clock()
    resolver = PolicyResolver(HOST)
    resolver.apply(updates)
    resolver.in_sync()
    counts = counts_of(resolver.flush())
    removed = Counts(0, 0, 0, 0, 0, 0)
    if deletes:
        for key in local:
            resolver.apply([(key, None)])
            changes = resolver.flush()
            removed = removed._replace(
                sets=removed.sets + len(changes.removed_sets),
                rule_lists=removed.rule_lists + len(changes.removed_rules),
                workloads=removed.workloads + len(changes.removed_workloads),
            )
    seconds = clock.seconds()
    if counts != expected:
        raise RuntimeError(f"{counts} came, not {expected}")
    if deletes and removed != Counts(expected.sets, 0, expected.rule_lists, 0, expected.workloads, 0):
        raise RuntimeError(f"{removed} went of {expected}")
    return seconds


def measure_row(row: Row, rounds: int) -> dict[str, Any]:
    """In this process."""
    updates, expected = row.make()
    gc.collect()
    gc.freeze()
    frozen = [one_round(updates, expected, deletes=row.deletes)]
    max_rss_mb = peak_mb()
    frozen += [one_round(updates, expected, deletes=row.deletes) for _ in range(rounds - 1)]
    gc.unfreeze()
    walked = one_round(updates, expected, deletes=row.deletes)
    return {
        "n": rounds,
        **spread("s", [wall for wall, _ in frozen]),
        **spread("cpu_s", [cpu for _, cpu in frozen]),
        "not_frozen_cpu_s": round(walked[1], 4),
        "max_rss_mb": max_rss_mb,
        "counts": expected._asdict(),
    }


def peak_mb() -> int:
    """Of this program: what ``getrusage`` tells has the parent's in it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def spread(unit: str, values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        f"min_{unit}": round(ordered[0], 4),
        f"median_{unit}": round(statistics.median(ordered), 4),
        f"p95_{unit}": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 4),
    }


def report_row(number: str, rounds: int) -> None:
    row = ROWS[number]
    before = yardsticks.measure()
    argv = [sys.executable, __file__, number, "--rounds", str(rounds), "--here"]
    found = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout)
    ends = yardsticks.ends(before)
    alloc = (before["alloc_cpu_s"] + ends["yardsticks_after"]["alloc_cpu_s"]) / 2
    yardsticks.report(
        number, shape=row.name, **found, to_alloc=round(found["min_cpu_s"] / alloc, 3), aim_to_alloc=row.aim,
        aim_max_rss_mb=row.aim_rss_mb, **ends,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="measure one row in this process, no yardsticks")
    given = parser.parse_args()
    for number in given.rows or ROWS:
        if given.here:
            print(json.dumps(measure_row(ROWS[number], given.rounds)))
        else:
            report_row(number, given.rounds)


if __name__ == "__main__":
    main()
