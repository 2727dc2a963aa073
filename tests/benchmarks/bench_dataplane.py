"""The policy table of a host in the kernel: one element, one chain, full load, resync; and a table of routes.

``python tests/benchmarks/bench_dataplane.py [100|500|2000|policies|endpoint|many|routes] …``. Needs root and ``nft``.
The table is that of the peer's benchmark: S sets of M addresses, P chains of ten rules (TCP from a set to a port). The
yardstick Y-nft is the program ``nft`` on the same table, measured beside: ``nft -f`` of the text ``nft list`` gives,
and the list itself. Prints a JSON line a workload. Everything happens in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any

from pyroaring import FrozenBitMap

from calico_core.dataplane.linux.netlink import Request
from calico_core.dataplane.linux.prefix import Prefix
from calico_core.dataplane.linux.route_messages import Route, replace_route
from calico_core.dataplane.linux.routes import observe, plan_routes
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.dataplane.nftables.policy_table import PolicyTable
from calico_core.dataplane.reconcile import Plan
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.hoststate import (
    AddressSet,
    HostChanges,
    HostRule,
    HostRules,
    HostState,
    HostWorkload,
    PolicyList,
    RulesId,
    SetChange,
)
from tests.benchmarks import nft, yardsticks
from tests.benchmarks.namespaces import a_namespace
from tests.benchmarks.policy_tables import FIRST, TCP, a_workload, from_set, new_sets, one_tier, set_id
from tests.command_line import require_root

TABLES = {"100": (100, 20, 100), "500": (500, 50, 500), "2000": (2000, 100, 2000)}


class Bench:
    """A policy table in a namespace, and the state it was given."""

    def __init__(self, name: str, namespace_fd: int) -> None:
        self._name = name
        self.policy = PolicyTable(DataplaneOptions(is_ipv6_enabled=False), namespace_fd)
        self.state = HostState()

    def take(self, changes: HostChanges) -> float:
        """Seconds until the kernel has it."""
        self.state.update(changes)
        started = time.perf_counter()
        report = self.policy.follow(changes, self.state)
        seconds = time.perf_counter() - started
        if report.failures or not report.changes:
            raise RuntimeError(f"refused, or nothing was done: {report}")
        return seconds

    def forget_and_resync(self) -> float:
        """As a fresh process would: nothing is known of the kernel; it is right already."""
        self.policy._generation = -1
        started = time.perf_counter()
        report = self.policy.resync()
        seconds = time.perf_counter() - started
        if report.changes or report.failures or report.healed:
            raise RuntimeError(f"the kernel was not right: {report}")
        return seconds

    def lead_somewhere(self, interface: str) -> float:
        """One element of the verdict map and nothing else, sent as it is; and back again, not timed."""
        observed = self.policy._observed
        assert observed is not None
        (_, somewhere) = next(iter(observed.sets["wl_to"].elements))
        element = frozenset({(interface, somewhere)})
        started = time.perf_counter()
        self.policy._socket.change(Plan(added_elements={"wl_to": element}), observed, observed)
        seconds = time.perf_counter() - started
        self.policy._socket.change(Plan(removed_elements={"wl_to": element}), observed, observed)
        self.policy._generation = self.policy._socket.generation()
        return seconds

    def unchanged_resync(self) -> float:
        started = time.perf_counter()
        self.policy.resync()
        return time.perf_counter() - started

    def yardstick_nft(self, rounds: int = 3) -> dict[str, float]:
        """What ``nft`` needs for the same, loading it into a namespace that has nothing."""
        with a_namespace() as (empty, _):
            return nft.yardstick(rounds=rounds, namespace=self._name, into=empty)

    def close(self) -> None:
        self.policy.close()


@contextmanager
def a_bench() -> Any:
    with a_namespace() as (name, descriptor):
        made = Bench(name, descriptor)
        try:
            yield made
        finally:
            made.close()


def peer_table(sets: int, members: int, chains: int) -> HostChanges:
    """With one endpoint whose list jumps to each chain, as the peer's base chain does: the kernel walks what can be
    reached."""
    inbound = one_tier(RulesId(f"policy/p-{number}") for number in range(chains))
    return HostChanges(
        is_complete=True,
        sets=new_sets(sets, members),
        rules=tuple(chain_of(number, sets, range(10)) for number in range(chains)),
        workloads=(a_workload(0, inbound=inbound, outbound=PolicyList()),),
    )


def chain_of(number: int, sets: int, rules: Iterable[int], port: int = 1000) -> HostRules:
    return HostRules(
        id=RulesId(f"policy/p-{number}"),
        inbound=tuple(from_set((10 * number + rule) % sets, port + rule, "pass") for rule in rules),
    )


def table(size: str) -> None:
    sets, members, chains = TABLES[size]
    before = yardsticks.measure()
    with a_bench() as bench:
        load = [bench.take(peer_table(sets, members, chains))]
        reference = bench.yardstick_nft()
        added, removed = [], []
        for number in range(200):
            change = AddressSet(v4=FrozenBitMap([0x0B000000 + number]))
            added.append(bench.take(HostChanges(sets=(SetChange(id=set_id(0), added=change),))))
            removed.append(bench.take(HostChanges(sets=(SetChange(id=set_id(0), removed=change),))))
        chain = [
            bench.take(HostChanges(rules=(chain_of(0, sets, range(1), port=2000 + turn % 2),))) for turn in range(100)
        ]
        resync = [bench.forget_and_resync() for _ in range(3)]
        unchanged = [bench.unchanged_resync() for _ in range(100)]
        reference_after = bench.yardstick_nft()
    with a_bench() as bench:
        load.append(bench.take(peer_table(sets, members, chains)))
    ends = {"nft_before": reference, "nft_after": reference_after, **yardsticks.ends(before)}
    list_s, load_s = (min(reference[key], reference_after[key]) for key in ("list_s", "load_s"))
    shape = {"sets": sets, "members": members, "chains": chains}
    yardsticks.report("4a-element-added", **shape, **yardsticks.summary(added), **ends)
    yardsticks.report("4a-element-removed", **shape, **yardsticks.summary(removed), **ends)
    yardsticks.report("4b-chain", **shape, **yardsticks.summary(chain), **ends)
    yardsticks.report(
        "4c-resync", **shape, **yardsticks.summary(resync), to_nft_list=round(min(resync) / list_s, 2), **ends
    )
    yardsticks.report("4c-generation", **shape, **yardsticks.summary(unchanged), **ends)
    yardsticks.report("4-load", **shape, **yardsticks.summary(load), to_nft_load=round(min(load) / load_s, 2), **ends)


def policies(count: int = 10_000) -> None:
    """10,000 policies on a host, text and transaction, beside one ``nft -f`` of the same."""
    before = yardsticks.measure()
    load = []
    reference: dict[str, float] = {}
    for _ in range(3):
        with a_bench() as bench:
            load.append(bench.take(peer_table(100, 20, count)))
            found = bench.yardstick_nft(1)
            reference = {key: min(value, reference.get(key, value)) for key, value in found.items()}
    yardsticks.report(
        "policies", policies=count, **yardsticks.summary(load), nft=reference,
        to_nft_load=round(min(load) / reference["load_s"], 2), **yardsticks.ends(before),
    )  # fmt: skip


def endpoint(count: int = 1000) -> None:
    """One endpoint more on a host of 1,000, beside the smallest transactions there are: one element of a set, and one
    of the map from interfaces to chains, after which the kernel walks all chains from every hook."""
    before = yardsticks.measure()
    with a_bench() as bench:
        changes = peer_table(100, 20, 100)
        lists = [one_tier([RulesId(f"policy/p-{number % 100}")]) for number in range(count + 1)]
        bench.take(
            HostChanges(
                is_complete=True,
                sets=changes.sets,
                rules=changes.rules,
                workloads=tuple(
                    a_workload(number, inbound=lists[number], outbound=lists[number]) for number in range(count)
                ),
            )
        )
        added, removed, smallest, verdict = [], [], [], []
        for turn in range(100):
            verdict.append(bench.lead_somewhere(f"cali{count}"))
            one = a_workload(count, inbound=lists[count], outbound=lists[count])
            added.append(bench.take(HostChanges(workloads=(one,))))
            removed.append(bench.take(HostChanges(removed_workloads=(one.key,))))
            change = AddressSet(v4=FrozenBitMap([0x0B000000 + turn]))
            smallest.append(bench.take(HostChanges(sets=(SetChange(id=set_id(0), added=change),))))
    ends = yardsticks.ends(before)
    smallest_ms, verdict_ms = yardsticks.summary(smallest), yardsticks.summary(verdict)
    for name, seconds in (("endpoint-added", added), ("endpoint-removed", removed)):
        found = yardsticks.summary(seconds)
        ratios = {
            "to_smallest": round(found["median_ms"] / smallest_ms["median_ms"], 2),
            "to_smallest_verdict": round(found["median_ms"] / verdict_ms["median_ms"], 2),
        }
        yardsticks.report(
            name, endpoints=count, **found, smallest=smallest_ms, smallest_verdict=verdict_ms, **ratios, **ends
        )


def many(count: int = 100) -> None:
    """A policy comes to nine of ten endpoints, and goes: each tenth of them has a list of policies of its own."""
    before = yardsticks.measure()

    def rules(name: str) -> HostRules:
        rule = HostRule(action="allow", protocol=TCP, src_sets=(set_id(0),), dst_ports=((1000, 1000),))
        return HostRules(id=RulesId(name), inbound=(rule,))

    profile = RulesId("profile/x")
    named = [[RulesId(f"policy/p{number}") for number in range(group, 100, 10)] for group in range(10)]

    def endpoints(numbers: Iterable[int], *more: RulesId) -> tuple[HostWorkload, ...]:
        lists = [one_tier((*named[group], *more), profile) for group in range(10)]
        outbound = PolicyList(profiles=(profile,))
        return tuple(a_workload(number, inbound=lists[number % 10], outbound=outbound) for number in numbers)

    everybody, concerned = range(count), [number for number in range(count) if number % 10]
    policy = rules("policy/bench")
    added, deleted = [], []
    with a_bench() as bench:
        bench.take(
            HostChanges(
                is_complete=True,
                sets=peer_table(11, 20, 0).sets,
                rules=(*(rules(f"policy/p{number}") for number in range(100)), rules(profile)),
                workloads=endpoints(everybody),
            )
        )
        for _ in range(40):
            added.append(bench.take(HostChanges(rules=(policy,), workloads=endpoints(concerned, policy.id))))
            deleted.append(bench.take(HostChanges(removed_rules=(policy.id,), workloads=endpoints(concerned))))
    ends = yardsticks.ends(before)
    for name, seconds in (("policy-of-90-added", added), ("policy-of-90-deleted", deleted)):
        yardsticks.report(name, endpoints=len(concerned), **yardsticks.summary(seconds), **ends)


def routes() -> None:
    """Everything is right already: dump the table, parse it, compare."""
    for count in (1024, 4096, 65536):
        before = yardsticks.measure()
        with a_namespace() as (name, descriptor):
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
            with RouteSocket(descriptor) as route_socket:
                wanted = [
                    Route(destination=Prefix(socket.AF_INET, (FIRST + number).to_bytes(4, "big"), 32), index=1)
                    for number in range(count)
                ]
                requests: list[Request] = [replace_route(each) for each in wanted]
                failed = [each.error for each in route_socket.attempt(requests) if each.error is not None]
                if failed:
                    raise RuntimeError(str(failed[0]))
                seconds = []
                for _ in range(5):
                    started = time.perf_counter()
                    plan = plan_routes(wanted, observe(route_socket))
                    seconds.append(time.perf_counter() - started)
                    if plan:
                        raise RuntimeError("the routes were not right")
        yardsticks.report(
            "4d-routes", routes=count, **yardsticks.summary(seconds), us_a_route=round(min(seconds) / count * 1e6, 2),
            **yardsticks.ends(before),
        )  # fmt: skip


WORKLOADS: dict[str, Callable[[], None]] = {
    **{size: partial(table, size) for size in TABLES},
    "policies": policies,
    "endpoint": endpoint,
    "many": many,
    "routes": routes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *WORKLOADS], help="default: all")
    names = parser.parse_args().names
    require_root(parser)
    for name in names or WORKLOADS:
        WORKLOADS[name]()


if __name__ == "__main__":
    main()
