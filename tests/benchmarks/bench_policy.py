"""Policy calculation on a full snapshot: the shapes of the peers' benchmarks "tags" and "network sets".

``python tests/benchmarks/bench_policy.py [tags|netsets-1000|netsets-10000|single] …`` prints a JSON line each, with
the yardsticks (interpreter speed, allocator speed) taken before and after. Records are made beforehand and not timed;
selectors are parsed when a record is made, so their cache is emptied first and the parsing timed on its own.

With ``inputs_frozen`` the collector leaves the records alone, as a process may that has just read them; without, each
full collection walks all of them, which costs as much as the calculation.
"""

from __future__ import annotations

import gc
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from netaddr import IPNetwork

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import HostChanges
from calico_core.model.keys import (
    Key,
    NetworkSetKey,
    PolicyKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    WorkloadEndpointKey,
)
from calico_core.model.policies import NetworkSet, Policy
from calico_core.model.rules import Rule, RuleLists
from calico_core.model.selectors import parse_selector
from calico_core.policy.resolver import PolicyResolver

Updates = list[tuple[Key, Any]]
_SEVEN = tuple(f"calico/{name}" for name in (
    "FizzBuzz", "BoffBip", "Bazzle", "Razzle", "DoopDeeDoo", "SOME_LABEL", "BORED_NOW",
))  # fmt: skip
MARKERS = (
    "FOO_BAR", "FOO_BAR", "BIFF_BOP", *_SEVEN, "MyMarkerLabel",
    *(f"x{name}" for name in ("FOO_BAR", "BIFF_BOP", *_SEVEN)),
    *(f"yx{name}" for name in ("MyMarkerLabel", "FOO_BAR", "BIFF_BOP", *_SEVEN, "MyMarkerLabel")),
)  # fmt: skip
FIRST = 0x0A000001
SIZES = (1, 1, 1, 1, 2, 3, 4, 5, 100, 1000)


def endpoints(count: int, host: str, *, first: int) -> Iterator[tuple[Key, Any]]:
    for number in range(first, first + count):
        serial = number + 1
        labels = {f"one-in-{n}": f"value-{serial % n}" for n in (10, 11, 20, 30, 40)}
        labels[MARKERS[serial % len(MARKERS)]] = "true"
        yield (
            WorkloadEndpointKey(host, "k8s", f"wep-{number}", "eth0"),
            WorkloadEndpoint(
                state="active",
                name=f"cali{number}",
                profile_ids=(f"namespace-{number % 100}",),
                ipv4_nets=(IPNetwork((FIRST + number, 32), version=4),),
                labels=labels,
            ),
        )


def profiles() -> Iterator[tuple[Key, Any]]:
    for number in range(100):
        name = f"namespace-{number}"
        yield ProfileLabelsKey(name), {"pcns.projectcalico.org/name": name}
        yield ProfileRulesKey(name), RuleLists()


def tags() -> Updates:
    updates: Updates = []
    size = len(MARKERS)
    for number in range(10_000):
        rules = tuple(Rule(src_selector=f"has({MARKERS[(number + j) % size]})") for j in range(5))
        policy = Policy(selector=f"has({MARKERS[number % size]})", inbound_rules=rules)
        updates.append((PolicyKey("default", f"policy-{number}"), policy))
    updates += profiles()
    updates += endpoints(250_000, "remote", first=0)
    updates += endpoints(200, "localhost", first=250_000)
    return updates


def network_sets(count: int) -> Updates:
    updates: Updates = [*profiles(), *endpoints(10_000, "remote", first=0)]
    address = FIRST
    for number in range(count):
        name = f"network-set-{number}"
        size = SIZES[number % len(SIZES)]
        nets = tuple(IPNetwork((address + i, 32), version=4) for i in range(size))
        address += size
        updates.append((NetworkSetKey(name), NetworkSet(nets=nets, labels={"network-set-name": name})))
        rule = Rule(src_selector=f"network-set-name == '{name}'")
        updates.append((PolicyKey("default", f"policy-{number}"), Policy(selector="all()", inbound_rules=(rule,))))
    updates += endpoints(200, "localhost", first=10_000)
    return updates


def selectors_of(updates: Updates) -> Iterator[str]:
    for _, record in updates:
        if isinstance(record, Policy):
            yield record.selector
            yield from (rule.src_selector for rule in record.inbound_rules if rule.src_selector is not None)


