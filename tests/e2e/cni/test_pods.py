"""Pods whose Kubernetes API asks for something: packets say whether they have it. The API is a double in the host."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

from calico_core.dataplane.linux import netns
from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe
from calico_core.lab.station import PlainStation
from tests.doubles.kubernetes_api import KubernetesApi
from tests.e2e.cni.containers import (
    REFERENCE,
    Container,
    a_network,
    assert_settles,
    containers,
    records,
    store_dump,
    whole_state,
)
from tests.e2e.observing import MakeLab

pytestmark = pytest.mark.needs_root

PREFIX = "cni.projectcalico.org/"
OPEN = ("--inbound", "allow", "--outbound", "allow")


@pytest.fixture
def api(shared_host: LabHost, tmp_path: Path) -> Iterator[KubernetesApi]:
    with api_in(shared_host, tmp_path) as server:
        yield server


@contextmanager
def api_in(host: LabHost, tmp_path: Path) -> Iterator[KubernetesApi]:
    descriptor = netns.open_namespace(str(host.namespace))
    server = netns.run_in(descriptor, lambda: KubernetesApi(tmp_path))
    try:
        server.put("namespaces", "shop")
        yield server
    finally:
        server.stop()
        os.close(descriptor)


@pytest.fixture
def two(shared_host: LabHost) -> Iterator[Sequence[Container]]:
    with containers(shared_host, 2, prefix="p") as made:
        yield made


def a_pod(name: str, namespace: str = "shop") -> dict[str, str]:
    return {"CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"}


def a_pod_network(api: KubernetesApi, **changes: Any) -> dict[str, Any]:
    kubernetes = {"policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": api.kubeconfig()}}
    return a_network(**{"cniVersion": "1.1.0", **kubernetes, **changes})


def station(container: Container, *addresses: str) -> PlainStation:
    """``addresses``: those it is asked for by, whoever has them."""
    found = tuple(IPAddress(each) for each in addresses)
    return PlainStation(name=container.id, namespace=container.namespace, addresses=found)


def addresses_in(result: Any) -> list[str]:
    return [each["address"].partition("/")[0] for each in result["ips"]]


@pytest.fixture
def all_open(shared_host: LabHost) -> Iterator[None]:
    """Pods have profiles that a controller makes; here a policy lets everybody talk."""
    shared_host.calicoctl("policy", "add", "default", "open", "--selector", "all()", *OPEN)
    yield
    shared_host.calicoctl("policy", "remove", "default", "open")


@pytest.mark.skipif(not (REFERENCE / "host-local").exists(), reason="needs the reference plugins")
def test_the_range_that_the_cluster_gave_the_node(
    shared_host: LabHost, two: Sequence[Container], api: KubernetesApi, tmp_path: Path
) -> None:
    before = whole_state(shared_host)
    api.put("nodes", shared_host.name, spec={"podCIDRs": ["10.77.1.0/29"]})
    ipam = {"type": "host-local", "subnet": "usePodCidr", "dataDir": str(tmp_path / "leases")}
    network = a_pod_network(api, policy=None, ipam=ipam, cniVersion="1.0.0")
    results = [each.call("ADD", network) for each in two]
    (first,), (second,) = map(addresses_in, results)
    assert {first, second} < {f"10.77.1.{number}" for number in range(1, 7)}
    assert probe(station(two[0], first), station(two[1], second), "tcp").is_reachable
    assert probe(station(two[1], second), station(two[0], first), "icmp").is_reachable
    api.stop()  # nothing but an ADD needs it
    for container, result in zip(two, results, strict=True):
        assert container.call("CHECK", {**network, "prevResult": result}) is None
        container.call("DEL", network)
    assert_settles(shared_host, before)
    assert not list((tmp_path / "leases").glob("net1/10.*"))


@pytest.mark.skipif(not (REFERENCE / "host-local").exists(), reason="needs the reference plugins")
def test_ranges_of_both_families_and_floating_addresses_of_both(make_lab: MakeLab, tmp_path: Path) -> None:
    host: LabHost = make_lab(1, ipv6=True).hosts[0]
    before = whole_state(host)
    host.calicoctl("policy", "add", "default", "open", "--selector", "all()", *OPEN)
    with api_in(host, tmp_path) as api, containers(host, 2, prefix="r") as (web, client):
        api.put("nodes", host.name, spec={"podCIDRs": ["10.77.2.0/29", "fd00:77::/64"]})
        floating = '["192.0.2.78", "2001:db8::78"]'
        api.put("pods", "web-0", "shop", annotations={f"{PREFIX}floatingIPs": floating}, spec={})
        api.put("pods", "client", "shop", spec={})
        ranges = [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]]
        ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path / "leases")}
        network = a_pod_network(api, cniVersion="1.0.0", ipam=ipam, feature_control={"floating_ips": True})
        own = addresses_in(web.call("ADD", network, environment=a_pod("web-0")))
        source = station(client, *addresses_in(client.call("ADD", network, environment=a_pod("client"))))
        assert (own[0].startswith("10.77.2."), own[1].startswith("fd00:77::")) == (True, True)
        for version in (4, 6):
            assert probe(source, station(web, *own), "tcp", ip_version=version).is_reachable
            target = station(web, "192.0.2.78", "2001:db8::78")
            assert probe(source, target, "icmp", ip_version=version).is_reachable, version
        api.stop()
        web.call("DEL", network, environment=a_pod("web-0"))
        client.call("DEL", network, environment=a_pod("client"))
    host.calicoctl("policy", "remove", "default", "open")
    assert_settles(host, before)


def test_queues_and_an_mtu_that_must_be_known(shared_host: LabHost, two: Sequence[Container]) -> None:
    error = two[0].refused("ADD", a_network(require_mtu_file=True))
    assert (error["code"], "mtu: is required" in error["msg"]) == (7, True), error
    results = [each.call("ADD", a_network(require_mtu_file=True, mtu=1400, num_queues=3)) for each in two]
    (first,), (second,) = map(addresses_in, results)
    assert "mtu 1400" in two[0].ip("link", "show", "eth0")
    script = "mount -t sysfs none /sys && ls /sys/class/net/eth0/queues"
    entered = ["nsenter", f"--net={two[0].namespace}", "unshare", "-m", "sh", "-c", script]
    found = subprocess.run(entered, check=True, capture_output=True, text=True).stdout.split()
    assert sorted(found) == ["rx-0", "rx-1", "rx-2", "tx-0", "tx-1", "tx-2"]
    assert probe(station(two[0], first), station(two[1], second), "tcp").is_reachable
    for each in two:
        each.call("DEL")


def test_netkit_or_a_veth_in_its_place(shared_host: LabHost, two: Sequence[Container]) -> None:
    """Whatever this kernel makes of it, the endpoint works; the log says when it is not what was asked for."""
    before = whole_state(shared_host)
    network = a_network(device_type="netkit", mtu=1400, num_queues=2)
    results = [each.call("ADD", network) for each in two]
    links = json.loads(two[0].ip("-j", "-d", "link", "show", "eth0"))
    kind = links[0]["linkinfo"]["info_kind"]
    assert kind in {"netkit", "veth"}
    lines = [each for each in shared_host.node_log.read_text().splitlines() if "interface.netkit_missing" in each]
    assert len(lines) == (1 if kind == "veth" else 0)
    assert all("veth" in each for each in lines)
    assert links[0]["mtu"] == 1400
    (first,), (second,) = map(addresses_in, results)
    one, other = station(two[0], first), station(two[1], second)
    assert probe(one, other, "tcp").is_reachable
    assert probe(other, one, "tcp").is_reachable
    for container, result in zip(two, results, strict=True):
        assert container.call("CHECK", {**network, "prevResult": result}) is None
        assert container.call("ADD", network) == result
        container.call("DEL", network)
    assert_settles(shared_host, before)


def test_an_annotation_says_who_may_reach_a_pod(shared_host: LabHost, api: KubernetesApi) -> None:
    before = whole_state(shared_host)
    rule = "allow tcp from label app=client to ports 8080"
    api.put("pods", "web-0", "shop", annotations={"projectcalico.org/policy": rule}, spec={})
    api.put("pods", "client", "shop", labels={"app": "client"}, spec={})
    api.put("pods", "other", "shop", spec={})
    api.put("pods", "client", "yard", labels={"app": "client"}, spec={})
    network = a_pod_network(api, policy={"type": "k8s-annotations"})
    pods = [a_pod("web-0"), a_pod("client"), a_pod("other"), a_pod("client", "yard")]
    with containers(shared_host, 5, prefix="q") as made:
        found = [each.call("ADD", network, environment=pod) for each, pod in zip(made, pods, strict=False)]
        web, client, other, stranger = (
            station(each, *addresses_in(result)) for each, result in zip(made, found, strict=False)
        )
        assert probe(client, web, "tcp", 8080).is_reachable
        assert probe(web, client, "tcp", 8080).is_reachable, "by default the namespace may come in"
        for source, target, port in (
            (client, web, 8081),
            (other, web, 8080),
            (stranger, web, 8080),
            (stranger, other, 80),
        ):
            assert not probe(source, target, "tcp", port, timeout_s=0.2).is_reachable
        # a new sandbox of the pod, with another annotation
        api.put("pods", "web-0", "shop", annotations={"projectcalico.org/policy": "allow tcp to ports 8081"}, spec={})
        anew = station(made[4], *addresses_in(made[4].call("ADD", network, environment=pods[0])))
        assert probe(stranger, anew, "tcp", 8081).is_reachable
        assert not probe(client, anew, "tcp", 8080, timeout_s=0.2).is_reachable
        made[0].call("DEL", network, environment=pods[0])
        assert probe(stranger, anew, "tcp", 8081).is_reachable, "that was of the old sandbox"
        for each, pod in zip(made[1:], (*pods[1:], pods[0]), strict=True):
            each.call("DEL", network, environment=pod)
        assert_settles(shared_host, before)
        dump = json.loads(shared_host.run([*store_dump(shared_host)]).stdout)
        assert not [key for key in dump if "/profile/shop_" in key or "/profile/yard_" in key]


@pytest.mark.usefixtures("all_open")
def test_a_floating_address_leads_to_the_pod_until_it_is_gone(
    shared_host: LabHost, two: Sequence[Container], api: KubernetesApi
) -> None:
    before = whole_state(shared_host)
    api.put("pods", "web-0", "shop", annotations={f"{PREFIX}floatingIPs": '["192.0.2.77"]'}, spec={})
    api.put("pods", "client", "shop", spec={})
    network = a_pod_network(api, feature_control={"floating_ips": True})
    web, client = two
    (own,) = addresses_in(web.call("ADD", network, environment=a_pod("web-0")))
    (address,) = addresses_in(client.call("ADD", network, environment=a_pod("client")))
    source, floating = station(client, address), station(web, "192.0.2.77")
    assert probe(source, station(web, own), "icmp").is_reachable
    assert probe(source, floating, "icmp").is_reachable
    web.call("DEL", network, environment=a_pod("web-0"))
    assert not probe(source, floating, "icmp", timeout_s=0.3).is_reachable
    client.call("DEL", network, environment=a_pod("client"))
    assert_settles(shared_host, before)


@pytest.mark.usefixtures("all_open")
def test_an_address_that_no_ipam_was_asked_for(
    shared_host: LabHost, two: Sequence[Container], api: KubernetesApi
) -> None:
    before = whole_state(shared_host)
    api.put("pods", "web-0", "shop", annotations={f"{PREFIX}ipAddrsNoIpam": '["198.51.100.7"]'}, spec={})
    api.put("pods", "client", "shop", spec={})
    network = a_pod_network(api, feature_control={"ip_addrs_no_ipam": True})
    web, client = two
    result = web.call("ADD", network, environment=a_pod("web-0"))
    assert addresses_in(result) == ["198.51.100.7"]
    assert records(shared_host)["in use"] == before["store"]["in use"]
    (address,) = addresses_in(client.call("ADD", network, environment=a_pod("client")))
    source, target = station(client, address), station(web, "198.51.100.7")
    assert probe(source, target, "tcp").is_reachable
    assert probe(target, source, "tcp").is_reachable
    assert web.call("CHECK", {**network, "prevResult": result}, environment=a_pod("web-0")) is None
    assert web.call("ADD", network, environment=a_pod("web-0")) == result
    web.call("DEL", network, environment=a_pod("web-0"))
    assert not probe(source, target, "tcp", port=8080, timeout_s=0.3, has_server=True).is_reachable
    client.call("DEL", network, environment=a_pod("client"))
    assert_settles(shared_host, before)
    assert json.loads(shared_host.calicoctl("endpoint", "show", "-o", "json").stdout) == []
