"""Address management: what an address costs in round trips, what sharing saves, how many hosts contend.

``python tests/benchmarks/bench_ipam.py [--seconds S]``. A JSON line a workload, yardsticks first and last. Round trips
are counted, not timed. A *host* is an allocator with a cache of its own; hosts are spread over up to 8 processes. An
operation is an assign or a release; a host keeps eight addresses and gives back one for each further one.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.datastore import Datastore
from calico_core.ipam import turns
from calico_core.ipam.allocator import BlockIpam
from tests.benchmarks import stores, yardsticks
from tests.benchmarks.stores import open_store
from tests.doubles.ipam_store import a_request, add_pool, check_laws

PROCESSES, CALL_TIMEOUT_S = 8, 10.0
HOSTS = (1, 10, 100)
SCARCE = "10.0.0.0/25"
"""Two blocks: most hosts have none, and borrow."""
_fork = multiprocessing.get_context("fork")


def fresh_store(url: str, pool: str = "10.0.0.0/12") -> Datastore:
    store = open_store(url, timeout_s=CALL_TIMEOUT_S)
    store.delete_prefix("/calico/")
    add_pool(store, pool)
    add_pool(store, "fd00::/104")
    return store


def in_a_child(target: Callable[..., None], *arguments: Any) -> None:
    """Whoever has used the etcd client must not fork: so each workload has a process of its own."""
    child = _fork.Process(target=target, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"{target.__name__} ended with {child.exitcode}")


# --- round trips -----------------------------------------------------------------------------------


def round_trips(name: str, url: str) -> None:
    store = fresh_store(url)
    warm = BlockIpam(TypedRecords(store), "host1")
    warm.auto_assign(a_request("first", 1, 1))

    def cost(ipam: BlockIpam, call: Callable[[], object]) -> dict[str, int]:
        before = ipam.round_trips.transactions, ipam.round_trips.reads
        call()
        return {"transactions": ipam.round_trips.transactions - before[0], "reads": ipam.round_trips.reads - before[1]}

    def cold() -> BlockIpam:
        return BlockIpam(TypedRecords(store), "host1")

    def report(what: str, ipam: BlockIpam, call: Callable[[], object]) -> None:
        yardsticks.report(f"ipam.round_trips.{what}.{name}", **cost(ipam, call))

    report("warm.assign", warm, lambda: warm.auto_assign(a_request("a", 1)))
    report("warm.assign_dual", warm, lambda: warm.auto_assign(a_request("b", 1, 1)))
    report("warm.assign_with_new_block", warm, lambda: warm.auto_assign(a_request("c", 64)))
    report("warm.release_by_handle", warm, lambda: warm.release_by_handle(["a"]))
    held = warm.auto_assign(a_request("d", 1))
    report("warm.release_by_address", warm, lambda: warm.release(held, handle="d"))
    tool = cold()
    report("cold.assign", tool, lambda: tool.auto_assign(a_request("e", 1)))
    tool = cold()
    report("cold.release_by_handle", tool, lambda: tool.release_by_handle(["e"]))
    tool = BlockIpam(TypedRecords(store), "newcomer")
    report("cold.assign_first_block", tool, lambda: tool.auto_assign(a_request("f", 1)))
    store.close()


# --- calls that arrive together --------------------------------------------------------------------


def together(name: str, url: str, callers: int, most_at_once: int) -> None:
    turns.MOST_AT_ONCE = most_at_once
    store = fresh_store(url)
    ipam = BlockIpam(TypedRecords(store), "host1")
    ipam.auto_assign(a_request("warm", 1))
    commits: list[int] = []
    latencies: list[float] = []
    for repetition in range(20):
        gate = threading.Barrier(callers)
        before = ipam.round_trips.transactions

        def call(number: int, repetition: int = repetition, gate: threading.Barrier = gate) -> None:
            gate.wait()
            started = time.perf_counter()
            ipam.auto_assign(a_request(f"{repetition}-{number}", 1))
            latencies.append(time.perf_counter() - started)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        commits.append(ipam.round_trips.transactions - before)
        ipam.release_by_handle([f"{repetition}-{number}" for number in range(callers)])
    yardsticks.report(
        f"ipam.together.{callers}.{'shared' if most_at_once > 1 else 'one_by_one'}.{name}",
        commits_per_assign=round(statistics.mean(commits) / callers, 4),
        commits_median=statistics.median(commits),
        **yardsticks.summary(latencies),
    )
    check_laws(store)
    store.close()


# --- hosts in contention ---------------------------------------------------------------------------


def contention(name: str, url: str, hosts: int, seconds: float, *, pool: str = "10.0.0.0/12") -> None:
    in_a_child(_prepare, url, pool)
    count = min(hosts, PROCESSES)
    results: Any = _fork.Queue()
    begin = _fork.Event()
    parts = [[f"host{number}" for number in range(hosts) if number % count == part] for part in range(count)]
    children = [_fork.Process(target=_work, args=(url, part, seconds, begin, results)) for part in parts]
    for child in children:
        child.start()
    begin.set()
    found = [results.get(timeout=seconds + 120) for _ in children]
    for child in children:
        child.join()
    operations, trips = sum(each[0] for each in found), sum(each[1] for each in found)
    latencies = [latency for each in found for latency in each[2]]
    yardsticks.report(
        f"ipam.contention.{hosts}_hosts.{'scarce.' if pool == SCARCE else ''}{name}",
        assigns_per_s=round(len(latencies) / seconds),
        round_trips_per_operation=round(trips / operations, 3),
        **yardsticks.summary(latencies),
    )
    in_a_child(_check, url)


def _prepare(url: str, pool: str) -> None:
    fresh_store(url, pool).close()


def _check(url: str) -> None:
    store = open_store(url, timeout_s=CALL_TIMEOUT_S)
    check_laws(store)
    store.close()


def _work(url: str, hosts: list[str], seconds: float, begin: Any, results: Any) -> None:
    store = open_store(url, timeout_s=CALL_TIMEOUT_S)
    ipams = [BlockIpam(TypedRecords(store), host) for host in hosts]
    latencies: list[float] = []
    released: list[int] = []
    begin.wait()
    end = time.perf_counter() + seconds

    def host(ipam: BlockIpam) -> None:
        number = 0
        while (started := time.perf_counter()) < end:
            ipam.auto_assign(a_request(f"{ipam.host}-{number}", 1))
            latencies.append(time.perf_counter() - started)
            if number >= 8:
                ipam.release_by_handle([f"{ipam.host}-{number - 8}"])
                released.append(number)
            number += 1

    threads = [threading.Thread(target=host, args=(ipam,)) for ipam in ipams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trips = sum(ipam.round_trips.transactions + ipam.round_trips.reads for ipam in ipams)
    results.put((len(latencies) + len(released), trips, latencies))
    store.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each throughput figure")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with yardsticks.first_and_last(), stores.both() as urls:
        for name, url in urls.items():
            in_a_child(round_trips, name, url)
            for most_at_once in (1, 50):
                in_a_child(together, name, url, 32, most_at_once)
            for hosts in HOSTS:
                contention(name, url, hosts, arguments.seconds)
            contention(name, url, 10, arguments.seconds, pool=SCARCE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
