"""Law: whatever order endpoints with ports come and go in, a rule that names a port means exactly those whom the
specification means (4.4). The oracle is that of the resolver's laws; here nearly every rule and packet is about ports.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import HostState
from calico_core.model.keys import HostEndpointKey, Key, PolicyKey, ProfileTagsKey, WorkloadEndpointKey
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule
from calico_core.policy.explain import Packet, explain
from calico_core.policy.resolver import PolicyResolver
from tests.property.test_policy_resolver import (
    HOST,
    TAGS,
    V4,
    host_endpoints,
    labels,
    oracle,
    port_lists,
    profile_ids,
    some,
    take,
)

JUDGED = IPAddress("10.9.9.9")
"""Of the local workload whose policy it is."""
JUDGE: tuple[Key, Any] = (
    WorkloadEndpointKey(HOST, "k8s", "judged", "eth0"),
    WorkloadEndpoint(state="active", name="cali9", ipv4_nets=(IPNetwork(JUDGED),), labels={"judged": "yes"}),
)
FEW = V4[:3]
"""Addresses that several endpoints have at once more often than not."""


@st.composite
def named_rules(draw: st.DrawFn, side: str) -> Rule:
    """Allows by the other end's ports, names among them, perhaps narrowed to some endpoints."""
    fields: dict[str, Any] = {"protocol": draw(st.sampled_from(["tcp", "tcp", "udp"]))}
    fields[f"{draw(st.sampled_from(['', '', 'not_']))}{side}_ports"] = (
        draw(st.sampled_from(["http", "web"])),
        *draw(some(["http", 80, "90:95"], 1)),
    )
    if draw(st.booleans()):
        fields[f"{side}_selector"] = draw(st.sampled_from(["has(a)", "a == 'x'", "!has(b)"]))
    if draw(st.integers(0, 3)) == 0:
        fields[f"{side}_tag"] = draw(st.sampled_from(TAGS))
    return Rule(**fields)


policies = st.builds(
    Policy,
    selector=st.just("has(judged)"),
    inbound_rules=st.lists(named_rules("src"), min_size=1, max_size=2).map(tuple),
    outbound_rules=st.lists(named_rules("dst"), min_size=1, max_size=2).map(tuple),
)
offering = st.builds(
    WorkloadEndpoint,
    state=st.just("active"),
    name=st.just("cali0"),
    profile_ids=profile_ids,
    ipv4_nets=st.lists(st.sampled_from(FEW), min_size=1, max_size=2, unique=True).map(
        lambda held: tuple(IPNetwork(each) for each in held)
    ),
    labels=labels,
    ports=port_lists,
)
others = st.sampled_from([WorkloadEndpointKey("there", "k8s", f"w{n}", "eth0") for n in range(4)])
updates = st.one_of(
    st.tuples(others, st.one_of(offering, offering, offering, st.none())),
    st.tuples(others, offering),
    st.tuples(st.just(HostEndpointKey("there", "e")), st.one_of(host_endpoints, st.none())),
    st.tuples(st.just(PolicyKey("default", "p")), policies),
    st.tuples(st.sampled_from([ProfileTagsKey("p0"), ProfileTagsKey("p1")]), some(list(TAGS))),
)


@settings(max_examples=150, deadline=None)
@given(policy=policies, batches=st.lists(st.lists(updates, max_size=6), min_size=1, max_size=6))
def test_named_ports(policy: Policy, batches: list[list[tuple[Key, Any]]]) -> None:
    resolver, state = PolicyResolver(HOST), HostState()
    resolver.in_sync()
    records: dict[Key, Any] = {}
    for batch in [[JUDGE, (PolicyKey("default", "p"), policy)], *batches]:
        resolver.apply(batch)
        for key, record in batch:
            records.pop(key, None)
            if record is not None:
                records[key] = record
        take(state, resolver.flush())
        for protocol, port, other in product((6, 17), (80, 90, 443), FEW):
            there = Packet(src=JUDGED, dst=other, protocol=protocol, src_port=5000, dst_port=port)
            back = Packet(src=other, dst=JUDGED, protocol=protocol, src_port=port, dst_port=5000)
            for packet in (there, back):
                assert explain(state, packet).outcome == oracle(records, packet), packet
