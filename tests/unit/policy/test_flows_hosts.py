"""Host endpoints and floating addresses on the way of a flow, on records made by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import HostEndpoint, Nat
from calico_core.model.keys import (
    BgpHostAddressKey,
    GlobalConfigKey,
    HostConfigKey,
    HostEndpointKey,
    Key,
    PolicyKey,
    PoolKey,
    ProfileRulesKey,
)
from calico_core.model.policies import Policy
from calico_core.model.pools import Pool
from calico_core.model.rules import Rule, RuleLists
from calico_core.policy.explain import Packet
from calico_core.policy.flows import Cluster, FlowVerdict, Side
from tests.unit.policy.test_flows import A, B, ask, records

EDGE = HostEndpointKey("h2", "edge")
OUTSIDE, FLOATING = "203.0.113.5", "198.51.100.9"


def edge(*policies: tuple[str, Policy], **fields: Any) -> dict[Key, Any]:
    """B's host under policy on one interface. Everything that leaves B's host or A's is allowed."""
    found = records()
    found[EDGE] = HostEndpoint(
        **(fields or {"expected_ipv4_addrs": (IPAddress("192.0.2.2"),)}), labels={"role": "edge"}
    )
    found.update((PolicyKey("default", name), policy) for name, policy in policies)
    return found


def of_edge(verdict: FlowVerdict) -> Side:
    (side,) = [side for side in verdict.sides if side.host_endpoint == EDGE]
    return side


def inbound(*rules: Rule, **fields: Any) -> Policy:
    return Policy(selector="role == 'edge'", inbound_rules=rules, types=("ingress",), **fields)


SSH = Rule(protocol="tcp", dst_ports=(2222,))
DENY = Rule(action="deny")


def test_what_ends_at_the_host_is_judged_and_fail_safe_ports_are_open() -> None:
    found = edge(("ssh", inbound(SSH)))
    assert ask(found, OUTSIDE, "192.0.2.2", port=2222).outcome == "allow"
    denied = ask(found, OUTSIDE, "192.0.2.2", port=80)
    assert denied.outcome == "deny"
    side = of_edge(denied)
    assert (side.place, side.direction, side.interface) == ("host", "inbound", "with 192.0.2.2")
    assert side.is_interface_certain
    assert [(each.name, each.field) for each in side.passed_over] == [("ssh", "to ports")]
    safe = of_edge(ask(found, OUTSIDE, "192.0.2.2", port=22))
    assert (safe.outcome, safe.steps[0].reason.split(":")[0]) == ("allow", "a fail-safe port")
    found[GlobalConfigKey("FailsafeInboundHostPorts")] = f"tcp:{OUTSIDE}/32:80"
    assert ask(found, OUTSIDE, "192.0.2.2", port=22).outcome == "deny"
    assert ask(found, OUTSIDE, "192.0.2.2", port=80).outcome == "allow"
    assert ask(found, "203.0.113.6", "192.0.2.2", port=80).outcome == "deny"
    found[GlobalConfigKey("FailsafeInboundHostPorts")] = "nonsense"
    assert ask(found, OUTSIDE, "192.0.2.2", port=22).outcome == "allow"


def test_a_host_endpoint_without_policy_is_closed_both_ways() -> None:
    assert ask(edge(), OUTSIDE, "192.0.2.2").outcome == "deny"
    out = ask(edge(), "192.0.2.2", OUTSIDE)
    assert (out.outcome, of_edge(out).direction) == ("deny", "outbound")


def test_the_host_sees_what_comes_from_a_masqueraded_pool_as_from_its_host() -> None:
    found = edge(("from-host", inbound(Rule(src_net=IPNetwork("192.0.2.1/32")))))
    assert ask(found, dst="192.0.2.2").outcome == "deny"
    found[PoolKey(IPNetwork("10.0.0.0/24"))] = Pool(cidr=IPNetwork("10.0.0.0/24"), masquerade=True)
    verdict = ask(found, dst="192.0.2.2")
    assert verdict.outcome == "allow"
    assert of_edge(verdict).reason.startswith("comes as from 192.0.2.1")
    found[GlobalConfigKey("NATOutgoingAddress")] = "192.0.2.77"
    assert of_edge(ask(found, dst="192.0.2.2")).reason.startswith("comes as from 192.0.2.77")
    found[GlobalConfigKey("NATOutgoingExclusions")] = "IPPoolsAndHostIPs"
    assert "comes as" not in of_edge(ask(found, dst="192.0.2.2")).reason


