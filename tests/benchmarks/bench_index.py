"""Costs of single operations of policy calculation: the peers' rows 3a to 3f.

``python tests/benchmarks/bench_index.py [3a … 3f]`` prints a JSON line a row and size, with the yardsticks before and
after. Times are CPU time; ``units`` are iterations of the yardstick loop, by its CPU time, and may be compared between
machines that run the same Python. Every row checks that what should have come out did.

3a, 3b and 3c speak to the address sets, which is where the peers' label index with its members is; each operation is
a batch of its own, unless ``batch`` says otherwise. 3f is ``bench_flows.py``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from calico_core.errors import InvalidSelector
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import SetId
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import Key, WorkloadEndpointKey
from calico_core.model.selectors import is_selector, parse_selector
from calico_core.policy.ip_sets import IpSets
from tests.benchmarks import bench_flows, yardsticks
from tests.benchmarks.policy_inputs import FIRST, net

Found = Iterator[tuple[dict[str, Any], list[float], float]]
"""Of one size: what it is, the seconds of one operation in each round, the aim in units."""
NEW = 10_000
PARENT_UPDATES, BATCH = 100_000, 1_000
SELECTORS = 100
TEXT = '! (a == "b"&&! c != "d") || !(a == "b" && !c != "d")'
NO_SELECTOR = '! (a == "b"&&! c != "d") || !(a == "b" && !c != )'
PATHS = (
    "/calico/v1/host/a-host/workload/k8s/default%2Fa-pod-0/endpoint/eth0",
    "/calico/v1/host/a-host/endpoint/eth1",
    "/calico/v1/policy/tier/default/policy/default%2Fa-policy",
    "/calico/v1/netset/a-network-set",
)
ROUNDS = 3


def endpoint(number: int, profile: str) -> tuple[Key, WorkloadEndpoint]:
    return WorkloadEndpointKey("remote", "k8s", f"wep-{number}", "eth0"), WorkloadEndpoint(
        state="active",
        name=f"cali{number}",
        profile_ids=(profile,),
        ipv4_nets=(net(FIRST + number),),
        labels={"alpha": "beta", "ipset-1": "true"},
    )


def endpoints(count: int) -> list[tuple[Key, WorkloadEndpoint]]:
    return [endpoint(number, f"namespace-{number}") for number in range(count)]


def a_set(sets: IpSets, number: int, text: str) -> None:
    sets.activate(SetId(f"set-{number:016x}"), parse_selector(text).root)


def flush(sets: IpSets) -> int:
    """Members added."""
    changes, _ = sets.flush()
    return sum(len(change.added) for change in changes)


def expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise RuntimeError(f"{found} came, not {wanted}")


def rounds_of(run: Callable[[], float]) -> list[float]:
    return [run() for _ in range(ROUNDS)]


# --- the rows ----------------------------------------------------------------------------------------


def one_endpoint() -> Found:
    """3a: a new endpoint, while so many selectors stand."""
    for count, aim in ((10, 4 * 48), (100, 186), (1_000, 1_710 / 8), (10_000, 29_000 / 100)):
        updates = endpoints(NEW)

        def run(count: int = count, updates: list[tuple[Key, WorkloadEndpoint]] = updates) -> float:
            sets = IpSets()
            for number in range(count):
                a_set(sets, number, f'alpha == "beta" && has(ipset-{number})')
            sets.flush()
            started, members = time.process_time(), 0
            for update in updates:
                sets.update_members((update,))
                members += flush(sets)
            seconds = time.process_time() - started
            expect(members, NEW)
            return seconds / NEW

        yield {"selectors": count}, rounds_of(run), aim


def one_parent() -> Found:
    """3b: other labels of a profile, while so many endpoints stand."""
    for count, go in ((100, 62), (1_000, 56), (10_000, 60), (100_000, 77)):
        standing = endpoints(count)
        labels = [
            {"projectcalico.org/name": f"namespace-{number}", "counter": str(number), "shared": "yes"}
            for number in range(PARENT_UPDATES)
        ]
        for batch, aim in ((1, 4 * go), (BATCH, 2 * go)):

            def run(batch: int = batch, standing: Any = standing, labels: Any = labels) -> float:
                sets = IpSets()
                for number in range(SELECTORS):
                    a_set(sets, number, f'projectcalico.org/name == "namespace-{number}"')
                sets.update_members(standing)
                sets.flush()
                started, members = time.process_time(), 0
                for first in range(0, PARENT_UPDATES, batch):
                    for number in range(first, first + batch):
                        sets.set_profile_labels(f"namespace-{number}", labels[number])
                    members += flush(sets)
                seconds = time.process_time() - started
                expect(members, SELECTORS)
                return seconds / PARENT_UPDATES

            yield {"endpoints": count, "batch": batch}, rounds_of(run), aim


def one_selector() -> Found:
    """3c: a new set, parsed already, while so many endpoints stand."""
    for count, aim in ((100, 4 * 51), (1_000, 507), (10_000, 6_030 / 5), (100_000, 131_000 / 5)):
        standing = endpoints(count)

        def run(count: int = count, standing: Any = standing) -> float:
            sets = IpSets()
            sets.update_members(standing)
            sets.flush()
            nodes = [parse_selector(f'alpha == "beta" && has(ipset-{number % 10})').root for number in range(SELECTORS)]
            started, members = time.process_time(), 0
            for number, node in enumerate(nodes):
                sets.activate(SetId(f"set-{number:016x}"), node)
                members += flush(sets)
            seconds = time.process_time() - started
            expect(members, count * SELECTORS // 10)
            return seconds / SELECTORS

        yield {"endpoints": count}, rounds_of(run), aim


def selectors() -> Found:
    """3d: parsed anew, found to be good or bad, and met again. The reason for a bad one is told to who asks for it:
    ``refuse`` is with it, ``validate bad`` the yes or no."""
    expect(parse_selector(TEXT).root.matches({"a": "b", "c": "d"}), False)

    def parse() -> object:
        parse_selector.cache_clear()
        return parse_selector(TEXT)

    def validate(text: str) -> bool:
        is_selector.cache_clear()
        return is_selector(text)

    expect([validate(TEXT), validate(NO_SELECTOR)], [True, False])

    def refuse() -> None:
        try:
            parse_selector(NO_SELECTOR)
        except InvalidSelector:
            return
        raise RuntimeError(f"{NO_SELECTOR} was taken")

    yield {"what": "parse"}, repeated(parse, 20_000), 20 * 26
    yield {"what": "validate"}, repeated(lambda: validate(TEXT), 100_000), 20 * 1.5
    yield {"what": "validate bad"}, repeated(lambda: validate(NO_SELECTOR), 100_000), 20 * 1.5
    yield {"what": "refuse"}, repeated(refuse, 20_000), 20 * 26
    parse_selector(TEXT)
    yield {"what": "again"}, repeated(lambda: parse_selector(TEXT), 1_000_000), 1


def keys() -> Found:
    """3e: a key of the datastore from its path, four kinds in turn. A network set is one of them in place of the
    peers' WireGuard, which we have not."""
    expect(len({type(parse_key(path)) for path in PATHS} - {type(None)}), len(PATHS))

    def parse() -> None:
        for path in PATHS:
            parse_key(path)

    yield {"what": "parse"}, [seconds / len(PATHS) for seconds in repeated(parse, 50_000)], 10 * 2


def repeated(run: Callable[[], object], times: int) -> list[float]:
    def many() -> float:
        started = time.process_time()
        for _ in range(times):
            run()
        return (time.process_time() - started) / times

    return rounds_of(many)


ROWS: dict[str, Callable[[], Found]] = {
    "3a": one_endpoint,
    "3b": one_parent,
    "3c": one_selector,
    "3d": selectors,
    "3e": keys,
}


def report_row(number: str) -> None:
    before = yardsticks.measure()
    found = list(ROWS[number]())
    ends = yardsticks.ends(before)
    unit = yardsticks.unit_s(before, ends["yardsticks_after"])
    for size, seconds, aim in found:
        units = round(statistics.median(seconds) / unit, 1)
        yardsticks.report(number, **size, **yardsticks.cpu_us(seconds), units=units, aim_units=round(aim, 1), **ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS, "3f"], help="default: all")
    given = parser.parse_args()
    for number in given.rows or [*ROWS, "3f"]:
        if number == "3f":
            bench_flows.report_both()
        else:
            report_row(number)


if __name__ == "__main__":
    main()
