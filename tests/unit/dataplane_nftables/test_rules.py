"""Rules as nft text. The texts were read back from the kernel once; whether nft takes them is asked further down."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPNetwork

from calico_core.dataplane.denials import Origins
from calico_core.dataplane.linux import netns
from calico_core.dataplane.nftables.rules import guard, render_rule
from calico_core.dataplane.nftables.verdicts import DROP, REJECT, Verdicts
from calico_core.errors import InvalidRequest
from calico_core.interfaces.dataplane import DataplaneOptions, DenialOrigin
from calico_core.model.hoststate import HostRule, RulesId, SetId

TAG, OTHER = SetId("tag-1"), SetId("tag-2")
V4, V4_WIDE, V6 = IPNetwork("10.0.0.1/32"), IPNetwork("10.0.0.0/24"), IPNetwork("fd00::/64")
ALL_V4 = IPNetwork("0.0.0.0/0")
WEB = SetId("npt-3")
ACCEPT = "counter meta mark set meta mark | 0x01000000 return"
PASS = "counter meta mark set meta mark | 0x02000000 return"
ORIGIN = DenialOrigin(reason="rule", direction="inbound", rules=RulesId("profile/p"), rule=0)
TOLD = f'"{Origins().prefix(ORIGIN)}"'


def set_name(set_id: SetId, family: int) -> str:
    return f"s{family}_{set_id[-1]}"


def render(families: tuple[int, ...] = (4, 6), **match: Any) -> list[str]:
    return render_with(DataplaneOptions(log_prefix="calico"), families, **match)


def render_with(
    options: DataplaneOptions, families: tuple[int, ...] = (4, 6), *, is_staged: bool = False, **match: Any
) -> list[str]:
    rule = HostRule(**{"action": "allow", **match})
    verdicts = Verdicts(options, Origins())
    return render_rule(rule, set_name, families=families, verdicts=verdicts, origin=ORIGIN, is_staged=is_staged)


PORT_RANGES = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda ends: (min(ends), max(ends)))
PORTED = st.builds(
    HostRule,
    action=st.sampled_from(("allow", "deny", "log", "pass")),
    protocol=st.sampled_from((6, 17)),
    dst_ports=st.lists(PORT_RANGES, max_size=3).map(tuple),
    not_dst_ports=st.lists(PORT_RANGES, max_size=1).map(tuple),
    src_ports=st.lists(PORT_RANGES, max_size=1).map(tuple),
    dst_port_sets=st.sampled_from(((), (), (), (WEB,))),
)


@given(rules=st.lists(PORTED, max_size=5))
def test_a_guard_turns_back_what_no_rule_matches(rules: list[HostRule]) -> None:
    line = guard(rules)
    if line is None:
        assert not rules or any(not rule.dst_ports or rule.dst_port_sets for rule in rules)
        return
    found = re.fullmatch(r"th dport != (\d+)-(\d+) return", line)
    assert found is not None, line
    let_through = range(int(found[1]), int(found[2]) + 1)
    named = {port for rule in rules for low, high in rule.dst_ports for port in range(low, high + 1)}
    assert named <= set(let_through)
    assert {let_through[0], let_through[-1]} <= named, "and no wider than they ask for"


CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, [ACCEPT]),
    ({"action": "deny"}, [DROP]),
    ({"action": "pass"}, [PASS]),
    ({"action": "reject"}, [REJECT]),
    ({"action": "log"}, ['counter log prefix "calico: " level notice']),
    ({"action": "log", "log_prefix": 'a"b c'}, ['counter log prefix "a_b_c: " level notice']),
    ({"action": "deny", "log_prefix": "x"}, ['log prefix "x: " level notice', DROP]),
    ({"ip_version": 6}, [f"meta nfproto ipv6 {ACCEPT}"]),
    ({"protocol": 132}, [f"meta l4proto 132 {ACCEPT}"]),
    ({"not_protocol": 6}, [f"meta l4proto != 6 {ACCEPT}"]),
    ({"src_nets": (V4,)}, [f"ip saddr 10.0.0.1 {ACCEPT}"]),
    ({"src_nets": (V4_WIDE, V4)}, [f"ip saddr 10.0.0.0-10.0.0.255 {ACCEPT}"]),
    (
        {"dst_nets": (V4, V6)},
        [f"ip daddr 10.0.0.1 {ACCEPT}", f"ip6 daddr fd00::-fd00::ffff:ffff:ffff:ffff {ACCEPT}"],
    ),
    ({"src_nets": (V4, IPNetwork("10.0.0.9/32"))}, [f"ip saddr {{ 10.0.0.1, 10.0.0.9 }} {ACCEPT}"]),
    ({"src_nets": (ALL_V4,)}, [f"meta nfproto ipv4 {ACCEPT}"]),
    ({"src_nets": (V4,), "dst_nets": (V6,)}, []),
    ({"src_nets": (V6,), "ip_version": 4}, []),
    ({"not_src_nets": (V4,)}, [f"ip saddr != 10.0.0.1 {ACCEPT}", f"meta nfproto ipv6 {ACCEPT}"]),
    ({"not_src_nets": (ALL_V4,)}, [f"meta nfproto ipv6 {ACCEPT}"]),
    (
        {"src_sets": (TAG, OTHER)},
        [f"ip saddr @s4_1 ip saddr @s4_2 {ACCEPT}", f"ip6 saddr @s6_1 ip6 saddr @s6_2 {ACCEPT}"],
    ),
    (
        {"src_sets": (TAG,), "not_dst_sets": (OTHER,), "ip_version": 4},
        [f"ip saddr @s4_1 ip daddr != @s4_2 {ACCEPT}"],
    ),
    (
        {"protocol": 6, "ip_version": 4, "src_sets": (TAG,), "dst_ports": ((80, 80),)},
        [f"meta l4proto 6 th dport 80 ip saddr @s4_1 {ACCEPT}"],
    ),
    ({"protocol": 6, "dst_ports": ((80, 80),)}, [f"meta l4proto 6 th dport 80 {ACCEPT}"]),
    (
        {"protocol": 17, "src_ports": ((5, 9), (1, 1), (8, 20)), "not_dst_ports": ((7, 7),)},
        [f"meta l4proto 17 th sport {{ 1, 5-20 }} th dport != 7-7 {ACCEPT}"],
    ),
    (
        {"protocol": 6, "not_src_ports": ((80, 80),), "not_dst_ports": ((80, 80),)},
        [f"meta l4proto 6 th sport != 80-80 th dport != 80-80 {ACCEPT}"],
    ),
    (
        {"protocol": 6, "dst_ports": ((80, 80),), "dst_port_sets": (WEB,), "ip_version": 4},
        [
            f"meta nfproto ipv4 meta l4proto 6 th dport 80 {ACCEPT}",
            f"meta nfproto ipv4 meta l4proto 6 ip daddr . meta l4proto . th dport @s4_3 {ACCEPT}",
        ],
    ),
    (
        {"src_port_sets": (WEB,), "not_dst_port_sets": (WEB,), "not_dst_ports": ((1, 9),), "protocol": 17},
        [
            f"meta nfproto ipv{family} meta l4proto 17 {ip} saddr . meta l4proto . th sport @s{family}_3 "
            f"th dport != 1-9 {ip} daddr . meta l4proto . th dport != @s{family}_3 {ACCEPT}"
            for family, ip in ((4, "ip"), (6, "ip6"))
        ],
    ),
    ({"protocol": 1, "icmp": (255, 255)}, [f"meta nfproto ipv4 meta l4proto 1 icmp type 255 icmp code 255 {ACCEPT}"]),
    ({"protocol": 1, "icmp": (8, None)}, [f"meta nfproto ipv4 meta l4proto 1 icmp type 8 {ACCEPT}"]),
    ({"protocol": 58, "icmp": (1, 4)}, [f"meta nfproto ipv6 meta l4proto 58 icmpv6 type 1 icmpv6 code 4 {ACCEPT}"]),
    ({"protocol": 1, "not_icmp": (3, None)}, [f"meta nfproto ipv4 meta l4proto 1 icmp type != 3 {ACCEPT}"]),
    (
        {"protocol": 58, "not_icmp": (1, 4), "src_sets": (TAG,)},
        [f"meta l4proto 58 icmpv6 type . icmpv6 code != {{ 1 . 4 }} ip6 saddr @s6_1 {ACCEPT}"],
    ),
]  # fmt: skip


DENIALS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("deny", {"deny_action": "REJECT"}, [f"meta l4proto 6 {REJECT}"]),
    ("deny", {"drop_override": "ACCEPT"}, ["meta l4proto 6 counter accept"]),
    ("reject", {"drop_override": "ACCEPT", "denied_group": 9}, ["meta l4proto 6 counter accept"]),
    (
        "deny",
        {"drop_override": "LOG-and-DROP"},
        ['meta l4proto 6 log prefix "calico-packet: " level notice', f"meta l4proto 6 {DROP}"],
    ),
    (
        "deny",
        {"drop_override": "LOG-and-ACCEPT"},
        ['meta l4proto 6 log prefix "calico-packet: " level notice', "meta l4proto 6 counter accept"],
    ),
    (
        "log",
        {"log_rate": 3, "log_burst": 7},
        ['meta l4proto 6 counter limit rate 3/second burst 7 packets log prefix "calico-packet: " level notice'],
    ),
    ("allow", {"mark_mask": 0x30}, ["meta l4proto 6 counter meta mark set meta mark | 0x00000010 return"]),
    ("pass", {"mark_mask": 0x0500}, ["meta l4proto 6 counter meta mark set meta mark | 0x00000400 return"]),
    (
        "deny",
        {"denied_group": 9},
        [
            f"meta l4proto 6 limit rate 100/second burst 100 packets log prefix {TOLD} group 9 snaplen 128",
            f"meta l4proto 6 {DROP}",
        ],
    ),
]


@pytest.mark.parametrize(("action", "options", "texts"), DENIALS, ids=str)
def test_what_the_options_make_of_a_rule(action: str, options: dict[str, Any], texts: list[str]) -> None:
    assert render_with(DataplaneOptions(**options), action=action, protocol=6) == texts


@pytest.mark.parametrize(("match", "texts"), CASES, ids=str)
def test_text(match: dict[str, Any], texts: list[str]) -> None:
    assert render(**match) == texts


@pytest.mark.parametrize("action", ["allow", "deny", "reject", "pass"])
def test_a_staged_rule_is_counted_and_nothing_else(action: str) -> None:
    options = DataplaneOptions(denied_group=7, drop_override="LOG-and-DROP")
    texts = render_with(options, action=action, protocol=6, log_prefix="x", is_staged=True)
    assert texts == ["meta l4proto 6 counter return"]


def test_a_staged_rule_that_logs_is_counted_and_gone_past() -> None:
    assert render_with(DataplaneOptions(), action="log", protocol=6, is_staged=True) == ["meta l4proto 6 counter"]


def test_host_without_ipv6_has_no_rules_for_it() -> None:
    assert render(families=(4,), src_sets=(TAG,)) == [f"ip saddr @s4_1 {ACCEPT}"]
    assert render(families=(4,), ip_version=6) == []
    assert render(families=(4,), protocol=58, icmp=(1, None)) == []


@pytest.mark.parametrize(
    ("match", "field"),
    [
        ({"dst_ports": ((80, 80),)}, "ports"),
        ({"protocol": 1, "not_src_ports": ((80, 80),)}, "ports"),
        ({"icmp": (8, None)}, "icmp"),
        ({"protocol": 6, "not_icmp": (8, 0)}, "icmp"),
        ({"protocol": 1, "icmp": (8, 0), "ip_version": 6}, "icmp"),
        ({"action": "next"}, "action"),
    ],
    ids=str,
)
def test_what_cannot_be_expressed_is_refused(match: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(**match)
    assert caught.value.field == field


@pytest.mark.needs_root
def test_nft_takes_every_text() -> None:
    lines = ["add table inet t", "add chain inet t c"]
    for family, keyword in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        lines += [f"add set inet t s{family}_{number} {{ type {keyword}; }}" for number in (1, 2)]
        lines.append(f"add set inet t s{family}_3 {{ type {keyword} . inet_proto . inet_service; }}")
    told = [text for _, _, texts in DENIALS for text in texts]
    lines += [f"add rule inet t c {text}" for text in [text for _, texts in CASES for text in texts] + told]
    name = f"nfu-{os.getpid()}"
    netns.create_namespace(name)
    try:
        argv = ["ip", "netns", "exec", name, "nft", "-c", "-f", "-"]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, input="\n".join(lines) + "\n")
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        netns.delete_namespace(name)


@pytest.mark.parametrize("rest", [{"ip_version": 6}, {"dst_nets": (V6,)}, {"protocol": 58, "icmp": (128, None)}])
def test_a_set_that_cannot_be_asked_for_closes_the_rule_whatever_else_it_says(rest: dict[str, Any]) -> None:
    """ADR 11: as the other driver does, and as ``calicoctl explain`` says."""

    def refuse(set_id: SetId, family: int) -> str:
        raise InvalidRequest("sets", f"{set_id} could not be programmed")

    rule = HostRule(action="allow", src_sets=(TAG,), **rest)
    with pytest.raises(InvalidRequest, match=TAG):
        render_rule(rule, refuse, families=(4,), verdicts=Verdicts(DataplaneOptions(), Origins()), origin=ORIGIN)
