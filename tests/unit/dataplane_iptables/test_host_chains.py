"""Host endpoints, translation and tunnels as chains: what stands, where, and only while something needs it."""

from __future__ import annotations

from typing import Any

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.denials import Origins
from calico_core.dataplane.iptables.builder import TablesBuilder
from calico_core.interfaces.dataplane import DataplaneOptions, FailsafePort
from calico_core.model.hoststate import (
    ANY_INTERFACE,
    HostChanges,
    HostInterface,
    HostNat,
    HostPeers,
    HostRule,
    HostRules,
    HostState,
    HostWorkload,
    PolicyList,
    RulesId,
    TierPolicies,
)
from calico_core.model.keys import HostEndpointKey, WorkloadEndpointKey

P = RulesId("policy/default/p")
LIST = PolicyList(tiers=(TierPolicies(tier="default", policies=(P,)),))
RULES = (HostRules(id=P, inbound=(HostRule(action="allow"),), outbound=(HostRule(action="reject"),)),)
OPTIONS = DataplaneOptions(
    failsafe_inbound=(FailsafePort(6, 22), FailsafePort(6, 179), FailsafePort(17, 68, IPNetwork("10.0.0.0/8"))),
    failsafe_outbound=(FailsafePort(6, 2379),),
)


def built(options: DataplaneOptions = OPTIONS, **changes: Any) -> TablesBuilder:
    state = HostState()
    state.update(HostChanges(is_complete=True, **{"rules": RULES, **changes}))
    return TablesBuilder.of(options, (4, 6), state, origins=Origins())


def endpoint(interface: str = "up0", **lists: PolicyList) -> HostInterface:
    return HostInterface(
        key=HostEndpointKey(host="h", endpoint="all" if interface == ANY_INTERFACE else interface),
        interface=interface,
        **lists,
    )


def rules(made: TablesBuilder, table: str, chain: str, family: int = 4) -> list[str]:
    found = made.desired.tables[family, table].chains.get(chain)
    return [rule.partition(" -m comment --comment ")[0] for rule in found.rules] if found is not None else []


def only(made: TablesBuilder, table: str, prefix: str, family: int = 4) -> str:
    (name,) = (each for each in made.desired.tables[family, table].chains if each.startswith(prefix))
    return name


def names(made: TablesBuilder) -> set[str]:
    return {name for table in made.desired.tables.values() for name in table.chains}


def test_a_host_without_endpoints_has_none_of_it() -> None:
    plain = names(built())
    assert "calico-OUTPUT" not in plain
    assert not any(name.startswith(("calico-h", "calico-u", "calico-d", "calico-v", "calico-fs")) for name in plain)
    assert not built().desired.tables[4, "mangle"].chains
    assert rules(built(), "raw", "calico-PREROUTING") == ["-i cali+ -g calico-wl-src"]


def test_the_host_itself() -> None:
    made = built(interfaces=(endpoint(inbound=LIST, outbound=LIST),))
    assert rules(made, "filter", "calico-INPUT")[-1] == "-g calico-hfrom"
    assert rules(made, "filter", "calico-OUTPUT") == ["-o cali+ -j RETURN", "-g calico-hto"]
    name = only(made, "filter", "calico-hi-")
    assert rules(made, "filter", "calico-hfrom") == [f"-i up0 -g {name}", "-j RETURN"]
    assert rules(made, "filter", name)[:4] == [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-m conntrack --ctstate INVALID -j DROP",
        "-j calico-fs-in",
        "-j MARK --set-xmark 0x0/0x3000000",
    ]
    assert "-p 58 -m icmp6 --icmpv6-type 135 -j ACCEPT" in rules(made, "filter", name, 6)
    assert rules(made, "filter", "calico-fs-in") == [
        "-p 6 -m multiport --dports 22,179 -j ACCEPT",
        "-s 10.0.0.0/8 -p 17 -m multiport --dports 68 -j ACCEPT",
    ]
    assert rules(made, "filter", "calico-fs-in", 6) == ["-p 6 -m multiport --dports 22,179 -j ACCEPT"]


