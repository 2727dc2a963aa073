"""Rules of the datastore compiled for the kernel: never wider than written."""

from __future__ import annotations

from typing import Any

import pytest
from netaddr import IPNetwork

from calico_core.model.hoststate import HostRule, RulesId
from calico_core.model.rules import Rule
from calico_core.model.selectors import parse_selector
from calico_core.policy.rules import compile_rules

A, B, WIDE = IPNetwork("10.0.0.0/24"), IPNetwork("10.0.1.0/24"), IPNetwork("10.0.0.0/8")
SIX = IPNetwork("fd00::/64")


def host_rule(**fields: Any) -> HostRule | None:
    rules, _ = compile_rules(RulesId("policy/t/n"), (Rule(**fields),), (), of_profile=False)
    return rules.inbound[0] if rules.inbound else None


@pytest.mark.parametrize(
    ("given", "compiled"),
    [
        ({}, {}),
        ({"action": "next-tier"}, {"action": "pass"}),
        ({"action": "pass"}, {"action": "pass"}),
        ({"action": "deny", "log_prefix": "a b"}, {"action": "deny", "log_prefix": "a_b"}),
        ({"action": "log"}, {"action": "log"}),
        ({"protocol": "TCP"}, {"protocol": 6}),
        ({"protocol": "17"}, {"protocol": 17}),
        ({"not_protocol": "udplite"}, {"not_protocol": 136}),
        ({"protocol": "icmp"}, {"protocol": 1, "ip_version": 4}),
        ({"protocol": "icmpv6"}, {"protocol": 58, "ip_version": 6}),
        (
            {"protocol": "icmp", "icmp_type": 8, "icmp_code": 0, "not_icmp_type": 3},
            {"protocol": 1, "ip_version": 4, "icmp": (8, 0), "not_icmp": (3, None)},
        ),
        (
            {"protocol": "tcp", "dst_ports": (80, "8000:8080"), "not_src_ports": ("0:1023",)},
            {"protocol": 6, "dst_ports": ((80, 80), (8000, 8080)), "not_src_ports": ((0, 1023),)},
        ),
        ({"src_net": A}, {"src_nets": (A,), "ip_version": 4}),
        ({"not_dst_net": SIX}, {"not_dst_nets": (SIX,), "ip_version": 6}),
        ({"src_nets": (A, SIX)}, {"src_nets": (A, SIX)}),
        ({"src_nets": (A, SIX), "dst_net": B}, {"src_nets": (A,), "dst_nets": (B,), "ip_version": 4}),
        ({"src_nets": (A, SIX), "ip_version": 6}, {"src_nets": (SIX,), "ip_version": 6}),
        ({"src_net": WIDE, "src_nets": (A, SIX)}, {"src_nets": (A,), "ip_version": 4}),
        ({"src_net": A, "src_nets": (WIDE, B)}, {"src_nets": (A,), "ip_version": 4}),
        ({"not_src_net": A, "not_src_nets": (B, A)}, {"not_src_nets": (A, B), "ip_version": 4}),
        ({"not_src_net": A, "not_src_nets": (SIX,)}, {"not_src_nets": (A, SIX)}),
        ({"src_nets": ()}, {}),
    ],
)
def test_fields(given: dict[str, Any], compiled: dict[str, Any]) -> None:
    assert host_rule(**given) == HostRule(**{"action": "allow", **compiled})


@pytest.mark.parametrize(
    "given",
    [
        {"src_net": A, "dst_net": SIX},
        {"src_net": A, "not_dst_net": SIX},
        {"protocol": "icmp", "src_net": SIX},
        {"protocol": "icmpv6", "dst_nets": (A,)},
        {"src_net": A, "src_nets": (B,)},
        {"src_nets": (A,), "ip_version": 6},
    ],
)
def test_what_can_match_nothing_is_left_out(given: dict[str, Any]) -> None:
    assert host_rule(**given) is None


def test_in_a_profile_passing_on_is_allowing() -> None:
    for action in ("pass", "next-tier", "allow"):
        rules, _ = compile_rules(RulesId("profile/p"), (Rule(action=action),), (), of_profile=True)
        assert [rule.action for rule in rules.inbound] == ["allow"]


def test_sets_of_tags_and_selectors() -> None:
    rule = Rule(src_tag="web", not_src_selector="!has(a)", dst_selector=" a=='x' ", not_dst_tag="web")
    rules, nodes = compile_rules(RulesId("profile/p"), (rule,), (), of_profile=True)
    (compiled,) = rules.inbound
    selector = parse_selector('a == "x"')
    assert compiled.dst_sets == (f"sel-{selector.id}",)
    assert compiled.src_sets == compiled.not_dst_sets == ("tag-4b5e57f6eb2f42b9",)
    assert compiled.not_src_sets == (f"sel-{parse_selector('!has(a)').id}",)
    assert set(nodes) == set(compiled.sets)
    assert nodes[compiled.dst_sets[0]] == selector.root


def test_a_rule_that_matches_nothing_needs_no_sets() -> None:
    rule = Rule(src_tag="web", src_net=A, dst_net=SIX)
    rules, nodes = compile_rules(RulesId("policy/t/n"), (rule, Rule(action="deny")), (rule,), of_profile=False)
    assert rules.inbound == (HostRule(action="deny"),)
    assert rules.outbound == ()
    assert not nodes
