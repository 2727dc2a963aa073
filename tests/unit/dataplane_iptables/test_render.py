"""One policy rule as iptables text."""

from __future__ import annotations

from typing import Any

import pytest
from netaddr import IPNetwork

from calico_core.dataplane.denials import Origins
from calico_core.dataplane.iptables.render import Rendered, render_rule
from calico_core.dataplane.iptables.verdicts import Verdicts
from calico_core.errors import InvalidRequest
from calico_core.interfaces.dataplane import DataplaneOptions, DenialOrigin
from calico_core.model.hoststate import HostRule, RulesId, SetId

SET = SetId("tag-00000000000000aa")
V4, V6 = IPNetwork("10.0.0.0/8"), IPNetwork("fd00::/8")
DROP = "-j DROP"
MATCHED = ("nets", "sets", "ports", "port_sets")
ORIGIN = DenialOrigin(reason="rule", direction="inbound", rules=RulesId("profile/p"), rule=0)
PORTS = SetId("npt-00000000000000bb")


def render(family: int = 4, **fields: Any) -> list[str]:
    return list(rendered(family, **fields).rules)


def rendered(
    family: int = 4,
    options: dict[str, Any] | None = None,
    table: str = "filter",
    *,
    is_staged: bool = False,
    **fields: Any,
) -> Rendered:
    rule = HostRule(**{"action": "deny", **fields})
    verdicts = Verdicts(DataplaneOptions(**(options or {})), Origins(), family, table)
    return render_rule(rule, family, lambda set_id, of: f"set{of}-{set_id[:3]}", verdicts, ORIGIN, is_staged=is_staged)


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
    ports = tuple((port, port) for port in range(1, 63, 2))
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
        ({"protocol": 33, "not_dst_port_sets": (PORTS,)}, "ports"),
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


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dst_port_sets": (PORTS,)}, ["-m set --match-set set4-npt dst,dst -j DROP"]),
        ({"src_port_sets": (PORTS,)}, ["-m set --match-set set4-npt src,src -j DROP"]),
        ({"not_dst_port_sets": (PORTS, SET)}, [
            "-m set ! --match-set set4-npt dst,dst -m set ! --match-set set4-tag dst,dst -j DROP",
        ]),
        # one of them is enough, and a packet matches one at most
        ({"protocol": 6, "dst_ports": ((80, 80),), "dst_port_sets": (PORTS, SET)}, [
            "-p 6 -m multiport --dports 80 -j DROP",
            "-p 6 -m multiport ! --dports 80 -m set --match-set set4-npt dst,dst -j DROP",
            ("-p 6 -m multiport ! --dports 80 -m set ! --match-set set4-npt dst,dst "
             "-m set --match-set set4-tag dst,dst -j DROP"),
        ]),
        ({"protocol": 6, "not_src_ports": ((7, 9),), "not_src_port_sets": (PORTS,)}, [
            "-p 6 -m multiport ! --sports 7:9 -m set ! --match-set set4-npt src,src -j DROP",
        ]),
    ],
    ids=str,
)  # fmt: skip
def test_named_ports(fields: dict[str, Any], expected: list[str]) -> None:
    assert render(**fields) == expected


def test_more_excluded_ports_than_a_rule_has_room_for() -> None:
    odd = tuple((port, port) for port in range(1001, 2001, 2))
    rules = render(protocol=6, not_dst_ports=odd)
    assert all("!" not in rule for rule in rules)
    listed = [each for rule in rules for each in rule.split()[5].split(",")]
    assert listed == ["0:1000", *(str(port) for port in range(1002, 2000, 2)), "2000:65535"]
    assert render(protocol=6, dst_ports=((1001, 1003),), not_dst_ports=odd) == [
        "-p 6 -m multiport --dports 1002 -j DROP"
    ]
    assert render(protocol=6, dst_ports=odd, not_dst_ports=odd) == []


def test_ports_that_touch_are_one_range() -> None:
    (rule,) = render(protocol=6, dst_ports=((80, 80), (81, 90), (85, 99), (7, 7)))
    assert rule == "-p 6 -m multiport --dports 7,80:99 -j DROP"


TOLD = "-m limit --limit 100/sec --limit-burst 100 -j NFLOG --nflog-prefix"
LOGGED = '-j LOG --log-prefix "calico-packet: " --log-level 5'


