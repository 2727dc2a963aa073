"""Sets beyond ``MaxIpsetSize``: rules that name one deny, as dataplanes have it, and the answer says so (ADR 11)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from calico_core.model.endpoints import EndpointPort, WorkloadEndpoint
from calico_core.model.keys import GlobalConfigKey, HostConfigKey, Key, PolicyKey, ProfileRulesKey
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule, RuleLists
from calico_core.policy.applied import applied_to
from calico_core.policy.flows import Cluster
from calico_core.policy.verdicts import RuleStep
from tests.unit.policy.test_flows import DEAD, A, B, ask, last, records

LIMIT = "MaxIpsetSize"


def naming(rule: Rule, limit: str = "2") -> dict[Key, Any]:
    """What lets in on B names a set of three; a rule before it can match nothing."""
    found = records()
    found[ProfileRulesKey("in")] = RuleLists(inbound_rules=(DEAD, rule, Rule(action="allow")))
    endpoint: WorkloadEndpoint = found[B]
    found[B] = WorkloadEndpoint(
        state="active", name=endpoint.name, profile_ids=("in", "p"), ipv4_nets=endpoint.ipv4_nets,
        labels={"a": "b"}, ports=(EndpointPort(name="web", protocol="tcp", port=1),),
    )  # fmt: skip
    found[GlobalConfigKey(LIMIT)] = limit
    return found


def decision(found: dict[Key, Any]) -> RuleStep:
    return last(ask(found).sides[-1])


@pytest.mark.parametrize("action", ["allow", "deny", "log", "reject"])
def test_in_place_of_the_rule_all_is_denied_and_it_is_said_why(action: Any) -> None:
    found = naming(Rule(action=action, ip_version=6, src_tag="p"))
    step = decision(found)
    assert (step.outcome, step.is_closed, step.is_rejected, step.position) == ("deny", True, False, 2)
    assert step.rule == Rule(action=action, ip_version=6, src_tag="p"), "the one that people wrote"
    assert step.reason == "the set of tag p has 3 members, more than MaxIpsetSize 2: rules that name it deny"
    (closed,) = (each.closed for each in applied_to(Cluster(found.items()), B)[0].lists if each.name == "in")
    assert closed == {1: step.reason}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(not_src_selector="has(none)", src_tag="p"), "tag p"),
        (Rule(dst_selector="a != 'c'"), "selector a != 'c'"),
        (Rule(src_selector=""), "selector all()"),
    ],
)
def test_the_set_is_named_as_the_rule_names_it(rule: Rule, words: str) -> None:
    assert decision(naming(rule)).reason.startswith(f"the set of {words} has 3 members")


def test_of_a_staged_policy_nothing_is_closed() -> None:
    found = naming(Rule(action="allow"))
    policy = Policy(selector="has(a)", inbound_rules=(Rule(action="deny", src_tag="p"),), staged=True)
    found[PolicyKey("t", "tried")] = policy
    assert decision(found).outcome == "allow"
    (listed,) = (each for each in applied_to(Cluster(found.items()), B)[0].lists if each.name == "tried")
    assert (listed.is_staged, listed.closed, listed.tier_default) == (True, {}, "pass")
    found[PolicyKey("t", "tried")] = msgspec.structs.replace(policy, staged=False)
    assert decision(found).outcome == "deny"


def test_named_ports_have_a_set_of_their_own() -> None:
    found = naming(Rule(protocol="tcp", not_dst_ports=("web",)), "1")
    assert not decision(found).is_closed
    found[A] = WorkloadEndpoint(
        state="active", name="calia", profile_ids=("p",), ipv4_nets=found[A].ipv4_nets,
        ports=(EndpointPort(name="web", protocol="tcp", port=1), EndpointPort(name="web", protocol="udp", port=1)),
    )  # fmt: skip
    assert decision(found).reason.startswith("the set of port web has 2 members, more than MaxIpsetSize 1")


def test_each_host_has_its_own_limit_and_one_that_cannot_be_used_counts_as_none() -> None:
    found = naming(Rule(src_tag="p"))
    found[HostConfigKey("h2", LIMIT)] = "3"
    assert decision(found).outcome == "allow"
    del found[GlobalConfigKey(LIMIT)]
    found[HostConfigKey("h2", LIMIT)] = "many"
    assert decision(found).outcome == "allow", "what nobody names is far above"
    found[HostConfigKey("h2", LIMIT)] = "1"
    assert decision(found).reason.endswith("MaxIpsetSize 1: rules that name it deny")
