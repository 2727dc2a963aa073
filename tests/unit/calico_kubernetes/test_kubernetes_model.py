"""What of a pod goes into its endpoint."""

from __future__ import annotations

import msgspec

from calico_core.model.kubernetes import (
    NamedPort,
    Pod,
    endpoint_id,
    endpoint_labels,
    endpoint_profiles,
    named_ports,
    pod_label,
    split_workload_id,
    workload_id,
)

POD = b"""{"metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web", "pcns.team": "north"}},
 "spec": {"serviceAccountName": "robot", "containers": [
   {"name": "a", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9}]},
   {"name": "b", "ports": null}],
  "initContainers": [
   {"name": "done", "ports": [{"name": "never", "containerPort": 1}]},
   {"name": "side", "restartPolicy": "Always", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}}"""


def test_labels_and_profiles_of_an_endpoint() -> None:
    pod = msgspec.json.decode(POD, type=Pod)
    assert named_ports(pod) == {NamedPort("http", "tcp", 8080), NamedPort("dns", "udp", 53)}
    assert endpoint_labels(pod) == {
        "app": "web",
        "pod.projectcalico.org/pcns.team": "north",
        "port.projectcalico.org/tcp.http.8080": "",
        "port.projectcalico.org/udp.dns.53": "",
        "projectcalico.org/namespace": "shop",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "robot",
    }
    assert endpoint_profiles(pod) == ("kns.shop", "ksa.shop.robot")


def test_a_pod_without_anything_has_the_default_account() -> None:
    pod = msgspec.json.decode(b'{"metadata": {"name": "a", "namespace": "b", "labels": null}}', type=Pod)
    assert endpoint_profiles(pod) == ("kns.b", "ksa.b.default")
    assert set(endpoint_labels(pod)) == {
        "projectcalico.org/namespace", "projectcalico.org/orchestrator", "projectcalico.org/serviceaccount",
    }  # fmt: skip


def test_no_two_labels_of_a_pod_meet() -> None:
    names = ["app", "pcns.team", "pod.projectcalico.org/pcns.team", "projectcalico.org/namespace", "team"]
    assert len({pod_label(name) for name in names}) == len(names)


def test_identity() -> None:
    assert split_workload_id(workload_id("shop", "web.0.a")) == ("shop", "web.0.a")
    assert endpoint_id("shop", "web", "eth0") == "551b05c3e5468d7944bdd697413d6093083bbb70"  # of every process
    different = {
        endpoint_id("shop", "web", "eth0"),
        endpoint_id("shop", "web", "eth1"),
        endpoint_id("shop", "web-0", "eth0"),
    }
    assert len(different) == 3
