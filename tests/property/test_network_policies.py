"""Converted policies decide as the API reference says NetworkPolicies do: compared with its sentences spelled out."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from calico_core.model.kubernetes import Namespace, Pod, endpoint_labels, endpoint_profiles
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule, parse_port_range
from calico_core.model.selectors import Labels, parse_selector
from calico_kubernetes.desired import desired_records
from calico_kubernetes.objects import NetworkPolicy, Snapshot

KEYS = ("app", "tier", "pcns.app", "example.com/x")
VALUES = ("", "a", "b")
NAMESPACES = ("one", "two")
NUMBERS = (80, 81, 90)
NAMES = ("http", "dns")
PROTOCOLS = ("TCP", "UDP", "SCTP")

labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3)
requirements = st.one_of(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(KEYS),
            "operator": st.sampled_from(("In", "NotIn")),
            "values": st.lists(st.sampled_from(VALUES), min_size=1, max_size=2, unique=True),
        }
    ),
    st.fixed_dictionaries({"key": st.sampled_from(KEYS), "operator": st.sampled_from(("Exists", "DoesNotExist"))}),
)
selectors = st.fixed_dictionaries(
    {}, optional={"matchLabels": labels, "matchExpressions": st.lists(requirements, max_size=2)}
)
blocks = st.sampled_from(
    [
        {"cidr": "0.0.0.0/0"},
        {"cidr": "10.0.0.0/30"},
        {"cidr": "10.0.0.0/28", "except": ["10.0.0.0/31", "10.0.0.4/32"]},
        {"cidr": "192.0.2.0/24"},
    ]
)
peers = st.one_of(
    st.fixed_dictionaries({"podSelector": selectors}),
    st.fixed_dictionaries({"namespaceSelector": selectors}),
    st.fixed_dictionaries({"namespaceSelector": selectors, "podSelector": selectors}),
    st.fixed_dictionaries({"ipBlock": blocks}),
)
ports = st.one_of(
    st.fixed_dictionaries({"protocol": st.sampled_from(PROTOCOLS)}),
    st.fixed_dictionaries({"port": st.sampled_from(NUMBERS)}, optional={"protocol": st.sampled_from(PROTOCOLS)}),
    st.fixed_dictionaries({"port": st.just(80), "endPort": st.sampled_from(NUMBERS)}),
    st.fixed_dictionaries({"port": st.sampled_from(NAMES)}, optional={"protocol": st.sampled_from(PROTOCOLS)}),
)


def rules(side: str) -> st.SearchStrategy[Any]:
    return st.lists(
        st.fixed_dictionaries({}, optional={side: st.lists(peers, max_size=2), "ports": st.lists(ports, max_size=2)}),
        max_size=2,
    )


specs = st.fixed_dictionaries(
    {"podSelector": selectors},
    optional={
        "ingress": rules("from"),
        "egress": rules("to"),
        "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
    },
)
container_ports = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(NAMES),
            "containerPort": st.sampled_from(NUMBERS),
            "protocol": st.sampled_from(PROTOCOLS),
        }
    ),
    max_size=2,
)
pods = st.lists(st.tuples(st.sampled_from(NAMESPACES), labels, container_ports), min_size=2, max_size=5)
policies = st.lists(st.tuples(st.sampled_from(NAMESPACES), specs), max_size=3)
clusters = st.tuples(st.fixed_dictionaries(dict.fromkeys(NAMESPACES, labels)), pods, policies)


# --- as the API reference says it ----------------------------------------------------------------------------------


def selects(selector: dict[str, Any], of: dict[str, str]) -> bool:
    for name, value in selector.get("matchLabels", {}).items():
        if of.get(name) != value:
            return False
    for each in selector.get("matchExpressions", []):
        held = each["key"] in of
        is_in = held and of[each["key"]] in each.get("values", [])
        answer = {"In": is_in, "NotIn": not is_in, "Exists": held, "DoesNotExist": not held}[each["operator"]]
        if not answer:
            return False
    return True


class Reference:
    def __init__(self, cluster: Any) -> None:
        self.namespaces, self.pods, self.policies = cluster

    def address(self, pod: int) -> IPAddress:
        return IPAddress(f"10.0.0.{pod}")

    def is_allowed(self, source: int, target: int, protocol: str, port: int) -> bool:
        return self._passes("Egress", source, target, target, protocol, port) and self._passes(
            "Ingress", target, source, target, protocol, port
        )

    def _passes(self, direction: str, pod: int, other: int, target: int, protocol: str, port: int) -> bool:
        namespace, of, _ = self.pods[pod]
        isolating = [
            (where, spec)
            for where, spec in self.policies
            if where == namespace and selects(spec["podSelector"], of) and direction in self._types(spec)
        ]
        if not isolating:
            return True
        rule_key, peer_key = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
        return any(
            self._side(rule.get(peer_key), where, other) and self._port(rule.get("ports"), target, protocol, port)
            for where, spec in isolating
            for rule in spec.get(rule_key, [])
        )

    @staticmethod
    def _types(spec: dict[str, Any]) -> list[str]:
        if "policyTypes" in spec:
            given: list[str] = spec["policyTypes"]
            return given
        return ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]

    def _side(self, listed: list[Any] | None, where: str, other: int) -> bool:
        if not listed:
            return True
        namespace, of, _ = self.pods[other]
        for peer in listed:
            if "ipBlock" in peer:
                address = self.address(other)
                excepted = peer["ipBlock"].get("except", [])
                if address in IPNetwork(peer["ipBlock"]["cidr"]) and not any(address in IPNetwork(e) for e in excepted):
                    return True
                continue
            if "namespaceSelector" in peer:
                is_there = selects(peer["namespaceSelector"], self.namespaces[namespace])
            else:
                is_there = namespace == where
            if is_there and selects(peer.get("podSelector", {}), of):
                return True
        return False

    def _port(self, listed: list[Any] | None, target: int, protocol: str, port: int) -> bool:
        if not listed:
            return True
        for each in listed:
            if each.get("protocol", "TCP") != protocol:
                continue
            wanted = each.get("port")
            if wanted is None:
                return True
            if isinstance(wanted, str):
                for has in self.pods[target][2]:
                    if (has["name"], has["protocol"], has["containerPort"]) == (wanted, protocol, port):
                        return True
            elif wanted <= port <= each.get("endPort", wanted):
                return True
        return False


# --- as our records say it -----------------------------------------------------------------------------------------


class Converted:
    def __init__(self, cluster: Any) -> None:
        namespaces, pods, policies = cluster
        self.snapshot = Snapshot(
            namespaces={
                ("", name): _read(Namespace, {"metadata": {"name": name, "labels": of}})
                for name, of in namespaces.items()
            },
            pods={
                (namespace, f"p{number}"): _read(
                    Pod,
                    {
                        "metadata": {"name": f"p{number}", "namespace": namespace, "labels": of},
                        "spec": {"containers": [{"ports": ports}]},
                    },
                )
                for number, (namespace, of, ports) in enumerate(pods)
            },
            policies={
                (namespace, f"np{number}"): _read(
                    NetworkPolicy, {"metadata": {"name": f"np{number}", "namespace": namespace}, "spec": spec}
                )
                for number, (namespace, spec) in enumerate(policies)
            },
        )
        records = {key.path: record for key, record in desired_records(self.snapshot).items()}
        self.policies = [record for record in records.values() if isinstance(record, Policy)]
        self.labels: list[Labels] = []
        for pod in self.snapshot.pods.values():
            merged: dict[str, str] = {}
            for profile in endpoint_profiles(pod):
                merged |= records.get(f"/calico/v1/policy/profile/{profile}/labels", {})  # type: ignore[arg-type]
            self.labels.append(merged | endpoint_labels(pod))

    def is_allowed(self, source: int, target: int, protocol: str, port: int) -> bool:
        return all(
            self._passes(pod, direction, source, target, protocol, port)
            for pod, direction in ((source, "egress"), (target, "ingress"))
        )

    def _passes(self, pod: int, direction: str, source: int, target: int, protocol: str, port: int) -> bool:
        applying = [
            policy
            for policy in self.policies
            if direction in (policy.types or ()) and parse_selector(policy.selector).matches(self.labels[pod])
        ]
        return not applying or any(
            self._matches(rule, source, target, protocol, port)
            for policy in applying
            for rule in (policy.inbound_rules if direction == "ingress" else policy.outbound_rules)
        )

    def _matches(self, rule: Rule, source: int, target: int, protocol: str, port: int) -> bool:
        if rule.protocol is not None and rule.protocol != protocol.lower():
            return False
        if rule.dst_ports is not None and not any(
            low <= port <= high for low, high in map(parse_port_range, rule.dst_ports)
        ):
            return False
        for selector, nets, excepted, end in (
            (rule.src_selector, rule.src_nets, rule.not_src_nets, source),
            (rule.dst_selector, rule.dst_nets, rule.not_dst_nets, target),
        ):
            address = IPAddress(f"10.0.0.{end}")
            if selector is not None and not parse_selector(selector).matches(self.labels[end]):
                return False
            if nets is not None and not any(address in net for net in nets):
                return False
            if excepted is not None and any(address in net for net in excepted):
                return False
        return True


def _read(kind: Any, document: dict[str, Any]) -> Any:
    return msgspec.json.decode(msgspec.json.encode(document), type=kind)


@settings(max_examples=400, deadline=None)
@given(cluster=clusters)
def test_converted_policies_decide_as_kubernetes_does(cluster: Any) -> None:
    reference, ours = Reference(cluster), Converted(cluster)
    count = len(cluster[1])
    for source in range(count):
        for target in range(count):
            for protocol in PROTOCOLS:
                for port in NUMBERS:
                    asked = (source, target, protocol, port)
                    assert ours.is_allowed(*asked) == reference.is_allowed(*asked), asked
