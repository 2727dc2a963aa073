"""States of a cluster by name, small and different in one thing each, and sequences of them worth going through."""

from __future__ import annotations

from typing import Any

from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import EndpointPort, HostEndpoint, Nat, WorkloadEndpoint
from calico_core.model.keys import (
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
from calico_core.model.policies import NetworkSet, Policy, Tier
from calico_core.model.pools import Pool
from calico_core.model.rules import Rule, RuleLists

HOST = "here"
State = dict[Key, Any]
A, B = (WorkloadEndpointKey(HOST, "k8s", name, "eth0") for name in ("a", "b"))
REMOTE = WorkloadEndpointKey("there", "k8s", "r", "eth0")
UPLINK = HostEndpointKey(HOST, "up")
ALLOW_X = PolicyKey("default", "allow-x")
FIRST = PolicyKey("first", "guard")


def _workload(name: str, *addresses: str, profiles: tuple[str, ...] = ("p",), **more: Any) -> WorkloadEndpoint:
    nets = [IPNetwork(each) for each in addresses]
    return WorkloadEndpoint(
        state=more.pop("state", "active"),
        name=name,
        profile_ids=profiles,
        ipv4_nets=tuple(net for net in nets if net.version == 4),
        ipv6_nets=tuple(net for net in nets if net.version == 6),
        **more,
    )


def _state(*parts: State) -> State:
    merged: State = {}
    for part in parts:
        merged |= part
    return merged


_PROFILE: State = {
    ProfileRulesKey("p"): RuleLists(inbound_rules=(Rule(src_tag="t"),), outbound_rules=(Rule(),)),
    ProfileTagsKey("p"): ("t",),
    ProfileLabelsKey("p"): {"x": "p"},
}
_OTHER_PROFILE: State = {
    ProfileRulesKey("q"): RuleLists(inbound_rules=(Rule(action="deny", src_selector="has(y)"), Rule())),
    ProfileTagsKey("q"): ("t", "u"),
    ProfileLabelsKey("q"): {"x": "q", "y": "1"},
}
_A: State = {A: _workload("cali0", "10.0.0.1/32", "fd00::1/128")}
_B: State = {B: _workload("cali1", "10.0.0.2/32", labels={"x": "own"})}
_REMOTE: State = {REMOTE: _workload("cali0", "10.1.0.1/32", "fd01::1/128", labels={"y": "2"})}
_POLICY: State = {
    ALLOW_X: Policy(
        selector="has(x)",
        order=5,
        inbound_rules=(Rule(src_selector="has(y)", protocol="tcp", dst_ports=(80,)),),
        outbound_rules=(Rule(),),
    )
}
_BASE = _state(_PROFILE, _A, _B, _REMOTE)

STATES: dict[str, State] = {
    "empty": {},
    "one workload without anything": {A: _workload("cali0", "10.0.0.1/32", profiles=())},
    "its profile is missing": _A,
    "two workloads of one profile": _state(_PROFILE, _A, _B),
    "with a remote one": _BASE,
    "the profile lost its tag": _state(_BASE, {ProfileTagsKey("p"): ()}),
    "the profile has other labels": _state(_BASE, _POLICY, {ProfileLabelsKey("p"): {"x": "other", "y": "1"}}),
    "both profiles, the last wins": _state(
        _BASE, _OTHER_PROFILE, {A: _workload("cali0", "10.0.0.1/32", profiles=("p", "q"))}
    ),
    "another profile of the same tag": _state(
        _BASE, _OTHER_PROFILE, {A: _workload("cali0", "10.0.0.1/32", profiles=("q",))}
    ),
    "an address shared": _state(_BASE, {B: _workload("cali1", "10.0.0.1/32", "10.0.0.2/32")}),
    "addresses exchanged": _state(
        _BASE, {A: _workload("cali0", "10.0.0.2/32"), B: _workload("cali1", "10.0.0.1/32", "fd00::1/128")}
    ),
    "one inactive": _state(_BASE, {A: _workload("cali0", "10.0.0.1/32", state="inactive")}),
    "a policy": _state(_BASE, _POLICY),
    "the policy selects nothing": _state(_BASE, {ALLOW_X: Policy(selector="x == 'nobody'")}),
    "a tier before it": _state(
        _BASE, _POLICY,
        {TierKey("first"): Tier(order=1, default_action="pass"),
         FIRST: Policy(selector="all()", inbound_rules=(Rule(action="deny", src_selector="!has(y)"),))},
    ),
    "the tier lost its metadata": _state(
        _BASE, _POLICY, {FIRST: Policy(selector="all()", inbound_rules=(Rule(action="pass"),))}
    ),
    "the policy staged": _state(_BASE, {ALLOW_X: Policy(selector="has(x)", staged=True)}),
    "ports by name": _state(
        _BASE,
        {B: _workload("cali1", "10.0.0.2/32", ports=(EndpointPort(name="http", protocol="tcp", port=8080),)),
         ALLOW_X: Policy(selector="all()", inbound_rules=(Rule(protocol="tcp", dst_ports=("http", 443)),))},
    ),
    "a network set": _state(
        _BASE, _POLICY,
        {NetworkSetKey("s"): NetworkSet(nets=(IPNetwork("10.1.0.0/16"), IPNetwork("10.1.2.0/24")), labels={"y": "3"})},
    ),
    "the network set of everything": _state(
        _BASE, _POLICY, {NetworkSetKey("s"): NetworkSet(nets=(IPNetwork("0.0.0.0/0"),), labels={"y": "3"})}
    ),
    "a host endpoint": _state(
        _BASE,
        {UPLINK: HostEndpoint(name="up0", labels={"x": "host"}),
         ALLOW_X: Policy(selector="x == 'host'", apply_on_forward=True, inbound_rules=(Rule(src_tag="t"),))},
    ),
    "host endpoints by address and early hooks": _state(
        _BASE,
        {UPLINK: HostEndpoint(expected_ipv4_addrs=(IPAddress("192.0.2.1"),), labels={"x": "host"}),
         HostEndpointKey("there", "up"): HostEndpoint(name="e", expected_ipv4_addrs=(IPAddress("192.0.2.9"),)),
         PolicyKey("default", "early"): Policy(selector="all()", untracked=True, inbound_rules=(Rule(),)),
         PolicyKey("default", "dnat"): Policy(selector="all()", pre_dnat=True, inbound_rules=(Rule(action="deny"),))},
    ),
    "a floating address": _state(
        _BASE,
        {A: _workload("cali0", "10.0.0.1/32",
                      ipv4_nat=(Nat(int_ip=IPAddress("10.0.0.1"), ext_ip=IPAddress("203.0.113.9")),))},
    ),
    "the floating address of two": _state(
        _BASE,
        {key: _workload(name, f"{address}/32",
                        ipv4_nat=tuple(Nat(int_ip=IPAddress(address), ext_ip=IPAddress(each))
                                       for each in ("203.0.113.9", f"203.0.113.{address[-1]}")))
         for key, name, address in ((A, "cali0", "10.0.0.1"), (B, "cali1", "10.0.0.2"))},
    ),
    "pools and hosts": _state(
        _BASE,
        {PoolKey(IPNetwork("10.0.0.0/16")): Pool(cidr=IPNetwork("10.0.0.0/16"), masquerade=True, ipip="tunl0"),
         PoolKey(IPNetwork("10.1.0.0/16")): Pool(cidr=IPNetwork("10.1.0.0/16"), vxlan_mode="always"),
         HostIpKey(HOST): "192.0.2.1", HostIpKey("there"): "192.0.2.9"},
    ),
}  # fmt: skip

SEQUENCES: tuple[tuple[str, ...], ...] = (
    tuple(STATES),
    ("one workload without anything", "its profile is missing", "two workloads of one profile", "empty"),
    ("with a remote one", "the profile lost its tag", "with a remote one", "another profile of the same tag"),
    ("both profiles, the last wins", "the profile has other labels", "another profile of the same tag", "empty"),
    ("an address shared", "addresses exchanged", "one inactive", "an address shared"),
    ("a policy", "the policy selects nothing", "a tier before it", "the tier lost its metadata", "the policy staged"),
    ("ports by name", "a network set", "the network set of everything", "a network set", "ports by name"),
    ("a host endpoint", "host endpoints by address and early hooks", "a host endpoint", "a policy"),
    ("a floating address", "the floating address of two", "addresses exchanged", "a floating address"),
    ("pools and hosts", "empty", "pools and hosts", "two workloads of one profile"),
)