def test_forwarded_traffic_is_judged_only_by_policies_that_ask_for_it() -> None:
    assert ask(edge(("ssh", inbound(SSH)))).outcome == "allow"
    denied = ask(edge(("no", inbound(DENY, apply_on_forward=True))))
    side = of_edge(denied)
    assert (denied.outcome, side.place, side.steps[-1].hook) == ("deny", "interface", "forward")
    passed = of_edge(ask(edge(("pass", inbound(Rule(action="pass"), apply_on_forward=True)))))
    assert (passed.outcome, passed.steps[-1].outcome) == ("allow", "pass")
    assert "forwarded" in passed.reason


@pytest.mark.parametrize("kind", ["untracked", "pre_dnat"])
def test_the_early_hooks(kind: str) -> None:
    deny = ask(edge(("early", inbound(DENY, **{kind: True})), ("all", inbound(Rule(), apply_on_forward=True))))
    assert (deny.outcome, of_edge(deny).steps[-1].hook) == ("deny", kind)
    allow = ask(edge(("early", inbound(Rule(), **{kind: True})), ("none", inbound(DENY, apply_on_forward=True))))
    assert allow.outcome == "allow", "what an early hook allows is not asked again"
    assert [step.hook for step in of_edge(allow).steps] == [kind]
    past = ask(edge(("early", inbound(SSH, **{kind: True})), ("none", inbound(DENY, apply_on_forward=True))))
    assert [(step.hook, step.outcome) for step in of_edge(past).steps] == [(kind, "pass"), ("forward", "deny")]


def test_the_workload_behind_is_asked_whatever_the_early_hooks_allow() -> None:
    verdict = ask(edge(("early", inbound(Rule(), untracked=True))), OUTSIDE, "10.0.0.2")
    assert verdict.outcome == "deny"
    assert of_edge(verdict).outcome == "allow"


def test_inside_a_tunnel_nothing_is_forwarded_that_policy_sees() -> None:
    found = edge(("no", inbound(DENY, apply_on_forward=True)))
    found[PoolKey(IPNetwork("10.0.0.0/24"))] = Pool(cidr=IPNetwork("10.0.0.0/24"), vxlan_mode="always")
    assert ask(found).outcome == "allow"
    assert of_edge(ask(found, OUTSIDE, "10.0.0.2")).outcome == "deny", "from outside it comes as it is"


def test_between_a_workload_and_its_own_host_no_interface_is_on_the_way() -> None:
    assert ask(edge(), "10.0.0.2", "192.0.2.2").outcome == "allow"


def test_of_several_records_that_may_be_on_the_way_all_must_allow() -> None:
    found = edge(("ssh", inbound(SSH)), name="eth0")
    assert ask(found, OUTSIDE, "192.0.2.2", port=2222).outcome == "allow"
    assert not of_edge(ask(found, OUTSIDE, "192.0.2.2", port=2222)).is_interface_certain
    found[HostEndpointKey("h2", "second")] = HostEndpoint(name="eth1")
    assert ask(found, OUTSIDE, "192.0.2.2", port=2222).outcome == "deny"
    found[EDGE] = HostEndpoint(name="eth0", expected_ipv4_addrs=(IPAddress("192.0.2.2"),), labels={"role": "edge"})
    assert ask(found, OUTSIDE, "192.0.2.2", port=2222).outcome == "allow", "the one that expects the address is meant"


def floating() -> dict[Key, Any]:
    found = records()
    nat = Nat(int_ip=IPAddress("10.0.0.2"), ext_ip=IPAddress("198.51.100.1"))
    found[B] = msgspec.structs.replace(found[B], ipv4_nat=(nat,))
    return found


