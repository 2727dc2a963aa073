"""The datastore drivers: a big snapshot, a stream of events, and single calls, on a real etcd and on SQLite.

``python tests/benchmarks/bench_datastore.py [--records N] [--events N] [--calls N]``. Prints a JSON line a workload,
yardsticks first and last. The snapshot is listed and decoded in a process of its own, so that its memory is its own:
``rss_mib`` is what the process grew by, ``peak_mib`` the most it ever held; ``…cpu_s`` is the reader's own processor
time, which a busy machine does not change. ``watch.*`` counts from the first event to
the last one decoded by the syncer, written by another process meanwhile (``paced_by_writer``) or waiting in the store
(``backlog``). A call is one operation of one thread, one after the other.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from calico_core.datastore.syncer import SyncBatch, Syncer
from calico_core.interfaces.datastore import Batch, Compare, Datastore, Put
from calico_core.model import codec
from calico_core.model.key_paths import parse_key
from tests.benchmarks import stores, yardsticks
from tests.benchmarks.stores import open_store

ROOT = "/calico/v1/host/"
PATIENCE_S, CALL_TIMEOUT_S = 300.0, 60.0


def endpoints(count: int) -> Iterator[tuple[str, bytes]]:
    """Endpoint records as a CNI attach writes them, over hosts of 100 each; a name's record is always the same."""
    rng = random.Random(20)
    for number in range(count):
        octets = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        record = {
            "state": "active",
            "name": f"cali{number:011x}",
            "mac": "02:" + ":".join(f"{rng.randrange(256):02x}" for _ in range(5)),
            "profile_ids": [f"k8s_ns.namespace-{number % 50}"],
            "ipv4_nets": [f"{octets}/32"],
            "ipv6_nets": [],
            "labels": {"app": f"app-{number % 200}", "tier": ("web", "cache", "store")[number % 3], "zone": "a"},
            "container_id": f"{number:064x}",
            "ifname": "eth0",
            "created": 1700000000.5,
        }
        path = f"{ROOT}host-{number // 100}/workload/k8s/namespace-{number % 50}.pod-{number}/endpoint/eth0"
        yield path, json.dumps(record, separators=(",", ":")).encode()


def fill(store: Datastore, records: list[tuple[str, bytes]]) -> float:
    """Seconds, 64 in a transaction."""
    began = time.perf_counter()
    for first in range(0, len(records), 64):
        store.transact([], [Put(*each) for each in records[first : first + 64]])
    return time.perf_counter() - began


# --- a snapshot, in a process of its own --------------------------------------------------------------------


def snapshot(url: str) -> None:
    """List, then list and decode through the syncer, as a node does when it starts."""
    store = open_store(url, timeout_s=CALL_TIMEOUT_S)
    store.get(f"{ROOT}none")
    gc.collect()
    before = _rss_mib()
    began, began_cpu = time.perf_counter(), time.process_time()
    entries = store.list(ROOT).entries
    listed, listed_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    count = len(entries)
    del entries
    gc.collect()
    kept: dict[str, Any] = {}

    def sink(batch: SyncBatch) -> None:
        kept.update((update.path, update.record) for update in batch.updates)

    began, began_cpu = time.perf_counter(), time.process_time()
    syncer = Syncer(store, (ROOT,), sink)
    syncer.start()
    assert syncer.wait_in_sync(PATIENCE_S)
    decoded, decoded_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    syncer.stop()
    gc.collect()
    assert len(kept) == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    fields = {
        "records": count,
        "list_s": round(listed, 3),
        "list_cpu_s": round(listed_cpu, 3),
        "list_decode_s": round(decoded, 3),
        "list_decode_cpu_s": round(decoded_cpu, 3),
        "cpu_us_a_record": round(decoded_cpu / count * 1e6, 2),
        "rss_mib": round(_rss_mib() - before, 1),
        "peak_mib": round(peak, 1),
    }
    sys.stdout.write(json.dumps(fields) + "\n")
    store.close()


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


# --- events -------------------------------------------------------------------------------------------------


def write_events(url: str, count: int) -> None:
    """In a process of its own, so that it does not share the reader's interpreter."""
    store = open_store(url, timeout_s=CALL_TIMEOUT_S)
    for first in range(0, count, 32):
        stamp = time.time()
        store.transact(
            [], [Put(path, _relabelled(value, stamp)) for path, value in _slice(first, min(count, first + 32))]
        )
    store.close()


def _slice(first: int, last: int) -> list[tuple[str, bytes]]:
    records = _records()
    return [records[number % len(records)] for number in range(first, last)]


@functools.cache
def _records() -> tuple[tuple[str, bytes], ...]:
    return tuple(endpoints(10_000))


def _relabelled(value: bytes, stamp: float) -> bytes:
    return value.replace(b'"zone":"a"', b'"zone":"%f"' % stamp)


