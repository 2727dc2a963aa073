"""Laws of policy calculation: verdicts as the specification says them, and nothing depends on how the inputs came.

The oracle below reads the datastore's records directly (felix specification 4.2 to 4.5) and shares nothing with the
calculation but the selector language.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.hoststate import HostChanges, HostState
from calico_core.model.keys import (
    BgpMeshKey,
    HostEndpointKey,
    Key,
    NetworkSetKey,
    PolicyKey,
    PoolKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
    TierKey,
    WorkloadEndpointKey,
)
from calico_core.model.policies import NetworkSet, Policy, Tier, order_value
from calico_core.model.pools import Pool
from calico_core.model.rules import Rule, RuleLists, parse_port_range, protocol_number
from calico_core.model.selectors import parse_selector
from calico_core.policy import label_index
from calico_core.policy.explain import Packet, explain
from calico_core.policy.resolver import PolicyResolver

HOST = "here"
Records = dict[Key, Any]
CLOSED = RuleLists(inbound_rules=(Rule(action="deny"),), outbound_rules=(Rule(action="deny"),))

# --- the oracle ------------------------------------------------------------------------------------------------


def labels_of(records: Records, endpoint: Any) -> dict[str, str]:
    merged: dict[str, str] = {}
    for profile in getattr(endpoint, "profile_ids", ()):
        merged.update(records.get(ProfileLabelsKey(profile), {}))
    return {**merged, **endpoint.labels}


def nets_of(record: Any) -> list[IPNetwork]:
    if isinstance(record, WorkloadEndpoint):
        return [*record.ipv4_nets, *record.ipv6_nets]
    if isinstance(record, HostEndpoint):
        return [IPNetwork(each) for each in (*record.expected_ipv4_addrs, *record.expected_ipv6_addrs)]
    return list(record.nets)


def is_member(records: Records, address: IPAddress, *, tag: str | None = None, selector: str | None = None) -> bool:
    for record in records.values():
        if not isinstance(record, WorkloadEndpoint | HostEndpoint | NetworkSet):
            continue
        if not any(address in net for net in nets_of(record)):
            continue
        if selector is not None and parse_selector(selector).matches(labels_of(records, record)):
            return True
        profiles = getattr(record, "profile_ids", ())
        if tag is not None and any(tag in records.get(ProfileTagsKey(profile), ()) for profile in profiles):
            return True
    return False


def side_matches(records: Records, rule: Rule, side: str, address: IPAddress, port: int | None) -> bool:
    def field(name: str) -> Any:
        return getattr(rule, name)

    single, several = field(f"{side}_net"), field(f"{side}_nets")
    if single is not None and address not in single:
        return False
    if several and not any(address in net for net in several):
        return False
    negated = [*([field(f"not_{side}_net")] if field(f"not_{side}_net") else []), *(field(f"not_{side}_nets") or ())]
    if negated and all(net.version != address.version for net in negated):
        return False  # a CIDR of the other family: the rule is not for this packet
    if any(address in net for net in negated):
        return False
    for kind in ("tag", "selector"):
        wanted, unwanted = field(f"{side}_{kind}"), field(f"not_{side}_{kind}")
        if wanted is not None and not is_member(records, address, **{kind: wanted}):
            return False
        if unwanted is not None and is_member(records, address, **{kind: unwanted}):
            return False
    for ports, is_wanted in ((field(f"{side}_ports"), True), (field(f"not_{side}_ports"), False)):
        if ports:
            inside = (
                any(low <= port <= high for low, high in map(parse_port_range, ports)) if port is not None else None
            )
            if inside is not is_wanted:
                return False
    return True


def rule_matches(records: Records, rule: Rule, packet: Packet) -> bool:
    if rule.ip_version is not None and rule.ip_version != packet.src.version:
        return False
    if rule.protocol is not None:
        number = protocol_number(rule.protocol)
        if number != packet.protocol or (number, packet.src.version) in {(1, 6), (58, 4)}:
            return False
    if rule.not_protocol is not None and protocol_number(rule.not_protocol) == packet.protocol:
        return False
    for kind, code, is_wanted in (
        (rule.icmp_type, rule.icmp_code, True),
        (rule.not_icmp_type, rule.not_icmp_code, False),
    ):
        if kind is None:
            continue
        if packet.icmp is None:
            return False
        same = packet.icmp[0] == kind and code in (None, packet.icmp[1])
        if same is not is_wanted:
            return False
    return side_matches(records, rule, "src", packet.src, packet.src_port) and side_matches(
        records, rule, "dst", packet.dst, packet.dst_port
    )


def first_action(records: Records, rules: tuple[Rule, ...], packet: Packet) -> str | None:
    for rule in rules:
        if rule.action != "log" and rule_matches(records, rule, packet):
            return "pass" if rule.action == "next-tier" else rule.action
    return None


def side_allows(records: Records, endpoint: WorkloadEndpoint, direction: str, packet: Packet) -> bool:
    if endpoint.state != "active":
        return False
    labels = labels_of(records, endpoint)
    tiers: dict[str, list[tuple[float, str, Policy]]] = {}
    for key, policy in records.items():
        if not isinstance(policy, Policy) or policy.staged or policy.untracked or policy.pre_dnat:
            continue
        if policy.apply_on_forward or not parse_selector(policy.selector).matches(labels):
            continue
        if policy.types is None or {"inbound": "ingress", "outbound": "egress"}[direction] in policy.types:
            tiers.setdefault(key.tier, []).append((order_value(policy.order), key.name, policy))

    def tier_rank(name: str) -> tuple[float, str]:
        tier = records.get(TierKey(name))
        return (math.inf if tier is None else order_value(tier.order)), name

    for name in sorted(tiers, key=tier_rank):
        action: str | None = None
        for _, _, policy in sorted(tiers[name], key=lambda each: each[:2]):
            action = first_action(records, getattr(policy, f"{direction}_rules"), packet)
            if action is not None:
                break
        if action is None:
            tier = records.get(TierKey(name))
            action = "deny" if tier is None else tier.default_action
        if action != "pass":
            return action == "allow"
    for profile in endpoint.profile_ids:
        rules = records.get(ProfileRulesKey(profile), CLOSED)
        action = first_action(records, getattr(rules, f"{direction}_rules"), packet)
        if action is not None:
            return action != "deny"
    return False


def oracle(records: Records, packet: Packet) -> str:
    verdict = "unaffected"
    for direction, address in (("outbound", packet.src), ("inbound", packet.dst)):
        for key, record in records.items():
            if not isinstance(key, WorkloadEndpointKey) or key.host != HOST:
                continue
            if not any(address in net for net in nets_of(record)):
                continue
            if not side_allows(records, record, direction, packet):
                return "deny"
            verdict = "allow"
    return verdict


# --- inputs ----------------------------------------------------------------------------------------------------

V4 = [IPAddress(f"10.0.0.{n}") for n in range(1, 6)]
V6 = [IPAddress(f"fd00::{n}") for n in range(1, 4)]
NETS = [IPNetwork(text) for text in (
    "10.0.0.0/30", "10.0.0.4/30", "10.0.0.0/8", "10.0.0.2/32", "0.0.0.0/0", "fd00::/126", "fd00::2/128", "::/0",
)]  # fmt: skip
PROFILES, TAGS, KEYS, VALUES = ("p0", "p1", "p2"), ("t0", "t1"), ("a", "b", "c"), ("x", "y", "xy")
SELECTORS = (
    "", "all()", "a == 'x'", "a == \"x\"", "a != 'x'", "has(a)", "!has(a)", "b in {'y', 'x'}", "b not in {'x'}",
    "a == 'x' && has(b)", "a == 'x' || b == 'y'", "!(a == 'x' || has(c))", "a starts with 'x' && c != 'y'",
    "c contains 'y'", "b ends with 'y' || !has(a)", "has(a) && has(b) && has(c)", "global()",
)  # fmt: skip

labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3)
profile_ids = st.lists(st.sampled_from(PROFILES), unique=True, max_size=3).map(tuple)
selectors = st.sampled_from(SELECTORS)
orders = st.sampled_from([None, "default", 1, 2, 10.5])


def some(values: list[Any], most: int = 2) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=most).map(tuple)


workloads = st.builds(
    WorkloadEndpoint,
    state=st.sampled_from(["active", "active", "active", "inactive"]),
    name=st.sampled_from(["cali0", "cali1"]),
    profile_ids=profile_ids,
    ipv4_nets=some([IPNetwork(each) for each in V4]),
    ipv6_nets=some([IPNetwork(each) for each in V6], 1),
    labels=labels,
)
host_endpoints = st.builds(
    HostEndpoint, name=st.just("eth0"), expected_ipv4_addrs=some(V4), profile_ids=profile_ids, labels=labels
)
network_sets = st.builds(NetworkSet, nets=some(NETS, 4), labels=labels)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Any valid rule: fields are drawn, and given up when they contradict each other."""
    fields: dict[str, Any] = {"action": draw(st.sampled_from(["allow", "allow", "deny", "next-tier", "pass", "log"]))}
    protocol = draw(st.sampled_from([None, None, "tcp", 17, "icmp", "icmpv6", 200]))
    if protocol is not None:
        fields["protocol"] = protocol
    if protocol in ("tcp", 17):
        for name in draw(some(["src_ports", "not_src_ports", "dst_ports", "not_dst_ports"], 1)):
            fields[name] = draw(some([80, 443, "80:100", 5000]))
    if protocol in ("icmp", "icmpv6"):
        for name in draw(some(["", "not_"], 2)):
            fields[f"{name}icmp_type"] = draw(st.sampled_from([8, 128]))
            fields[f"{name}icmp_code"] = draw(st.sampled_from([None, 0, 1]))
    for side in ("src", "dst"):
        pick = draw(some(["net", "not_net", "nets", "not_nets", "tag", "not_tag", "selector", "not_selector"]))
        for choice in pick:
            polarity, _, kind = choice.rpartition("_")
            values: Any = {"net": st.sampled_from(NETS), "nets": some(NETS, 3), "tag": st.sampled_from(TAGS)}
            value = draw(values.get(kind, selectors))
            fields[f"{polarity}_{side}_{kind}" if polarity else f"{side}_{kind}"] = value
    if draw(st.integers(0, 4)) == 0:
        fields["ip_version"] = draw(st.sampled_from([4, 6]))
    if draw(st.integers(0, 4)) == 0:
        fields["not_protocol"] = draw(st.sampled_from(["tcp", "udp"]))
    try:
        return Rule(**fields)
    except ValueError:
        return Rule(action=fields["action"])