def test_a_floating_address_leads_to_the_workload() -> None:
    verdict = ask(floating(), dst="198.51.100.1")
    assert verdict.outcome == "allow"
    assert [side.workload for side in verdict.sides] == [A, B]
    assert str(verdict.sides[0].address) == "10.0.0.1"
    assert str(verdict.sides[1].address) == "10.0.0.2", "the receiver's policy sees its own address"


def test_before_translation_policy_sees_the_floating_address() -> None:
    found = floating()
    found[EDGE] = HostEndpoint(name="eth0", labels={"role": "edge"})
    found[PolicyKey("default", "nat")] = inbound(
        Rule(action="deny", dst_net=IPNetwork("198.51.100.1/32")), pre_dnat=True
    )
    assert ask(found, dst="198.51.100.1").outcome == "deny"
    assert ask(found, dst="10.0.0.2").outcome == "allow"


def test_the_port_is_asked_for_where_a_host_endpoint_looks_at_it() -> None:
    found = edge(("ssh", inbound(SSH)))
    packet = ask(found, OUTSIDE, "192.0.2.2", port=None).packet
    assert Cluster(found.items()).asks_for_port(packet)
    assert not Cluster(edge().items()).asks_for_port(packet)


def test_a_rejecting_rule_says_so() -> None:
    verdict = ask(edge(("no", inbound(Rule(action="reject")))), OUTSIDE, "192.0.2.2")
    assert (verdict.outcome, of_edge(verdict).steps[-1].is_rejected) == ("deny", True)


def test_what_untracked_policy_lets_in_is_not_translated() -> None:
    """The kernel translates what it tracks; the floating address has a route of its own, to the workload."""
    found = edge(("early", inbound(Rule(protocol="tcp"), untracked=True)))
    nat = Nat(int_ip=IPAddress("10.0.0.2"), ext_ip=IPAddress(FLOATING))
    found[B] = msgspec.structs.replace(found[B], ipv4_nat=(nat,))
    own, external = (Rule(dst_net=IPNetwork(f"{each}/32")) for each in ("10.0.0.2", FLOATING))
    found[ProfileRulesKey("p")] = RuleLists(inbound_rules=(own,))
    denied = ask(found, OUTSIDE, FLOATING)
    assert (denied.outcome, str(denied.sides[-1].address)) == ("deny", FLOATING)
    assert denied.sides[-1].reason == f"let in untracked, so not translated: arrives as to {FLOATING}"
    assert ask(found, OUTSIDE, FLOATING, protocol=17).outcome == "allow", "tracked, so it is"
    found[ProfileRulesKey("p")] = RuleLists(inbound_rules=(external,))
    assert ask(found, OUTSIDE, FLOATING).outcome == "allow"
    assert ask(found, OUTSIDE, FLOATING, protocol=17).outcome == "deny"
    # of two interfaces only the host knows which it is: both must let it in
    other = HostEndpoint(name="eth1", labels={"role": "other"})
    found[HostEndpointKey("h2", "other")] = other
    found[PolicyKey("default", "late")] = Policy(
        selector="role == 'other'", inbound_rules=(Rule(),), types=("ingress",), apply_on_forward=True
    )
    both = ask(found, OUTSIDE, FLOATING)
    assert [str(side.address) for side in both.sides if side.workload == B] == ["10.0.0.2", FLOATING]
    assert both.outcome == "deny"
    found[ProfileRulesKey("p")] = RuleLists(inbound_rules=(own, external))
    assert ask(found, OUTSIDE, FLOATING).outcome == "allow"


