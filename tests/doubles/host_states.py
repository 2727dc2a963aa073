"""Small random states of a host, and the batches that lead from one to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from netaddr import EUI, IPNetwork

from calico_core.model.hoststate import (
    AddressSet,
    HostChanges,
    HostPools,
    HostRule,
    HostRules,
    HostState,
    HostWorkload,
    PolicyList,
    RulesId,
    SetChange,
    SetId,
    TierPolicies,
)
from calico_core.model.keys import WorkloadEndpointKey

if TYPE_CHECKING:
    from collections.abc import Callable

SETS = tuple(SetId(f"tag-000000000000000{n}") for n in range(3))
RULES = tuple(RulesId(name) for name in ("profile/a", "policy/default/b", "policy/other/b"))
MEMBERS = tuple(
    IPNetwork(text)
    for text in (
        "10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "fd00::1/128", "fd00::2/128",
        "10.0.0.0/31", "10.0.0.0/8", "fd00::/64", "255.255.255.0/24", "0.0.0.0/0",
    )
)  # fmt: skip
POOLS = (
    HostPools(),
    HostPools(all=(IPNetwork("10.0.0.0/8"),)),
    HostPools(all=(IPNetwork("10.0.0.0/8"), IPNetwork("10.0.0.0/16")), masquerade=(IPNetwork("10.0.0.0/16"),)),
    HostPools(all=(IPNetwork("fd00::/48"),), masquerade=(IPNetwork("fd00::/48"),)),
)


@st.composite
def host_states(draw: Callable[[Any], Any]) -> HostState:
    """Every reference in it leads somewhere."""
    state = HostState()
    for set_id in draw(st.sets(st.sampled_from(SETS))):
        state.sets[set_id] = AddressSet.of(draw(st.sets(st.sampled_from(MEMBERS), max_size=5)))
    sets = st.sets(st.sampled_from(sorted(state.sets)), max_size=2) if state.sets else st.just(set())
    for rules_id in draw(st.sets(st.sampled_from(RULES))):
        rules = [draw(_rules(sets)) for _ in range(2)]
        state.rules[rules_id] = HostRules(id=rules_id, inbound=rules[0], outbound=rules[1])
    for number in draw(st.sets(st.integers(1, 4))):
        workload = draw(_workloads(number, sorted(state.rules)))
        state.workloads[workload.key] = workload
    state.pools = draw(st.sampled_from(POOLS))
    return state


def whole(state: HostState) -> HostChanges:
    """The batch that brings all of a state."""
    return HostChanges(
        is_complete=True,
        sets=tuple(SetChange(id=set_id, is_new=True, added=members) for set_id, members in state.sets.items()),
        rules=tuple(state.rules.values()),
        workloads=tuple(state.workloads.values()),
        pools=state.pools,
    )


def step(before: HostState, after: HostState) -> HostChanges:
    """The batch that leads from one state to another."""
    sets: list[SetChange] = []
    for set_id, members in after.sets.items():
        had = before.sets.get(set_id)
        if had is None:
            sets.append(SetChange(id=set_id, is_new=True, added=members))
        elif had != members:
            sets.append(SetChange(id=set_id, added=members - had, removed=had - members))
    return HostChanges(
        sets=tuple(sets),
        rules=tuple(rules for rules in after.rules.values() if before.rules.get(rules.id) != rules),
        workloads=tuple(each for each in after.workloads.values() if before.workloads.get(each.key) != each),
        pools=after.pools if after.pools != before.pools else None,
        removed_sets=tuple(before.sets.keys() - after.sets.keys()),
        removed_rules=tuple(before.rules.keys() - after.rules.keys()),
        removed_workloads=tuple(before.workloads.keys() - after.workloads.keys()),
    )


@st.composite
def _rules(draw: Callable[[Any], Any], sets: Any) -> tuple[HostRule, ...]:
    rule = st.builds(
        HostRule,
        action=st.sampled_from(("allow", "deny", "pass", "log")),
        ip_version=st.sampled_from((None, 4, 6)),
        protocol=st.just(6),
        src_sets=sets.map(lambda found: tuple(sorted(found))),
        not_dst_sets=sets.map(lambda found: tuple(sorted(found))),
        dst_ports=st.sampled_from(((), ((80, 80),), ((80, 90), (85, 100), (7, 7)))),
        src_nets=st.lists(st.sampled_from(MEMBERS), max_size=3).map(tuple),
        not_src_nets=st.lists(st.sampled_from(MEMBERS), max_size=2).map(tuple),
        log_prefix=st.sampled_from((None, "hit")),
    )
    return tuple(draw(st.lists(rule, max_size=3)))


@st.composite
def _workloads(draw: Callable[[Any], Any], number: int, rules: list[RulesId]) -> HostWorkload:
    def policies() -> PolicyList:
        names = st.lists(st.sampled_from(rules), max_size=2, unique=True).map(tuple) if rules else st.just(())
        chosen = draw(names)
        action = draw(st.sampled_from(("deny", "pass")))
        tiers = (TierPolicies(tier="default", policies=chosen, default_action=action),) if chosen else ()
        return PolicyList(tiers=tiers, profiles=draw(names))

    return HostWorkload(
        key=WorkloadEndpointKey(host="h", orchestrator="test", workload=f"w{number}", endpoint="eth0"),
        # two of them may want the same interface
        interface=draw(st.sampled_from((f"cali{number}", "cali1"))),
        is_active=draw(st.booleans()),
        mac=draw(st.sampled_from((None, EUI("02:00:00:00:00:01"), EUI("02:00:00:00:00:02")))),
        nets=tuple(draw(st.sets(st.sampled_from(MEMBERS[:5]), max_size=2))),
        inbound=policies(),
        outbound=policies(),
    )