rule_lists = st.lists(rules(), max_size=3).map(tuple)
policies = st.builds(
    Policy,
    selector=selectors,
    order=orders,
    inbound_rules=rule_lists,
    outbound_rules=rule_lists,
    types=st.sampled_from([None, None, ("ingress",), ("egress",), ("ingress", "egress"), ()]),
    staged=st.sampled_from([False] * 9 + [True]),
    untracked=st.sampled_from([False] * 9 + [True]),
)
tiers = st.builds(Tier, order=orders, default_action=st.sampled_from(["deny", "deny", "pass"]))


def put(key: st.SearchStrategy[Any], record: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Key, Any]]:
    return st.tuples(key, st.one_of(record, record, record, st.none()))


def named(kind: Any, names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    return st.sampled_from([kind(name) for name in names])


local_keys = st.sampled_from([WorkloadEndpointKey(HOST, "k8s", f"w{n}", "eth0") for n in range(4)])
remote_keys = st.sampled_from([WorkloadEndpointKey("there", "k8s", f"w{n}", "eth0") for n in range(4)])
policy_keys = st.sampled_from([PolicyKey(tier, name) for tier in ("default", "t1", "t2") for name in ("n1", "n2")])
updates = st.one_of(
    put(local_keys, workloads),
    put(local_keys, workloads),
    put(remote_keys, workloads),
    put(st.sampled_from([HostEndpointKey(HOST, "e"), HostEndpointKey("there", "e")]), host_endpoints),
    put(named(NetworkSetKey, ("s0", "s1")), network_sets),
    put(named(ProfileRulesKey, PROFILES), st.builds(RuleLists, inbound_rules=rule_lists, outbound_rules=rule_lists)),
    put(named(ProfileLabelsKey, PROFILES), labels),
    put(named(ProfileTagsKey, PROFILES), some(list(TAGS))),
    put(policy_keys, policies),
    put(policy_keys, policies),
    put(named(TierKey, ("default", "t1", "t2")), tiers),
    put(named(TierKey, ("default", "t1", "t2")), tiers),
    put(
        st.just(PoolKey(IPNetwork("10.0.0.0/16"))),
        st.builds(Pool, cidr=st.just(IPNetwork("10.0.0.0/16")), masquerade=st.booleans()),
    ),
    st.just((BgpMeshKey(), None)),
)
# Four workloads that may talk, so that most runs begin with something to allow.
BASE: list[tuple[Key, Any]] = [
    *(
        (
            WorkloadEndpointKey(HOST, "k8s", f"w{n}", "eth0"),
            WorkloadEndpoint(
                state="active",
                name=f"cali{n}",
                profile_ids=("p0", "p1") if n % 2 else ("p0",),
                ipv4_nets=(IPNetwork(V4[n]),),
                ipv6_nets=(IPNetwork(V6[n % 2]),) if n > 1 else (),
                labels={"a": VALUES[n % 3]} if n < 3 else {},
            ),
        )
        for n in range(4)
    ),
    (ProfileTagsKey("p0"), ("t0",)),
    (ProfileLabelsKey("p1"), {"b": "y"}),
    (ProfileRulesKey("p0"), RuleLists(inbound_rules=(Rule(src_tag="t0"),), outbound_rules=(Rule(),))),
]
changes = st.lists(st.lists(updates, max_size=12), min_size=1, max_size=8)
batches = st.one_of(changes, changes.map(lambda each: [BASE, *each]), changes.map(lambda each: [BASE, *each]))


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    v4, v6 = [*V4, IPAddress("192.0.2.1")], [*V6, IPAddress("2001:db8::1")]
    family = draw(st.sampled_from([v4, v4, v6]))
    src, dst = draw(st.sampled_from(family)), draw(st.sampled_from(family))
    protocol = draw(st.sampled_from([6, 6, 17, 1, 58, 200]))
    if protocol in (6, 17):
        ports = st.sampled_from([80, 90, 443, 5000, 6000])
        return Packet(src=src, dst=dst, protocol=protocol, src_port=draw(ports), dst_port=draw(ports))
    icmp = draw(st.sampled_from([(8, 0), (8, 1), (128, 0), (3, 3)])) if protocol in (1, 58) else None
    return Packet(src=src, dst=dst, protocol=protocol, icmp=icmp)


# --- laws ------------------------------------------------------------------------------------------------------


def take(state: HostState, changes: HostChanges) -> None:
    """Update the state, and hold the batch to its contract."""
    for change in changes.sets:
        assert change.is_new == (changes.is_complete or change.id not in state.sets)
        present = set() if change.is_new else set(state.sets[change.id].networks())
        assert not present.intersection(change.added.networks())
        assert present.issuperset(change.removed.networks())
        assert not set(change.added.networks()).intersection(change.removed.networks())
        assert change.is_new or change.added or change.removed
    assert set(changes.removed_sets) <= set(state.sets)
    assert set(changes.removed_rules) <= set(state.rules)
    assert set(changes.removed_workloads) <= set(state.workloads)
    for rules_ in changes.rules:
        assert changes.is_complete or state.rules.get(rules_.id) != rules_
    for workload in changes.workloads:
        assert changes.is_complete or state.workloads.get(workload.key) != workload
    state.update(changes)
    lists = [each for workload in state.workloads.values() for each in (workload.inbound, workload.outbound)]
    needed = {rules_id for each in lists for tier in each.tiers for rules_id in tier.policies}
    needed |= {rules_id for each in lists for rules_id in each.profiles}
    assert set(state.rules) == needed
    named_sets = {
        set_id for each in state.rules.values() for rule in each.inbound + each.outbound for set_id in rule.sets
    }
    assert set(state.sets) == named_sets
    for members in state.sets.values():
        nets = sorted(members.nets)
        assert not any(inner != outer and inner in outer for inner in nets for outer in nets)
    assert len({id(each) for each in lists}) == len(set(lists)), "equal lists are one object"


def fresh(records: Records) -> HostState:
    resolver, state = PolicyResolver(HOST), HostState()
    resolver.apply(records.items())
    resolver.in_sync()
    take(state, resolver.flush())
    return state


def contents(state: HostState) -> tuple[Any, ...]:
    return state.sets, state.rules, state.workloads, state.pools


@pytest.mark.parametrize("bulk_items", [1, 256])
def test_verdicts_and_states(bulk_items: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_index, "BULK_ITEMS", bulk_items)
        check_verdicts_and_states()


@settings(max_examples=150, deadline=None)
@given(batches=batches, probes=st.lists(packets(), min_size=8, max_size=16), early=st.integers(0, 3))
def check_verdicts_and_states(batches: list[list[tuple[Key, Any]]], probes: list[Packet], early: int) -> None:
    resolver, state, records = PolicyResolver(HOST), HostState(), {}
    for number, batch in enumerate(batches):
        resolver.apply(batch)
        for key, record in batch:
            records.pop(key, None)
            if record is not None:
                records[key] = record
        if number < early:
            assert not resolver.flush(), "nothing is said before in-sync"
            continue
        resolver.in_sync()
        changes = resolver.flush()
        assert changes.is_complete == (number == early)
        take(state, changes)
        assert not resolver.flush(), "a second flush has nothing to say"
        for packet in probes:
            assert explain(state, packet).outcome == oracle(records, packet), packet
    if len(batches) > early:
        assert contents(state) == contents(fresh(records))
        assert contents(state) == contents(fresh(dict(reversed(records.items()))))


@settings(max_examples=60, deadline=None)
@given(batches=batches)
def test_everything_deleted_leaves_nothing(batches: list[list[tuple[Key, Any]]]) -> None:
    resolver, state = PolicyResolver(HOST), HostState()
    resolver.in_sync()
    for batch in batches:
        resolver.apply(batch)
        take(state, resolver.flush())
    resolver.apply((key, None) for batch in batches for key, _ in batch)
    take(state, resolver.flush())
    assert contents(state) == contents(fresh({}))
    assert not state.sets
    assert not state.rules
    assert not state.workloads
