"""Laws of policy calculation: verdicts as the specification says them, and nothing depends on how the inputs came.

The oracle below reads the datastore's records directly (felix specification 4.2 to 4.5) and shares nothing with the
calculation but the selector language.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import EndpointPort, HostEndpoint, Nat, WorkloadEndpoint
from calico_core.model.hoststate import (
    HostChanges,
    HostInterface,
    HostNat,
    HostPeers,
    HostState,
    HostWorkload,
    PolicyList,
)
from calico_core.model.keys import (
    BgpHostAddressKey,
    BgpMeshKey,
    HostEndpointKey,
    HostIpKey,
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
from calico_core.model.rules import Rule, RuleLists, parse_rule_port, protocol_number
from calico_core.model.selectors import parse_selector
from calico_core.policy import compiled, label_index
from calico_core.policy.compiled import Evaluator
from calico_core.policy.explain import Packet, explain, explain_side, walk
from calico_core.policy.resolver import PolicyResolver

HOST = "here"
Records = dict[Key, Any]
Interfaces = dict[str, frozenset[IPAddress]]
HOOKS = {
    "normal": (("inbound", "inbound"), ("outbound", "outbound")),
    "forward": (("inbound", "forward_inbound"), ("outbound", "forward_outbound")),
    "untracked": (("inbound", "untracked_inbound"), ("outbound", "untracked_outbound")),
    "pre_dnat": (("inbound", "pre_dnat"),),
}
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


def offers(records: Records, rule: Rule, side: str, packet: Packet, name: str) -> bool:
    """Whether the packet's port is one of this name, of an endpoint that the rule's tag and selector mean."""
    address, number = (packet.src, packet.src_port) if side == "src" else (packet.dst, packet.dst_port)
    tag, selector = getattr(rule, f"{side}_tag"), getattr(rule, f"{side}_selector")
    for record in records.values():
        if not isinstance(record, WorkloadEndpoint | HostEndpoint) or IPNetwork(address) not in nets_of(record):
            continue
        if not any(
            (port.name, protocol_number(port.protocol), port.port) == (name, packet.protocol, number)
            for port in record.ports
        ):
            continue
        if selector is not None and not parse_selector(selector).matches(labels_of(records, record)):
            continue
        if tag is None or any(tag in records.get(ProfileTagsKey(each), ()) for each in record.profile_ids):
            return True
    return False


def port_matches(records: Records, rule: Rule, side: str, packet: Packet, wanted: int | str) -> bool:
    port = packet.src_port if side == "src" else packet.dst_port
    found = parse_rule_port(wanted)
    if isinstance(found, str):
        return offers(records, rule, side, packet, found)
    return port is not None and found[0] <= port <= found[1]


def side_matches(records: Records, rule: Rule, side: str, packet: Packet) -> bool:
    address, port = (packet.src, packet.src_port) if side == "src" else (packet.dst, packet.dst_port)

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
            if port is None:
                return False
            if any(port_matches(records, rule, side, packet, each) for each in ports) is not is_wanted:
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
    return side_matches(records, rule, "src", packet) and side_matches(records, rule, "dst", packet)


def first_action(records: Records, rules: tuple[Rule, ...], packet: Packet) -> str | None:
    for rule in rules:
        if rule.action != "log" and rule_matches(records, rule, packet):
            return "pass" if rule.action == "next-tier" else rule.action
    return None


def is_at(policy: Policy, hook: str) -> bool:
    if policy.staged:
        return False
    if policy.untracked:
        return hook == "untracked"
    if policy.pre_dnat:
        return hook == "pre_dnat"
    return hook == "normal" or (hook == "forward" and policy.apply_on_forward)


def outcome_at(records: Records, endpoint: Any, hook: str, direction: str, packet: Packet) -> str:
    """``allow`` or ``deny``, or at the extra hooks ``pass``."""
    labels = labels_of(records, endpoint)
    tiers: dict[str, list[tuple[float, str, Policy]]] = {}
    for key, policy in records.items():
        if not isinstance(key, PolicyKey) or not isinstance(policy, Policy) or not is_at(policy, hook):
            continue
        if not parse_selector(policy.selector).matches(labels):
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
        if action is None and hook in {"untracked", "pre_dnat"}:
            action = "pass"
        if action is None:
            tier = records.get(TierKey(name))
            action = "deny" if tier is None else tier.default_action
        if action != "pass":
            return "allow" if action == "allow" else "deny"
    if hook != "normal":
        return "pass"
    for profile in endpoint.profile_ids:
        rules = records.get(ProfileRulesKey(profile), CLOSED)
        action = first_action(records, getattr(rules, f"{direction}_rules"), packet)
        if action is not None:
            return "deny" if action in {"deny", "reject"} else "allow"
    return "deny"


def side_allows(records: Records, endpoint: WorkloadEndpoint, direction: str, packet: Packet) -> bool:
    return endpoint.state == "active" and outcome_at(records, endpoint, "normal", direction, packet) == "allow"


def interfaces_of(records: Records, present: Interfaces) -> dict[str, HostEndpointKey]:
    """Which record stands for which interface."""
    claims: dict[str, list[HostEndpointKey]] = {}
    for key, record in records.items():
        if isinstance(key, HostEndpointKey) and key.host == HOST:
            named = [record.name] if record.name is not None else []
            for name in named or [n for n, held in present.items() if held & {*record.addresses}]:
                claims.setdefault(name, []).append(key)
    return {name: min(keys, key=lambda key: key.endpoint) for name, keys in claims.items()}


def nats_of(records: Records, host: str = HOST) -> dict[WorkloadEndpointKey, set[HostNat]]:
    """Each floating address belongs to the first workload, and there to the first address."""
    claims: dict[IPAddress, list[tuple[str, IPAddress, WorkloadEndpointKey]]] = {}
    for key, record in records.items():
        if isinstance(key, WorkloadEndpointKey) and key.host == host and record.state == "active":
            for nat in record.ipv4_nat + record.ipv6_nat:
                claims.setdefault(nat.ext_ip, []).append((key.path, nat.int_ip, key))
    found: dict[WorkloadEndpointKey, set[HostNat]] = {}
    for external, claimants in claims.items():
        _, internal, key = min(claimants, key=lambda each: each[:2])
        found.setdefault(key, set()).add(HostNat(internal=internal, external=external))
    return found


def peers_of(records: Records) -> HostPeers:
    pools = [record for record in records.values() if isinstance(record, Pool)]
    is_ipip = any(pool.ipip or pool.ipip_mode for pool in pools)
    is_vxlan = any(pool.vxlan_mode for pool in pools)
    texts = {records[key] for key in records if isinstance(key, HostIpKey | BgpHostAddressKey)} - {""}
    addresses = sorted(IPAddress(text) for text in texts) if is_ipip or is_vxlan else []
    return HostPeers(addresses=tuple(addresses), is_ipip=is_ipip, is_vxlan=is_vxlan)


def translate(records: Records, packet: Packet, host: str = HOST) -> Packet:
    nats = ((key, nat) for key, found in nats_of(records, host).items() for nat in found)
    leading = (nat.internal for key, nat in nats if nat.external == packet.dst and leads(records, key, nat.internal))
    internal = next(leading, packet.dst)
    return msgspec.structs.replace(packet, dst=internal)


def oracle(records: Records, packet: Packet) -> str:
    verdict, packet = "unaffected", translate(records, packet)
    for direction, address in (("outbound", packet.src), ("inbound", packet.dst)):
        key = holder(records, address)
        if key is None:
            continue
        if not side_allows(records, records[key], direction, packet):
            return "deny"
        verdict = "allow"
    return verdict


def leads(records: Records, key: WorkloadEndpointKey, internal: IPAddress) -> bool:
    return bool(holder(records, internal, key.host) == key)


def holder(records: Records, address: IPAddress, host: str = HOST) -> Any:
    """Of the host's endpoints with the address the first that is active."""
    found = [
        (record.state != "active", key.path, key)
        for key, record in records.items()
        if isinstance(key, WorkloadEndpointKey) and key.host == host and any(address in net for net in nets_of(record))
    ]
    return min(found)[2] if found else None


