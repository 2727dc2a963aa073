"""Verdicts and their reasons on a state made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.model.hoststate import (
    AddressSet,
    HostChanges,
    HostRule,
    HostRules,
    HostState,
    HostWorkload,
    PolicyList,
    RulesId,
    SetChange,
    SetId,
    TierPolicies,
)
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.policy.explain import Packet, explain

A = WorkloadEndpointKey("here", "k8s", "a", "eth0")
B = WorkloadEndpointKey("here", "k8s", "b", "eth0")
POLICY, LATER, PROFILE = RulesId("policy/t/p"), RulesId("policy/u/q"), RulesId("profile/p")
SET = SetId("sel-0000000000000001")
OUT = PolicyList(profiles=(RulesId("profile/open"),))


def verdict(
    *, policy: tuple[HostRule, ...] = (), default: Any = "deny", profile: tuple[HostRule, ...] = (), **packet: Any
) -> tuple[str, list[tuple[str, str | None, int | None]]]:
    """Of a packet to A, which has two tiers and a profile: the steps of the inbound side."""
    inbound = PolicyList(
        tiers=(
            TierPolicies(tier="t", policies=(POLICY,), default_action=default),
            TierPolicies(tier="u", policies=(LATER,), default_action="pass"),
        ),
        profiles=(PROFILE,),
    )
    state = HostState()
    state.update(
        HostChanges(
            is_complete=True,
            sets=(SetChange(id=SET, is_new=True, added=AddressSet.of([IPNetwork("192.0.2.0/24"), IPAddress("::7")])),),
            rules=(
                HostRules(id=POLICY, inbound=policy),
                HostRules(id=LATER),
                HostRules(id=PROFILE, inbound=profile),
            ),
            workloads=(
                HostWorkload(
                    key=A,
                    interface="cali0",
                    is_active=True,
                    nets=(IPNetwork("10.0.0.1/32"), IPNetwork("fd00::1/128")),
                    inbound=inbound,
                ),
            ),
        )
    )
    fields = {"src": IPAddress("192.0.2.9"), "dst": IPAddress("10.0.0.1"), "protocol": 6, "dst_port": 80, **packet}
    result = explain(state, Packet(**fields))
    return result.outcome, [(step.outcome, step.rules or step.tier, step.rule) for step in result.steps]


ALLOW, DENY, PASS = HostRule(action="allow"), HostRule(action="deny"), HostRule(action="pass")
LOG = HostRule(action="log")
NEVER = HostRule(action="deny", protocol=17)


@pytest.mark.parametrize(
    ("given", "outcome", "steps"),
    [
        ({"policy": (ALLOW,)}, "allow", [("allow", POLICY, 0)]),
        ({"policy": (LOG, NEVER, DENY)}, "deny", [("deny", POLICY, 2)]),
        ({"profile": (ALLOW,)}, "deny", [("deny", "t", None)]),
        (
            {"policy": (PASS,), "profile": (NEVER, ALLOW)},
            "allow",
            [("pass", POLICY, 0), ("pass", "u", None), ("allow", PROFILE, 1)],
        ),
        (
            {"default": "pass", "profile": (DENY,)},
            "deny",
            [("pass", "t", None), ("pass", "u", None), ("deny", PROFILE, 0)],
        ),
        ({"default": "pass"}, "deny", [("pass", "t", None), ("pass", "u", None), ("deny", None, None)]),
    ],
)
def test_chain_of_reasons(given: dict[str, Any], outcome: str, steps: list[Any]) -> None:
    assert verdict(**given) == (outcome, steps)


NET, OTHER = IPNetwork("192.0.2.0/28"), IPNetwork("198.51.100.0/24")


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        ({"protocol": 6}, True),
        ({"not_protocol": 6}, False),
        ({"ip_version": 4}, True),
        ({"ip_version": 6}, False),
        ({"src_nets": (OTHER, NET)}, True),
        ({"src_nets": (OTHER,)}, False),
        ({"not_src_nets": (OTHER,)}, True),
        ({"not_src_nets": (OTHER, NET)}, False),
        ({"dst_nets": (OTHER,)}, False),
        ({"not_dst_nets": (OTHER,)}, True),
        ({"src_sets": (SET,)}, True),
        ({"not_src_sets": (SET,)}, False),
        ({"dst_sets": (SET,)}, False),
        ({"not_dst_sets": (SET,)}, True),
        ({"dst_ports": ((1, 79), (80, 80))}, True),
        ({"not_dst_ports": ((1, 79), (80, 80))}, False),
        ({"src_ports": ((0, 65535),)}, False),
        ({"icmp": (8, None)}, False),
        ({"not_icmp": (8, None)}, False),
    ],
)
def test_matches(rule: dict[str, Any], matches: bool) -> None:
    outcome, _ = verdict(policy=(HostRule(action="allow", **rule),))
    assert outcome == ("allow" if matches else "deny")


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        ({"icmp": (8, None)}, True),
        ({"icmp": (8, 1)}, False),
        ({"not_icmp": (8, 1)}, True),
        ({"not_icmp": (8, 0)}, False),
        ({"dst_ports": ((80, 80),)}, False),
    ],
)
def test_icmp(rule: dict[str, Any], matches: bool) -> None:
    outcome, _ = verdict(policy=(HostRule(action="allow", **rule),), protocol=1, icmp=(8, 0), dst_port=None)
    assert outcome == ("allow" if matches else "deny")


def test_families_do_not_mix() -> None:
    rule = HostRule(action="allow", src_sets=(SET,))
    six = {"src": IPAddress("::7"), "dst": IPAddress("fd00::1")}
    assert verdict(policy=(rule,), **six)[0] == "allow"
    assert verdict(policy=(rule,), src=IPAddress("::c000:201"), dst=IPAddress("fd00::1"))[0] == "deny"


def two_workloads(*, is_active: bool) -> HostState:
    everything = HostRules(id=RulesId("profile/open"), inbound=(ALLOW,), outbound=(ALLOW,))
    into = PolicyList(profiles=(PROFILE,))
    state = HostState()
    state.update(
        HostChanges(
            is_complete=True,
            rules=(everything, HostRules(id=PROFILE, inbound=(HostRule(action="allow", protocol=6),))),
            workloads=tuple(
                HostWorkload(
                    key=key, interface=name, is_active=active, nets=(IPNetwork(net),), inbound=into, outbound=OUT
                )
                for key, name, net, active in (
                    (A, "cali0", "10.0.0.1/32", True),
                    (B, "cali1", "10.0.0.2/32", is_active),
                )
            ),
        )
    )
    return state


def test_both_sides_must_allow() -> None:
    state, a, b = two_workloads(is_active=True), IPAddress("10.0.0.1"), IPAddress("10.0.0.2")
    allowed = explain(state, Packet(src=a, dst=b, protocol=6))
    assert [(step.endpoint, step.direction) for step in allowed.steps] == [(A, "outbound"), (B, "inbound")]
    assert allowed.outcome == "allow"
    denied = explain(state, Packet(src=a, dst=b, protocol=17))
    assert denied.outcome == "deny"
    assert denied.steps[-1].reason == "no profile decides"


def test_inactive_and_unaffected() -> None:
    state, a, b = two_workloads(is_active=False), IPAddress("10.0.0.1"), IPAddress("10.0.0.2")
    inactive = explain(state, Packet(src=a, dst=b, protocol=6))
    assert inactive.outcome == "deny"
    assert inactive.steps[-1].reason == "the endpoint is inactive"
    outside = explain(state, Packet(src=IPAddress("192.0.2.1"), dst=IPAddress("192.0.2.2"), protocol=6))
    assert outside.outcome == "unaffected"
    assert not outside.steps
