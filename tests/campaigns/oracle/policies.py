"""Random policy of the oracle: rules with every match, policies, tiers and profiles, as they are stored."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NETS = (
    "10.65.0.0/31", "10.65.0.0/16", "10.65.1.1/32", "10.65.2.0/23", "10.66.0.0/30", "198.51.100.0/24", "0.0.0.0/0",
    "fd65::/16", "fd65:1::1/128", "fd65:2::/31", "fd66::2/127", "2001:db8::/32", "::/0",
)  # fmt: skip
PROFILES, TAGS, _KEYS, _VALUES = ("p0", "p1", "p2"), ("t0", "t1"), ("a", "b", "c"), ("x", "y", "xy")
_SELECTORS = (
    "", "all()", "a == 'x'", 'a == "x"', "a != 'x'", "has(a)", "!has(a)", "b in {'y', 'x'}", "b not in {'x'}",
    "a == 'x' && has(b)", "a == 'x' || b == 'y'", "!(a == 'x' || has(c))", "a starts with 'x' && c != 'y'",
    "c contains 'y'", "b ends with 'y' || !has(a)", "has(a) && has(b) && has(c)", "global()", "a in {'x'} && b == 'y'",
)  # fmt: skip
_RULE_PORTS: list[Any] = [80, 443, "80:100", 5000, "1:1023", "0:65535", 53, "http", "http", "dns"]
_RULE_SOURCE_PORTS: list[Any] = [1000, "1000:1001", "1002:2000", 2001, "0:65535"]
_PORT_PROTOCOLS = ("tcp", 17, "sctp", "132", "udp", "6")

_selectors = st.sampled_from(_SELECTORS)
_orders: st.SearchStrategy[Any] = st.sampled_from([None, "default", 1, 2, 10.5])
labels = st.dictionaries(st.sampled_from(_KEYS), st.sampled_from(_VALUES), max_size=3)


def some(values: Any, most: int = 2) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=most)


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid rule, and now and then one with a field that does not exist."""
    rule: dict[str, Any] = {
        "action": draw(st.sampled_from(["allow"] * 4 + ["deny", "reject", "next-tier", "pass", "log"]))
    }
    protocol = draw(st.sampled_from([None, None, None, *_PORT_PROTOCOLS, "icmp", "icmpv6", 200]))
    if protocol is not None:
        rule["protocol"] = protocol
    if protocol in _PORT_PROTOCOLS:
        for name in draw(some(["src_ports", "!src_ports", "dst_ports", "dst_ports", "!dst_ports"])):
            rule[name] = draw(some(_RULE_PORTS if "dst" in name else _RULE_SOURCE_PORTS, 3))
        if draw(st.integers(0, 15)) == 0:  # more than one multiport match takes
            rule["dst_ports"] = [*range(60, 100, 2), "440:445"]
    if protocol in ("icmp", "icmpv6"):
        for sign in draw(some(["", "!"], 2)):
            rule[f"{sign}icmp_type"] = draw(st.sampled_from([8, 13] if protocol == "icmp" else [128]))
            code = draw(st.sampled_from([None, 0, 1]))
            if code is not None:
                rule[f"{sign}icmp_code"] = code
    version = draw(st.sampled_from([None] * 6 + [4, 6])) if protocol not in ("icmp", "icmpv6") else None
    nets = [each for each in NETS if version is None or (":" in each) == (version == 6)]
    if version is not None:
        rule["ip_version"] = version
    for side in ("src", "dst"):
        for choice in draw(some(["net", "!net", "nets", "!nets", "tag", "!tag", "selector", "!selector"], 1)):
            sign, kind = ("!", choice[1:]) if choice.startswith("!") else ("", choice)
            values: Any = {"net": st.sampled_from(nets), "nets": some(nets, 3), "tag": st.sampled_from(TAGS)}
            rule[f"{sign}{side}_{kind}"] = draw(values.get(kind, _selectors))
    if draw(st.integers(0, 5)) == 0:
        rule["!protocol"] = draw(st.sampled_from(["tcp", "udp", 58, "1"]))
    if draw(st.integers(0, 9)) == 0:
        rule["log_prefix"] = draw(st.sampled_from(["hit", "a b/c"]))
    if draw(st.integers(0, 60)) == 0:
        rule["dst_colour"] = "blue"
    return rule


rule_lists = st.lists(rules(), max_size=3)


def kept(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value is not None}


def _with_hook(record: dict[str, Any]) -> dict[str, Any]:
    hook = record.pop("hook")
    return kept(record if hook is None else {**record, hook: True, "apply_on_forward": True})


named_ports = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["http", "dns"]), "protocol": st.sampled_from(["tcp", 17, "sctp"]),
         "port": st.sampled_from([80, 443, 53, 5000])}
    ),
    max_size=2,
)  # fmt: skip
policies = st.fixed_dictionaries(
    {
        "selector": _selectors,
        "order": _orders,
        "inbound_rules": rule_lists,
        "outbound_rules": rule_lists,
        "types": st.sampled_from([None, None, None, ["ingress"], ["egress"], ["ingress", "egress"]]),
        "staged": st.sampled_from([None] * 9 + [True]),
        "apply_on_forward": st.sampled_from([None] * 3 + [True]),
        "hook": st.sampled_from([None] * 8 + ["untracked", "pre_dnat"]),
    }
).map(_with_hook)
tiers = st.fixed_dictionaries(
    {"order": _orders, "defaultAction": st.sampled_from([None, "deny", "pass"])}
).map(kept)  # fmt: skip
_profile_rules = st.fixed_dictionaries({"inbound_rules": rule_lists, "outbound_rules": rule_lists})
_passed_on = st.fixed_dictionaries(
    {
        direction: st.tuples(rules(), st.sampled_from([{"action": "pass"}, {"action": "next-tier"}])).map(list)
        for direction in ("inbound_rules", "outbound_rules")
    }
)
"""In a profile, what is passed on is allowed."""
_OPEN = {"inbound_rules": [{"action": "allow"}], "outbound_rules": [{"action": "allow"}]}
open_or_not = st.one_of(st.just(_OPEN), st.just(_OPEN), _passed_on, _profile_rules)
