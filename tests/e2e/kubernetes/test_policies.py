"""NetworkPolicies of every field, proven with packets between pods on two nodes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pytest

from calico_core.lab.probes import probe, probe_until
from calico_core.lab.station import PlainStation
from tests.e2e.kubernetes import sctp
from tests.e2e.kubernetes.cluster import Cluster, a_namespace, a_pod, a_policy

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

WITHIN_S = 20.0
Pods = dict[str, PlainStation]


class Flow(NamedTuple):
    """From pod to pod; the one that must not get through comes first in a case, so that the others find the policy
    in force."""

    source: str
    target: str
    is_open: bool
    kind: Literal["tcp", "udp", "icmp", "sctp"] = "tcp"
    port: int = 80


def no(source: str, target: str, kind: Any = "tcp", port: int = 80) -> Flow:
    return Flow(source, target, False, kind, port)


def yes(source: str, target: str, kind: Any = "tcp", port: int = 80) -> Flow:
    return Flow(source, target, True, kind, port)


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> Pods:
    cluster.await_(lambda: len(cluster.ready_nodes()) == 2, "nodes are ready", within_s=120)
    cluster.apply(a_namespace("shop", team="north"), a_namespace("lab", team="south"))
    for name in ("shop", "lab"):
        cluster.await_(lambda of=name: cluster.get("serviceaccounts", "-n", of)["items"], f"accounts of {name}")
    cluster.apply(
        a_pod("shop", "server", "host1", ports={"http": 8080}, app="server"),
        a_pod("shop", "second", "host2", ports={"http": 9090}, app="server", tier="two"),
        a_pod("shop", "client", "host2", app="client"),
        a_pod("shop", "other", "host1", app="other"),
        a_pod("lab", "visitor", "host2", app="client"),
        a_pod("lab", "stranger", "host1", app="stranger"),
    )
    names = {"shop": ("server", "second", "client", "other"), "lab": ("visitor", "stranger")}
    return {name: cluster.station(where, name, within_s=120) for where, each in names.items() for name in each}


@pytest.fixture
def clean(cluster: Cluster, pods: Pods) -> Iterator[None]:
    yield
    cluster.kubectl("delete", "networkpolicies", "-n", "shop", "--all")
    assert probe_until(pods["client"], pods["server"], is_reachable=True, within_s=WITHIN_S).is_reachable


def is_open(pods: Pods, flow: Flow) -> bool:
    source, target = pods[flow.source], pods[flow.target]
    if flow.kind == "sctp":
        return sctp.arrives(source, target, flow.port, timeout_s=0.5)
    return probe(source, target, flow.kind, flow.port, timeout_s=0.5).is_reachable


def await_flow(pods: Pods, flow: Flow) -> None:
    deadline = time.monotonic() + WITHIN_S
    while is_open(pods, flow) is not flow.is_open:
        assert time.monotonic() < deadline, flow


SERVER: dict[str, Any] = {"podSelector": {"matchLabels": {"app": "server"}}}
WEB = {"matchLabels": {"app": "web"}}
CLIENTS = {"podSelector": {"matchLabels": {"app": "client"}}}
SOUTH = {"namespaceSelector": {"matchLabels": {"team": "south"}}}

CASES: dict[str, tuple[list[dict[str, Any]], list[Flow]]] = {
    "nothing comes in": (
        [{"policyTypes": ["Ingress"]}],
        [no("client", "server"), no("visitor", "client", "icmp"), yes("client", "stranger")],
    ),
    "nothing goes out": (
        [{"policyTypes": ["Egress"]}],
        [no("client", "stranger"), no("client", "server", "udp"), yes("visitor", "stranger"), yes("visitor", "client")],
    ),
    "nothing in or out": (
        [{**CLIENTS, "policyTypes": ["Ingress", "Egress"]}],
        [no("client", "server"), no("server", "client"), yes("other", "server")],
    ),
    "an empty rule opens again": (
        [{"policyTypes": ["Ingress"], **CLIENTS}, {**SERVER, "ingress": [{}]}],
        [no("server", "client"), yes("client", "server"), yes("stranger", "server", "udp")],
    ),
    "pods of the namespace by label": (
        [{**SERVER, "ingress": [{"from": [CLIENTS]}]}],
        [no("other", "server"), no("visitor", "server"), yes("client", "server"), yes("client", "server", "icmp")],
    ),
    "pods by expressions": (
        [
            {
                "podSelector": {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]},
                "ingress": [
                    {
                        "from": [
                            {
                                "podSelector": {
                                    "matchExpressions": [
                                        {"key": "app", "operator": "In", "values": ["client", "other"]},
                                        {"key": "app", "operator": "NotIn", "values": ["other"]},
                                        {"key": "app", "operator": "Exists"},
                                    ]
                                }
                            }
                        ]
                    }
                ],
            }
        ],
        [no("other", "server"), yes("client", "server"), yes("other", "second")],
    ),
    "all pods of namespaces by label": (
        [{**SERVER, "ingress": [{"from": [SOUTH]}]}],
        [no("client", "server"), yes("visitor", "server"), yes("stranger", "server")],
    ),
    "namespaces and pods together": (
        [{**SERVER, "ingress": [{"from": [{**SOUTH, **CLIENTS}]}]}],
        [no("stranger", "server"), no("client", "server"), yes("visitor", "server")],
    ),
    "namespaces or pods": (
        [{**SERVER, "ingress": [{"from": [SOUTH, CLIENTS]}]}],
        [no("other", "server"), yes("stranger", "server"), yes("client", "server")],
    ),
    "a namespace by its own name": (
        [
            {
                **SERVER,
                "ingress": [
                    {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "lab"}}}]}
                ],
            }
        ],
        [no("client", "server"), yes("visitor", "server")],
    ),
    "addresses with exceptions": (
        [{**SERVER, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["CLIENT/32"]}}]}]}],
        [no("client", "server"), yes("other", "server"), yes("visitor", "server")],
    ),
    "a port of TCP": (
        [{**SERVER, "ingress": [{"ports": [{"port": 8080}]}]}],
        [
            no("client", "server", "tcp", 8081), no("client", "server", "udp", 8080),
            yes("client", "server", "tcp", 8080),
        ],
    ),
    "a range of UDP": (
        [{**SERVER, "ingress": [{"ports": [{"port": 9000, "endPort": 9005, "protocol": "UDP"}]}]}],
        [
            no("client", "server", "udp", 9006), no("client", "server", "tcp", 9003),
            yes("client", "server", "udp", 9000), yes("client", "server", "udp", 9005),
        ],
    ),
    "a protocol": (
        [{**SERVER, "ingress": [{"ports": [{"protocol": "UDP"}]}]}],
        [no("client", "server"), no("client", "server", "icmp"), yes("client", "server", "udp", 5)],
    ),
    "a port of SCTP": (
        [{**SERVER, "ingress": [{"ports": [{"port": 7000, "protocol": "SCTP"}]}]}],
        [no("client", "server"), no("client", "server", "sctp", 7001), yes("client", "server", "sctp", 7000)],
    ),
    "a port by its name": (
        [{**SERVER, "ingress": [{"from": [CLIENTS], "ports": [{"port": "http"}]}]}],
        [
            no("client", "server", "tcp", 9090), no("client", "second", "tcp", 8080),
            no("other", "server", "tcp", 8080),
            yes("client", "server", "tcp", 8080), yes("client", "second", "tcp", 9090),
        ],
    ),
    "outwards to pods and ports": (
        [{**CLIENTS, "egress": [{"to": [SERVER], "ports": [{"port": 8080}]}], "policyTypes": ["Egress"]}],
        [no("client", "other", "tcp", 8080), no("client", "server", "tcp", 81), yes("client", "server", "tcp", 8080)],
    ),
    "outwards to a port by its name": (
        [{**CLIENTS, "egress": [{"ports": [{"port": "http"}]}]  , "policyTypes": ["Egress"]}],
        [
            no("client", "second", "tcp", 8080), no("client", "other", "tcp", 8080),
            yes("client", "second", "tcp", 9090), yes("client", "server", "tcp", 8080),
        ],
    ),
    "outwards to other namespaces and to addresses": (
        [
            {
                **CLIENTS,
                "egress": [
                    {"to": [{**SOUTH, "podSelector": {"matchLabels": {"app": "stranger"}}}]},
                    {"to": [{"ipBlock": {"cidr": "OTHER/32"}}], "ports": [{"port": 80}]},
                ],
                "policyTypes": ["Egress"],
            }
        ],
        [no("client", "visitor"), no("client", "other", "tcp", 81), yes("client", "stranger"), yes("client", "other")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("clean")
def test_packets_follow(cluster: Cluster, pods: Pods, name: str) -> None:
    policies, flows = CASES[name]
    text = json.dumps(policies)
    for pod in ("client", "other"):
        text = text.replace(f"{pod.upper()}/32", f"{pods[pod].addresses[0]}/32")
    cluster.apply(*(a_policy("shop", f"p{number}", **spec) for number, spec in enumerate(json.loads(text))))
    for flow in flows:
        await_flow(pods, flow)
    for flow in flows:  # and it stays so
        assert is_open(pods, flow) is flow.is_open, flow


@pytest.mark.usefixtures("clean")
def test_policy_follows_labels_of_namespaces_and_pods(cluster: Cluster, pods: Pods) -> None:
    east = {"namespaceSelector": {"matchLabels": {"team": "east"}}, "podSelector": {"matchLabels": {"vip": "yes"}}}
    cluster.apply(a_policy("shop", "east", **SERVER, ingress=[{"from": [east]}]))
    await_flow(pods, no("visitor", "server"))
    cluster.kubectl("label", "namespace", "lab", "team=east", "--overwrite")
    cluster.kubectl("label", "pod", "-n", "lab", "visitor", "vip=yes")
    await_flow(pods, yes("visitor", "server"))
    assert not is_open(pods, yes("stranger", "server"))
    cluster.kubectl("label", "namespace", "lab", "team=south", "--overwrite")
    await_flow(pods, no("visitor", "server"))
    cluster.kubectl("label", "namespace", "lab", "team=east", "--overwrite")
    await_flow(pods, yes("visitor", "server"))
    cluster.kubectl("label", "pod", "-n", "lab", "visitor", "vip-")
    await_flow(pods, no("visitor", "server"))
    cluster.kubectl("label", "namespace", "lab", "team=south", "--overwrite")


@pytest.mark.usefixtures("clean")
def test_what_a_user_sees_inside_a_pod(cluster: Cluster, pods: Pods) -> None:
    serve = "mkdir /w; echo hello >/w/i; exec httpd -f -p 8080 -h /w"
    cluster.apply(a_pod("shop", "web", "host1", command=serve, app="web"))
    address = cluster.station("shop", "web").addresses[0]
    # wget of the static busybox crashes when it looks a name up, so the request is written by hand
    fetch = rf"printf 'GET /i HTTP/1.0\r\n\r\n' | nc -w 2 {address} 8080 | busybox grep -q hello"
    cluster.await_(lambda: cluster.exec("shop", "client", fetch), "the page")
    cluster.apply(a_policy("shop", "closed", **SERVER), a_policy("shop", "web", podSelector=WEB))
    await_flow(pods, no("client", "server"))
    assert not cluster.exec("shop", "client", fetch)


@pytest.mark.parametrize(("host", "flow"), [("host1", no("client", "second")), ("host2", no("other", "server"))])
@pytest.mark.usefixtures("clean")
def test_when_a_node_dies_the_other_one_looks_after_policies(
    cluster: Cluster, pods: Pods, host: str, flow: Flow
) -> None:
    """One of the two cases hits the node that was elected. The pods of ``flow`` are both on the other one."""
    assert is_open(pods, flow)
    cluster.lab.host(host).kill_node()
    try:
        cluster.apply(a_policy("shop", "closed", **SERVER))
        await_flow(pods, flow)
    finally:
        cluster.lab.host(host).start_node()