# --- inputs ----------------------------------------------------------------------------------------------------

V4 = [IPAddress(f"10.0.0.{n}") for n in range(1, 6)]
V6 = [IPAddress(f"fd00::{n}") for n in range(1, 4)]
FLOATING = [IPAddress("192.0.2.7"), IPAddress("192.0.2.8")]
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


port_lists = st.lists(
    st.builds(
        EndpointPort,
        name=st.sampled_from(["http", "web"]),
        protocol=st.sampled_from(["tcp", 17]),
        port=st.sampled_from([80, 90, 443]),
    ),
    max_size=3,
).map(tuple)


@st.composite
def with_nats(draw: st.DrawFn, records: st.SearchStrategy[WorkloadEndpoint]) -> WorkloadEndpoint:
    record = draw(records)
    held = [IPAddress(net.first) for net in record.ipv4_nets]
    if not held or draw(st.booleans()):
        return record
    pairs = draw(st.lists(st.tuples(st.sampled_from(held), st.sampled_from(FLOATING)), max_size=3))
    return msgspec.structs.replace(record, ipv4_nat=tuple(Nat(int_ip=one, ext_ip=other) for one, other in pairs))


plain_workloads = st.builds(
    WorkloadEndpoint,
    state=st.sampled_from(["active", "active", "active", "inactive"]),
    name=st.sampled_from(["cali0", "cali1"]),
    profile_ids=profile_ids,
    ipv4_nets=some([IPNetwork(each) for each in V4]),
    ipv6_nets=some([IPNetwork(each) for each in V6], 1),
    labels=labels,
    ports=port_lists,
)
workloads = with_nats(plain_workloads)
host_endpoints = st.one_of(
    st.builds(
        HostEndpoint,
        name=st.sampled_from(["eth0", "eth1", "*"]),
        expected_ipv4_addrs=some(V4),
        profile_ids=profile_ids,
        labels=labels,
        ports=port_lists,
    ),
    st.builds(
        HostEndpoint,
        expected_ipv4_addrs=st.lists(st.sampled_from(V4), min_size=1, max_size=2).map(tuple),
        profile_ids=profile_ids,
        labels=labels,
    ),
)
network_sets = st.builds(NetworkSet, nets=some(NETS, 4), labels=labels)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Any valid rule: fields are drawn, and given up when they contradict each other."""
    fields: dict[str, Any] = {
        "action": draw(st.sampled_from(["allow", "allow", "deny", "reject", "next-tier", "pass", "log"]))
    }
    protocol = draw(st.sampled_from([None, None, "tcp", 17, "icmp", "icmpv6", 200]))
    if protocol is not None:
        fields["protocol"] = protocol
    if protocol in ("tcp", 17):
        for name in draw(some(["src_ports", "not_src_ports", "dst_ports", "not_dst_ports"], 1)):
            fields[name] = draw(some([80, 443, "80:100", 5000, "http", "web"]))
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
    untracked=st.sampled_from([False] * 5 + [True]),
    pre_dnat=st.sampled_from([False] * 5 + [True]),
    apply_on_forward=st.booleans(),
)
tiers = st.builds(Tier, order=orders, default_action=st.sampled_from(["deny", "deny", "pass"]))


Update = tuple[Any, Any]
"""A key and its record, or the name of an interface and its addresses."""


def put(key: st.SearchStrategy[Any], record: st.SearchStrategy[Any]) -> st.SearchStrategy[Update]:
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
    put(
        st.sampled_from([*(HostEndpointKey(HOST, each) for each in "efg"), HostEndpointKey("there", "e")]),
        host_endpoints,
    ),
    st.tuples(st.sampled_from(["eth0", "eth1", "eth2"]), st.one_of(some(V4).map(frozenset), st.none())),
    put(named(HostIpKey, (HOST, "there")), st.sampled_from(["192.0.2.1", "192.0.2.2"])),
    put(
        st.sampled_from([BgpHostAddressKey("there", 6), BgpHostAddressKey("far", 6)]),
        st.sampled_from(["", "fd00::1", "fd00::2"]),
    ),
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
        st.builds(
            Pool,
            cidr=st.just(IPNetwork("10.0.0.0/16")),
            masquerade=st.booleans(),
            ipip_mode=st.sampled_from(["", "", "always"]),
        ),
    ),
    st.just((BgpMeshKey(), None)),
)
# Four workloads that may talk, so that most runs begin with something to allow.
BASE: list[Update] = [
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
                ports=(EndpointPort(name="http", protocol="tcp", port=80 if n % 2 else 443),),
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
    src = draw(st.sampled_from(family))
    dst = draw(st.sampled_from([*family, *FLOATING] if family is v4 else family))
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
    for ports in changes.port_sets:
        assert ports.is_new == (changes.is_complete or ports.id not in state.port_sets)
        held = frozenset() if ports.is_new else state.port_sets[ports.id]
        assert not held & ports.added
        assert held >= ports.removed
        assert ports.is_new or ports.added or ports.removed
    assert set(changes.removed_port_sets) <= set(state.port_sets)
    assert set(changes.removed_interfaces) <= set(state.interfaces)
    for interface in changes.interfaces:
        assert changes.is_complete or state.interfaces.get(interface.interface) != interface
    assert changes.is_complete or changes.peers is None or changes.peers != state.peers
    assert set(changes.removed_sets) <= set(state.sets)
    assert set(changes.removed_rules) <= set(state.rules)
    assert set(changes.removed_workloads) <= set(state.workloads)
    for rules_ in changes.rules:
        assert changes.is_complete or state.rules.get(rules_.id) != rules_
    for workload in changes.workloads:
        assert changes.is_complete or state.workloads.get(workload.key) != workload
    state.update(changes)
    lists = [
        each for endpoint in (*state.workloads.values(), *state.interfaces.values()) for each in lists_of(endpoint)
    ]
    needed = {rules_id for each in lists for tier in each.tiers for rules_id in tier.policies}
    needed |= {rules_id for each in lists for rules_id in each.profiles}
    assert set(state.rules) == needed
    named_sets = {
        set_id for each in state.rules.values() for rule in each.inbound + each.outbound for set_id in rule.sets
    }
    assert set(state.sets) == named_sets
    assert set(state.port_sets) == {
        set_id for each in state.rules.values() for rule in each.inbound + each.outbound for set_id in rule.port_sets
    }
    for members in state.sets.values():
        nets = sorted(members.nets)
        assert not any(inner != outer and inner in outer for inner in nets for outer in nets)
    assert len({id(each) for each in lists}) == len(set(lists)), "equal lists are one object"


def one_by_one(batches: list[list[Update]]) -> HostState:
    """Every update a batch of its own."""
    resolver, state = PolicyResolver(HOST), HostState()
    resolver.in_sync()
    take(state, resolver.flush())
    for update in (update for batch in batches for update in batch):
        give(resolver, [update])
        take(state, resolver.flush())
        assert not resolver.flush()
    return state


def lists_of(endpoint: HostWorkload | HostInterface) -> list[PolicyList]:
    values = (getattr(endpoint, field) for field in endpoint.__struct_fields__)
    return [value for value in values if isinstance(value, PolicyList)]


def give(resolver: PolicyResolver, batch: Iterable[Update]) -> None:
    for name, value in batch:
        if isinstance(name, str):
            resolver.set_interface(name, value)
        else:
            resolver.apply([(name, value)])


def fresh(records: Records, present: Interfaces) -> HostState:
    resolver, state = PolicyResolver(HOST), HostState()
    give(resolver, records.items())
    give(resolver, present.items())
    resolver.in_sync()
    take(state, resolver.flush())
    return state


def contents(state: HostState) -> tuple[Any, ...]:
    return (
        state.sets,
        state.port_sets,
        state.rules,
        state.workloads,
        state.interfaces,
        state.pools,
        state.peers,
    )


def check_host(state: HostState, records: Records, present: Interfaces, probes: list[Packet]) -> None:
    """The interfaces of the host, floating addresses and peers."""
    wanted = interfaces_of(records, present)
    assert {name: interface.key for name, interface in state.interfaces.items()} == wanted
    for name, key in wanted.items():
        for hook, lists in HOOKS.items():
            for direction, field in lists:
                for packet in probes:
                    steps = walk(state, key, hook, direction, getattr(state.interfaces[name], field), packet)
                    found = steps[-1].outcome if steps else "pass"
                    assert found == outcome_at(records, records[key], hook, direction, packet), (hook, packet)
    assert {key: set(each.nats) for key, each in state.workloads.items() if each.nats} == nats_of(records)
    assert state.peers == peers_of(records)


def check_compiled(state: HostState, probes: list[Packet]) -> None:
    """Compiled lists answer as the plain evaluator does, step by step."""
    evaluator = Evaluator(state)
    for packet in [*probes, *probes[:1]]:  # with one probe alone nothing would be compiled
        assert evaluator.explain(packet) == explain(state, packet)
        for workload in state.workloads.values():
            for direction in ("inbound", "outbound"):
                found = evaluator.explain_side(workload, direction, packet)
                assert found == explain_side(state, workload, direction, packet)
        for interface in state.interfaces.values():
            for hook, lists in HOOKS.items():
                for direction, field in lists:
                    asked = interface.key, hook, direction, getattr(interface, field), packet
                    assert evaluator.walk(*asked) == walk(state, *asked)


@pytest.mark.parametrize(("bulk_items", "one_by_one"), [(1, 1), (256, 0)])
def test_verdicts_and_states(bulk_items: int, one_by_one: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_index, "BULK_ITEMS", bulk_items)
        patch.setattr(compiled, "ASKED_ONE_BY_ONE", one_by_one)
        check_verdicts_and_states()


@settings(max_examples=150, deadline=None)
@given(batches=batches, probes=st.lists(packets(), min_size=8, max_size=16), early=st.integers(0, 3))
def check_verdicts_and_states(batches: list[list[Update]], probes: list[Packet], early: int) -> None:
    resolver, state, records, present = PolicyResolver(HOST), HostState(), {}, {}
    for number, batch in enumerate(batches):
        give(resolver, batch)
        for key, record in batch:
            table = present if isinstance(key, str) else records
            table.pop(key, None)
            if record is not None:
                table[key] = record
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
        check_host(state, records, present, probes[:4])
        check_compiled(state, probes)
    if len(batches) > early:
        assert contents(state) == contents(fresh(records, present))
        assert contents(state) == contents(one_by_one(batches))
        assert contents(state) == contents(fresh(dict(reversed(records.items())), dict(reversed(present.items()))))


@settings(max_examples=60, deadline=None)
@given(batches=batches)
def test_everything_deleted_leaves_nothing(batches: list[list[Update]]) -> None:
    resolver, state = PolicyResolver(HOST), HostState()
    resolver.in_sync()
    for batch in batches:
        give(resolver, batch)
        take(state, resolver.flush())
    give(resolver, [(key, None) for batch in batches for key, _ in batch])
    take(state, resolver.flush())
    assert contents(state) == contents(fresh({}, {}))
    assert not state.sets
    assert not state.port_sets
    assert not state.interfaces
    assert not state.rules
    assert not state.workloads
