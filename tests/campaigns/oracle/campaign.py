"""Cases through the town, one after the other: the resolver follows the records, the dataplane follows the resolver.

Each case is applied as changes to the one before, as a running agent would, so that incremental calculation and
incremental programming are tested along with the verdicts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from calico_core.model.hoststate import HostState
from calico_core.model.keys import Key
from calico_core.policy.resolver import PolicyResolver
from tests.campaigns.oracle.cases import FLOWS_A_CASE, HERE, Case, cases, flows_of
from tests.campaigns.oracle.flows import Flow
from tests.campaigns.oracle.judge import Fate, evaluators_verdict, is_evaluators_business, naive_fate
from tests.campaigns.oracle.town import Arrivals, Town

_TRIES = 3
"""A machine under load may lose a packet; a verdict that differs must differ every time."""


class Tally:
    """What a campaign found. ``differences``: of the smallest failing case, in words."""

    def __init__(self) -> None:
        self.cases = self.verdicts = 0
        self.outcomes: Counter[str] = Counter()
        self.differences: list[str] = []

    def summary(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))


class Differs(AssertionError):
    """Control flow for hypothesis, which shrinks the case."""


class Host:
    """The product's parts on the town's host."""

    def __init__(self, town: Town) -> None:
        self.town, self.state = town, HostState()
        self._resolver = PolicyResolver(HERE)
        self._resolver.in_sync()
        self._records: dict[Key, Any] = {}
        self._numbers = itertools.count(1000)
        self.follow({})

    def follow(self, records: dict[Key, Any]) -> None:
        gone = dict.fromkeys(self._records.keys() - records.keys())
        changed = {key: record for key, record in records.items() if self._records.get(key) != record}
        self._resolver.apply({**gone, **changed}.items())
        self._records = dict(records)
        changes = self._resolver.flush()
        if not changes:
            return
        self.state.update(changes)
        report = self.town.dataplane.apply(changes)
        if report.failures:
            raise Differs(f"the kernel refused: {report.failures}")

    def try_out(self, flows: dict[int, Flow], fates: dict[int, Fate]) -> Iterator[tuple[Flow, Fate, str]]:
        """What the kernel did that it should not have, packet by packet. Odd ones are sent again."""
        for attempt in range(_TRIES):
            self.town.forget_connections()
            awaited = [number for number, fate in fates.items() if fate.place is not None]
            answers = [number for number, fate in fates.items() if fate.answer not in (None, "whatever")]
            seen = self.town.exchange(flows, awaited, answers)
            odd = {number: said for number in flows if (said := _odd(fates[number], seen, number))}
            if not odd:
                return
            if attempt == _TRIES - 1:
                yield from ((flows[number], fates[number], said) for number, said in odd.items())
                return
            again = {next(self._numbers) + (1 << 24): number for number in odd}
            flows, fates = (
                {new: flows[old] for new, old in again.items()},
                {new: fates[old] for new, old in again.items()},
            )

    def number(self, count: int) -> int:
        first = next(self._numbers)
        for _ in range(count):
            next(self._numbers)
        return first


def _odd(fate: Fate, seen: Arrivals, number: int) -> str:
    """Empty: as it must be."""
    arrived = seen.arrived.get(number, set())
    if arrived != ({fate.place} if fate.place else set()):
        return f"arrived at {', '.join(sorted(arrived)) or 'no place'}"
    answered = seen.answered.get(number, set())
    if fate.answer == "whatever":
        return ""
    if answered != ({fate.answer} if fate.answer else set()):
        return f"was answered by {', '.join(sorted(answered)) or 'nothing'}"
    return ""


def check(host: Host, case: Case, tally: Tally) -> list[str]:
    """The differences, in words."""
    host.follow(case.records)
    flows = flows_of(case, host.number(FLOWS_A_CASE))
    fates = {number: naive_fate(case.records, flow) for number, flow in flows.items()}
    found = []
    for number, flow in flows.items():
        if not is_evaluators_business(case.records, flow):
            continue
        verdict = evaluators_verdict(host.state, flow)
        naive = "deny" if fates[number].outcome == "reject" else fates[number].outcome
        if verdict not in (naive, "unaffected") or (verdict == "unaffected" and naive != "allow"):
            found.append(f"{flow}: naive {naive}, evaluator {verdict}")
    for flow, fate, said in host.try_out(flows, fates):
        found.append(f"{flow}: must {fate.outcome} ({fate.place}, {fate.answer}), {said}")
    tally.cases += 1
    tally.verdicts += len(flows)
    tally.outcomes.update(fate.outcome for fate in fates.values())
    return found


def run(*, cases: int, seed: int, dataplane: str) -> Tally:
    tally = Tally()
    with Town(dataplane) as town:
        _search(Host(town), tally, cases, seed)
    return tally


def _search(host: Host, tally: Tally, count: int, start: int) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @seed(start)
    @given(case=cases())
    def explore(case: Case) -> None:
        found = check(host, case, tally)
        if found:
            records = "\n".join(f"  {key.path} = {record!r}" for key, record in case.records.items())
            tally.differences = [f"case {case.seed} with\n{records}", *found]
            raise Differs(found[0])

    try:
        explore()
    except Differs:
        tally.differences = tally.differences[1:] and [f"{tally.differences[0]}\n{each}" if not at else each
                                                       for at, each in enumerate(tally.differences[1:])]  # fmt: skip
