"""Rules as words: what is printed can be typed, and errors point at the word."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_core.cli.rule_words import parse_rule, render_rule
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import parse_network
from calico_core.model.rules import Rule

CASES = [
    ("allow", Rule(action="allow")),
    ("pass", Rule(action="next-tier")),
    (
        "allow tcp to ports 80,443",
        Rule(action="allow", protocol="tcp", dst_ports=(80, 443)),
    ),
    (
        "deny udp to ports 53 from cidr 10.0.0.0/8 tag BAD",
        Rule(action="deny", protocol="udp", src_tag="BAD", src_net=parse_network("10.0.0.0/8"), dst_ports=(53,)),
    ),
    (
        "allow tcp to ports 80-90,100:110 from tag T",
        Rule(action="allow", protocol="tcp", src_tag="T", dst_ports=("80:90", "100:110")),
    ),
    (
        "reject tcp to ports 80,http-alt,8000-8010 from ports web",
        Rule(action="reject", protocol="tcp", src_ports=("web",), dst_ports=(80, "http-alt", "8000:8010")),
    ),
    ("allow icmp type 8 code 0", Rule(action="allow", protocol="icmp", icmp_type=8, icmp_code=0)),
    ("deny not tcp", Rule(action="deny", not_protocol="tcp")),
    (
        "allow from not selector \"role == 'db'\"",
        Rule(action="allow", not_src_selector="role == 'db'"),
    ),
    ("log log-prefix seen ip 6", Rule(action="log", log_prefix="seen", ip_version=6)),
]


@pytest.mark.parametrize(("text", "rule"), CASES)
def test_words(text: str, rule: Rule) -> None:
    assert parse_rule(shlex.split(text)) == rule


@pytest.mark.parametrize(
    ("text", "field", "under"),
    [
        ("", "action", ""),
        ("accept", "action", "accept"),
        ("allow ftp", "protocol", "ftp"),
        ("allow tcp to port 80", "ports LIST", "port"),
        ("allow tcp to ports", "list of ports", ""),
        ("allow icmp type eight", "ICMP type", "eight"),
        ("allow from tag a tag b", "stands twice", "b"),
        ("allow from", "", ""),
        ("allow to ports 80", "protocol of tcp", ""),
        ("allow tcp to ports 90:80", "lower", ""),
        ("allow tcp to ports 90-80", "lower", ""),
        ("allow tcp to ports 1:2:3", "name of a port", ""),
        ("allow from cidr 10", "IP address", ""),
        ("allow ip 5", "5", ""),
    ],
)
def test_faults_point_at_the_word(text: str, field: str, under: str) -> None:
    if text == "allow from":
        assert parse_rule(text.split()) == Rule(action="allow")
        return
    with pytest.raises(InvalidRequest) as caught:
        parse_rule(text.split())
    assert field in str(caught.value)
    if under:
        *_, words, caret = str(caught.value).splitlines()
        assert words[caret.index("^") :].startswith(under)


_nets = st.sampled_from(["10.0.0.0/8", "192.0.2.7/32", "fd00::/64"]).map(parse_network)
_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,7}", fullmatch=True)
_ports = st.lists(
    st.one_of(
        st.integers(0, 65535),
        st.sampled_from(["http", "http-alt", "a.b_1"]),
        st.tuples(st.integers(0, 100), st.integers(101, 65535)).map(lambda r: f"{r[0]}:{r[1]}"),
    ),
    min_size=1,
    max_size=4,
).map(tuple)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    fields: dict[str, object] = {"action": draw(st.sampled_from(["allow", "deny", "reject", "log", "next-tier"]))}
    if draw(st.booleans()):
        fields["protocol"] = draw(st.sampled_from(["tcp", "udp", "sctp", 6, 17]))
        for side in ("src_ports", "not_src_ports", "dst_ports", "not_dst_ports"):
            if draw(st.booleans()):
                fields[side] = draw(_ports)
    for side in ("src", "dst"):
        for sign in ("", "not_"):
            if draw(st.booleans()):
                fields[f"{sign}{side}_tag"] = draw(_names)
            if draw(st.booleans()):
                fields[f"{sign}{side}_net"] = draw(_nets)
            if draw(st.booleans()):
                fields[f"{sign}{side}_selector"] = draw(st.sampled_from(["all()", "a == 'b'", 'has(x) && y in {"z"}']))
    if draw(st.booleans()):
        fields["log_prefix"] = draw(_names)
    return Rule(**fields)  # type: ignore[arg-type]


@given(rules())
def test_what_is_printed_can_be_typed(rule: Rule) -> None:
    assert parse_rule(shlex.split(render_rule(rule))) == rule
