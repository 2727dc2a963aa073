"""Random policies for the town, and the packets to try them with. Everything is drawn, so that failures shrink."""

from __future__ import annotations

import itertools
import random
from typing import Any, NamedTuple

from hypothesis import strategies as st
from netaddr import IPNetwork

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import (
    Key,
    NetworkSetKey,
    PolicyKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
    TierKey,
    WorkloadEndpointKey,
)
from calico_core.model.policies import NetworkSet, Policy, Tier
from calico_core.model.rules import Rule, RuleLists
from tests.campaigns.oracle import town
from tests.campaigns.oracle.flows import ICMP, ICMPV6, SCTP, TCP, UDP, Flow

HERE, THERE = "here", "there"
_PROFILES, _TAGS, _KEYS, _VALUES = ("p0", "p1", "p2"), ("t0", "t1"), ("a", "b"), ("x", "y", "xy")
_SELECTORS = (
    "", "all()", "a == 'x'", "a != 'x'", "has(a)", "!has(a)", "b in {'y', 'x'}", "b not in {'x'}",
    "a == 'x' && has(b)", "a == 'x' || b == 'y'", "!(a == 'x' || has(b))", "a starts with 'x'",
    "b contains 'y'", "b ends with 'y' || !has(a)",
)  # fmt: skip
_NETS = [IPNetwork(text) for text in (
    "10.65.0.0/31", "10.65.0.2/31", "10.65.0.0/16", "10.64.0.0/14", "10.66.0.1/32", "192.0.2.0/24", "0.0.0.0/0",
    "fd65::/126", "fd65::2/128", "fd66::/64", "2001:db8::/64", "::/0",
)]  # fmt: skip
_ADDRESS_FIELDS = ("net", "not_net", "nets", "not_nets", "tag", "not_tag", "selector", "not_selector")
_PORTS = (53, 80, 90, 443, 5000, 6000)
_ICMP = {4: ((8, 0), (8, 1), (13, 0)), 6: ((128, 0), (128, 1), (139, 0))}
FLOWS_A_CASE = 200


class Case(NamedTuple):
    """``seed`` chooses the packets."""

    records: dict[Key, Any]
    seed: int


def _some(values: Any, most: int = 2) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=most).map(tuple)


_labels = st.dictionaries(st.sampled_from(_KEYS), st.sampled_from(_VALUES), max_size=2)
_selectors = st.sampled_from(_SELECTORS)
_orders = st.sampled_from([None, "default", 1, 2])


@st.composite
def _rules(draw: st.DrawFn) -> Rule:
    """Any valid rule: fields are drawn, and given up together when they contradict each other."""
    actions = ["allow", "allow", "allow", "deny", "next-tier", "pass", "log"]
    fields: dict[str, Any] = {"action": draw(st.sampled_from(actions))}
    protocol = draw(st.sampled_from([None, None, "tcp", "udp", 17, "sctp", "icmp", "icmp", "icmpv6", 200]))
    if protocol is not None:
        fields["protocol"] = protocol
    if protocol in ("tcp", "udp", 17, "sctp"):
        for name in draw(_some(["src_ports", "not_src_ports", "dst_ports", "not_dst_ports"])):
            fields[name] = draw(_some([53, 80, 443, "80:100", 5000, "1:6000"], 3))
    if protocol in ("icmp", "icmpv6"):
        for name in draw(st.sampled_from([("",), ("",), ("not_",), ("", "not_"), ()])):
            fields[f"{name}icmp_type"] = draw(st.sampled_from([8, 13] if protocol == "icmp" else [128, 139]))
            fields[f"{name}icmp_code"] = draw(st.sampled_from([None, 0, 1]))
    for side in ("src", "dst"):
        for choice in draw(_some(_ADDRESS_FIELDS, draw(st.sampled_from([0, 1, 1, 2])))):
            polarity, _, kind = choice.rpartition("_")
            values = {"net": st.sampled_from(_NETS), "nets": _some(_NETS, 3), "tag": st.sampled_from(_TAGS)}
            fields[f"{polarity}_{side}_{kind}" if polarity else f"{side}_{kind}"] = draw(values.get(kind, _selectors))
    if draw(st.integers(0, 4)) == 0:
        fields["ip_version"] = draw(st.sampled_from([4, 6]))
    if draw(st.integers(0, 4)) == 0:
        fields["not_protocol"] = draw(st.sampled_from(["tcp", "udp", 1, 58]))
    try:
        return Rule(**fields)
    except ValueError:
        return Rule(action=fields["action"])


# Half of them end by allowing what came so far, or most would deny everything.
_rule_lists = st.tuples(st.lists(_rules(), min_size=1, max_size=5), st.sampled_from([(), (Rule(),)])).map(
    lambda each: (*each[0], *each[1])
)
# What a workload sends is mostly free, so that most packets are judged by the receiver's rules.
_outbound_lists = st.one_of(st.just((Rule(),)), st.just((Rule(),)), _rule_lists)
_policies = st.builds(
    Policy,
    selector=_selectors,
    order=_orders,
    inbound_rules=_rule_lists,
    outbound_rules=_outbound_lists,
    types=st.sampled_from([None, None, ("ingress",), ("egress",), ("ingress", "egress")]),
    staged=st.sampled_from([False] * 9 + [True]),
    untracked=st.sampled_from([False] * 9 + [True]),
)
_tiers = st.builds(Tier, order=_orders, default_action=st.sampled_from(["deny", "deny", "pass"]))
_profile_ids = st.lists(st.sampled_from(_PROFILES), unique=True, max_size=3).map(tuple)