@pytest.mark.parametrize(
    ("options", "action", "family", "expected"),
    [
        ({}, "reject", 4, ["-j REJECT --reject-with icmp-admin-prohibited"]),
        ({}, "reject", 6, ["-j REJECT --reject-with icmp6-adm-prohibited"]),
        ({"deny_action": "REJECT"}, "deny", 4, ["-j REJECT --reject-with icmp-admin-prohibited"]),
        ({"drop_override": "ACCEPT"}, "deny", 4, ["-j ACCEPT # POLICY IS SWITCHED OFF"]),
        ({"drop_override": "ACCEPT", "deny_action": "REJECT"}, "reject", 4, ["-j ACCEPT # POLICY IS SWITCHED OFF"]),
        ({"drop_override": "LOG-and-DROP"}, "deny", 4, [LOGGED, "-j DROP"]),
        ({"drop_override": "LOG-and-ACCEPT"}, "deny", 4, [LOGGED, "-j ACCEPT # POLICY IS SWITCHED OFF"]),
        ({"log_rate": 3, "log_burst": 7}, "log", 4, [
            '-m limit --limit 3/sec --limit-burst 7 -j LOG --log-prefix "calico-packet: " --log-level 5',
        ]),
        ({"log_rate": 3, "log_unit": "minute"}, "log", 4, [
            '-m limit --limit 3/minute --limit-burst 5 -j LOG --log-prefix "calico-packet: " --log-level 5',
        ]),
        ({"log_rate": 3, "log_unit": "day"}, "log", 4, [
            '-m limit --limit 3/day --limit-burst 3 -j LOG --log-prefix "calico-packet: " --log-level 5',
        ]),
        ({"log_rate": 99999}, "log", 4, [
            '-m limit --limit 10000/sec --limit-burst 5 -j LOG --log-prefix "calico-packet: " --log-level 5',
        ]),
        ({"mark_mask": 0x30}, "allow", 4, ["-j MARK --set-xmark 0x10/0x10", "-m mark --mark 0x10/0x10 -j RETURN"]),
        ({"mark_mask": 0x30}, "pass", 4, ["-j MARK --set-xmark 0x20/0x20", "-m mark --mark 0x20/0x20 -j RETURN"]),
    ],
    ids=str,
)  # fmt: skip
def test_ends_of_rules(options: dict[str, Any], action: str, family: int, expected: list[str]) -> None:
    assert list(rendered(family, options, action=action).rules) == expected


def test_only_the_filter_table_answers() -> None:
    for table in ("raw", "mangle"):
        assert rendered(4, {"deny_action": "REJECT"}, table, action="reject").rules == ("-j DROP",)


def test_what_is_denied_is_told_to_the_group() -> None:
    rules = rendered(options={"denied_group": 7}, protocol=6, dst_ports=((80, 80),)).rules
    match = "-p 6 -m multiport --dports 80"
    prefix = Origins().prefix(ORIGIN)
    assert rules == (f'{match} {TOLD} "{prefix}" --nflog-group 7 --nflog-size 128', f"{match} -j DROP")
    assert len(prefix) <= 30
    assert rendered(options={"denied_group": 7}, action="allow").rules == rendered(action="allow").rules


@pytest.mark.parametrize("action", ["allow", "deny", "reject", "pass", "log"])
def test_a_staged_rule_is_counted_and_nothing_else(action: str) -> None:
    found = rendered(options={"denied_group": 7}, action=action, protocol=6, log_prefix="x", is_staged=True)
    assert found.rules == (f"-p 6{'' if action == 'log' else ' -j RETURN'}",)
    assert found.counted == (0,)


def test_the_lines_that_count() -> None:
    """Of each way a packet may match, the one that decides."""
    ports: dict[str, Any] = {"protocol": 6, "dst_ports": ((80, 80),), "dst_port_sets": (PORTS,)}
    one = rendered(options={"denied_group": 7, "drop_override": "LOG-and-DROP"}, log_prefix="x", **ports)
    assert [one.rules[line].rpartition(" -j ")[2] for line in one.counted] == ["DROP", "DROP"]
    allowed = rendered(action="allow", **ports)
    assert [allowed.rules[line].rpartition(" -j ")[2][:4] for line in allowed.counted] == ["MARK", "MARK"]
    logged = rendered(action="log", **ports)
    assert len(logged.counted) == len(logged.rules) == 2


def test_no_field_of_a_rule_is_overlooked() -> None:
    """A match that is not rendered would make the rule wider than it is."""
    sides = {f"{negation}{side}_{what}" for negation in ("", "not_") for side in ("src", "dst") for what in MATCHED}
    others = {"action", "ip_version", "protocol", "not_protocol", "icmp", "not_icmp", "log_prefix"}
    assert set(HostRule.__struct_fields__) == sides | others


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("rest", [{"ip_version": 4}, {"dst_nets": (V6,)}, {"protocol": 6, "not_protocol": 6}])
def test_a_set_that_cannot_be_asked_for_closes_the_rule_whatever_else_it_says(
    family: int, rest: dict[str, Any]
) -> None:
    """ADR 11: as the other driver does, and as ``calicoctl explain`` says."""

    def refuse(set_id: SetId, family: int) -> str:
        raise InvalidRequest("sets", f"{set_id} could not be programmed")

    rule = HostRule(action="allow", src_sets=(SET,), **rest)
    verdicts = Verdicts(DataplaneOptions(), Origins(), family, "filter")
    with pytest.raises(InvalidRequest, match=SET):
        render_rule(rule, family, refuse, verdicts, ORIGIN)
