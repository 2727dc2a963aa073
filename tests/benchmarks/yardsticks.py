"""What a machine is worth at the moment: figures to divide by, so that hours and machines can be compared.

``Y-sha`` (C speed), ``Y-loop`` (interpreter), ``Y-alloc`` (allocator), ``Y-spawn`` (starting a program), in seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def _sha() -> None:
    block, digest = bytes(1 << 20), hashlib.sha256()
    for _ in range(64):
        digest.update(block)


def _loop() -> None:
    counts: dict[int, int] = {}
    for i in range(1_000_000):
        key = (i * 2654435761) & 0xFFFF
        counts[key] = counts.get(key, 0) + 1


def _alloc() -> None:
    objects = [{"name": f"wep-{i}", "ip": i * 2654435761 & 0xFFFFFFFF} for i in range(300_000)]
    objects.sort(key=lambda found: found["ip"])


def _spawn() -> None:
    for _ in range(50):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def _best(function: Callable[[], None], times: int) -> tuple[float, float]:
    """Wall and CPU seconds, each the least of all runs."""
    walls, cpus = [], []
    for _ in range(times):
        cpu, wall = time.process_time(), time.perf_counter()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def measure() -> dict[str, float]:
    """``…_cpu_s``: CPU time, for a machine that is not idle."""
    loop, alloc = _best(_loop, 5), _best(_alloc, 3)
    return {
        "sha_s": round(_best(_sha, 5)[0], 5),
        "loop_s": round(loop[0], 5),
        "loop_cpu_s": round(loop[1], 5),
        "alloc_s": round(alloc[0], 5),
        "alloc_cpu_s": round(alloc[1], 5),
        "spawn_s": round(_best(_spawn, 5)[0] / 50, 6),
    }


def machine() -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "commit": commit.stdout.strip() or "unknown",
    }


STEADY = 0.1


def drift(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """``loop_drift``: by what share Y-loop took more or less afterwards. A run that ``is_steady`` is not is thrown
    away."""
    changed = after["loop_s"] / before["loop_s"] - 1
    return {"loop_drift": round(changed, 3), "is_steady": abs(changed) <= STEADY}


def ends(before: dict[str, float]) -> dict[str, Any]:
    """What stands in a line beside its figures: the yardsticks of before, those of now, and the machine."""
    after = measure()
    return {"yardsticks_before": before, "yardsticks_after": after, **drift(before, after), **machine()}


@contextmanager
def first_and_last() -> Iterator[None]:
    """The same as lines of their own, for a run whose figures belong together."""
    report("machine", **machine())
    before = measure()
    report("yardsticks.before", **before)
    yield
    after = measure()
    report("yardsticks.after", **after, **drift(before, after))


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: min, median, p95, p99."""
    ordered = sorted(value * 1000 for value in seconds)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return {
        "n": len(ordered),
        "min_ms": round(ordered[0], 3),
        "median_ms": round(statistics.median(ordered), 3),
        "p95_ms": at(0.95),
        "p99_ms": at(0.99),
    }


def unit_s(before: dict[str, float], after: dict[str, float]) -> float:
    """CPU seconds of an iteration of the yardstick loop, of both ends."""
    return (before["loop_cpu_s"] + after["loop_cpu_s"]) / 2 / 1_000_000


def cpu_us(seconds: list[float]) -> dict[str, float]:
    """Microseconds of CPU time: min, median, p95."""
    return {"n": len(seconds)} | {
        f"{name}_cpu_us": round(value * 1e6, 3)
        for name, value in (
            ("min", min(seconds)),
            ("median", statistics.median(seconds)),
            ("p95", sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]),
        )
    }


def report(name: str, **fields: object) -> None:
    """One JSON line a workload."""
    sys.stdout.write(json.dumps({"name": name, **fields}) + "\n")
    sys.stdout.flush()