@st.composite
def _endpoint(draw: st.DrawFn, interface: str, addresses: tuple[Any, ...], mac: Any) -> WorkloadEndpoint:
    nets = [IPNetwork(address) for address in addresses if draw(st.integers(0, 5))]
    return WorkloadEndpoint(
        state=draw(st.sampled_from(["active"] * 9 + ["inactive"])),
        name=interface,
        mac=draw(st.sampled_from([mac, None])),
        profile_ids=draw(_profile_ids),
        ipv4_nets=tuple(net for net in nets if net.version == 4),
        ipv6_nets=tuple(net for net in nets if net.version == 6),
        labels=draw(_labels),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    records: dict[Key, Any] = {}

    def put(key: Key, strategy: st.SearchStrategy[Any], *, absent_one_in: int) -> None:
        if draw(st.integers(1, absent_one_in)) != absent_one_in:
            records[key] = draw(strategy)

    for name in town.WORKLOADS:
        endpoint = _endpoint(town.INTERFACES[name], town.ADDRESSES[name], town.MACS[name])
        put(WorkloadEndpointKey(HERE, "oracle", name, "eth0"), endpoint, absent_one_in=12)
    for name, addresses in town.REMOTE.items():
        put(WorkloadEndpointKey(THERE, "oracle", name, "eth0"), _endpoint("cali0", addresses, None), absent_one_in=4)
    for number in range(2):
        nets = st.builds(NetworkSet, nets=_some(_NETS, 4), labels=_labels)
        put(NetworkSetKey(f"s{number}"), nets, absent_one_in=3)
    for profile in _PROFILES:
        rules = st.builds(RuleLists, inbound_rules=_rule_lists, outbound_rules=_outbound_lists)
        put(ProfileRulesKey(profile), rules, absent_one_in=6)
        put(ProfileLabelsKey(profile), _labels, absent_one_in=3)
        put(ProfileTagsKey(profile), _some(_TAGS), absent_one_in=3)
    for tier, name in itertools.product(("default", "t1"), ("n1", "n2")):
        put(PolicyKey(tier, name), _policies, absent_one_in=3)
    for tier in ("default", "t1"):
        put(TierKey(tier), _tiers, absent_one_in=3)
    return Case(records, draw(st.integers(0, 2**32 - 1)))


def flows_of(case: Case, first_number: int) -> dict[int, Flow]:
    """Packets by number. No two are of one connection."""
    dice = random.Random(case.seed)
    flows: dict[int, Flow] = {}
    seen: set[Any] = set()
    while len(flows) < FLOWS_A_CASE:
        flow = _flow(dice)
        # An answer to one packet must not pass for another packet: both directions count as one connection.
        ends = frozenset([(flow.src, flow.src_port), (flow.dst, flow.dst_port)])
        connection = (ends, flow.protocol, flow.icmp if flow.icmp is None else len(seen))
        if flow.src != flow.dst and connection not in seen:
            seen.add(connection)
            flows[first_number + len(flows)] = flow
    return flows


def _flow(dice: random.Random) -> Flow:
    version = dice.choice((4, 4, 6))

    def of_version(addresses: Any) -> list[Any]:
        return [address for address in addresses if address.version == version]

    everyone = [address for addresses in (*town.ADDRESSES.values(), *town.REMOTE.values()) for address in addresses]
    sender = dice.choice((*town.WORKLOADS, *town.WORKLOADS, town.NEIGHBOUR, town.NEIGHBOUR, town.HOST))
    if sender == town.HOST:
        own = town.HOST_ADDRESSES
    elif sender == town.NEIGHBOUR:
        own = (*town.STRANGERS, *town.REMOTE["r1"], *town.REMOTE["r2"])
    else:
        own = town.ADDRESSES[sender]
    is_spoofed = sender in town.WORKLOADS and dice.randrange(20) == 0
    src = dice.choice(of_version((*everyone, *town.STRANGERS) if is_spoofed else own))
    local = [address for addresses in town.ADDRESSES.values() for address in addresses]
    places = [local, local, local, everyone, town.STRANGERS, town.HOST_ADDRESSES]
    if sender == town.HOST:
        places = [local]
    dst = dice.choice([each for each in of_version(dice.choice(places)) if each not in own] or of_version(local))
    protocol = dice.choice((TCP, TCP, UDP, UDP, ICMP, SCTP, town.OTHER_PROTOCOL))
    if protocol == ICMP:
        return Flow(sender, src, dst, ICMP if version == 4 else ICMPV6, icmp=dice.choice(_ICMP[version]))
    if protocol == town.OTHER_PROTOCOL:
        return Flow(sender, src, dst, protocol)
    return Flow(sender, src, dst, protocol, dice.choice(_PORTS), dice.choice(_PORTS))
