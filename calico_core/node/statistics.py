"""What SIGUSR1 asks for: the figures of the metrics page, and what each thread has cost, in the log. Source: felix
specification 9.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from calico_core.log import get_logger
from calico_core.node.metric import Metric

log = get_logger(__name__)


class ThreadCost(NamedTuple):
    name: str
    cpu_s: float
    wakes: int
    """How often it was given a processor."""


def tell(metrics: Iterable[Metric]) -> None:
    """One event a figure that is not 0, and one a thread."""
    for metric in metrics:
        for suffix, labels, value in metric.samples:
            if value:
                log.info("node.figure", metric=f"{metric.name}{suffix}", value=value, **labels)
    for cost in thread_costs():
        log.info("node.thread", thread=cost.name, cpu_s=round(cost.cpu_s, 6), wakes=cost.wakes)


def thread_costs() -> Iterator[ThreadCost]:
    """Of Python's threads; those of libraries are not among them. Source: kernel documentation, sched-stats."""
    for thread in threading.enumerate():
        with contextlib.suppress(OSError):  # it ends just now
            on_cpu_ns, _, wakes = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
            yield ThreadCost(thread.name, int(on_cpu_ns) / 1e9, int(wakes))