@pytest.mark.parametrize(("protocol", "port", "field"), [(4, None, "ipip_mode"), (17, 4789, "vxlan_mode")])
def test_what_hosts_encapsulate_passes_between_them_and_from_nobody_else(
    protocol: int, port: int | None, field: str
) -> None:
    found = edge(("closed", Policy(selector="role == 'edge'", inbound_rules=(DENY,), outbound_rules=(DENY,))))

    def outcome(src: str, dst: str) -> str:
        return ask(found, src, dst, protocol=protocol, port=port).outcome

    assert outcome("192.0.2.1", "192.0.2.2") == "deny", "without tunnels it is a packet as any other"
    found[PoolKey(IPNetwork("10.1.0.0/24"))] = Pool(cidr=IPNetwork("10.1.0.0/24"), **{field: "always"})
    assert outcome("192.0.2.1", "192.0.2.2") != "deny"
    assert outcome("192.0.2.2", "192.0.2.1") != "deny"
    assert outcome("192.0.2.2", OUTSIDE) == "deny", "policy of the interface is asked"
    assert "from no host of ours" in ask(found, OUTSIDE, "192.0.2.2", protocol=protocol, port=port).sides[-1].reason
    found[PolicyKey("default", "closed")] = inbound(Rule())
    assert outcome(OUTSIDE, "192.0.2.2") == "deny", "whatever policy says"
    found[GlobalConfigKey("ExternalNodesCIDRList")] = "203.0.113.0/24"
    assert outcome(OUTSIDE, "192.0.2.2") != "deny"
    found[PolicyKey("default", "early")] = inbound(DENY, pre_dnat=True, apply_on_forward=True)
    assert outcome("192.0.2.1", "192.0.2.2") == "deny", "policy before that is asked all the same"


HERE, THERE = "2001:db8::2", "2001:db8:1::5"


def test_a_host_that_is_told_to_have_no_ipv6_lets_fail_safe_ports_of_it_pass_alone() -> None:
    both = Policy(selector="role == 'edge'", inbound_rules=(Rule(),), outbound_rules=(Rule(),), apply_on_forward=True)
    found = edge(("all", both), expected_ipv4_addrs=(IPAddress("192.0.2.2"),), expected_ipv6_addrs=(IPAddress(HERE),))
    assert ask(found, THERE, HERE).outcome == ask(found, HERE, THERE).outcome == "allow"
    found[HostConfigKey("h2", "Ipv6Support")] = "false"
    for ends in ((THERE, HERE), (HERE, THERE)):
        denied = ask(found, *ends)
        assert (denied.outcome, len(of_edge(denied).steps)) == ("deny", 1)
        assert of_edge(denied).steps[0].reason.startswith("IPv6 is off: Ipv6Support of the host is false")
    assert ask(found, THERE, HERE, port=22).outcome == "allow"
    discovery = Packet(src=IPAddress(THERE), dst=IPAddress(HERE), protocol=58, icmp=(135, 0))
    assert Cluster(found.items()).explain(discovery).outcome == "allow"
    assert ask(found, OUTSIDE, "192.0.2.2").outcome == "allow", "of IPv4 policy is asked"
    # earlier policy of the interface is none for it
    found[PolicyKey("default", "early")] = inbound(Rule(), pre_dnat=True, apply_on_forward=True)
    assert ask(found, THERE, HERE).outcome == "deny"


def test_workloads_of_a_host_that_is_told_to_have_no_ipv6_have_none() -> None:
    found = records()
    found[ProfileRulesKey("p")] = RuleLists(inbound_rules=(Rule(),), outbound_rules=(Rule(),))
    for key, address in ((A, "fd00::1"), (B, "fd00::2")):
        found[key] = msgspec.structs.replace(found[key], ipv6_nets=(IPNetwork(f"{address}/128"),))
    found[BgpHostAddressKey("h2", 6)] = HERE
    assert ask(found, "fd00::1", "fd00::2").outcome == ask(found, HERE, "fd00::2").outcome == "allow"
    found[HostConfigKey("h2", "Ipv6Support")] = "false"
    verdict = ask(found, "fd00::1", "fd00::2")
    assert [side.outcome for side in verdict.sides] == ["allow", "deny"]
    assert verdict.sides[1].reason.startswith("IPv6 is off: Ipv6Support of the host is false")
    for ends in ((HERE, "fd00::2"), ("fd00::2", "fd00::1"), ("fd00::2", HERE)):
        denied = ask(found, *ends)
        assert (denied.outcome, any("IPv6 is off" in side.reason for side in denied.sides)) == ("deny", True)
    assert ask(found).outcome == "allow", "IPv4 is not concerned"
    nat = Nat(int_ip=IPAddress("fd00::2"), ext_ip=IPAddress(THERE))
    found[B] = msgspec.structs.replace(found[B], ipv6_nat=(nat,))
    assert [side.place for side in ask(found, "fd00::1", THERE).sides] == ["workload", "outside"], "nor floating ones"
