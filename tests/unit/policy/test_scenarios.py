"""Scenarios of felix specification 13 that no other file holds."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import HostState
from calico_core.model.keys import Key, PolicyKey, ProfileTagsKey, WorkloadEndpointKey
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule
from calico_core.policy.explain import Packet, explain
from calico_core.policy.resolver import PolicyResolver

LOCAL = WorkloadEndpointKey("here", "k8s", "local", "eth0")
KNOWN, MARKED, OUTSIDE = "10.0.0.2", "10.0.0.3", "192.0.2.7"


def endpoint(*nets: str, profiles: tuple[str, ...] = (), **labels: str) -> WorkloadEndpoint:
    all_nets = [IPNetwork(net) for net in nets]
    return WorkloadEndpoint(
        state="active",
        name="cali0",
        profile_ids=profiles,
        ipv4_nets=tuple(net for net in all_nets if net.version == 4),
        ipv6_nets=tuple(net for net in all_nets if net.version == 6),
        labels=labels,
    )


def told(*records: tuple[Key, Any]) -> HostState:
    resolver, state = PolicyResolver("here"), HostState()
    resolver.apply(records)
    resolver.in_sync()
    state.update(resolver.flush())
    return state


def under(rule: Rule) -> HostState:
    """A local endpoint whose policy has one rule, and two remote ones, one of them with the label ``x``."""
    return told(
        (LOCAL, endpoint("10.0.0.1/32")),
        (WorkloadEndpointKey("there", "k8s", "known", "eth0"), endpoint(f"{KNOWN}/32")),
        (WorkloadEndpointKey("there", "k8s", "marked", "eth0"), endpoint(f"{MARKED}/32", x="1")),
        (PolicyKey("default", "p"), Policy(selector="all()", inbound_rules=(rule,))),
    )


def allowed(state: HostState) -> set[str]:
    packets = {
        each: Packet(src=IPAddress(each), dst=IPAddress("10.0.0.1"), protocol=6, src_port=1, dst_port=80)
        for each in (KNOWN, MARKED, OUTSIDE)
    }
    return {each for each, packet in packets.items() if explain(state, packet).outcome == "allow"}


def test_an_endpoint_of_ipv6_alone_is_in_no_set_of_ipv4() -> None:
    """Scenario 14."""
    state = told(
        (LOCAL, endpoint("10.0.0.1/32")),
        (WorkloadEndpointKey("there", "k8s", "six", "eth0"), endpoint("fd00::6/128", profiles=("t",), x="1")),
        (ProfileTagsKey("t"), ("t",)),
        (PolicyKey("default", "p"),
         Policy(selector="all()", inbound_rules=(Rule(src_selector="has(x)"), Rule(src_tag="t")))),
    )  # fmt: skip
    assert len(state.sets) == 2
    for members in state.sets.values():
        assert [str(net) for net in members.networks()] == ["fd00::6/128"]
        assert not members.v4


def test_a_selector_that_negates_and_a_negated_selector() -> None:
    """Scenario 23: the first is for endpoints only, the second for everybody else too."""
    assert allowed(under(Rule(src_selector="!has(x)"))) == {KNOWN}
    assert allowed(under(Rule(not_src_selector="has(x)"))) == {KNOWN, OUTSIDE}


def test_memory_does_not_grow_with_endpoints_that_come_and_go() -> None:
    """Scenario 66, in small: the slope over the later cycles is below 2 %."""
    resolver = PolicyResolver("here")
    policy = Policy(selector="all()", inbound_rules=(Rule(src_selector="has(app)"),))
    resolver.apply([(LOCAL, endpoint("10.0.0.1/32")), (PolicyKey("default", "p"), policy)])
    resolver.in_sync()
    resolver.flush()
    keys = [WorkloadEndpointKey("there", "k8s", f"w{number}", "eth0") for number in range(400)]
    sizes: list[int] = []
    tracemalloc.start()
    try:
        for cycle in range(8):
            base = IPAddress("10.1.0.0") + cycle * len(keys)
            resolver.apply((key, endpoint(f"{base + at}/32", app=f"a{cycle}")) for at, key in enumerate(keys))
            resolver.flush()
            if cycle == 0:
                full = tracemalloc.get_traced_memory()[0]
            resolver.apply((key, None) for key in keys)
            resolver.flush()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    slope = (sizes[-1] - sizes[3]) / (len(sizes) - 4)
    assert slope < 0.02 * full, sizes
