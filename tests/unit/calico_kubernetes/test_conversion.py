"""NetworkPolicies as people write them → records, field by field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from calico_core.errors import InvalidRequest
from calico_core.model import codec
from calico_core.model.keys import PolicyKey
from calico_core.model.kubernetes import Pod
from calico_core.model.policies import Policy
from calico_core.model.selectors import parse_selector
from calico_kubernetes.conversion import PortNames, closed_policy, policy_record
from calico_kubernetes.objects import NetworkPolicy

PODS = 'projectcalico.org/orchestrator == "k8s"'
SHOP = f'{PODS} && projectcalico.org/namespace == "shop"'


def a_policy(**spec: Any) -> NetworkPolicy:
    document = {"metadata": {"name": "p", "namespace": "shop"}, "spec": {"podSelector": {}, **spec}}
    return msgspec.json.decode(msgspec.json.encode(document), type=NetworkPolicy)


def a_pod(namespace: str = "shop", **ports: tuple[int, str]) -> Pod:
    listed = [{"name": name, "containerPort": number, "protocol": what} for name, (number, what) in ports.items()]
    document = {"metadata": {"name": "x", "namespace": namespace}, "spec": {"containers": [{"ports": listed}]}}
    return msgspec.json.decode(msgspec.json.encode(document), type=Pod)


def converted(*pods: Pod, **spec: Any) -> Policy:
    return policy_record(a_policy(**spec), PortNames(pods))


def inbound(*pods: Pod, **rule: Any) -> list[dict[str, Any]]:
    return [_shape(rule) for rule in converted(*pods, ingress=[rule]).inbound_rules]


def outbound(*pods: Pod, **rule: Any) -> list[dict[str, Any]]:
    policy = converted(*pods, egress=[rule], policyTypes=["Egress"])
    assert policy.inbound_rules == ()
    return [_shape(rule) for rule in policy.outbound_rules]


def _shape(rule: Any) -> dict[str, Any]:
    """Only what narrows; the action is always to allow."""
    whole: dict[str, Any] = msgspec.json.decode(codec.encode(rule))
    assert whole.pop("action", "allow") == "allow"
    return whole


# --- which pods, which directions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "terms"),
    [
        ({}, []),
        ({"matchLabels": {"b": "2", "a": "1"}}, ['a == "1"', 'b == "2"']),
        ({"matchLabels": {"a": ""}}, ['a == ""']),
        ({"matchLabels": {"app.kubernetes.io/name": "web"}}, ['app.kubernetes.io/name == "web"']),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["y", "x"]}]}, ['a in {"x", "y"}']),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["x"]}]}, ['a not in {"x"}']),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, ["has(a)"]),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, ["!has(a)"]),
        ({"matchLabels": {"pcns.team": "x"}}, ['pod.projectcalico.org/pcns.team == "x"']),
        (
            {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]},
            ['a == "1"', "has(b)"],
        ),
    ],
)
def test_pods_that_a_policy_is_for(selector: dict[str, Any], terms: list[str]) -> None:
    assert converted(podSelector=selector).selector == " && ".join([SHOP, *terms])


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ({}, ("ingress",)),
        ({"egress": []}, ("ingress",)),
        ({"egress": [{}]}, ("ingress", "egress")),
        ({"policyTypes": ["Egress"]}, ("egress",)),
        ({"policyTypes": ["Egress", "Ingress"]}, ("ingress", "egress")),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, ("ingress",)),
    ],
)
def test_directions(spec: dict[str, Any], types: tuple[str, ...]) -> None:
    policy = converted(**spec)
    assert policy.types == types
    assert not ("egress" not in types and policy.outbound_rules)


def test_no_rules_close_and_an_empty_rule_opens() -> None:
    assert converted(ingress=[]).inbound_rules == ()
    assert inbound() == [{}]
    assert outbound() == [{}]
    assert inbound(**{"from": [], "ports": []}) == [{}]
    assert inbound(**{"from": None, "ports": None}) == [{}]


# --- the other side -----------------------------------------------------------------------------------------------


def test_peers() -> None:
    app = {"matchLabels": {"app": "web"}}
    team = {"matchLabels": {"team": "north"}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"podSelector": {}}, SHOP),
        ({"podSelector": app}, f'{SHOP} && app == "web"'),
        ({"namespaceSelector": {}}, PODS),
        ({"namespaceSelector": team}, f'{PODS} && pcns.team == "north"'),
        ({"namespaceSelector": team, "podSelector": app}, f'{PODS} && pcns.team == "north" && app == "web"'),
        (
            {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["north"]}]}},
            f'{PODS} && has(pcns.projectcalico.org/name) && pcns.team not in {{"north"}}',
        ),
    ]
    for peer, selector in cases:
        assert inbound(**{"from": [peer]}) == [{"src_selector": selector}]
        assert outbound(to=[peer]) == [{"dst_selector": selector}]
    assert len(inbound(**{"from": [peer for peer, _ in cases]})) == len(cases)


@pytest.mark.parametrize("what", [{"operator": "NotIn", "values": ["low"]}, {"operator": "DoesNotExist"}])
def test_a_namespace_whose_labels_are_not_written_yet_is_no_peer(what: dict[str, Any]) -> None:
    peer = {"namespaceSelector": {"matchExpressions": [{"key": "trust", **what}]}}
    (rule,) = inbound(**{"from": [peer]})
    selector = parse_selector(rule["src_selector"])
    own = {"projectcalico.org/orchestrator": "k8s", "projectcalico.org/namespace": "evil"}
    assert not selector.matches(own)
    assert selector.matches(own | {"pcns.projectcalico.org/name": "evil"})
    assert not selector.matches(own | {"pcns.projectcalico.org/name": "evil", "pcns.trust": "low"})


def test_blocks_of_addresses() -> None:
    block = {"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.1.0.0/16", "10.2.0.0/16"]}}
    assert inbound(**{"from": [block]}) == [{"src_nets": ["10.0.0.0/8"], "!src_nets": ["10.1.0.0/16", "10.2.0.0/16"]}]
    assert outbound(to=[{"ipBlock": {"cidr": "fd00::/8"}}]) == [{"dst_nets": ["fd00::/8"]}]


def test_blocks_without_exceptions_are_one_rule() -> None:
    peers = [
        {"ipBlock": {"cidr": "10.0.0.0/8"}},
        {"podSelector": {}},
        {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.7/32"]}},
        {"ipBlock": {"cidr": "fd00::/8"}},
        {"ipBlock": {"cidr": "10.0.0.0/8"}},
    ]
    assert outbound(to=peers) == [
        {"dst_selector": SHOP},
        {"dst_nets": ["192.0.2.0/24"], "!dst_nets": ["192.0.2.7/32"]},
        {"dst_nets": ["10.0.0.0/8", "fd00::/8"]},
    ]
    assert inbound(**{"from": peers[:1] + peers[3:], "ports": [{"port": 80}]}) == [
        {"protocol": "tcp", "dst_ports": [80], "src_nets": ["10.0.0.0/8", "fd00::/8"]}
    ]


# --- ports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ports", "rules"),
    [
        ([{"port": 80}], [{"protocol": "tcp", "dst_ports": [80]}]),
        ([{"protocol": "UDP"}], [{"protocol": "udp"}]),
        ([{"protocol": "SCTP", "port": 5}], [{"protocol": "sctp", "dst_ports": [5]}]),
        ([{"port": 80, "endPort": 90}], [{"protocol": "tcp", "dst_ports": ["80:90"]}]),
        ([{"port": 80, "endPort": 80}], [{"protocol": "tcp", "dst_ports": [80]}]),
        ([{"port": 80}, {"port": 81}, {"port": 80}], [{"protocol": "tcp", "dst_ports": [80, 81]}]),
        ([{"port": 80}, {"protocol": "TCP"}], [{"protocol": "tcp"}]),
        (
            [{"port": 80}, {"protocol": "UDP", "port": 53}],
            [{"protocol": "tcp", "dst_ports": [80]}, {"protocol": "udp", "dst_ports": [53]}],
        ),
    ],
)
def test_ports(ports: list[dict[str, Any]], rules: list[dict[str, Any]]) -> None:
    assert inbound(ports=ports) == rules
    assert outbound(ports=ports) == rules


def test_peers_and_ports_must_both_match() -> None:
    peers = [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]
    ports = [{"port": 80}, {"protocol": "UDP", "port": 53}]
    assert len(inbound(**{"from": peers, "ports": ports})) == 4


def test_a_name_of_a_port_is_a_rule_for_every_number_it_has() -> None:
    pods = [
        a_pod(http=(8080, "TCP")),
        a_pod(http=(80, "TCP")),
        a_pod(http=(80, "UDP")),
        a_pod("elsewhere", http=(9090, "TCP")),
    ]
    assert inbound(*pods, ports=[{"port": "http"}]) == [
        {"protocol": "tcp", "dst_ports": [80], "dst_selector": "has(port.projectcalico.org/tcp.http.80)"},
        {"protocol": "tcp", "dst_ports": [8080], "dst_selector": "has(port.projectcalico.org/tcp.http.8080)"},
    ]
    towards = outbound(*pods, to=[{"namespaceSelector": {}}], ports=[{"port": "http"}])
    assert [rule["dst_ports"] for rule in towards] == [[80], [8080], [9090]]
    assert towards[2]["dst_selector"] == f"{PODS} && has(port.projectcalico.org/tcp.http.9090)"


def test_a_name_that_no_pod_has_opens_nothing() -> None:
    assert inbound(ports=[{"port": "http"}]) == []
    assert inbound(ports=[{"port": "http"}, {"port": 80}]) == [{"protocol": "tcp", "dst_ports": [80]}]


# --- what we do not know ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like", "values": ["x"]}]}},
        {"podSelector": {"matchLabels": {"a": '"'}}},
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["v" * 60] * 8000}]}},
        {"policyTypes": ["Sideways"]},
        {"ingress": [{"from": [{}]}]},
        {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]},
        {"ingress": [{"from": [{"ipBlock": {"cidr": "ten"}}]}]},
        {"ingress": [{"ports": [{"protocol": "ICMP"}]}]},
        {"ingress": [{"ports": [{"port": 90, "endPort": 80}]}]},
        {"ingress": [{"ports": [{"port": "http", "endPort": 80}]}]},
        {"ingress": [{"ports": [{"port": 0}]}]},
        {"ingress": [{"ports": [{"endPort": 90}]}]},
        {"ingress": [{"from": [{"podSelector": {"matchLabels": {"a" * 600: "x"}}}]}]},
        {"podSelector": {"matchLabels": {"a" * 600: "x"}}},
        # fields of a version after ours
        {"ingress": [{"from": [{"podSelector": {}, "serviceSelector": {}}]}]},
        {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "only": ["10.0.0.0/9"]}}]}]},
        {"ingress": [{"when": "never"}]},
        {"egress": [{"ports": [{"port": 80, "name": "x"}]}]},
        {"action": "deny"},
        {"podSelector": {"matchFields": []}},
        # not as any version writes it
        {"ingress": [{"ports": [{"port": 1.5}]}]},
        {"ingress": "all"},
    ],
)
def test_a_policy_that_is_not_understood_closes_its_pods(spec: dict[str, Any]) -> None:
    policy = a_policy(**spec)
    with pytest.raises(InvalidRequest):
        policy_record(policy, PortNames())
    closed = closed_policy(policy)
    assert (closed.inbound_rules, closed.outbound_rules, closed.types) == ((), (), ("ingress", "egress"))
    labels = {"projectcalico.org/orchestrator": "k8s", "projectcalico.org/namespace": "shop"}
    assert parse_selector(closed.selector).matches(labels)


def test_of_a_policy_that_is_not_understood_the_pods_are() -> None:
    """Only these are closed, where they can be told."""
    for rest in ({"ingress": [{"when": "never"}]}, {"ingress": [{"from": [{"ipBlock": {"cidr": "ten"}}]}]}, {"x": 1}):
        closed = closed_policy(a_policy(podSelector={"matchLabels": {"app": "db"}}, **rest))
        assert closed.selector == f'{SHOP} && app == "db"'


def test_what_was_written_is_read_back_equal() -> None:
    policy = converted(
        a_pod(http=(80, "TCP")),
        ingress=[
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": "http"}, {"port": 1, "endPort": 9}]}
        ],
    )
    assert codec.decode(PolicyKey("default", "p"), codec.encode(policy)) == policy