def test_untracked_policy_has_its_chains_in_the_raw_table() -> None:
    made = built(interfaces=(endpoint(untracked_inbound=LIST, untracked_outbound=LIST),))
    assert rules(made, "raw", "calico-PREROUTING") == ["-i cali+ -g calico-wl-src", "-g calico-ufrom"]
    assert rules(made, "raw", "calico-OUTPUT") == ["-o cali+ -j RETURN", "-g calico-uto"]
    assert rules(made, "raw", "calico-notrack") == ["-j CT --notrack", "-j ACCEPT"]
    # ports that are always open, and the answers of those at the other side
    assert "-p 6 -m multiport --sports 2379 -j ACCEPT" in rules(made, "raw", "calico-fs-in")
    assert "-p 6 -m multiport --sports 22,179 -j ACCEPT" in rules(made, "raw", "calico-fs-out")
    listed = rules(made, "raw", only(made, "raw", "calico-ui-"))
    assert listed[-1] == "-m mark --mark 0x1000000/0x1000000 -g calico-notrack"
    assert not any("DROP" in rule for rule in listed), "what it does not decide goes on"
    # a raw table cannot answer
    assert rules(made, "raw", only(made, "raw", "calico-po-")) == ["-j DROP"]
    assert "REJECT" in rules(made, "filter", only(made, "filter", "calico-po-"))[0]
    passed = "-m mark --mark 0x1000000/0x1000000 -m conntrack --ctstate UNTRACKED -j ACCEPT"
    assert rules(made, "filter", only(made, "filter", "calico-hiu-"))[0] == passed
    assert not built(interfaces=(endpoint(),)).desired.tables[4, "raw"].chains.keys() & {"calico-OUTPUT", "calico-uto"}


def test_policy_before_translation_stands_in_the_mangle_table() -> None:
    made = built(interfaces=(endpoint(pre_dnat=LIST),))
    assert rules(made, "mangle", "calico-PREROUTING") == ["-i cali+ -j RETURN", "-g calico-dfrom"]
    listed = rules(made, "mangle", only(made, "mangle", "calico-di-"))
    clear = "-j MARK --set-xmark 0x0/0x3000000"
    state = ["-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN", "-m conntrack --ctstate INVALID -j DROP"]
    assert listed[:3] == [*state, clear]
    assert listed.count(clear) == 1
    both = built(interfaces=(endpoint(pre_dnat=LIST, untracked_inbound=LIST),))
    assert rules(both, "mangle", only(both, "mangle", "calico-diu-"))[:4] == [
        *state, "-m mark --mark 0x1000000/0x1000000 -m conntrack --ctstate UNTRACKED -j RETURN", clear,
    ]  # fmt: skip
    assert listed[-1] == "-m mark --mark 0x1000000/0x1000000 -j ACCEPT"
    assert only(made, "mangle", "calico-pi-")
    assert not any(name.startswith("calico-po-") for name in made.desired.tables[4, "mangle"].chains)


def test_forward_policy_is_asked_as_packets_come_and_go_and_only_where_it_is() -> None:
    """What leaves is asked for after the workload's own policy, which may have another answer for the sender."""
    made = built(interfaces=(endpoint(forward_outbound=LIST), endpoint("up1")))
    assert rules(made, "filter", "calico-FORWARD") == [
        "-j MARK --set-xmark 0x0/0x3000000",
        "-i cali+ -g calico-wl",
        "-o cali+ -g calico-wl",
        "! -o cali+ -j calico-vto",
        "-m mark --mark 0x1000000/0x1000000 -j ACCEPT",
    ]
    assert rules(made, "filter", "calico-wl")[-4:] == [
        "-i cali+ -j calico-from", "-o cali+ -j calico-to", "! -o cali+ -j calico-vto", "-j ACCEPT",
    ]  # fmt: skip
    assert "calico-vto" not in str(rules(built(interfaces=(endpoint(forward_inbound=LIST),)), "filter", "calico-wl"))
    (leaf, miss) = rules(made, "filter", "calico-vto")
    assert (leaf[:10], miss) == ("-o up0 -g ", "-j RETURN")


