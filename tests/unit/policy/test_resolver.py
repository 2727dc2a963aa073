"""Scenarios of felix specification 13: tags, addresses, labels, orders, tiers, laziness."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.hoststate import HostChanges, HostPools, HostState, PolicyList
from calico_core.model.keys import (
    HostConfigKey,
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
from calico_core.model.policies import NetworkSet, Policy, Tier
from calico_core.model.pools import Pool
from calico_core.model.rules import Rule, RuleLists
from calico_core.policy.resolver import PolicyResolver

LOCAL = WorkloadEndpointKey("here", "k8s", "local", "eth0")
ONE, TWO = (WorkloadEndpointKey("there", "k8s", name, "eth0") for name in ("one", "two"))


def endpoint(*addresses: str, profiles: tuple[str, ...] = (), state: Any = "active", **labels: str) -> WorkloadEndpoint:
    nets = [IPNetwork(address) for address in addresses]
    return WorkloadEndpoint(
        state=state,
        name="cali0",
        profile_ids=profiles,
        ipv4_nets=tuple(net for net in nets if net.version == 4),
        ipv6_nets=tuple(net for net in nets if net.version == 6),
        labels=labels,
    )


class World:
    """A resolver in sync, and what its batches add up to."""

    def __init__(self, *updates: tuple[Key, Any]) -> None:
        self.resolver = PolicyResolver("here")
        self.state = HostState()
        self.resolver.in_sync()
        self.put(*updates)

    def put(self, *updates: tuple[Key, Any]) -> HostChanges:
        self.resolver.apply(updates)
        changes = self.resolver.flush()
        self.state.update(changes)
        return changes

    @property
    def only_set(self) -> list[str]:
        ((_, members),) = self.state.sets.items()
        return [str(net) for net in members.networks()]

    def listed(self, direction: str = "inbound") -> list[tuple[str, list[str]]]:
        policies: PolicyList = getattr(self.state.workloads[LOCAL], direction)
        return [(tier.tier, [each.rpartition("/")[2] for each in tier.policies]) for tier in policies.tiers]


def selecting(selector: str) -> list[tuple[Key, Any]]:
    """A local endpoint under a policy whose one rule names the selector. The endpoint itself has no address."""
    rule = Rule(src_selector=selector)
    return [(LOCAL, endpoint()), (PolicyKey("default", "p"), Policy(selector="all()", inbound_rules=(rule,)))]


def tagging(tag: str) -> list[tuple[Key, Any]]:
    rules = RuleLists(inbound_rules=(Rule(src_tag=tag),))
    return [(LOCAL, endpoint(profiles=("local",))), (ProfileRulesKey("local"), rules)]


def test_nothing_before_in_sync_then_everything() -> None:
    resolver = PolicyResolver("here")
    resolver.apply([(LOCAL, endpoint("10.0.0.1/32"))])
    assert resolver.flush() == HostChanges()
    resolver.in_sync()
    first = resolver.flush()
    assert first.is_complete
    assert [workload.key for workload in first.workloads] == [LOCAL]
    assert first.pools == HostPools()
    assert not resolver.flush()


def test_an_empty_first_batch_is_complete() -> None:
    resolver = PolicyResolver("here")
    resolver.in_sync()
    assert resolver.flush().is_complete
    assert not resolver.flush()


@pytest.mark.parametrize("is_tag_first", [True, False])
def test_tag_and_endpoint_in_either_order(is_tag_first: bool) -> None:
    world = World(*tagging("t"))
    steps = [(ProfileTagsKey("p"), ("t",)), (ONE, endpoint("10.0.0.1/32", profiles=("p",)))]
    for update in steps if is_tag_first else reversed(steps):
        world.put(update)
    assert world.only_set == ["10.0.0.1/32"]
    assert not world.put(*steps)


def test_tag_leaves_a_profile() -> None:
    world = World(*tagging("t"), (ProfileTagsKey("p"), ("t", "u")), (ONE, endpoint("10.0.0.1/32", profiles=("p",))))
    (change,) = world.put((ProfileTagsKey("p"), ("u",))).sets
    assert [str(net) for net in change.removed.networks()] == ["10.0.0.1/32"]
    assert world.only_set == []


def test_another_profile_with_the_same_tag_is_no_change() -> None:
    world = World(
        *tagging("t"),
        (ProfileTagsKey("p"), ("t",)),
        (ProfileTagsKey("q"), ("t",)),
        (ONE, endpoint("10.0.0.1/32", profiles=("p",))),
    )
    assert not world.put((ONE, endpoint("10.0.0.1/32", profiles=("q",)))).sets


def test_addresses_change_and_are_shared() -> None:
    world = World(*selecting("a == 'x'"), (ONE, endpoint("10.0.0.1/32", a="x")))
    world.put((ONE, endpoint("10.0.0.2/32", "10.0.0.3/32", "fd00::1/128", a="x")))
    assert world.only_set == ["10.0.0.2/32", "10.0.0.3/32", "fd00::1/128"]
    assert not world.put((TWO, endpoint("10.0.0.2/32", "fd00::1/128", a="x"))).sets
    world.put((ONE, None))
    assert world.only_set == ["10.0.0.2/32", "fd00::1/128"]
    world.put((TWO, endpoint("10.0.0.2/32", "fd00::1/128", a="y")))
    assert world.only_set == []


def test_an_address_that_moves_within_a_batch_is_no_change() -> None:
    world = World(*selecting("a == 'x'"), (ONE, endpoint("10.0.0.1/32", a="x")))
    assert not world.put((ONE, None), (TWO, endpoint("10.0.0.1/32", a="x"))).sets
    assert not world.put((TWO, endpoint("10.0.0.9/32", a="x")), (ONE, endpoint("10.0.0.1/32", a="x"))).sets[0].removed


def test_profile_labels() -> None:
    world = World(*selecting("a == 'x'"), (ONE, endpoint("10.0.0.1/32", profiles=("p", "q"))))
    assert world.only_set == []
    world.put((ProfileLabelsKey("p"), {"a": "x"}))
    assert world.only_set == ["10.0.0.1/32"], "inherited"
    world.put((ProfileLabelsKey("q"), {"a": "y"}))
    assert world.only_set == [], "the last listed profile wins"
    world.put((ONE, endpoint("10.0.0.1/32", profiles=("q", "p"))))
    assert world.only_set == ["10.0.0.1/32"]
    world.put((ONE, endpoint("10.0.0.1/32", profiles=("q", "p"), a="z")))
    assert world.only_set == [], "the endpoint's own label wins"
    world.put((ProfileLabelsKey("q"), {"a": "x"}), (ONE, endpoint("10.0.0.1/32", profiles=("q",))))
    assert world.only_set == ["10.0.0.1/32"]
    world.put((ProfileLabelsKey("q"), None))
    assert world.only_set == []


def test_host_endpoints_are_members_by_expected_address_only() -> None:
    named = HostEndpoint(name="eth0", labels={"a": "x"})
    expected = HostEndpoint(expected_ipv4_addrs=(IPAddress("10.0.0.7"),), labels={"a": "x"})
    world = World(*selecting("a == 'x'"), (HostEndpointKey("there", "e"), named))
    assert world.only_set == []
    world.put((HostEndpointKey("there", "e"), expected))
    assert world.only_set == ["10.0.0.7/32"]


def test_network_sets_lose_networks_within_others() -> None:
    inner = NetworkSet(nets=(IPNetwork("10.1.0.0/16"), IPNetwork("10.9.9.9/32")), labels={"a": "x"})
    outer = NetworkSet(nets=(IPNetwork("10.0.0.0/8"),), labels={"a": "x"})
    world = World(*selecting("a == 'x'"), (NetworkSetKey("inner"), inner))
    world.put((NetworkSetKey("outer"), outer))
    assert world.only_set == ["10.0.0.0/8", "10.9.9.9/32"]
    world.put((NetworkSetKey("outer"), None))
    assert world.only_set == ["10.1.0.0/16", "10.9.9.9/32"]


def test_equal_selectors_are_one_set() -> None:
    rules = tuple(Rule(src_selector=text) for text in ("a in {'x','y'}", 'a in{"y", "x"}'))
    world = World((LOCAL, endpoint()), (PolicyKey("default", "p"), Policy(selector="", inbound_rules=rules)))
    assert len(world.state.sets) == 1


def test_only_what_local_endpoints_need() -> None:
    rule = Rule(src_selector="a == 'x'")
    policy = Policy(selector="role == 'db'", inbound_rules=(rule,))
    world = World(
        (PolicyKey("default", "p"), policy),
        (ONE, endpoint("10.0.0.1/32", a="x", role="db")),
        (LOCAL, endpoint("10.0.0.2/32", role="web")),
    )
    assert not world.state.sets
    assert not world.state.rules
    changes = world.put((LOCAL, endpoint("10.0.0.2/32", role="db")))
    assert changes.sets[0].is_new
    assert world.only_set == ["10.0.0.1/32"], "a set comes with all its members"
    changes = world.put((LOCAL, None))
    assert changes.removed_workloads == (LOCAL,)
    assert len(changes.removed_rules) == len(changes.removed_sets) == 1
    assert not world.state.sets


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        ({"b": 1, "a": 2}, ["b", "a"]),
        ({"b": 1, "a": 1}, ["a", "b"]),
        ({"a": None, "b": 5}, ["b", "a"]),
        ({"a": "default", "b": None, "c": 1e9}, ["c", "a", "b"]),
        ({"x-1": None, "x-10": None, "x-2": None}, ["x-1", "x-10", "x-2"]),
    ],
)
def test_policies_sort_by_order_then_name(orders: dict[str, Any], expected: list[str]) -> None:
    policies = [(PolicyKey("t", name), Policy(selector="", order=order)) for name, order in orders.items()]
    assert World((LOCAL, endpoint()), *policies).listed() == [("t", expected)]
    assert World((LOCAL, endpoint()), *reversed(policies)).listed() == [("t", expected)]


def test_tiers_sort_by_order_then_name_and_need_no_metadata() -> None:
    world = World((LOCAL, endpoint()), *((PolicyKey(tier, "p"), Policy(selector="")) for tier in ("a", "b", "c")))
    assert [tier for tier, _ in world.listed()] == ["a", "b", "c"]
    world.put((TierKey("c"), Tier(order=1)), (TierKey("b"), Tier(order=2, default_action="pass")))
    assert [tier for tier, _ in world.listed()] == ["c", "b", "a"]
    assert [each.default_action for each in world.state.workloads[LOCAL].inbound.tiers] == ["deny", "pass", "deny"]
    world.put((TierKey("c"), None))
    assert [tier for tier, _ in world.listed()] == ["b", "a", "c"], "policies stay when the metadata goes"
    world.put((PolicyKey("b", "p"), Policy(selector="", order=3)), (TierKey("b"), None))
    assert [tier for tier, _ in world.listed()] == ["a", "b", "c"]


def test_order_changed_at_runtime() -> None:
    world = World((LOCAL, endpoint()), *((PolicyKey("t", n), Policy(selector="", order=1)) for n in ("a", "b")))
    changes = world.put((PolicyKey("t", "a"), Policy(selector="", order=2)))
    assert world.listed() == [("t", ["b", "a"])]
    assert not changes.rules, "the rules are the same"
    assert not world.put((PolicyKey("t", "a"), Policy(selector="", order=2)))


def test_policy_types() -> None:
    world = World(
        (LOCAL, endpoint()),
        (PolicyKey("t", "both"), Policy(selector="")),
        (PolicyKey("t", "in"), Policy(selector="", types=("ingress",))),
        (PolicyKey("u", "out"), Policy(selector="", types=("egress",))),
        (PolicyKey("u", "none"), Policy(selector="", types=())),
    )
    assert world.listed("inbound") == [("t", ["both", "in"])]
    assert world.listed("outbound") == [("t", ["both"]), ("u", ["out"])]
    assert "policy/u/none" not in world.state.rules


def test_a_staged_policy_has_its_place_and_decides_nothing() -> None:
    policy = Policy(selector="", inbound_rules=(Rule(action="deny"),), staged=True)
    world = World((LOCAL, endpoint()), (PolicyKey("t", "staged"), policy))
    assert world.listed() == [("t", ["staged"])]
    assert world.state.rules["policy/t/staged"].is_staged
    assert [tier.default_action for tier in world.state.workloads[LOCAL].inbound.tiers] == ["pass"]
    world.put((PolicyKey("t", "other"), Policy(selector="", order=1)))
    assert [tier.default_action for tier in world.state.workloads[LOCAL].inbound.tiers] == ["deny"]
    world.put((PolicyKey("t", "other"), None))
    world.put((PolicyKey("t", "staged"), msgspec.structs.replace(policy, staged=False)))
    assert not world.state.rules["policy/t/staged"].is_staged
    assert [tier.default_action for tier in world.state.workloads[LOCAL].inbound.tiers] == ["deny"]


def test_of_the_kinds_for_host_endpoints_workloads_know_only_the_ordinary() -> None:
    world = World(
        (LOCAL, endpoint()),
        (PolicyKey("t", "raw"), Policy(selector="", untracked=True, apply_on_forward=True)),
        (PolicyKey("t", "nat"), Policy(selector="", pre_dnat=True, apply_on_forward=True)),
        (PolicyKey("t", "forward"), Policy(selector="", apply_on_forward=True)),
    )
    assert world.listed() == [("t", ["forward"])]


def test_slashes_in_names_do_not_make_two_policies_one() -> None:
    keys = PolicyKey("a/b", "c"), PolicyKey("a", "b/c")
    world = World((LOCAL, endpoint()), *((key, Policy(selector="")) for key in keys))
    assert len(world.state.rules) == 2


def test_profiles_in_listed_order_and_missing_ones_deny() -> None:
    world = World((LOCAL, endpoint(profiles=("z", "a"))), (ProfileRulesKey("a"), RuleLists(inbound_rules=(Rule(),))))
    assert world.state.workloads[LOCAL].inbound.profiles == ("profile/z", "profile/a")
    assert [rule.action for rule in world.state.rules["profile/z"].inbound] == ["deny"]
    assert [rule.action for rule in world.state.rules["profile/z"].outbound] == ["deny"]
    changes = world.put((ProfileRulesKey("z"), RuleLists(outbound_rules=(Rule(),))))
    assert [rules.id for rules in changes.rules] == ["profile/z"]
    assert not changes.workloads


def test_inactive_endpoints_are_closed_and_need_nothing() -> None:
    policy = (PolicyKey("t", "p"), Policy(selector=""))
    world = World((LOCAL, endpoint("10.0.0.1/32", profiles=("p",), state="inactive")), policy)
    workload = world.state.workloads[LOCAL]
    assert not workload.is_active
    assert workload.inbound == workload.outbound == PolicyList()
    assert not world.state.rules
    world.put((LOCAL, endpoint("10.0.0.1/32", profiles=("p",))))
    assert set(world.state.rules) == {"policy/t/p", "profile/p"}
    world.put((LOCAL, endpoint("10.0.0.1/32", profiles=("p",), state="inactive")))
    assert not world.state.rules


def test_equal_lists_are_one_object() -> None:
    others = [(WorkloadEndpointKey("here", "k8s", f"w{n}", "eth0"), endpoint(profiles=("p",), a="x")) for n in range(3)]
    world = World(*others, (PolicyKey("t", "p"), Policy(selector="has(a)")))
    world.put((LOCAL, endpoint(profiles=("p",), a="y")))
    lists = [each for workload in world.state.workloads.values() for each in (workload.inbound, workload.outbound)]
    assert len(lists) == 8
    assert len({id(each) for each in lists}) == 1


def test_a_rule_change_touches_no_endpoint() -> None:
    key = PolicyKey("t", "p")
    world = World((LOCAL, endpoint()), (key, Policy(selector="")))
    changes = world.put((key, Policy(selector=" all() ", inbound_rules=(Rule(src_tag="t"),))))
    assert [rules.id for rules in changes.rules] == ["policy/t/p"]
    assert not changes.workloads
    assert changes.sets[0].is_new


def test_pools() -> None:
    net, other = IPNetwork("10.0.0.0/16"), IPNetwork("192.168.0.0/16")
    world = World((PoolKey(other), Pool(cidr=other)), (PoolKey(net), Pool(cidr=net, masquerade=True)))
    assert world.state.pools == HostPools(all=(net, other), masquerade=(net,))
    assert world.put((PoolKey(net), Pool(cidr=net, masquerade=True, disabled=True))).pools is None
    world.put((PoolKey(net), None))
    assert world.state.pools == HostPools(all=(other,))


def test_unknown_keys_and_unknown_deletes_are_ignored() -> None:
    world = World()
    assert not world.put(
        (HostConfigKey("here", "LogSeverity"), "debug"),
        (LOCAL, None),
        (ONE, None),
        (PolicyKey("t", "p"), None),
        (TierKey("t"), None),
        (ProfileTagsKey("p"), None),
        (PoolKey(IPNetwork("10.0.0.0/16")), None),
    )
