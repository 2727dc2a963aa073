"""The table as a whole: what endpoints share, how things are named, what a whole script looks like."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from netaddr import EUI, IPNetwork

from calico_core.dataplane.nftables.builder import TableBuilder
from calico_core.dataplane.nftables.names import kernel_name
from calico_core.dataplane.nftables.script import render_plan
from calico_core.dataplane.reconcile import reconcile
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
    SetId,
    TierPolicies,
)
from calico_core.model.keys import WorkloadEndpointKey

OPTIONS = DataplaneOptions(host="h", is_ipv6_enabled=False)
TAG = SetId("tag-00000000000000aa")
WEB, FIRST, SECOND = RulesId("profile/web"), RulesId("policy/t/first"), RulesId("policy/t/second")


def a_workload(number: int, **more: Any) -> HostWorkload:
    policies = PolicyList(profiles=(WEB,))
    made = HostWorkload(
        key=WorkloadEndpointKey(host="h", orchestrator="o", workload=f"w{number}", endpoint="e"),
        interface=f"cali{number}",
        is_active=True,
        mac=EUI(number),
        nets=(IPNetwork(f"10.0.0.{number}/32"),),
        inbound=policies,
        outbound=policies,
    )
    return msgspec.structs.replace(made, **more)


class Built:
    """A builder with the state it follows."""

    def __init__(self) -> None:
        self.state, self.builder = HostState(), TableBuilder(OPTIONS)
        self.update(
            sets=(SetChange(id=TAG, is_new=True, added=AddressSet.of([IPNetwork("10.0.0.1/32")])),),
            rules=tuple(
                HostRules(id=each, inbound=(HostRule(action="allow", src_sets=(TAG,)),))
                for each in (WEB, FIRST, SECOND)
            ),
        )

    def update(self, **changes: Any) -> set[str]:
        batch = HostChanges(**changes)
        self.state.update(batch)
        return self.builder.update(batch, self.state)

    def lists(self) -> list[str]:
        return [name for name in self.builder.table.chains if name.startswith(("from_", "to_")) and "work" not in name]


def test_endpoints_with_equal_lists_share_a_chain() -> None:
    built = Built()
    built.update(workloads=(a_workload(1),))
    assert len(built.lists()) == 2
    touched = built.update(workloads=(a_workload(2),))
    assert touched == {"wl_from", "wl_to", "src_mac4"}, "elements alone"
    built.update(removed_workloads=(a_workload(1).key,))
    assert len(built.lists()) == 2
    touched = built.update(removed_workloads=(a_workload(2).key,))
    assert built.lists() == []
    assert len(touched) == 5


def test_one_member_touches_one_set() -> None:
    built = Built()
    change = SetChange(id=TAG, added=AddressSet.of([IPNetwork("10.0.0.2/32")]))
    assert built.update(sets=(change,)) == {"h4_tag_00000000000000aa"}


def test_a_network_makes_it_another_set_and_rewrites_its_users() -> None:
    built = Built()
    change = SetChange(id=TAG, added=AddressSet.of([IPNetwork("10.1.0.0/16")]))
    touched = built.update(sets=(change,))
    assert {"h4_tag_00000000000000aa", "r4_tag_00000000000000aa"} <= touched
    texts = [rule for chain in built.builder.table.chains.values() for rule in chain.rules]
    assert not [text for text in texts if "@h4_tag" in text]
    assert len([text for text in texts if "@r4_tag" in text]) == 3


def test_list_chain() -> None:
    built = Built()
    policies = PolicyList(
        tiers=(
            TierPolicies(tier="t", policies=(FIRST, SECOND)),
            TierPolicies(tier='u"', policies=(FIRST,), default_action="pass"),
        ),
        profiles=(WEB,),
    )
    built.update(workloads=(a_workload(1, inbound=policies),))
    (name,) = [name for name in built.lists() if name.startswith("to_")]
    first, second, web = (kernel_name("pi", each) for each in (FIRST, SECOND, WEB))
    rules = [rule.partition(" comment ")[0] for rule in built.builder.table.chains[name].rules]
    assert rules == [
        "meta mark set meta mark & 0xfcffffff",
        f"jump {first}",
        f"meta mark & 0x03000000 == 0 jump {second}",
        "meta mark & 0x01000000 != 0 return",
        "meta mark & 0x02000000 == 0 counter drop",
        "meta mark set meta mark & 0xfdffffff",
        f"jump {first}",
        "meta mark & 0x01000000 != 0 return",
        f"jump {web}",
        "meta mark & 0x01000000 != 0 return",
        "counter drop",
    ]


def test_an_address_that_a_record_names_twice_stays_as_long_as_it_is_named() -> None:
    built = Built()
    first, second = (IPNetwork(f"10.0.0.{number}/32") for number in (1, 2))
    for nets in ((first, first), (first, second), (second, second), (second,)):
        built.update(workloads=(a_workload(1, nets=nets),))
        known = {element[-1] for element in built.builder.table.sets["src_mac4"].elements}
        assert known == {net.first for net in nets}


def test_accepted_packet_passes_eight_jumps_at_most() -> None:
    built = Built()
    names = tuple(RulesId(f"policy/t/p{number}") for number in range(17))
    built.update(rules=tuple(HostRules(id=each, inbound=(HostRule(action="allow"),)) for each in names))
    policies = PolicyList(tiers=(TierPolicies(tier="t", policies=names),))
    built.update(workloads=(a_workload(1, inbound=policies),))
    (name,) = [name for name in built.lists() if name.startswith("to_")]
    rules = [rule.partition(" comment ")[0] for rule in built.builder.table.chains[name].rules]
    returns = [at for at, rule in enumerate(rules) if rule.endswith(" return")]
    assert returns == [9, 18, 20]
    assert all("jump pi_p" in rule for at, rule in enumerate(rules[1:20], 1) if at not in returns)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"interface": "eth0"}, "must start with"),
        ({"interface": 'cali"'}, "not an interface name"),
        ({"inbound": PolicyList(profiles=(RulesId("profile/no"),))}, "profile/no"),
        ({"nets": (IPNetwork("10.0.0.0/24"),)}, "wider"),
    ],
    ids=str,
)
def test_workload_that_cannot_be_is_named(more: dict[str, Any], said: str) -> None:
    built = Built()
    wrong = a_workload(1, **more)
    built.update(workloads=(wrong, a_workload(2)))
    assert list(built.builder.problems) == [wrong.key.path]
    assert said in built.builder.problems[wrong.key.path]
    built.update(workloads=(a_workload(1),))
    assert built.builder.problems == {}


def test_closed_subjects_stay_wanted_and_shut() -> None:
    built = Built()
    built.update(workloads=(a_workload(1), a_workload(2)))
    closed = TableBuilder.of(OPTIONS, built.state, {a_workload(1).key.path: "no", WEB: "no"})
    assert {interface for interface, _ in closed.table.sets["wl_to"].elements} == {"cali2"}
    (rule,) = closed.table.chains[kernel_name("pi", WEB)].rules
    assert rule.startswith("counter drop")


def test_closed_set_closes_the_rules_that_name_it() -> None:
    closed = TableBuilder.of(OPTIONS, Built().state, {TAG: "no"})
    assert set(closed.problems) == {WEB, FIRST, SECOND}
    assert not closed.table.sets["h4_tag_00000000000000aa"].elements
    assert not [rule for chain in closed.table.chains.values() for rule in chain.rules if "@h4_tag" in rule]


def test_subjects_of_lines() -> None:
    built = Built()
    built.update(workloads=(a_workload(1),))
    builder = built.builder
    lines, subjects = render_plan(reconcile(builder.table, None), builder.table, None, builder.subject_of)
    by_subject = {
        subject: [line for line, of in zip(lines, subjects, strict=True) if of == subject] for subject in subjects
    }
    assert set(by_subject) == {"", WEB, FIRST, SECOND, TAG, a_workload(1).key.path}
    own = by_subject[a_workload(1).key.path]
    assert 'add element inet calico src_mac4 { "cali1" . 00:00:00:00:00:01 . 10.0.0.1 }' in own
    assert "add element inet calico h4_tag_00000000000000aa { 10.0.0.1 }" in by_subject[TAG]
    assert lines[:3] == ["add table inet calico", "delete table inet calico", "add table inet calico"]


@pytest.mark.parametrize("identity", ["profile/" + "x" * 200, "policy/a/ü", "tag-00000000000000aa", "", "__"])
def test_names_are_legal_and_short(identity: str) -> None:
    name = kernel_name("h4", identity)
    assert len(name) <= 31
    assert name.replace("_", "").isalnum()
    assert name.isascii()
    assert name != kernel_name("h4", identity + "a")


def test_prefixes_bring_a_chain_of_the_interface_and_take_it_along() -> None:
    built = Built()
    prefixes = (IPNetwork("198.51.100.0/25"), IPNetwork("198.51.100.128/26"), IPNetwork("2001:db8::/64"))
    allowed = a_workload(1, allowed_source_prefixes=prefixes)
    built.update(workloads=(allowed, a_workload(2)))
    ((interface, name),) = built.builder.table.sets["wl_source"].elements
    assert interface == "cali1"
    passing, dropping = built.builder.table.chains[name].rules
    assert passing.startswith("ether saddr 00:00:00:00:00:01 ip saddr 198.51.100.0-198.51.100.191 return")
    assert " drop " in dropping
    assert built.update(workloads=(a_workload(1, allowed_source_prefixes=prefixes[1:]),)) == {name}
    touched = built.update(workloads=(a_workload(1, allowed_source_prefixes=prefixes[2:]),))
    assert touched >= {name, "wl_source"}, "there is no IPv6 here"
    assert name not in built.builder.table.chains
    assert not built.builder.table.sets["wl_source"].elements


@pytest.mark.parametrize(
    ("rules", "first"),
    [
        ([{"dst_ports": ((80 + number, 80 + number),)} for number in range(4)], "th dport != 80-83 return"),
        ([{"dst_ports": ((80 + number, 80 + number),)} for number in range(3)], "meta l4proto 6 th dport 80 "),
        ([{"dst_ports": ((80, 80),)} for number in range(4)], "th dport != 80-80 return"),
        ([{}, *({"dst_ports": ((80, 80),)} for number in range(4))], "meta l4proto 6 counter"),
        # neither may be turned back whom a rule that cannot be expressed denies
        ([{"action": "allowed"}, *({"dst_ports": ((80, 80),)} for number in range(4))], "counter drop"),
        ([{"action": "x", "dst_ports": ((80, 80),)}, *({"dst_ports": ((80, 80),)} for _ in range(4))], "counter drop"),
    ],
)
def test_a_guard_before_many_rules_with_ports(rules: list[dict[str, Any]], first: str) -> None:
    built = Built()
    built.update(
        rules=(
            HostRules(id=WEB, inbound=tuple(HostRule(**{"action": "allow", "protocol": 6, **each}) for each in rules)),
        )
    )
    name = next(
        name for name, each in built.builder.counted.items() if (each.rules, each.direction) == (WEB, "inbound")
    )
    lines, numbers = built.builder.table.chains[name].rules, built.builder.counted[name].numbers
    assert lines[0].startswith(first), lines[0]
    assert len(lines) == len(numbers)
    assert [number for number in numbers if number is not None] == list(range(len(rules)))
    assert (numbers[0] is None) is first.startswith("th dport !=")
