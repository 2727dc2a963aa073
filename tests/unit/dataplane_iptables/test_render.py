"""One policy rule as iptables text."""

from __future__ import annotations

from typing import Any

import pytest
from netaddr import IPNetwork

from calico_core.dataplane.iptables.render import render_rule
from calico_core.errors import InvalidRequest
from calico_core.model.hoststate import HostRule, SetId

SET = SetId("tag-00000000000000aa")
V4, V6 = IPNetwork("10.0.0.0/8"), IPNetwork("fd00::/8")
DROP = "-j DROP"
MATCHED = ("nets", "sets", "ports")


def render(family: int = 4, **fields: Any) -> list[str]:
    return list(rendered(family, **fields).rules)


def rendered(family: int = 4, **fields: Any) -> Any:
    rule = HostRule(**{"action": "deny", **fields})
    return render_rule(rule, family, lambda set_id, of: f"set{of}-{set_id[:3]}", log_prefix="calico-packet")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["-j DROP"]),
        ({"protocol": 6}, ["-p 6 -j DROP"]),
        ({"not_protocol": 6}, ["! -p 6 -j DROP"]),
        ({"protocol": 6, "not_protocol": 6}, []),
        ({"protocol": 6, "not_protocol": 17}, ["-p 6 -j DROP"]),
        ({"ip_version": 4}, ["-j DROP"]),
        ({"ip_version": 6}, []),
        ({"src_nets": (V4,)}, ["-s 10.0.0.0/8 -j DROP"]),
        ({"dst_nets": (V4,)}, ["-d 10.0.0.0/8 -j DROP"]),
        ({"src_nets": (V6,)}, []),
        ({"src_nets": (V4, V6)}, ["-s 10.0.0.0/8 -j DROP"]),
        ({"src_nets": (IPNetwork("0.0.0.0/0"),)}, ["-j DROP"]),
        ({"not_src_nets": (V4,)}, ["! -s 10.0.0.0/8 -j DROP"]),
        ({"not_src_nets": (V6,)}, ["-j DROP"]),
        ({"not_src_nets": (IPNetwork("0.0.0.0/0"),)}, []),
        ({"not_src_nets": (IPNetwork("0.0.0.0/1"), IPNetwork("128.0.0.0/1"))}, []),
        ({"src_sets": (SET,)}, ["-m set --match-set set4-tag src -j DROP"]),
        ({"not_dst_sets": (SET,)}, ["-m set ! --match-set set4-tag dst -j DROP"]),
        ({"protocol": 6, "dst_ports": ((80, 80), (90, 99))}, ["-p 6 -m multiport --dports 80,90:99 -j DROP"]),
        ({"protocol": 17, "not_src_ports": ((53, 53),)}, ["-p 17 -m multiport ! --sports 53 -j DROP"]),
        ({"protocol": 1, "icmp": (8, None)}, ["-p 1 -m icmp --icmp-type 8 -j DROP"]),
        ({"protocol": 1, "not_icmp": (8, 0)}, ["-p 1 -m icmp ! --icmp-type 8/0 -j DROP"]),
        ({"protocol": 58, "icmp": (128, None)}, []),
        (
            {"action": "log", "protocol": 6},
            ['-p 6 -j LOG --log-prefix "calico-packet: " --log-level 5'],
        ),
        (
            {"log_prefix": 'a"b c'},
            ['-j LOG --log-prefix "a_b_c: " --log-level 5', "-j DROP"],
        ),
        (
            {"action": "allow", "protocol": 6},
            ["-p 6 -j MARK --set-xmark 0x1000000/0x1000000", "-m mark --mark 0x1000000/0x1000000 -j RETURN"],
        ),
        (
            {"action": "pass"},
            ["-j MARK --set-xmark 0x2000000/0x2000000", "-m mark --mark 0x2000000/0x2000000 -j RETURN"],
        ),
    ],
    ids=str,
)
def test_rules(fields: dict[str, Any], expected: list[str]) -> None:
    assert render(**fields) == expected


def test_ipv6() -> None:
    assert render(6, protocol=58, icmp=(128, 0)) == ["-p 58 -m icmp6 --icmpv6-type 128/0 -j DROP"]
    assert render(6, protocol=1, icmp=(8, None)) == []
    assert render(6, src_nets=(V4, V6)) == ["-s fd00::/8 -j DROP"]
    assert render(6, ip_version=4) == []


def test_a_list_of_networks_is_a_set_named_by_its_content() -> None:
    nets = (V4, IPNetwork("192.0.2.0/24"), V6)
    one, other = rendered(src_nets=nets), rendered(not_dst_nets=nets[::-1])
    ((name, made),) = one.nets
    assert one.rules == (f"-m set --match-set {name} src {DROP}",)
    assert other.rules == (f"-m set ! --match-set {name} dst {DROP}",)
    assert other.nets == one.nets
    assert made.kind == "nets4"
    assert made.elements == {(0x0A000000, 8), (0xC0000200, 24)}
    assert len(name) <= 31
    assert rendered(src_nets=nets[:1]).nets == ()


def test_a_positive_and_a_negated_network_on_one_side() -> None:
    made = rendered(src_nets=(V4,), not_src_nets=(IPNetwork("10.1.0.0/16"),))
    ((name, _),) = made.nets
    assert made.rules == (f"-s 10.0.0.0/8 -m set ! --match-set {name} src {DROP}",)


def test_more_ports_than_a_match_takes() -> None:
    ports = tuple((port, port) for port in range(1, 32))
    rules = render(protocol=6, dst_ports=ports)
    assert [rule.split()[5].count(",") + 1 for rule in rules] == [15, 15, 1]
    assert len(render(protocol=6, dst_ports=ports, src_ports=ports)) == 9
    (negated,) = render(protocol=6, not_dst_ports=ports)
    assert negated.count("-m multiport ! --dports") == 3
    # a range takes two places
    ranges = tuple((port, port + 1) for port in range(1, 32, 4))
    assert [rule.split()[5].count(",") + 1 for rule in render(protocol=6, dst_ports=ranges)] == [7, 1]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"dst_ports": ((80, 80),)}, "ports"),
        ({"protocol": 1, "dst_ports": ((80, 80),)}, "ports"),
        ({"protocol": 6, "icmp": (8, None)}, "icmp"),
        ({"protocol": 1, "icmp": (8, None), "ip_version": 6}, "icmp"),
        ({"protocol": 1, "icmp": (255, None)}, "icmp"),
        ({"action": "jump"}, "action"),
    ],
    ids=str,
)
def test_what_cannot_be_expressed_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(**fields)
    assert caught.value.field == field


def test_no_field_of_a_rule_is_overlooked() -> None:
    """A match that is not rendered would make the rule wider than it is."""
    sides = {f"{negation}{side}_{what}" for negation in ("", "not_") for side in ("src", "dst") for what in MATCHED}
    others = {"action", "ip_version", "protocol", "not_protocol", "icmp", "not_icmp", "log_prefix"}
    assert set(HostRule.__struct_fields__) == sides | others