def snapshot(name: str, updates: Updates, *, rounds: int, is_frozen: bool) -> dict[str, Any]:
    seconds, parsing, deleting = [], [], []
    changes = HostChanges()
    for _ in range(rounds):
        parse_selector.cache_clear()
        started = time.perf_counter()
        for text in selectors_of(updates):
            parse_selector(text)
        parsing.append(time.perf_counter() - started)
        gc.collect()
        if is_frozen:
            gc.freeze()
        started = time.perf_counter()
        resolver = PolicyResolver("localhost")
        resolver.apply(updates)
        resolver.in_sync()
        changes = resolver.flush()
        seconds.append(time.perf_counter() - started)
        gc.unfreeze()
        started = time.perf_counter()
        resolver.apply(
            (key, None) for key, _ in updates if isinstance(key, WorkloadEndpointKey) and key.host == "localhost"
        )
        resolver.flush()
        deleting.append(time.perf_counter() - started)
        del resolver
    return {
        "name": name,
        "n": rounds,
        "inputs_frozen": is_frozen,
        **spread(seconds),
        "parse": spread(parsing),
        "then_delete_local": spread(deleting),
        "sets": len(changes.sets),
        "members": sum(len(change.added) for change in changes.sets),
        "rule_lists": len(changes.rules),
        "rules": sum(len(each.inbound) + len(each.outbound) for each in changes.rules),
        "workloads": len(changes.workloads),
        "listed": sum(
            len(tier.policies)
            for workload in changes.workloads
            for policies in (workload.inbound, workload.outbound)
            for tier in policies.tiers
        ),
        "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def single(sets: int, *, endpoints_count: int = 2000) -> dict[str, Any]:
    """One new endpoint a batch, each in exactly one of the sets (``alpha == "beta" && has(ipset-i)``)."""
    rules = tuple(Rule(src_selector=f'alpha == "beta" && has(ipset-{i})') for i in range(sets))
    resolver = PolicyResolver("localhost")
    resolver.apply(
        [
            (PolicyKey("default", "all"), Policy(selector="all()", inbound_rules=rules)),
            *endpoints(1, "localhost", first=0),
        ]
    )
    resolver.in_sync()
    resolver.flush()
    updates: Updates = [
        (
            WorkloadEndpointKey("remote", "k8s", f"wep-{i}", "eth0"),
            WorkloadEndpoint(
                state="active",
                name=f"cali{i}",
                profile_ids=(f"profile-{i}",),
                ipv4_nets=(IPNetwork((FIRST + 1 + i, 32), version=4),),
                labels={"alpha": "beta", "ipset-1": "true"},
            ),
        )
        for i in range(endpoints_count)
    ]
    seconds, members = [], 0
    for update in updates:
        started = time.perf_counter()
        resolver.apply((update,))
        changes = resolver.flush()
        seconds.append(time.perf_counter() - started)
        members += sum(len(change.added) for change in changes.sets)
    return {"name": f"single-{sets}", "n": endpoints_count, **spread(seconds), "members": members}


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "min_s": round(ordered[0], 7),
        "median_s": round(statistics.median(ordered), 7),
        "p95_s": round(ordered[int(len(ordered) * 0.95)] if len(ordered) > 1 else ordered[0], 7),
    }


def loop() -> None:
    counts: dict[int, int] = {}
    for i in range(1_000_000):
        k = (i * 2654435761) & 0xFFFF
        counts[k] = counts.get(k, 0) + 1


def alloc() -> None:
    values = [{"name": f"wep-{i}", "ip": i * 2654435761 & 0xFFFFFFFF} for i in range(300_000)]
    values.sort(key=lambda value: value["ip"])


def yardsticks() -> dict[str, float]:
    return {"loop_s": best(loop, 5), "alloc_s": best(alloc, 3)}


def best(run: Callable[[], None], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return round(min(seconds), 4)


def snapshots(name: str, updates: Updates, *, rounds: int) -> list[dict[str, Any]]:
    return [snapshot(name, updates, rounds=rounds, is_frozen=is_frozen) for is_frozen in (True, False)]


WORKLOADS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "tags": lambda: snapshots("tags", tags(), rounds=3),
    "netsets-1000": lambda: snapshots("netsets-1000", network_sets(1_000), rounds=3),
    "netsets-10000": lambda: snapshots("netsets-10000", network_sets(10_000), rounds=3),
    "single": lambda: [single(sets) for sets in (10, 100, 1_000)],
}


def main(names: list[str]) -> None:
    for name in names or ["tags", "netsets-1000", "single"]:
        before = yardsticks()
        for result in WORKLOADS[name]():
            result["yardsticks_before"], result["yardsticks_after"] = before, yardsticks()
            result["python"], result["kernel"] = platform.python_version(), platform.release()
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
