"""What stands for host endpoints, and that nothing stands without one."""

from __future__ import annotations

from typing import Any

from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.nftables.builder import TableBuilder
from calico_core.dataplane.nftables.script import render_plan
from calico_core.dataplane.reconcile import Table, reconcile
from calico_core.interfaces.dataplane import DataplaneOptions, FailsafePort
from calico_core.model.hoststate import (
    ANY_INTERFACE,
    HostChanges,
    HostInterface,
    HostPeers,
    HostRules,
    HostState,
    PolicyList,
    RulesId,
    TierPolicies,
)
from calico_core.model.keys import HostEndpointKey

OPTIONS = DataplaneOptions(
    host="h",
    is_ipv6_enabled=False,
    failsafe_inbound=(FailsafePort(6, 22), FailsafePort(17, 68), FailsafePort(6, 23, IPNetwork("10.0.0.0/8"))),
    failsafe_outbound=(FailsafePort(6, 179), FailsafePort(6, 24, IPNetwork("fd00::/8"))),
)
P = RulesId("policy/default/p")
A_LIST = PolicyList(tiers=(TierPolicies(tier="default", policies=(P,)),))


def built(*interfaces: HostInterface, **more: Any) -> TableBuilder:
    state = HostState()
    state.update(HostChanges(is_complete=True, rules=(HostRules(id=P),), interfaces=interfaces, **more))
    return TableBuilder.of(OPTIONS, state)


def endpoint(interface: str = "eth0", **lists: PolicyList) -> HostInterface:
    return HostInterface(key=HostEndpointKey(host="h", endpoint=interface), interface=interface, **lists)


def texts(table: Table, name: str) -> list[str]:
    return [rule.partition(" comment ")[0] for rule in table.chains[name].rules]


def hooks(table: Table) -> set[str]:
    return {name for name, chain in table.chains.items() if chain.hook}


def test_without_endpoints_there_is_nothing_for_them() -> None:
    table = built().table
    assert hooks(table) == {"raw_prerouting", "forward", "input"}
    assert not [name for name in table.names() if name.startswith(("host_", "hep_", "failsafe"))]
    assert texts(table, "forward")[1] == 'iifname != "cali*" oifname != "cali*" return'


def test_an_endpoint_brings_what_its_lists_need() -> None:
    assert hooks(built(endpoint()).table) == {"raw_prerouting", "forward", "input", "output"}
    table = built(endpoint(untracked_inbound=A_LIST, pre_dnat=A_LIST)).table
    assert hooks(table) == {"raw_prerouting", "mangle_prerouting", "forward", "input", "output"}
    assert "raw_output" in hooks(built(endpoint(untracked_outbound=A_LIST)).table)


def test_marks_of_earlier_hooks_count_where_they_can_be_the_interfaces_own() -> None:
    untracked, marked = "ct state untracked meta mark & 0x01000000 != 0", "meta mark & 0x01000000 != 0"
    every: dict[str, Any] = {
        field: A_LIST for field in HostInterface.__struct_fields__ if field not in ("key", "interface", "spares")
    }
    cases: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
        ({}, dict.fromkeys(("hep_dnat", "hep_in", "hep_fwd_in", "hep_out", "hep_fwd_out"), "")),
        ({"untracked_inbound": A_LIST}, {"hep_in": f"{untracked} accept", "hep_out": ""}),
        ({"untracked_outbound": A_LIST}, {"hep_in": "", "hep_out": f"{untracked} accept"}),
        ({"pre_dnat": A_LIST}, {"hep_in": f"{marked} accept", "hep_dnat": "", "hep_out": ""}),
        (every, {"hep_fwd_in": f"{marked} return", "hep_dnat": f"{untracked} accept", "hep_fwd_out": ""}),
    )
    for lists, wanted in cases:
        table = built(endpoint(**lists)).table
        for name, expected in wanted.items():
            for _, chain in table.sets[name].elements if name in table.sets else ():
                believed = [text for text in texts(table, chain)[:2] if "mark &" in text and "set" not in text]
                assert believed == ([expected] if expected else []), (lists, name)