def follow(url: str, count: int) -> dict[str, Any]:
    """Every event through the watch, the syncer and the decoder, while another process writes as fast as it can. The
    syncer coalesces: updates are what is left."""
    store = open_store(url, timeout_s=CALL_TIMEOUT_S)
    seen = threading.Event()
    last = _slice(count - 1, count)[0][0]
    told: list[tuple[float, int]] = []

    def sink(batch: SyncBatch) -> None:
        told.append((time.perf_counter(), len(batch.updates)))
        if any(
            update.path == last and update.record.labels["zone"] != "a" for update in batch.updates if update.record
        ):
            seen.set()

    syncer = Syncer(store, (ROOT,), sink)
    syncer.start()
    assert syncer.wait_in_sync(PATIENCE_S)
    told.clear()
    began_cpu = time.process_time()
    _write_elsewhere(url, count)
    assert seen.wait(PATIENCE_S)
    cpu_s = time.process_time() - began_cpu
    syncer.stop()
    store.close()
    seconds = told[-1][0] - told[0][0]
    return {
        "events": count,
        "updates": sum(number for _, number in told),
        "batches": len(told),
        "seconds": round(seconds, 3),
        "events_a_second": round(count / seconds) if seconds else None,  # all came as one batch
        "cpu_us_an_event": round(cpu_s / count * 1e6, 1),
    }


def catch_up(url: str, count: int) -> dict[str, Any]:
    """A watch that begins behind: what waits in the store is read and decoded, without a syncer's coalescing."""
    store = open_store(url, timeout_s=CALL_TIMEOUT_S)
    after = store.list(f"{ROOT}none/").revision
    _write_elsewhere(url, count)
    watch = store.watch(ROOT, after)
    events = 0
    began, began_cpu = time.perf_counter(), time.process_time()
    while events < count:
        message = watch.next(PATIENCE_S)
        assert isinstance(message, Batch), message
        for event in message.events:
            assert event.value is not None
            key = parse_key(event.key)
            assert key is not None
            codec.decode(key, event.value)
        events += len(message.events)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    watch.close()
    store.close()
    return {
        "events": events,
        "seconds": round(seconds, 3),
        "events_a_second": round(events / seconds),
        "cpu_us_an_event": round(cpu_s / events * 1e6, 1),
    }


def _write_elsewhere(url: str, count: int) -> None:
    subprocess.run([sys.executable, __file__, "--write", url, "--events", str(count)], check=True)


def latency(url: str, count: int) -> dict[str, float]:
    """From before the write to the decoded update in the sink of another handle."""
    writer, reader = open_store(url, timeout_s=CALL_TIMEOUT_S), open_store(url, timeout_s=CALL_TIMEOUT_S)
    heard = threading.Semaphore(0)

    def sink(batch: SyncBatch) -> None:
        if batch.updates:
            heard.release(len(batch.updates))

    syncer = Syncer(reader, ("/calico/v1/config/",), sink)
    syncer.start()
    assert syncer.wait_in_sync(PATIENCE_S)
    seconds = []
    for number in range(count):
        began = time.perf_counter()
        writer.put("/calico/v1/config/Bench", b"%d" % number)
        assert heard.acquire(timeout=PATIENCE_S)
        seconds.append(time.perf_counter() - began)
    syncer.stop()
    writer.delete("/calico/v1/config/Bench")
    writer.close()
    reader.close()
    return yardsticks.summary(seconds)


# --- calls --------------------------------------------------------------------------------------------------


def calls(store: Datastore, count: int) -> Iterator[tuple[str, dict[str, float]]]:
    ((_, value),) = endpoints(1)
    for number in range(64):
        store.put(f"/calico/bench/{number}", value)
    revision = store.put("/calico/bench/swap", value)

    def swap() -> None:
        nonlocal revision
        revision = store.compare_and_swap("/calico/bench/swap", value, revision)

    def transact() -> None:
        nonlocal revision
        puts = [Put("/calico/bench/swap", value), *(Put(f"/calico/bench/{number}", value) for number in range(4))]
        revision = store.transact([Compare("/calico/bench/swap", revision)], puts).revision

    runs: tuple[tuple[str, Callable[[], object]], ...] = (
        ("get", lambda: store.get("/calico/bench/7")),
        ("list64", lambda: store.list("/calico/bench/")),
        ("put", lambda: store.put("/calico/bench/7", value)),
        ("swap", swap),
        ("transact5", transact),
    )
    for name, run in runs:
        for _ in range(20):
            run()
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        yield name, yardsticks.summary(seconds)
    store.delete_prefix("/calico/bench/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--snapshot", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--write", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.snapshot:
        snapshot(arguments.snapshot)
        return 0
    if arguments.write:
        write_events(arguments.write, arguments.events)
        return 0
    with yardsticks.first_and_last(), stores.both() as urls:
        for name, url in urls.items():
            bench(name, url, arguments)
    return 0


def bench(name: str, url: str, arguments: argparse.Namespace) -> None:
    store = open_store(url, timeout_s=CALL_TIMEOUT_S)
    for call, result in calls(store, arguments.calls):
        yardsticks.report(f"datastore.{name}.{call}", **result)
    yardsticks.report(f"datastore.{name}.delta_to_sink", **latency(url, arguments.calls // 2))
    records = list(endpoints(arguments.records))
    seconds = fill(store, records)
    rate = round(len(records) / seconds)
    yardsticks.report(
        f"datastore.{name}.fill64", records=len(records), seconds=round(seconds, 2), records_a_second=rate
    )
    done = subprocess.run(
        [sys.executable, __file__, "--snapshot", url], check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    yardsticks.report(f"datastore.{name}.snapshot", **json.loads(done.stdout))
    store.delete_prefix("/calico/")
    fill(store, records[:10_000])
    yardsticks.report(f"datastore.{name}.watch.paced_by_writer", **follow(url, arguments.events))
    store.delete_prefix("/calico/")
    yardsticks.report(f"datastore.{name}.watch.backlog", **catch_up(url, arguments.events))
    store.close()


if __name__ == "__main__":
    sys.exit(main())
