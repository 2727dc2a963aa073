"""What stands for floating addresses and metadata, and whose they are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.nftables.builder import TableBuilder
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.hoststate import HostChanges, HostNat, HostPeers, HostPools, HostState, HostWorkload, PolicyList
from tests.unit.dataplane_nftables.test_builder import a_workload

OPTIONS = DataplaneOptions(host="h")
HOOKS = {"nat_prerouting", "nat_output", "nat_postrouting"}


def built(*workloads: HostWorkload, options: DataplaneOptions = OPTIONS) -> TableBuilder:
    lists = {"inbound": PolicyList(), "outbound": PolicyList()}
    workloads = tuple(msgspec.structs.replace(each, **lists) for each in workloads)
    state = HostState()
    state.update(HostChanges(is_complete=True, workloads=workloads))
    return TableBuilder.of(options, state)


def nat(internal: str, external: str) -> HostNat:
    return HostNat(internal=IPAddress(internal), external=IPAddress(external))


def elements(builder: TableBuilder, name: str) -> set[tuple[str, str]]:
    return {(str(IPAddress(one)), str(IPAddress(two))) for one, two in builder.table.sets[name].elements}


def texts(builder: TableBuilder, name: str) -> list[str]:
    return [rule.partition(" comment ")[0] for rule in builder.table.chains[name].rules]


def test_nothing_stands_without_need() -> None:
    table = built(a_workload(1)).table
    assert not HOOKS & set(table.chains)
    assert not {"nat4", "nat6", "hairpin4", "hairpin6"} & set(table.sets)


def test_floating_addresses() -> None:
    nats = (nat("10.0.0.1", "198.51.100.9"), nat("10.0.0.1", "198.51.100.8"), nat("fd00::1", "2001:db8::9"))
    builder = built(a_workload(1, nats=nats, nets=(IPNetwork("10.0.0.1/32"), IPNetwork("fd00::1/128"))))
    assert elements(builder, "nat4") == {("198.51.100.9", "10.0.0.1"), ("198.51.100.8", "10.0.0.1")}
    assert elements(builder, "hairpin4") == {("10.0.0.1", "198.51.100.8")}, "seen as the first"
    assert {IPAddress(one, 6) for one, _ in builder.table.sets["nat6"].elements} == {IPAddress("2001:db8::9")}
    both = ["dnat ip to ip daddr map @nat4", "dnat ip6 to ip6 daddr map @nat6"]
    assert texts(builder, "nat_prerouting") == texts(builder, "nat_output") == both
    assert texts(builder, "nat_postrouting")[0] == "snat ip to ip saddr . ip daddr map @hairpin4"
    assert builder.subject_of("nat4", (int(IPAddress("198.51.100.9")), 0)) == a_workload(1).key.path
    assert {element[-1] for element in builder.table.sets["src_mac4"].elements} == {int(IPAddress("10.0.0.1"))}


def test_one_of_two_floating_addresses_of_an_address_moves_to_another() -> None:
    nets = (IPNetwork("10.0.0.1/32"), IPNetwork("10.0.0.2/32"))
    first, moved = nat("10.0.0.1", "198.51.100.1"), nat("10.0.0.1", "198.51.100.2")
    one = a_workload(1, nets=nets, nats=(first, moved), inbound=PolicyList(), outbound=PolicyList())
    other = msgspec.structs.replace(one, nats=(first, nat("10.0.0.2", "198.51.100.2")))
    state, builder = HostState(), built(one)
    change = HostChanges(workloads=(other,))
    state.update(change)
    assert {"nat4", "hairpin4"} <= builder.update(change, state)
    assert elements(builder, "hairpin4") == {("10.0.0.1", "198.51.100.1"), ("10.0.0.2", "198.51.100.2")}
    assert elements(builder, "nat4") == {("198.51.100.1", "10.0.0.1"), ("198.51.100.2", "10.0.0.2")}


@pytest.mark.parametrize("gainer", [1, 2])
def test_addresses_pass_to_another_interface_in_one_batch(gainer: int) -> None:
    nats, nets = (nat("10.0.0.9", "198.51.100.1"),), (IPNetwork("10.0.0.9/32"),)
    lists = {"inbound": PolicyList(), "outbound": PolicyList()}
    loser = a_workload(3 - gainer, nets=nets, nats=nats, **lists)
    state, builder = HostState(), built(loser)
    gained = a_workload(gainer, nets=nets, nats=nats, **lists)
    change = HostChanges(workloads=(gained,), removed_workloads=(loser.key,))
    state.update(change)
    builder.update(change, state)
    assert elements(builder, "nat4") == {("198.51.100.1", "10.0.0.9")}
    assert elements(builder, "hairpin4") == {("10.0.0.9", "198.51.100.1")}


def test_one_address_for_two_goes_to_the_first() -> None:
    one = a_workload(1, nats=(nat("10.0.0.1", "198.51.100.9"),))
    two = a_workload(2, nats=(nat("10.0.0.2", "198.51.100.9"),))
    assert elements(built(two, one), "nat4") == {("198.51.100.9", "10.0.0.1")}
    assert elements(built(two), "nat4") == {("198.51.100.9", "10.0.0.2")}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (nat("10.0.0.77", "198.51.100.9"), "none of its addresses"),
        (nat("10.0.0.1", "2001:db8::9"), "another family"),
    ],
)
def test_what_cannot_float_is_named(wrong: HostNat, said: str) -> None:
    builder = built(a_workload(1, nats=(wrong,)))
    assert said in builder.problems[a_workload(1).key.path]
    assert "nat4" not in builder.table.sets
    assert {interface for interface, _ in builder.table.sets["wl_to"].elements} == {"cali1"}, "the rest of it is open"


def test_metadata_leads_to_its_service() -> None:
    options: Any = msgspec.structs.replace(OPTIONS, metadata=(IPAddress("127.0.0.1"), 8775))
    builder = built(options=options)
    assert texts(builder, "nat_prerouting") == [
        'iifname "cali*" ip daddr 169.254.169.254 tcp dport 80 dnat ip to 127.0.0.1:8775'
    ]
    assert "ip daddr 127.0.0.1 tcp dport 8775 accept" in texts(builder, "workload_to_host")
    assert HOOKS & set(builder.table.chains) == {"nat_prerouting"}


V4, V6 = IPNetwork("10.0.0.0/16"), IPNetwork("fd00::/64")
LEAVING = "ip saddr @masq4 ip daddr != @pools4"


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        ({}, [f"{LEAVING} masquerade fully-random"]),
        ({"nat_address": IPAddress("192.0.2.7")}, [f"{LEAVING} snat ip to 192.0.2.7 fully-random"]),
        ({"nat_address": IPAddress("2001:db8::7")}, [f"{LEAVING} masquerade fully-random"]),
        (
            {"nat_ports": (5, 9), "nat_interfaces": "eth+"},
            [
                f'oifname "eth*" {LEAVING} meta l4proto {{ tcp, udp }} masquerade to :5-9 fully-random',
                f'oifname "eth*" {LEAVING} masquerade fully-random',
            ],
        ),
        (
            {"nat_ports": (5, 9), "nat_address": IPAddress("192.0.2.7")},
            [
                f"{LEAVING} meta l4proto {{ tcp, udp }} snat ip to 192.0.2.7:5-9 fully-random",
                f"{LEAVING} snat ip to 192.0.2.7 fully-random",
            ],
        ),
    ],
)
def test_what_leaves_the_pools(given: dict[str, Any], rules: list[str]) -> None:
    state = HostState()
    state.update(HostChanges(is_complete=True, pools=HostPools(all=(V4, V6), masquerade=(V4,))))
    options: Any = msgspec.structs.replace(OPTIONS, **given)
    builder = TableBuilder.of(options, state)
    assert [each for each in texts(builder, "nat_postrouting") if "masq4" in each] == rules


def test_excluded_hosts_count_as_pools() -> None:
    state = HostState()
    hosts = (IPAddress("192.0.2.1"), IPAddress("10.0.0.9"), IPAddress("2001:db8::1"))
    state.update(HostChanges(is_complete=True, pools=HostPools(all=(V4, V6), masquerade=(V4,), hosts=hosts)))
    for spares, extra4, extra6 in ((False, set(), set()), (True, {hosts[0]}, {hosts[2]})):
        options: Any = msgspec.structs.replace(OPTIONS, nat_spares_hosts=spares)
        sets = TableBuilder.of(options, state).table.sets
        assert sets["pools4"].elements == {(V4.first, V4.last), *((int(each), int(each)) for each in extra4)}
        assert sets["pools6"].elements == {(V6.first, V6.last), *((int(each), int(each)) for each in extra6)}


def test_dhcp_is_asked_for_in_the_family_of_its_ports() -> None:
    asked = [text for text in texts(built(), "workload_to_host") if "sport" in text]
    assert asked == [
        "meta nfproto ipv4 udp sport 68 udp dport 67 accept",
        "meta nfproto ipv6 udp sport 546 udp dport 547 accept",
    ]


def test_external_peers_are_peers() -> None:
    state = HostState()
    state.update(HostChanges(is_complete=True, peers=HostPeers((IPAddress("192.0.2.1"),), is_ipip=True, is_vxlan=True)))
    nets = ("198.51.100.0/24", "198.51.100.9/32", "2001:db8::/64")
    options: Any = msgspec.structs.replace(OPTIONS, external_peers=tuple(map(IPNetwork, nets)))
    assert texts(TableBuilder.of(options, state), "input")[:6] == [
        "ip saddr @peers4 meta l4proto 4 accept",
        "ip saddr { 198.51.100.0/24 } meta l4proto 4 accept",
        "ip saddr @peers4 udp dport 4789 accept",
        "ip saddr { 198.51.100.0/24 } udp dport 4789 accept",
        "ip6 saddr @peers6 udp dport 4789 accept",
        "ip6 saddr { 2001:db8::/64 } udp dport 4789 accept",
    ]


def test_what_leaves_by_a_tunnel_of_either_family_has_its_address() -> None:
    state = HostState()
    state.update(HostChanges(is_complete=True, peers=HostPeers((IPAddress("2001:db8::1"),), is_vxlan=True)))
    for is_enabled, devices in ((True, ['"vxlan.calico"', '"vxlan-v6.calico"']), (False, ['"vxlan.calico"'])):
        options = msgspec.structs.replace(OPTIONS, is_ipv6_enabled=is_enabled)
        leaving = TableBuilder.of(options, state).table.chains["nat_postrouting"].rules
        assert [rule.split()[1] for rule in leaving] == devices


def test_a_host_that_has_no_ipv6_looks_for_tunnels_in_the_other_family_alone() -> None:
    state = HostState()
    state.update(HostChanges(is_complete=True, peers=HostPeers((IPAddress("192.0.2.1"),), is_vxlan=True)))
    for is_enabled, drop in ((True, "udp dport 4789"), (False, "meta nfproto ipv4 udp dport 4789")):
        options = msgspec.structs.replace(OPTIONS, is_ipv6_enabled=is_enabled)
        assert f"{drop} counter drop" in texts(TableBuilder.of(options, state), "input")


@pytest.mark.parametrize("option", ["allows_ipip", "allows_vxlan"])
def test_what_workloads_encapsulate_is_dropped_unless_it_is_allowed(option: str) -> None:
    drops = {"allows_ipip": "meta l4proto 4 counter drop", "allows_vxlan": "udp dport 4789 counter drop"}
    assert set(drops.values()) < set(texts(built(), "workload_source"))
    options: Any = msgspec.structs.replace(OPTIONS, **{option: True})
    gone = set(texts(built(), "workload_source")) - set(texts(built(options=options), "workload_source"))
    assert gone == {drops[option]}


def test_vxlan_of_workloads_is_dropped_as_it_is_translated_too() -> None:
    drop, asked, *_ = texts(built(), "from_workload")
    assert (drop, asked) == ("udp dport 4789 counter drop", "iifname vmap @wl_from")
    options: Any = msgspec.structs.replace(OPTIONS, allows_vxlan=True)
    assert texts(built(options=options), "from_workload")[0] == asked


def test_nothing_of_a_workload_goes_to_the_loopback() -> None:
    rules = texts(built(), "workload_source")
    assert rules.index("ip daddr 127.0.0.0/8 counter drop") < rules.index("iifname . ip saddr @src_any4 return")


def test_addresses_that_no_mac_is_asked_for_are_looked_up_first() -> None:
    """As most are, those of all containers that asked for none: a look-up that misses is paid for each packet."""
    rules = [rule for rule in texts(built(), "workload_source") if "@src_" in rule]
    assert rules == [
        "iifname . ip saddr @src_any4 return",
        "iifname . ether saddr . ip saddr @src_mac4 return",
        "iifname . ip6 saddr @src_any6 return",
        "iifname . ether saddr . ip6 saddr @src_mac6 return",
    ]


def test_what_belongs_to_no_connection_is_left_to_policy_if_that_is_wanted() -> None:
    options: Any = msgspec.structs.replace(OPTIONS, drops_invalid=False)
    for chain in ("forward", "workload_to_host"):
        assert any("invalid" in rule for rule in texts(built(), chain))
        assert not any("invalid" in rule for rule in texts(built(options=options), chain))
    known = "ct state vmap { established : accept, related : accept }"
    assert known in texts(built(options=options), "workload_to_host")
    assert "invalid" in built().table.chains
    assert "invalid" not in built(options=options).table.chains


def test_a_known_connection_is_let_through_by_the_first_rule_of_the_forward_hook() -> None:
    known, outside, invalid, *_ = texts(built(), "forward")
    assert known == "ct state established,related accept"
    assert outside == 'iifname != "cali*" oifname != "cali*" return'
    assert invalid == "ct state invalid goto invalid"  # of workloads alone: others' packets are not ours to drop