def test_chain_of_an_endpoint() -> None:
    table = built(endpoint(inbound=A_LIST)).table
    ((interface, name),) = table.sets["hep_in"].elements
    assert interface == "eth0"
    assert texts(table, name)[:3] == [
        "ct state vmap { established : accept, related : accept, invalid : goto invalid }",
        "icmpv6 type { 133, 134, 135, 136 } accept",
        "jump failsafe_in",
    ]
    assert "meta nfproto ipv6 counter drop" in texts(table, name), "there is no policy of it"
    assert texts(table, name)[-1] == "counter drop"
    assert texts(table, "failsafe_in") == [
        "meta l4proto . th dport { 6 . 22, 17 . 68 } accept",
        "ip saddr 10.0.0.0/8 meta l4proto 6 th dport 23 accept",
    ]
    assert texts(table, "failsafe_out") == [
        "meta l4proto . th dport { 6 . 179 } accept",
        "ip6 daddr fd00::/8 meta l4proto 6 th dport 24 accept",
    ]


def test_untracked_lets_answers_of_fail_safes_through() -> None:
    table = built(endpoint(untracked_inbound=A_LIST)).table
    ((_, name),) = table.sets["hep_raw_in"].elements
    assert texts(table, "failsafe_raw_in") == [
        "meta l4proto . th dport { 6 . 22, 17 . 68 } accept",
        "ip saddr 10.0.0.0/8 meta l4proto 6 th dport 23 accept",
        "meta l4proto . th sport { 6 . 179 } accept",
        "ip6 saddr fd00::/8 meta l4proto 6 th sport 24 accept",
    ]
    assert texts(table, name)[-1] == "meta mark & 0x01000000 != 0 notrack accept"
    assert "counter drop" not in texts(table, name), "what is undecided goes on"


def test_any_interface_is_none_of_the_workloads_and_not_the_loopback() -> None:
    table = built(endpoint(ANY_INTERFACE), endpoint()).table
    assert {each[0] for each in table.sets["hep_in"].elements} == {"eth0"}
    look_up, others, rest = texts(table, "host_in")
    assert look_up == "iifname vmap @hep_in"
    assert others == 'iifname { "lo", "cali*" } return'
    assert rest.startswith("goto hi_")


def test_equal_lists_share_a_chain() -> None:
    table = built(endpoint("eth0"), endpoint("eth1")).table
    assert len([name for name in table.chains if name.startswith("hi_")]) == 1


def test_last_endpoint_takes_everything_along() -> None:
    before, after = built(endpoint(inbound=A_LIST, forward_inbound=A_LIST, untracked_inbound=A_LIST)), built()
    plan = reconcile(after.table, before.table)
    lines, _ = render_plan(plan, after.table, before.table, after.subject_of)
    flushed = lines.index("flush map inet calico hep_in")
    assert flushed < min(number for number, line in enumerate(lines) if line.startswith("delete chain"))
    assert {"host_in", "host_out", "output", "failsafe_in"} <= set(plan.removed_chains)


def test_tunnels_are_for_hosts() -> None:
    peers = HostPeers(addresses=(IPAddress("192.0.2.7"),), is_ipip=True, is_vxlan=True)
    table = built(peers=peers).table
    assert texts(table, "input") == [
        "ip saddr @peers4 meta l4proto 4 accept",
        "ip saddr @peers4 udp dport 4789 accept",
        "meta nfproto ipv4 meta l4proto 4 counter drop",
        "meta nfproto ipv4 udp dport 4789 counter drop",
        'iifname "cali*" goto workload_to_host',
    ], "a workload that may encapsulate is a stranger there, too"
    assert list(table.sets["peers4"].elements) == [int(IPAddress("192.0.2.7"))]
    assert [text.split()[1] for text in texts(table, "nat_postrouting")] == ['"vxlan.calico"', '"tunl0"']
