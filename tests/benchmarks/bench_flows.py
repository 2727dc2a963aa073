"""One flow put to 20,000 rules: the shape of the peers' benchmark "evaluate one flow" (3f).

``python tests/benchmarks/bench_flows.py`` prints JSON lines for a flow that walks through every rule and for one that
the first rule allows: in microseconds and in units (an iteration of the yardstick loop), by the plain evaluator, by
lists compiled before, and once with the compilation ("first").
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from netaddr import IPAddress
from pyroaring import FrozenBitMap

from calico_core.model.hoststate import (
    AddressSet,
    HostRule,
    HostRules,
    HostState,
    HostWorkload,
    PolicyList,
    RulesId,
    SetId,
    TierPolicies,
)
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.policy.compiled import Evaluator
from calico_core.policy.explain import Packet, explain_side
from tests.benchmarks import yardsticks

POLICIES, RULES_EACH = 294, 68
FLOW = Packet(src=IPAddress("192.0.2.10"), dst=IPAddress("198.51.100.20"), protocol=6, src_port=45000, dst_port=8080)
OTHER_PORT = ((65001, 65001),)


def world(chance: random.Random) -> tuple[HostState, list[SetId]]:
    """The sets: many small ones, a few large."""
    sizes = [0] * 4 + [chance.randint(1, 9) for _ in range(3035)] + [chance.randint(10, 99) for _ in range(446)]
    sizes += [chance.randint(100, 999) for _ in range(64)] + [chance.randint(1000, 9999) for _ in range(158)] + [54_566]
    state, first = HostState(), 0x0A000000
    for number, size in enumerate(sizes):
        state.sets[SetId(f"sel-{number:016x}")] = AddressSet(v4=FrozenBitMap(range(first, first + size)))
        first += size
    return state, list(state.sets)


def workload(state: HostState, sets: list[SetId], chance: random.Random, *, is_early: bool) -> HostWorkload:
    total = POLICIES * RULES_EACH
    odd = chance.sample(range(total), 11)
    actions: dict[int, Any] = {**dict.fromkeys(odd[1:], "deny"), odd[0]: "allow"}
    lists: list[RulesId] = []
    for policy in range(POLICIES):
        rules = [HostRule(action="allow")] if is_early and not policy else []
        for number in range(policy * RULES_EACH, (policy + 1) * RULES_EACH):
            fields: dict[str, Any] = {"action": actions.get(number, "pass"), "protocol": 6}
            side = "dst"
            if chance.random() < 0.242:
                side = chance.choice(["src", "dst"])
                fields[f"{side}_sets"] = (chance.choice(sets),)
            rules.append(HostRule(**fields, **{f"{side}_ports": OTHER_PORT}))
        lists.append(RulesId(f"policy/default/{'early' if is_early else 'all'}-{policy}"))
        state.rules[lists[-1]] = HostRules(id=lists[-1], inbound=tuple(rules))
    return HostWorkload(
        key=WorkloadEndpointKey("localhost", "k8s", "wep", "eth0"),
        interface="cali0",
        is_active=True,
        inbound=PolicyList(tiers=(TierPolicies(tier="default", policies=tuple(lists)),)),
    )


def timed(run: Callable[[], Any], rounds: int) -> list[float]:
    """CPU seconds of each round."""
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return seconds


def measure(*, is_early: bool) -> dict[str, list[float]]:
    """CPU seconds by the way a flow is put to the rules."""
    chance = random.Random(3)
    state, sets = world(chance)
    judged = workload(state, sets, chance, is_early=is_early)
    (step,) = explain_side(state, judged, "inbound", FLOW)
    assert step.outcome == ("allow" if is_early else "deny")
    evaluator = Evaluator(state)
    evaluator.explain_side(judged, "inbound", FLOW)  # the second time a list is asked for it is compiled
    seconds = {
        "first": timed(lambda: evaluator.explain_side(judged, "inbound", FLOW), 1),
        "plain": timed(lambda: explain_side(state, judged, "inbound", FLOW), 20),
        "compiled": timed(lambda: evaluator.explain_side(judged, "inbound", FLOW), 500),
    }
    assert evaluator.explain_side(judged, "inbound", FLOW) == [step]
    return seconds


def report_both() -> None:
    """The peers need 22,500 and 9 units."""
    for is_early, aim, compiled in ((False, 3 * 22_500, 22_500 / 10), (True, 3 * 9, 3 * 9)):
        before = yardsticks.measure()
        found = measure(is_early=is_early)
        ends = yardsticks.ends(before)
        unit = yardsticks.unit_s(before, ends["yardsticks_after"])
        shape = {"flow": "early" if is_early else "all rules", "rules": POLICIES * RULES_EACH + is_early}
        for way, seconds in found.items():
            units = round(statistics.median(seconds) / unit, 1)
            aims = {"plain": {"aim_units": aim}, "compiled": {"aim_units": compiled}}.get(way, {})
            yardsticks.report("3f", **shape, way=way, **yardsticks.cpu_us(seconds), units=units, **aims, **ends)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    report_both()


if __name__ == "__main__":
    main()