def test_the_endpoint_of_all_interfaces_leaves_others_and_the_loopback_alone() -> None:
    made = built(interfaces=(endpoint(ANY_INTERFACE, forward_inbound=LIST), endpoint("up0")))
    everybody = only(made, "filter", "calico-vi-")
    assert rules(made, "filter", "calico-vfrom") == [
        "-i lo -j RETURN", "-i up0 -j RETURN", f"-g {everybody}",
    ]  # fmt: skip


def test_rules_leave_a_table_with_the_last_list_that_names_them() -> None:
    state = HostState()
    first = HostChanges(is_complete=True, rules=RULES, interfaces=(endpoint(pre_dnat=LIST, untracked_inbound=LIST),))
    state.update(first)
    made = TablesBuilder.of(OPTIONS, (4, 6), state)
    for changes, tables in (
        (HostChanges(interfaces=(endpoint(pre_dnat=LIST),)), {"filter", "mangle"}),
        (HostChanges(removed_rules=(P,)), set()),
        (HostChanges(rules=RULES), {"filter", "mangle"}),
        (HostChanges(removed_interfaces=("up0",)), {"filter"}),
    ):
        state.update(changes)
        made.update(changes, state)
        standing = {
            table
            for (family, table), each in made.desired.tables.items()
            if family == 4 and any(name.startswith("calico-pi-") for name in each.chains)
        }
        assert standing == tables


def test_tunnels_are_for_hosts_only() -> None:
    peers = HostPeers((IPAddress("192.0.2.1"), IPAddress("2001:db8::1")), is_ipip=True, is_vxlan=True)
    made = built(peers=peers, interfaces=(endpoint(),))
    assert rules(made, "filter", "calico-INPUT")[:4] == [
        "-p 4 -m set --match-set calico-4h-peers src -j ACCEPT",
        "-p 4 -j DROP",
        "-p 17 -m udp --dport 4789 -m set --match-set calico-4h-peers src -j ACCEPT",
        "-p 17 -m udp --dport 4789 -j DROP",
    ]
    assert rules(made, "filter", "calico-OUTPUT")[0] == "-p 4 -m set --match-set calico-4h-peers dst -j ACCEPT"
    assert rules(made, "filter", "calico-INPUT", 6)[1] == "-p 17 -m udp --dport 4789 -j DROP"
    masqueraded = rules(made, "nat", "calico-POSTROUTING")
    assert [rule.split()[1] for rule in masqueraded] == ["vxlan.calico", "tunl0"]
    assert all("! --src-type LOCAL --limit-iface-out" in rule for rule in masqueraded)
    assert not built(peers=msgspec.structs.replace(peers, is_ipip=False, is_vxlan=False)).desired.sets.sets


def test_floating_addresses_and_the_metadata_address() -> None:
    nats = tuple(HostNat(IPAddress("10.65.0.1"), IPAddress(f"198.51.100.{last}")) for last in (7, 5))
    workload = HostWorkload(
        key=WorkloadEndpointKey(host="h", orchestrator="test", workload="w", endpoint="eth0"),
        interface="cali1",
        is_active=True,
        nets=(IPNetwork("10.65.0.1/32"),),
        nats=(*nats, HostNat(IPAddress("10.65.0.9"), IPAddress("198.51.100.9"))),
    )
    options = DataplaneOptions(metadata=(IPAddress("127.0.0.1"), 8775))
    made = built(options, workloads=(workload,))
    assert made.problems == {workload.key.path: "10.65.0.9 is none of its addresses; 198.51.100.9 is left out"}
    assert rules(made, "nat", "calico-PREROUTING") == [
        "-i cali+ -d 169.254.169.254/32 -p 6 -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:8775",
        "-j calico-fip-dnat",
    ]
    assert rules(made, "nat", "calico-OUTPUT") == ["-j calico-fip-dnat"]
    assert rules(made, "nat", "calico-fip-dnat") == [
        f"-d 198.51.100.{last}/32 -j DNAT --to-destination 10.65.0.1" for last in (5, 7)
    ]
    assert rules(made, "nat", "calico-fip-snat") == ["-s 10.65.0.1/32 -d 10.65.0.1/32 -j SNAT --to-source 198.51.100.5"]
    assert "-d 127.0.0.1/32 -p 6 -m tcp --dport 8775 -j ACCEPT" in rules(made, "filter", "calico-wl-host")
    assert not made.desired.tables[6, "nat"].chains
