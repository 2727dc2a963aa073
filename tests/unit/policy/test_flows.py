"""From end to end on records made by hand: both hosts evaluated, every step led back to the rule that people wrote."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import Nat, WorkloadEndpoint
from calico_core.model.keys import (
    BgpHostAddressKey,
    GlobalConfigKey,
    HostConfigKey,
    Key,
    PolicyKey,
    PoolKey,
    ProfileRulesKey,
    ProfileTagsKey,
    TierKey,
    WorkloadEndpointKey,
)
from calico_core.model.policies import Policy, Tier
from calico_core.model.pools import Pool
from calico_core.model.rules import Rule, RuleLists
from calico_core.policy.explain import Packet
from calico_core.policy.flows import Cluster, FlowVerdict, RuleStep, Side
from calico_core.settings import Settings

A, B, C = (WorkloadEndpointKey(host, "cni", name, "e") for host, name in (("h1", "a"), ("h2", "b"), ("h1", "c")))
ADDRESSES = {A: "10.0.0.1", B: "10.0.0.2", C: "10.0.0.3"}
OPEN = (Rule(action="allow"),)
SPOOFING = "WorkloadSourceSpoofing"
DEAD = Rule(action="deny", src_net=IPNetwork("10.0.0.0/8"), dst_net=IPNetwork("fd00::/8"))
"""Between families: it can match no packet, and no host is told of it."""


def records() -> dict[Key, Any]:
    """A and C on one host, B on another; profile ``p`` allows TCP from its tag, and all that leaves."""
    found: dict[Key, Any] = {
        key: WorkloadEndpoint(
            state="active", name=f"cali{key.workload}", profile_ids=("p",), ipv4_nets=(IPNetwork(f"{address}/32"),)
        )
        for key, address in ADDRESSES.items()
    }
    inbound = (DEAD, Rule(action="allow", protocol="tcp", src_tag="p"))
    found[ProfileRulesKey("p")] = RuleLists(inbound_rules=inbound, outbound_rules=OPEN)
    found[ProfileTagsKey("p")] = ("p",)
    found[PoolKey(IPNetwork("10.0.0.0/24"))] = Pool(cidr=IPNetwork("10.0.0.0/24"))
    found[BgpHostAddressKey("h1", 4)] = "192.0.2.1"
    found[BgpHostAddressKey("h2", 4)] = "192.0.2.2"
    return found


def ask(
    found: dict[Key, Any], src: str = "10.0.0.1", dst: str = "10.0.0.2", protocol: int = 6, port: int | None = 80
) -> FlowVerdict:
    packet = Packet(src=IPAddress(src), dst=IPAddress(dst), protocol=protocol, src_port=40000, dst_port=port)
    return Cluster(found.items()).explain(packet)


def last(side: Side) -> RuleStep:
    return side.steps[-1]


def test_both_hosts_are_asked_and_positions_are_those_of_the_record() -> None:
    verdict = ask(records())
    assert verdict.outcome == "allow"
    assert [(side.direction, side.host, side.workload) for side in verdict.sides] == [
        ("outbound", "h1", A),
        ("inbound", "h2", B),
    ]
    step = last(verdict.sides[1])
    assert (step.kind, step.name, step.position) == ("profile", "p", 2)
    assert step.rule == Rule(action="allow", protocol="tcp", src_tag="p")


def test_the_receiver_is_asked_even_where_the_sender_is_denied() -> None:
    found = records()
    found[TierKey("t")] = Tier(order=1)
    found[PolicyKey("t", "x/y")] = Policy(
        selector="all()", types=("egress",), outbound_rules=(DEAD, Rule(action="deny"))
    )
    verdict = ask(found)
    assert verdict.outcome == "deny"
    assert [side.outcome for side in verdict.sides] == ["deny", "allow"]
    step = last(verdict.sides[0])
    assert (step.tier, step.kind, step.name, step.position) == ("t", "policy", "x/y", 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"profile_ids": ()}, "no policy or profile applies"),
        ({"state": "inactive"}, "the endpoint is inactive"),
        ({"profile_ids": ("gone",)}, "missing profile"),
    ],
)
def test_implied_drops_are_named(change: dict[str, Any], reason: str) -> None:
    found = records()
    fields = {"state": "active", "name": "calib", "profile_ids": ("p",), "ipv4_nets": (IPNetwork("10.0.0.2/32"),)}
    found[B] = WorkloadEndpoint(**{**fields, **change})
    verdict = ask(found)
    assert verdict.outcome == "deny"
    assert last(verdict.sides[1]).reason.startswith(reason)
    assert last(verdict.sides[1]).position is None


def test_a_tier_that_does_not_decide_and_a_profile_that_does_not_decode() -> None:
    found = records()
    found[TierKey("t")] = Tier(order=1)
    found[PolicyKey("t", "n")] = Policy(selector="all()", types=("ingress",))
    step = last(ask(found).sides[1])
    assert (step.tier, step.rule) == ("t", None)
    assert "end of tier" in step.reason
    found[TierKey("t")] = Tier(order=1, default_action="pass")
    assert [each.outcome for each in ask(found).sides[1].steps] == ["pass", "allow"]

    bad = {ProfileRulesKey("p").path: "unknown field"}
    del found[ProfileRulesKey("p")]
    packet = Packet(src=IPAddress("10.0.0.1"), dst=IPAddress("10.0.0.2"), protocol=6)
    assert "invalid profile: unknown field" in last(Cluster(found.items(), bad=bad).explain(packet).sides[0]).reason


def test_outside_unknown_and_host() -> None:
    outside = ask(records(), dst="198.51.100.1")
    assert (outside.outcome, outside.sides[1].place, outside.sides[1].outcome) == ("allow", "outside", None)
    unknown = ask(records(), dst="10.0.0.77")
    assert (unknown.outcome, unknown.sides[1].place) == ("deny", "unknown")
    assert "10.0.0.0/24" in unknown.sides[1].reason
    nobody = ask(records(), src="198.51.100.2", dst="198.51.100.1")
    assert nobody.outcome == "unaffected"
    # the host's own workload, and that of another host
    assert ask(records(), src="192.0.2.2", protocol=17).outcome == "allow"
    far = ask(records(), src="192.0.2.1", protocol=17)
    assert (far.outcome, far.sides[0].host) == ("deny", "h1")


def test_to_the_own_host_as_its_configuration_says() -> None:
    found = records()
    assert ask(found, dst="192.0.2.1").outcome == "allow"
    found[GlobalConfigKey("DefaultEndpointToHostAction")] = "drop"
    assert ask(found, dst="192.0.2.1").outcome == "deny"
    assert ask(found, dst="192.0.2.2").outcome == "allow"
    assert ask(found, dst="192.0.2.1", protocol=17, port=53).outcome == "allow"
    found[HostConfigKey("h1", "DefaultEndpointToHostAction")] = "RETURN"
    assert ask(found, dst="192.0.2.1").outcome == "allow"


def test_to_itself_and_the_named_one_of_two_with_an_address() -> None:
    assert ask(records(), dst="10.0.0.1", protocol=17).outcome == "allow"
    found = records()
    twin = WorkloadEndpointKey("h3", "cni", "twin", "e")
    found[twin] = WorkloadEndpoint(state="active", name="calit", ipv4_nets=(IPNetwork("10.0.0.2/32"),))
    packet = Packet(src=IPAddress("10.0.0.1"), dst=IPAddress("10.0.0.2"), protocol=6)
    cluster = Cluster(found.items())
    assert cluster.explain(packet).outcome == "deny"
    assert cluster.explain(packet, destination=B).outcome == "allow"


def test_of_two_of_a_host_with_an_address_the_first_has_it() -> None:
    """Felix specification 6.8 and 6.9. Its own policy is asked, and the other may not send from there."""
    found = records()
    twin = WorkloadEndpointKey("h2", "cni", "twin", "e")
    nets = (IPNetwork("10.0.0.2/32"), IPNetwork("10.0.0.9/32"))
    found[twin] = WorkloadEndpoint(state="active", name="calit", profile_ids=("closed",), ipv4_nets=nets)
    found[ProfileRulesKey("closed")] = RuleLists(outbound_rules=OPEN)
    assert ask(found).outcome == "allow"
    assert ask(found, src="10.0.0.2", dst="10.0.0.1").outcome == "allow"
    packet = Packet(src=IPAddress("10.0.0.2"), dst=IPAddress("203.0.113.9"), protocol=6, src_port=1, dst_port=80)
    cluster = Cluster(found.items())
    assert cluster.explain(packet, source=B).outcome == "allow"
    sent = cluster.explain(packet, source=twin).sides[0]
    assert (sent.outcome, sent.reason) == (
        "deny",
        "spoofed source: 10.0.0.2 is had by endpoint e of the host, the first that names it",
    )
    found[B] = msgspec.structs.replace(found[B], state="inactive")
    assert ask(found).outcome == "deny", "now the other has it, who lets nothing in"
    assert Cluster(found.items()).explain(packet, source=twin).outcome == "allow"


def test_a_prefix_lets_send_from_what_another_has() -> None:
    found = records()
    found[A] = msgspec.structs.replace(found[A], allowed_source_prefixes=(IPNetwork("10.0.0.0/24"),))
    twin = WorkloadEndpointKey("h1", "cni", "twin", "e")
    found[twin] = WorkloadEndpoint(state="active", name="calit", ipv4_nets=(IPNetwork("10.0.0.7/32"),))
    packet = Packet(src=IPAddress("10.0.0.7"), dst=IPAddress("203.0.113.9"), protocol=6, src_port=1, dst_port=80)
    for spoofing, outcome in (("Any", "allow"), ("Disabled", "deny")):
        assert (
            Cluster(found.items(), defaults=Settings(source_spoofing=spoofing)).explain(packet, source=A).outcome
            == outcome
        )


def test_a_host_without_floating_addresses_leads_none_anywhere() -> None:
    found = records()
    nat = Nat(int_ip=IPAddress("10.0.0.2"), ext_ip=IPAddress("198.51.100.9"))
    found[B] = msgspec.structs.replace(found[B], ipv4_nat=(nat,))
    assert ask(found, dst="198.51.100.9").sides[-1].place == "workload"
    found[HostConfigKey("h2", "FloatingIPs")] = "Disabled"
    assert ask(found, dst="198.51.100.9").sides[-1].place == "outside"


def test_a_workload_at_its_own_floating_address_is_asked_both_ways() -> None:
    found = records()
    nat = Nat(int_ip=IPAddress("10.0.0.1"), ext_ip=IPAddress("198.51.100.9"))
    found[A] = msgspec.structs.replace(found[A], ipv4_nat=(nat,))
    assert ask(found, dst="198.51.100.9").outcome == "allow"
    assert ask(found, dst="198.51.100.9", protocol=17).outcome == "deny"
    # an address that another has: the floating one leads nowhere
    first = WorkloadEndpointKey("h1", "cni", "0", "e")
    found[first] = msgspec.structs.replace(found[C], ipv4_nets=found[A].ipv4_nets)
    assert ask(found, src="10.0.0.3", dst="198.51.100.9").sides[1].place == "outside"


def test_another_host_sees_a_masqueraded_source() -> None:
    """Felix specification 6.7: from such a pool to what is in none."""
    found = records()
    pool = IPNetwork("10.0.0.0/24")
    host = IPNetwork("192.0.2.1/32")
    for key, other in ((B, "172.20.0.1/32"), (C, "172.20.0.2/32")):
        nets = (*found[key].ipv4_nets, IPNetwork(other))
        found[key] = msgspec.structs.replace(found[key], profile_ids=("from-host",), ipv4_nets=nets)
    found[ProfileRulesKey("from-host")] = RuleLists(inbound_rules=(Rule(src_net=host),), outbound_rules=OPEN)
    assert ask(found, dst="172.20.0.1").outcome == "deny"
    found[PoolKey(pool)] = Pool(cidr=pool, masquerade=True)
    verdict = ask(found, dst="172.20.0.1")
    assert verdict.outcome == "allow"
    assert verdict.sides[1].reason == "comes as from 192.0.2.1: the pool of 10.0.0.1 is masqueraded"
    assert ask(found, dst="10.0.0.2").outcome == "deny", "within pools it comes as it is"
    assert ask(found, dst="172.20.0.2").outcome == "deny", "on one host policy is asked before"
    found[PoolKey(IPNetwork("172.20.0.0/24"))] = Pool(cidr=IPNetwork("172.20.0.0/24"))
    assert ask(found, dst="172.20.0.1").outcome == "deny"


def test_what_was_passed_over_and_why() -> None:
    found = records()
    found[TierKey("t")] = Tier(order=1)
    found[PolicyKey("t", "n")] = Policy(
        selector="all()",
        types=("ingress",),
        inbound_rules=(
            Rule(action="log"),
            Rule(protocol="udp", dst_ports=(53,)),
            Rule(action="pass", protocol="udp"),
            Rule(action="deny"),
        ),
    )
    side = ask(found, protocol=17).sides[1]
    assert side.outcome == "deny"
    assert [(each.name, each.position, each.field, each.tier) for each in side.passed_over] == [
        ("n", 2, "to ports", "t"),
        ("p", 2, "protocol", None),
    ]
    side = ask(found, protocol=6).sides[1]
    assert [(each.position, each.field) for each in side.passed_over] == [(2, "protocol"), (3, "protocol")]


def test_whether_policy_asks_for_ports() -> None:
    found = records()
    packet = Packet(src=IPAddress("10.0.0.1"), dst=IPAddress("10.0.0.2"), protocol=6)
    assert not Cluster(found.items()).asks_for_port(packet)
    found[ProfileRulesKey("p")] = RuleLists(inbound_rules=(Rule(protocol="tcp", dst_ports=(80,)),), outbound_rules=OPEN)
    assert Cluster(found.items()).asks_for_port(packet)
    assert not Cluster(found.items()).asks_for_port(Packet(src=packet.src, dst=packet.dst, protocol=17))


def test_a_staged_policy_asks_for_no_port() -> None:
    found = records()
    packet = Packet(src=IPAddress("10.0.0.1"), dst=IPAddress("10.0.0.2"), protocol=6)
    policy = Policy(selector="", inbound_rules=(Rule(action="deny", protocol="tcp", dst_ports=(80,)),), staged=True)
    found[PolicyKey("t", "tried")] = policy
    assert not Cluster(found.items()).asks_for_port(packet)
    found[PolicyKey("t", "tried")] = msgspec.structs.replace(policy, staged=False)
    assert Cluster(found.items()).asks_for_port(packet)


def test_an_inactive_workload_is_closed_to_its_host_and_from_it() -> None:
    """Nothing is routed to it, and nothing it sends has a known source: the exceptions for a host are not for it."""
    found = records()
    found[A] = msgspec.structs.replace(found[A], state="inactive")
    assert ask(found, src="192.0.2.1", dst="10.0.0.1").outcome == "deny"
    assert ask(found, dst="192.0.2.1", protocol=17, port=53).outcome == "deny"
    assert ask(found, src="10.0.0.3", dst="192.0.2.1", protocol=17, port=53).outcome == "allow"


@pytest.mark.parametrize(
    ("config", "default", "address", "reason"),
    [
        ({}, "Disabled", "198.51.100.7", "is in a prefix of the endpoint, and WorkloadSourceSpoofing is Disabled"),
        ({}, "Any", "198.51.100.7", None),
        ({GlobalConfigKey(SPOOFING): "any"}, "Disabled", "198.51.100.7", None),
        ({GlobalConfigKey(SPOOFING): "Any"}, "Disabled", "198.51.101.7", "is no address of"),
        (
            {
                GlobalConfigKey(SPOOFING): "Any",
                HostConfigKey("h1", SPOOFING): "Disabled",
            },
            "Any",
            "198.51.100.7",
            "is in a prefix of the endpoint",
        ),
        ({HostConfigKey("h2", SPOOFING): "Any"}, "Disabled", "198.51.100.7", "is in a prefix of the"),
    ],
)
def test_a_prefix_counts_where_the_senders_host_lets_it(
    config: dict[Key, str], default: str, address: str, reason: str | None
) -> None:
    found = records() | config
    found[A] = msgspec.structs.replace(found[A], allowed_source_prefixes=(IPNetwork("198.51.100.0/24"),))
    asked = Packet(src=IPAddress(address), dst=IPAddress("192.0.2.9"), protocol=6, src_port=1, dst_port=80)
    side = Cluster(found.items(), defaults=Settings(source_spoofing=default)).explain(asked, source=A).sides[0]
    assert side.outcome == ("allow" if reason is None else "deny")
    assert (reason or "") in side.reason


@pytest.mark.parametrize(
    ("packet", "outcome"),
    [
        (("10.0.0.1", "10.0.0.2", 6, 1, 80), "allow"),
        (("10.0.0.3", "10.0.0.2", 6, 1, 80), "deny"),
        (("10.0.0.3", "192.0.2.1", 17, 1, 53), "deny"),
        (("0.0.0.0", "192.0.2.1", 17, 68, 67), "allow"),
        (("0.0.0.0", "192.0.2.1", 17, 68, 68), "deny"),
        (("fe80::1", "2001:db8::1", 17, 546, 547), "allow"),
        (("fe80::1", "2001:db8::1", 17, 546, 80), "deny"),
        (("::", "2001:db8::1", 17, 546, 547), "deny"),
        (("fe80::1", "2001:db8::1", 58, 135, 0), "allow"),
        (("::", "2001:db8::1", 58, 143, 0), "allow"),
        (("::", "2001:db8::1", 58, 128, 0), "deny"),
        (("fd00::9", "2001:db8::1", 58, 135, 0), "deny"),
    ],
)
def test_what_an_endpoint_may_send_from(packet: tuple[str, str, int, int, int], outcome: str) -> None:
    src, dst, protocol, first, second = packet
    ports = {"icmp": (first, second)} if protocol == 58 else {"src_port": first, "dst_port": second}
    asked = Packet(src=IPAddress(src), dst=IPAddress(dst), protocol=protocol, **ports)  # type: ignore[arg-type]
    side = Cluster(records().items()).explain(asked, source=A).sides[0]
    assert side.workload == A
    assert (side.outcome or "allow") == outcome
    assert side.reason.startswith("spoofed source") == (outcome == "deny")
