"""From the state of a host to chains and sets, batch by batch."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netaddr import EUI, IPAddress, IPNetwork
from pyroaring import FrozenBitMap

from calico_core.dataplane.iptables.builder import TablesBuilder
from calico_core.dataplane.iptables.names import CHAIN_LENGTH, SET_LENGTH
from calico_core.dataplane.reconcile import Table
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.hoststate import (
    AddressSet,
    HostChanges,
    HostPeers,
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
from tests.doubles.host_states import host_states, step, whole

OPTIONS = DataplaneOptions(host="h")
BOTH = (4, 6)
WEB, TAG = RulesId("profile/web"), SetId("tag-00000000000000aa")


def a_workload(number: int = 1, *, profile: str = WEB, mac: EUI | None = None) -> HostWorkload:
    policies = PolicyList(profiles=(RulesId(profile),))
    return HostWorkload(
        key=WorkloadEndpointKey(host="h", orchestrator="test", workload=f"w{number}", endpoint="eth0"),
        interface=f"cali{number}",
        is_active=True,
        mac=mac,
        nets=(IPNetwork(f"10.65.0.{number}/32"),),
        inbound=policies,
        outbound=policies,
    )


def built(*changes: HostChanges, options: DataplaneOptions = OPTIONS) -> TablesBuilder:
    state = HostState()
    state.update(changes[0])
    made = TablesBuilder.of(options, BOTH, state)
    for each in changes[1:]:
        state.update(each)
        made.update(each, state)
    return made


def a_state(*workloads: HostWorkload, rule: HostRule | None = None) -> HostChanges:
    return HostChanges(
        is_complete=True,
        rules=(HostRules(id=WEB, inbound=(rule or HostRule(action="allow"),)),),
        workloads=workloads,
    )


def differences(one: TablesBuilder, other: TablesBuilder) -> list[str]:
    found = [
        f"{where} {name}"
        for where in one.desired.tables
        for name in one.desired.tables[where].differences(other.desired.tables[where])
    ]
    return found + one.desired.sets.differences(other.desired.sets)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(host_states(), min_size=2, max_size=4))
def test_batches_arrive_where_the_whole_does(states: list[HostState]) -> None:
    kept = HostState()
    kept.update(whole(states[0]))
    followed = TablesBuilder.of(OPTIONS, BOTH, kept)
    for before, after in itertools.pairwise(states):
        followed.desired.take_touched()
        copies = {where: Table(table.chains) for where, table in followed.desired.tables.items()}
        sets = Table(sets=followed.desired.sets.sets)
        batch = step(before, after)
        kept.update(batch)
        followed.update(batch, kept)
        expected = TablesBuilder.of(OPTIONS, BOTH, kept)
        assert differences(followed, expected) == []
        assert (followed.sources, followed.problems) == (expected.sources, expected.problems)
        # what it says it touched is all that changed
        touched = followed.desired.take_touched()
        for where, table in followed.desired.tables.items():
            assert set(table.differences(copies[where])) <= touched.chains.get(where, frozenset())
        assert set(followed.desired.sets.differences(sets)) <= touched.sets


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(host_states())
def test_every_chain_and_set_that_is_named_exists(state: HostState) -> None:
    made = TablesBuilder.of(OPTIONS, BOTH, state)
    for table in made.desired.tables.values():
        for name, chain in table.chains.items():
            assert len(name) <= CHAIN_LENGTH
            for words in (rule.split() for rule in chain.rules):
                for option, value in itertools.pairwise(words):
                    if option in ("-j", "-g") and value.startswith("calico-"):
                        assert value in table.chains
                    if option == "--match-set":
                        assert value in made.desired.sets.sets
    assert all(len(name) <= SET_LENGTH for name in made.desired.sets.sets)


def test_rule_that_cannot_be_expressed_drops_in_its_place() -> None:
    made = built(a_state(a_workload(), rule=HostRule(action="allow", dst_ports=((80, 80),))))
    assert made.problems == {WEB: "rule 1: ports: ports need a protocol that has them; it drops instead"}
    (chain,) = (
        chain for name, chain in made.desired.tables[4, "filter"].chains.items() if name.startswith("calico-pi-web")
    )
    assert [rule.partition(" -m comment")[0] for rule in chain.rules] == ["-j DROP"]


def test_rules_with_an_unknown_set_drop() -> None:
    made = built(a_state(a_workload(), rule=HostRule(action="allow", src_sets=(TAG,))))
    assert "set tag-00000000000000aa is not known" in made.problems[WEB]


def test_workload_whose_rules_are_missing_is_closed() -> None:
    made = built(a_state(a_workload(profile="profile/none")))
    (problem,) = made.problems.values()
    assert "there are no rules for profile/none" in problem
    assert not any("cali1" in rule for rule in made.desired.tables[4, "filter"].chains["calico-to"].rules)


def test_senders_are_known_by_mac_and_address() -> None:
    made = built(a_state(a_workload(mac=EUI("02:00:00:00:00:01"))))
    rules = made.desired.tables[4, "raw"].chains["calico-sp-cali1"].rules
    assert rules[0].startswith("-s 10.65.0.1/32 -m mac --mac-source 02:00:00:00:00:01 -j RETURN ")
    assert made.sources == {(4, "calico-sp-cali1"): frozenset({0x0A410001}), (6, "calico-sp-cali1"): frozenset()}


def test_a_set_that_gets_a_network_takes_another_name() -> None:
    first = HostChanges(
        is_complete=True,
        sets=(SetChange(id=TAG, is_new=True, added=AddressSet.of([IPNetwork("10.0.0.1/32")])),),
        rules=(HostRules(id=WEB, inbound=(HostRule(action="allow", src_sets=(TAG,)),)),),
    )
    wider = HostChanges(sets=(SetChange(id=TAG, added=AddressSet.of([IPNetwork("10.0.0.0/8")])),))
    assert sorted(built(first).desired.sets.sets) == [f"calico-{family}h-{TAG}" for family in (4, 6)]
    assert sorted(built(first, wider).desired.sets.sets) == [f"calico-{family}n-{TAG}" for family in (4, 6)]


def test_a_set_beyond_the_limit_drops_where_it_is_named() -> None:
    limit = 1000
    options = DataplaneOptions(max_set_size=limit)
    first = HostChanges(
        is_complete=True,
        sets=(SetChange(id=TAG, is_new=True, added=AddressSet(v4=FrozenBitMap(range(1, limit + 2)))),),
        rules=(HostRules(id=WEB, inbound=(HostRule(action="allow", src_sets=(TAG,)),)),),
    )
    made = built(first, options=options)
    assert set(made.problems) == {TAG, WEB}
    assert made.problems[TAG] == "more than 1000 members; rules that name it deny until it has shrunk"
    assert not made.desired.sets.sets
    smaller = HostChanges(sets=(SetChange(id=TAG, removed=AddressSet(v4=FrozenBitMap([1]))),))
    made = built(first, smaller, options=options)
    assert made.problems == {}
    assert len(made.desired.sets.sets[f"calico-4h-{TAG}"].elements) == limit


def test_without_ipv6_only_the_fixed_chains_stand() -> None:
    made = built(a_state(a_workload()), options=DataplaneOptions(is_ipv6_enabled=False))
    assert {rule.split(" -m comment")[0] for rule in made.desired.tables[6, "filter"].chains["calico-to"].rules} == {
        "-j DROP"
    }
    assert not any("-pi-" in name or "-tl-" in name for name in made.desired.tables[6, "filter"].chains)


def test_masquerade_stands_for_the_families_that_want_it() -> None:
    pool = IPNetwork("10.65.0.0/16")
    first = a_state()
    more = HostChanges(pools=HostPools(all=(pool,), masquerade=(pool,)))
    made = built(first, more)
    assert [bool(made.desired.tables[family, "nat"].chains) for family in BOTH] == [True, False]
    gone = built(first, more, HostChanges(pools=HostPools(all=(pool,))))
    assert not gone.desired.tables[4, "nat"].chains
    assert not gone.desired.sets.sets


LEAVING = "-m set --match-set calico-4n-masq src -m set ! --match-set calico-4n-pools dst"


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        ({}, [f"{LEAVING} -j MASQUERADE --random-fully"]),
        ({"nat_address": IPAddress("192.0.2.7")}, [f"{LEAVING} -j SNAT --to-source 192.0.2.7 --random-fully"]),
        ({"nat_address": IPAddress("2001:db8::7")}, [f"{LEAVING} -j MASQUERADE --random-fully"]),
        (
            {"nat_ports": (5, 9), "nat_interfaces": "eth+"},
            [
                f"-p 6 -o eth+ {LEAVING} -j MASQUERADE --to-ports 5-9 --random-fully",
                f"-p 17 -o eth+ {LEAVING} -j MASQUERADE --to-ports 5-9 --random-fully",
                f"-o eth+ {LEAVING} -j MASQUERADE --random-fully",
            ],
        ),
        (
            {"nat_ports": (5, 9), "nat_address": IPAddress("192.0.2.7")},
            [
                f"-p 6 {LEAVING} -j SNAT --to-source 192.0.2.7:5-9 --random-fully",
                f"-p 17 {LEAVING} -j SNAT --to-source 192.0.2.7:5-9 --random-fully",
                f"{LEAVING} -j SNAT --to-source 192.0.2.7 --random-fully",
            ],
        ),
    ],
)
def test_what_leaves_the_pools(given: dict[str, Any], rules: list[str]) -> None:
    net = IPNetwork("10.0.0.0/16")
    pools = HostPools(all=(net,), masquerade=(net,), hosts=(IPAddress("192.0.2.1"), IPAddress("2001:db8::1")))
    options: Any = msgspec.structs.replace(OPTIONS, **given)
    desired = built(HostChanges(is_complete=True, pools=pools), options=options).desired
    texts = [rule.partition(" -m comment ")[0] for rule in desired.tables[4, "nat"].chains["calico-POSTROUTING"].rules]
    assert texts == rules
    assert desired.sets.sets["calico-4n-pools"].elements == {(net.first, 16)}
    options = msgspec.structs.replace(options, nat_spares_hosts=True)
    desired = built(HostChanges(is_complete=True, pools=pools), options=options).desired
    assert desired.sets.sets["calico-4n-pools"].elements == {(net.first, 16), (int(IPAddress("192.0.2.1")), 32)}


def test_external_peers_are_peers() -> None:
    peers = HostPeers((IPAddress("192.0.2.1"),), is_ipip=True)
    for nets, name, elements in (
        ((), "calico-4h-peers", FrozenBitMap([int(IPAddress("192.0.2.1"))])),
        (("198.51.100.0/24",), "calico-4n-peers", {(int(IPAddress("192.0.2.1")), 32), (0xC6336400, 24)}),
    ):
        options: Any = msgspec.structs.replace(OPTIONS, external_peers=tuple(map(IPNetwork, nets)))
        desired = built(HostChanges(is_complete=True, peers=peers), options=options).desired
        assert desired.sets.sets[name].elements == elements
        (rule, *_) = desired.tables[4, "filter"].chains["calico-INPUT"].rules
        assert rule.startswith(f"-p 4 -m set --match-set {name} src -j ACCEPT")


@pytest.mark.parametrize("option", ["allows_ipip", "allows_vxlan"])
def test_what_workloads_encapsulate_is_dropped_unless_it_is_allowed(option: str) -> None:
    def texts(options: Any) -> set[str]:
        tables = built(HostChanges(is_complete=True), options=options).desired.tables
        return {rule.partition(" -m comment ")[0] for rule in tables[4, "raw"].chains["calico-wl-src"].rules}

    allowed: Any = msgspec.structs.replace(OPTIONS, **{option: True})
    drops = {"allows_ipip": "-p 4 -j DROP", "allows_vxlan": "-p 17 -m udp --dport 4789 -j DROP"}
    assert texts(OPTIONS) - texts(allowed) == {drops[option]}


def test_vxlan_of_workloads_is_dropped_as_it_is_translated_too() -> None:
    def texts(chain: str, **changes: Any) -> list[str]:
        options: Any = msgspec.structs.replace(OPTIONS, endpoint_to_host="RETURN", **changes)
        tables = built(HostChanges(is_complete=True), options=options).desired.tables
        return [rule.partition(" -m comment ")[0] for rule in tables[4, "filter"].chains[chain].rules]

    drop = "-p 17 -m udp --dport 4789 -j DROP"
    for chain, interface in (("calico-wl", "-i cali+ "), ("calico-wl-host", "")):
        rules = texts(chain)
        asked = rules.index(f"{interface}-j calico-from")
        assert rules[asked - 1] == interface + drop  # of new connections alone, before policy
        assert "4789" not in str(texts(chain, allows_vxlan=True))


def test_nothing_of_a_workload_goes_to_the_loopback() -> None:
    tables = built(HostChanges(is_complete=True)).desired.tables
    *_, loopback, source = tables[4, "raw"].chains["calico-wl-src"].rules
    assert loopback.startswith("-d 127.0.0.0/8 -j DROP -m comment")
    assert source.startswith("-g calico-src -m comment")
    assert "127.0.0.0/8" not in str(tables[6, "raw"].chains["calico-wl-src"].rules)


def test_what_belongs_to_no_connection_is_left_to_policy_if_that_is_wanted() -> None:
    for drops in (True, False):
        options: Any = msgspec.structs.replace(OPTIONS, drops_invalid=drops)
        tables = built(HostChanges(is_complete=True), options=options).desired.tables
        for name in ("calico-wl", "calico-wl-host"):
            assert any("--ctstate INVALID" in rule for rule in tables[4, "filter"].chains[name].rules) is drops


def test_what_policy_allows_is_the_last_word_or_not() -> None:
    options: Any = msgspec.structs.replace(OPTIONS, filter_allow="RETURN")
    rules = built(HostChanges(is_complete=True), options=options).desired.tables[4, "filter"].chains["calico-wl"].rules
    ends = [rule.partition(" -m comment --comment")[0].rpartition(" ")[2] for rule in rules]
    assert ends == ["DROP", "RETURN", "DROP", "calico-from", "calico-to", "RETURN"]


def test_a_policy_more_touches_the_lists_and_the_ways_to_them_alone() -> None:
    """Nobody's senders, and no tree of the other direction."""
    bench = RulesId("policy/default/bench")
    before = a_state(*(a_workload(number) for number in range(1, 30)))
    made = built(before)
    made.desired.take_touched()
    state = HostState()
    state.update(before)
    listed = PolicyList(tiers=(TierPolicies(tier="default", policies=(bench,)),), profiles=(WEB,))
    concerned = tuple(msgspec.structs.replace(a_workload(number), inbound=listed) for number in range(1, 28))
    change = HostChanges(rules=(HostRules(id=bench, inbound=(HostRule(action="allow"),)),), workloads=concerned)
    state.update(change)
    made.update(change, state)
    touched = made.desired.take_touched()
    assert set(touched.chains) == {(4, "filter"), (6, "filter")}
    for names in touched.chains.values():
        kinds = {name.split("-")[1] for name in names}
        assert kinds == {"pi", "po", "tl", "to"}
        assert len([name for name in names if name.startswith("calico-tl-")]) == 1  # two use the old one still


def test_a_list_has_a_rule_a_policy() -> None:
    """And looks now and then whether the packet is accepted: always at the end of a tier."""
    names = tuple(RulesId(f"policy/default/p{number}") for number in range(20))
    rules = tuple(HostRules(id=name, inbound=(HostRule(action="allow"),)) for name in names)
    listed = PolicyList(tiers=(TierPolicies(tier="default", policies=names),), profiles=(WEB,))
    workload = msgspec.structs.replace(a_workload(), inbound=listed)
    state = a_state(workload)
    made = built(msgspec.structs.replace(state, rules=(*state.rules, *rules)))
    (name,) = (each for each in made.desired.tables[4, "filter"].chains if each.startswith("calico-tl-"))
    chain = made.desired.tables[4, "filter"].chains[name].rules
    jumps = [rule for rule in chain if "-j calico-pi-" in rule]
    returns = [number for number, rule in enumerate(chain) if rule.partition(" -m comment")[0].endswith("-j RETURN")]
    assert len(jumps) == len(names) + 1
    assert len(returns) == 2 + 1 + 1  # after eight, after sixteen, after the tier, after the profile
    assert all("--mark 0x0/" in rule for rule in jumps[1:20])
