"""Policy by annotation: the grammar, tags, and what an ADD does with it. Scenario: cni specification 9, 28."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPNetwork

from calico_cni import annotated_policy
from calico_cni.annotated_policy import ANNOTATION, escape_tag, parse_annotation
from calico_core.errors import InvalidRequest
from calico_core.interfaces.integration import CallReply
from calico_core.model.keys import PoolKey, ReadyKey
from calico_core.model.pools import Pool
from calico_core.model.rules import Rule
from tests.doubles.cni import CniSetup, a_network, error_of, stdout_of
from tests.doubles.kubernetes_api import KubernetesApi

ARGUMENTS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    server = KubernetesApi(tmp_path)
    yield server
    server.stop()


def annotated(api: KubernetesApi, text: str | None = None, **labels: str) -> dict[str, Any]:
    annotations = {} if text is None else {ANNOTATION: text}
    api.put("pods", "web-0", "shop", annotations=annotations, labels=labels, spec={})
    return a_network(policy={"type": "k8s-annotations"}, kubernetes={"kubeconfig": api.kubeconfig()})


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("", []),
        (" ; ", []),
        ("allow", [{}]),
        ("allow tcp", [{"protocol": "tcp"}]),
        ("allow udp to ports 53", [{"protocol": "udp", "dst_ports": (53,)}]),
        (
            "allow tcp from ports 1024:65535,53 label app=web cidr 10.1.2.3/8 to ports 80,443 label a/b=c cidr fd::/8",
            [
                {
                    "protocol": "tcp",
                    "src_ports": ("1024:65535", 53),
                    "src_tag": "shop_app_web",
                    "src_net": IPNetwork("10.0.0.0/8"),
                    "dst_ports": (80, 443),
                    "dst_tag": "shop_a_b_c",
                    "dst_net": IPNetwork("fd::/8"),
                }
            ],
        ),
        ("allow icmp", [{"protocol": "icmp"}]),
        ("allow icmp type 8 code 0", [{"protocol": "icmp", "icmp_type": 8, "icmp_code": 0}]),
        ("allow icmp type 8 from label a=b", [{"protocol": "icmp", "icmp_type": 8, "src_tag": "shop_a_b"}]),
        (
            "allow from label my_key=1;allow to cidr 10.0.0.1",
            [{"src_tag": "shop_my__key_1"}, {"dst_net": IPNetwork("10.0.0.1/32")}],
        ),
    ],
)
def test_every_form_of_a_rule(text: str, rules: list[dict[str, Any]]) -> None:
    assert parse_annotation(text, "shop") == tuple(Rule(action="allow", **each) for each in rules)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("deny tcp", "deny is not to be had"),
        ("permit", "begins with 'permit'"),
        ("allow sctp", "'sctp' is not expected"),
        ("allow from", "followed by none of label, cidr"),
        ("allow tcp to", "followed by none of ports, label, cidr"),
        ("allow from ports 80", "ports needs tcp or udp"),
        ("allow icmp from ports 80", "ports needs tcp or udp"),
        ("allow tcp from ports", "a value after ports"),
        ("allow tcp from ports http", "'http' is not a port"),
        ("allow tcp from ports 80,", "'' is not a port"),
        ("allow tcp from ports 70000", "70000"),
        ("allow tcp from ports 1 ports 2", "ports twice after from"),
        ("allow from label web", "'web' is not KEY=VALUE"),
        ("allow from label a=b=c", "'a=b=c' is not KEY=VALUE"),
        ("allow from cidr 10.0.0.0/33", "10.0.0.0/33"),
        ("allow from cidr ten", "'ten'"),
        ("allow icmp type", "a number after type"),
        ("allow icmp type 255", "'255' is not an ICMP type"),
        ("allow icmp type 8 code x", "'x' is not an ICMP code"),
        ("allow icmp code 1", "'code' is not expected"),
        ("allow to label a=b from label c=d", "'from' is not expected"),
        ("allow tcp; allow tpc", "in 'allow tpc'"),
    ],
)
def test_a_bad_rule_is_named(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_annotation(text, "shop")
    assert caught.value.field == "projectcalico.org/policy"
    assert says in str(caught.value)


def test_tags_are_spelled_as_they_were() -> None:
    assert escape_tag("shop/my_key=a b") == "shop_my__key_a_b"


def test_an_annotation_becomes_a_profile_of_the_pod_s_own(setup: CniSetup, api: KubernetesApi) -> None:
    network = annotated(api, "allow tcp to ports 80", app="web")
    stdout_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))
    (request,) = setup.workloads.attach_requests
    (profile,) = request.new_profiles
    assert (request.profiles, request.key.workload) == (("shop_web-0",), "shop.web-0")
    assert (profile.name, profile.tags, profile.is_own) == (
        "shop_web-0", ("shop_web-0", "namespace_shop", "shop_app_web"), True,
    )  # fmt: skip
    assert profile.rules.inbound_rules == (Rule(action="allow", protocol="tcp", dst_ports=(80,)),)
    assert profile.rules.outbound_rules == (Rule(action="allow"),)
    assert request.labels["app"] == "web"
    api.stop()  # a DEL does not need it
    assert setup.call("DEL", network, CNI_ARGS=ARGUMENTS).status == 0
    assert setup.workloads.profiles == {}


def test_without_the_annotation_the_namespace_may_come_in(setup: CniSetup, api: KubernetesApi) -> None:
    stdout_of(setup.call("ADD", annotated(api), CNI_ARGS=ARGUMENTS))
    (profile,) = setup.workloads.attach_requests[0].new_profiles
    assert profile.rules.inbound_rules == (Rule(action="allow", src_tag="namespace_shop"),)


def test_a_second_interface_has_a_profile_of_its_own(setup: CniSetup, api: KubernetesApi) -> None:
    network = annotated(api)
    for interface in ("eth0", "net1"):
        stdout_of(setup.call("ADD", network, interface=interface, CNI_ARGS=ARGUMENTS))
    assert set(setup.workloads.profiles) == {"shop_web-0", "shop_web-0_net1"}
    assert setup.call("DEL", network, interface="net1", CNI_ARGS=ARGUMENTS).status == 0
    assert set(setup.workloads.profiles) == {"shop_web-0"}


def test_the_cluster_s_own_pods_need_no_api(setup: CniSetup, api: KubernetesApi) -> None:
    network = annotated(api)
    api.stop()
    stdout_of(setup.call("ADD", network, CNI_ARGS="K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns"))
    (profile,) = setup.workloads.attach_requests[0].new_profiles
    assert profile.name == "kube-system_dns"
    assert profile.rules.inbound_rules == profile.rules.outbound_rules == (Rule(action="allow"),)
    assert annotated_policy.OPEN_NAMESPACE == "kube-system"


def test_a_bad_annotation_leaves_nothing(setup: CniSetup, api: KubernetesApi) -> None:
    error = error_of(setup.call("ADD", annotated(api, "deny"), CNI_ARGS=ARGUMENTS))
    assert (error["code"], ANNOTATION in error["msg"]) == (7, True)
    api.refuse = 404
    assert error_of(setup.call("ADD", annotated(api), CNI_ARGS=ARGUMENTS))["code"] == 103
    assert setup.workloads.attach_requests == []
    assert setup.ipam.held == {}


def test_status_asks_the_api_that_an_add_would_ask(setup: CniSetup, api: KubernetesApi) -> None:
    setup.records.put(ReadyKey(), "true")
    pool = Pool(cidr=IPNetwork("10.65.0.0/16"))
    setup.records.put(PoolKey(pool.cidr), pool)
    network = {**annotated(api), "cniVersion": "1.1.0"}
    assert setup.call("STATUS", network) == CallReply()
    api.refuse = 403
    error = error_of(setup.call("STATUS", network))
    assert (error["code"], "403" in error["msg"]) == (50, True)
