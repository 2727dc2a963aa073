"""ADD and DEL of pods, with an API double over HTTP. Scenarios: cni specification 9, 27 to 34."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from calico_cni import kubernetes_api
from calico_cni.kubeconfig import AccessReader, Source
from calico_core.errors import InvalidRequest, Unavailable
from calico_core.interfaces.integration import CallReply
from calico_core.model.keys import PoolKey, ReadyKey
from calico_core.model.kubernetes import endpoint_id
from calico_core.model.pools import Pool
from tests.doubles.cni import HOST, CniSetup, a_network, error_of, stdout_of
from tests.doubles.kubernetes_api import TOKEN, KubernetesApi

CONTEXT = "current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}]"
CLUSTER = "clusters: [{name: c, cluster: {server: 'http://h:1/base'}}]"
ARGUMENTS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=x"


@pytest.fixture
def api(tmp_path: Path) -> Any:
    server = KubernetesApi(tmp_path)
    server.put("namespaces", "shop")
    server.put("pods", "web-0", "shop", labels={"app": "web"}, spec={"serviceAccountName": "robot"})
    yield server
    server.stop()


@contextmanager
def impatient() -> Iterator[None]:
    """For calls that shall fail: a busy machine takes longer over those that shall not."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(kubernetes_api, "BUDGET_S", 0.4)
        patches.setattr(kubernetes_api, "ATTEMPT_S", 0.15)
        yield


def a_pod_network(api: KubernetesApi, **changes: Any) -> dict[str, Any]:
    return a_network(**{"policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": api.kubeconfig()}, **changes})


def annotate(api: KubernetesApi, **annotations: str) -> None:
    named = {f"cni.projectcalico.org/{key}": text for key, text in annotations.items()}
    api.put("pods", "web-0", "shop", annotations=named, spec={})


# --- identity, labels, profiles -------------------------------------------------------------------------------


def test_a_pod_is_attached_under_its_own_name_with_its_labels(setup: CniSetup, api: KubernetesApi) -> None:
    stdout_of(setup.call("ADD", a_pod_network(api), CNI_ARGS=ARGUMENTS))
    (request,) = setup.workloads.attach_requests
    key = request.key
    assert (key.host, key.orchestrator, key.workload) == (HOST, "k8s", "shop.web-0")
    assert key.endpoint == endpoint_id("shop", "web-0", "eth0")
    assert request.interface == f"cali{key.endpoint[:11]}"
    assert request.labels == {
        "app": "web",
        "projectcalico.org/namespace": "shop",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "robot",
    }
    assert (request.profiles, request.new_profiles) == (("kns.shop", "ksa.shop.robot"), ())
    assert request.replaces


def test_a_pod_has_its_own_labels_and_no_others(setup: CniSetup, api: KubernetesApi) -> None:
    """The policy controller keeps them so as well."""
    args = {"cni": {"labels": [{"key": "app", "value": "other"}, {"key": "tier", "value": "front"}]}}
    stdout_of(setup.call("ADD", a_pod_network(api, args=args), CNI_ARGS=f"{ARGUMENTS};NOMAD_JOB_ID=x"))
    labels = setup.workloads.attach_requests[0].labels
    assert (labels["app"], set(labels) & {"tier", "NOMAD_JOB_ID"}) == ("web", set())


def test_a_second_interface_is_an_endpoint_of_its_own(setup: CniSetup, api: KubernetesApi) -> None:
    for interface in ("eth0", "net1"):
        stdout_of(setup.call("ADD", a_pod_network(api), interface=interface, CNI_ARGS=ARGUMENTS))
    assert len({request.key for request in setup.workloads.attach_requests}) == 2


@pytest.mark.parametrize(
    ("changes", "arguments", "orchestrator"),
    [
        ({}, ARGUMENTS, "k8s"),
        ({}, "K8S_POD_NAME=web-0", "cni"),
        ({"orchestrator": "cni"}, ARGUMENTS, "cni"),
        ({"policy": {}}, ARGUMENTS, "cni"),
        ({"policy": {}, "orchestrator": "k8s"}, ARGUMENTS, "k8s"),
    ],
)
def test_who_is_a_pod_of_kubernetes(
    setup: CniSetup, api: KubernetesApi, changes: dict[str, Any], arguments: str, orchestrator: str
) -> None:
    network = a_pod_network(api, **changes)
    stdout_of(setup.call("ADD", network, CNI_ARGS=arguments))
    stdout_of(setup.call("ADD", network, CNI_ARGS=arguments))
    assert [request.key.orchestrator for request in setup.workloads.attach_requests] == [orchestrator] * 2
    assert setup.call("DEL", network, CNI_ARGS=arguments).status == 0
    assert not setup.workloads.attached


def test_without_policy_a_pod_is_open_and_nobody_is_asked(setup: CniSetup, api: KubernetesApi) -> None:
    stdout_of(setup.call("ADD", a_network(orchestrator="k8s"), CNI_ARGS=ARGUMENTS))
    (request,) = setup.workloads.attach_requests
    (profile,) = request.new_profiles
    assert [rule.src_tag for rule in profile.rules.inbound_rules] == [None]
    assert api.requests == []


def test_a_new_sandbox_replaces_and_a_late_delete_of_the_old_one_is_harmless(
    setup: CniSetup, api: KubernetesApi
) -> None:
    network = a_pod_network(api)
    stdout_of(setup.call("ADD", network, container="old", CNI_ARGS=ARGUMENTS))
    stdout_of(setup.call("ADD", network, container="new", CNI_ARGS=ARGUMENTS))
    assert setup.call("DEL", network, container="old", CNI_ARGS=ARGUMENTS).status == 0
    (standing,) = setup.workloads.attached.values()
    assert standing.endpoint.container_id == "new"


# --- the API ------------------------------------------------------------------------------------------------------


def test_add_tries_again_later_while_the_api_is_away_and_delete_does_not_care(
    setup: CniSetup, api: KubernetesApi
) -> None:
    network = a_pod_network(api)
    stdout_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))
    api.stop()
    asked = len(api.requests)
    with impatient():
        assert error_of(setup.call("ADD", network, container="c2", CNI_ARGS=ARGUMENTS))["code"] == 11
    assert setup.call("DEL", network, CNI_ARGS=ARGUMENTS).status == 0
    assert not setup.workloads.attached
    api.start()
    stdout_of(setup.call("ADD", network, container="c2", CNI_ARGS=ARGUMENTS))
    assert len(api.requests) > asked


def test_a_deaf_or_overloaded_api_is_away_too(setup: CniSetup, api: KubernetesApi) -> None:
    network = a_pod_network(api)
    for fault in ({"delay_s": 0.5}, {"refuse": 503}, {"refuse": 429}):
        for name, value in fault.items():
            setattr(api, name, value)
        started = time.monotonic()
        with impatient():
            assert error_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))["code"] == 11
        assert time.monotonic() - started < 10
        api.delay_s, api.refuse = 0.0, 0
    assert setup.workloads.attach_requests == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_the_api_is_an_error_of_its_own(setup: CniSetup, api: KubernetesApi, status: int) -> None:
    api.refuse = status
    shape = error_of(setup.call("ADD", a_pod_network(api), CNI_ARGS=ARGUMENTS))
    assert shape["code"] == 103
    assert str(status) in shape["msg"]
    assert TOKEN not in json.dumps(shape)


def test_a_pod_that_was_made_anew_is_not_taken_for_the_old_one(setup: CniSetup, api: KubernetesApi) -> None:
    network = a_pod_network(api)
    assert error_of(setup.call("ADD", network, CNI_ARGS=f"{ARGUMENTS};K8S_POD_UID=gone"))["code"] == 103
    stdout_of(setup.call("ADD", network, CNI_ARGS=f"{ARGUMENTS};K8S_POD_UID=uid-web-0"))
    api.put("pods", "web-0", "shop", annotations={"kubernetes.io/config.hash": "file"}, spec={})
    stdout_of(setup.call("ADD", network, container="c2", CNI_ARGS=f"{ARGUMENTS};K8S_POD_UID=file"))


def test_a_new_sandbox_takes_the_pod_s_own_address_over(setup: CniSetup, api: KubernetesApi) -> None:
    """The DEL of the one before comes later, or never."""
    network = a_pod_network(api)
    for name in ("web-0", "web-1"):
        api.put("pods", name, "shop", annotations={"cni.projectcalico.org/ipAddrs": '["10.65.0.7"]'}, spec={})
    for container in ("old", "new"):
        result = stdout_of(setup.call("ADD", network, container=container, CNI_ARGS=ARGUMENTS))
        assert [each["address"] for each in result["ips"]] == ["10.65.0.7/32"]
    other = ARGUMENTS.replace("web-0", "web-1")
    assert error_of(setup.call("ADD", network, container="other", CNI_ARGS=other))["code"] == 102

    setup.call("DEL", network, container="old", CNI_ARGS=ARGUMENTS)
    assert setup.ipam.by_handle("net1.new") == (IPAddress("10.65.0.7"),)
    setup.call("DEL", network, container="new", CNI_ARGS=ARGUMENTS)
    assert setup.ipam.held == {}


def test_the_record_says_which_pod_of_the_name_it_is_of(setup: CniSetup, api: KubernetesApi) -> None:
    """By that the policy controller knows whether what it hears of a pod is about this one."""
    network = a_pod_network(api)

    def recorded(arguments: str = ARGUMENTS) -> str | None:
        stdout_of(setup.call("ADD", network, CNI_ARGS=arguments))
        uid = setup.workloads.attach_requests[-1].pod_uid
        assert uid is None or isinstance(uid, str)
        return uid

    assert recorded() == "uid-web-0"
    api.put("pods", "web-0", "shop", annotations={"kubernetes.io/config.hash": "file"}, spec={})
    assert recorded() is None  # the API has another for it whenever somebody deletes that
    assert recorded(f"{ARGUMENTS};K8S_POD_UID=file") == "file"


def test_a_renewed_token_is_used_at_once(setup: CniSetup, api: KubernetesApi) -> None:
    network = a_pod_network(api)
    stdout_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))
    api.token = "another"
    assert error_of(setup.call("ADD", network, container="c2", CNI_ARGS=ARGUMENTS))["code"] == 103
    api.kubeconfig(token="another")
    stdout_of(setup.call("ADD", network, container="c2", CNI_ARGS=ARGUMENTS))


def test_one_connection_serves_many_calls(setup: CniSetup, api: KubernetesApi) -> None:
    network = a_pod_network(api)
    for number in range(5):
        stdout_of(setup.call("ADD", network, container=f"c{number}", CNI_ARGS=ARGUMENTS))
    (source_api,) = setup.integration._programs["calico"]._pods._apis.values()  # type: ignore[attr-defined]
    assert len(source_api._idle) == 1


def test_a_configuration_that_names_no_api_is_refused(setup: CniSetup) -> None:
    shape = error_of(setup.call("ADD", a_network(policy={"type": "k8s"}), CNI_ARGS=ARGUMENTS))
    assert shape["code"] == 7
    assert "kubernetes.kubeconfig" in shape["msg"]


def test_status_and_test_need_no_api_that_no_add_would_ask(setup: CniSetup) -> None:
    setup.records.put(PoolKey(IPNetwork("10.65.0.0/24")), Pool(cidr=IPNetwork("10.65.0.0/24")))
    network = a_network(cniVersion="1.1.0", policy={"type": "k8s"}, orchestrator="cni")
    stdout_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))
    for command in ("STATUS", "TEST"):
        reply = setup.call(command, network)
        assert (reply.status, reply.stdout) == (0, b"")


def test_status_says_that_the_api_cannot_be_reached_by_this_configuration(setup: CniSetup, tmp_path: Path) -> None:
    network = a_network(
        cniVersion="1.1.0", policy={"type": "k8s"}, kubernetes={"kubeconfig": str(tmp_path / "missing")}
    )
    shape = error_of(setup.call("STATUS", network))
    assert shape["code"] == 7
    assert "missing: No such file" in shape["msg"]


def test_status_asks_the_api_that_an_add_would_ask(setup: CniSetup, api: KubernetesApi) -> None:
    setup.records.put(ReadyKey(), "true")
    pool = Pool(cidr=IPNetwork("10.65.0.0/16"))
    setup.records.put(PoolKey(pool.cidr), pool)
    network = a_pod_network(api, cniVersion="1.1.0")
    assert setup.call("STATUS", network) == CallReply()
    assert api.requests == ["/version"]
    api.refuse = 403
    shape = error_of(setup.call("STATUS", network))
    assert (shape["code"], "403" in shape["msg"]) == (50, True)
    api.stop()
    with impatient():
        started = time.monotonic()
        shape = error_of(setup.call("STATUS", network))
        assert (shape["code"], f"127.0.0.1:{api.port}" in shape["msg"]) == (50, True)
        assert time.monotonic() - started < 20 * kubernetes_api.BUDGET_S
    assert setup.call("STATUS", a_network(cniVersion="1.1.0")) == CallReply(), "no API is named"


def test_keys_of_old_configurations_name_the_api_too(setup: CniSetup, api: KubernetesApi) -> None:
    policy = {"type": "k8s", "k8s_api_root": f"{api.url}/api/v1/", "k8s_auth_token": TOKEN}
    stdout_of(setup.call("ADD", a_network(policy=policy), CNI_ARGS=ARGUMENTS))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "YAML"),
        ("[]", "kubeconfig"),
        ("current-context: nowhere", "nowhere"),
        ("{current-context: a, contexts: [{name: a, context: {cluster: c}}]}", "cluster 'c'"),
        (
            f"{{{CONTEXT}, clusters: [{{name: c, cluster: {{server: h, certificate-authority-data: '!'}}}}]}}",
            "authority-data",
        ),
        (
            f"{{{CONTEXT}, clusters: [{{name: c, cluster: {{server: h, certificate-authority-data: 'Zäh'}}}}]}}",
            "certificate-authority-data: is not base64",
        ),
        (f"{{{CONTEXT}, {CLUSTER}, users: [{{name: u, user: {{tokenFile: none}}}}]}}", "none: No such file"),
    ],
)
def test_a_bad_kubeconfig_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=named):
        AccessReader(Source(kubeconfig=str(path))).read()


def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"{{{CONTEXT}, {CLUSTER}, users: [{{name: u, user: {{tokenFile: t}}}}]}}")
    (tmp_path / "t").write_text("one\n")
    reader = AccessReader(Source(kubeconfig=str(tmp_path / "config")))
    first = reader.read()
    assert (first.host, first.port, first.prefix, first.token) == ("h", 1, "/base", "one")
    assert reader.read() is first
    (tmp_path / "new").write_text("two\n")
    (tmp_path / "new").replace(tmp_path / "t")
    assert reader.read().token == "two"


def test_a_file_that_changes_while_others_are_read_is_read_again(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f"{{{CONTEXT}, {CLUSTER}, users: [{{name: u, user: {{tokenFile: t}}}}]}}")
    os.mkfifo(tmp_path / "t")
    reader = AccessReader(Source(kubeconfig=str(config)))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reader.read)
        with (tmp_path / "t").open("w") as token:  # by now the kubeconfig has been read
            (tmp_path / "new").write_text(f"{{{CONTEXT}, {CLUSTER}, users: [{{name: u, user: {{token: two}}}}]}}")
            (tmp_path / "new").replace(config)
            token.write("one")
        assert reading.result().token == "one"
    assert reader.read().token == "two"


# --- annotations ----------------------------------------------------------------------------------------------------


def test_annotations_ask_for_addresses_pools_and_a_mac(setup: CniSetup, api: KubernetesApi) -> None:
    annotate(api, ipAddrs='["10.65.0.7"]', hwAddr="02:00:5e:10:00:99", ipv4pools='["10.65.0.0/24"]')
    stdout_of(setup.call("ADD", a_pod_network(api), CNI_ARGS=f"{ARGUMENTS};IP=10.65.0.9"))
    (request,), (wanted,) = setup.workloads.attach_requests, setup.ipam.requests
    assert str(request.mac) == "02:00:5e:10:00:99"
    assert [str(address) for address in wanted.requested] == ["10.65.0.7"]
    assert wanted.pools_v4 == (IPNetwork("10.65.0.0/24"),)


@pytest.mark.parametrize(
    ("families", "numbers"), [('["IPv4"]', (1, 0)), ('["IPv6"]', (0, 1)), ('["IPv4", "IPv6"]', (1, 1))]
)
def test_families(setup: CniSetup, api: KubernetesApi, families: str, numbers: tuple[int, int]) -> None:
    annotate(api, ipFamilies=families)
    stdout_of(setup.call("ADD", a_pod_network(api), CNI_ARGS=ARGUMENTS))
    (wanted,) = setup.ipam.requests
    assert (wanted.num_v4, wanted.num_v6) == numbers


def test_the_pod_goes_before_its_namespace_and_that_before_the_configuration(
    setup: CniSetup, api: KubernetesApi
) -> None:
    api.put("namespaces", "shop", annotations={"cni.projectcalico.org/ipv4pools": '["10.66.0.0/24"]'})
    network = a_pod_network(api, ipam={"type": "calico-ipam", "ipv4_pools": ["10.67.0.0/24"]})
    refused = error_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))  # the double has no such pool
    assert "10.66.0.0/24" in refused["msg"]
    annotate(api, ipv4pools='["10.65.0.0/24"]')
    stdout_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))
    assert setup.ipam.requests[-1].pools_v4 == (IPNetwork("10.65.0.0/24"),)


def test_pools_of_a_family_that_the_pod_says_nothing_of_are_its_namespaces(setup: CniSetup, api: KubernetesApi) -> None:
    pools = {4: ("ipv4pools", "10.65.0.0/24", "10.66.0.0/24"), 6: ("ipv6pools", "fd00:65::/64", "fd00:66::/64")}
    namespace = {f"cni.projectcalico.org/{key}": json.dumps([theirs]) for key, _, theirs in pools.values()}
    api.put("namespaces", "shop", annotations=namespace)
    network = a_pod_network(api, ipam={"type": "calico-ipam", "assign_ipv6": True})
    for own, other in ((4, 6), (6, 4)):
        key, ours, _ = pools[own]
        annotate(api, **{key: json.dumps([ours])})
        setup.call("ADD", network, CNI_ARGS=ARGUMENTS)
        asked = setup.ipam.requests[-1]
        found = {4: asked.pools_v4, 6: asked.pools_v6}
        assert (found[own], found[other]) == ((IPNetwork(ours),), (IPNetwork(pools[other][2]),))


@pytest.mark.parametrize(
    "name",
    [
        "ipAddrs", "ipAddrsNoIpam", "ipv4pools", "ipv6pools", "ipFamilies", "hwAddr", "floatingIPs",
        "allowedSourcePrefixes",
    ],
)  # fmt: skip
def test_an_empty_annotation_says_nothing(setup: CniSetup, api: KubernetesApi, name: str) -> None:
    pools = {"cni.projectcalico.org/ipv4pools": '["10.65.0.0/24"]'}
    api.put("namespaces", "shop", annotations=pools)
    annotate(api, **{name: ""})
    stdout_of(setup.call("ADD", a_pod_network(api), CNI_ARGS=ARGUMENTS))
    assert setup.ipam.requests[-1].pools_v4 == (IPNetwork("10.65.0.0/24"),)


def test_floating_addresses_where_the_network_allows_them(setup: CniSetup, api: KubernetesApi) -> None:
    annotate(api, floatingIPs='["192.0.2.7", "192.0.2.8"]')
    network = a_pod_network(api, feature_control={"floating_ips": True})
    stdout_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))
    assert [str(each) for each in setup.workloads.attach_requests[0].floating] == ["192.0.2.7", "192.0.2.8"]
    annotate(api, floatingIPs='["here"]')
    error = error_of(setup.call("ADD", network, container="other", CNI_ARGS=ARGUMENTS))
    assert (error["code"], "cni.projectcalico.org/floatingIPs" in error["msg"]) == (7, True)
    annotate(api, floatingIPs='["192.0.2.7"]')
    error = error_of(setup.call("ADD", a_pod_network(api), container="other", CNI_ARGS=ARGUMENTS))
    assert "feature_control.floating_ips" in error["msg"]
    annotate(api, floatingIPs='["2001:db8::7"]')
    error = error_of(setup.call("ADD", network, container="other", CNI_ARGS=ARGUMENTS))
    assert error["code"] == 7
    assert error["msg"].startswith("cni.projectcalico.org/floatingIPs: 2001:db8::7 leads nowhere")


def test_source_prefixes_are_the_pods_alone(setup: CniSetup, api: KubernetesApi) -> None:
    """As in the reference, the namespace has no say in them."""
    asked = {"cni.projectcalico.org/allowedSourcePrefixes": '["198.51.100.0/24"]'}
    api.put("namespaces", "shop", annotations=asked)
    stdout_of(setup.call("ADD", a_pod_network(api), CNI_ARGS=ARGUMENTS))
    annotate(api, allowedSourcePrefixes='["198.51.100.7/24", "2001:db8::7"]')
    stdout_of(setup.call("ADD", a_pod_network(api), container="other", CNI_ARGS=ARGUMENTS))
    prefixes = [each.allowed_source_prefixes for each in setup.workloads.attach_requests]
    assert prefixes == [(), (IPNetwork("198.51.100.0/24"), IPNetwork("2001:db8::7/128"))]


def test_the_runtime_goes_before_annotations(setup: CniSetup, api: KubernetesApi) -> None:
    annotate(api, ipAddrs='["10.65.0.7"]', hwAddr="02:00:5e:10:00:99")
    network = a_pod_network(api, runtimeConfig={"ips": ["10.65.0.8"], "mac": "02:00:5e:10:00:98"})
    stdout_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))
    assert [str(address) for address in setup.ipam.requests[0].requested] == ["10.65.0.8"]
    assert str(setup.workloads.attach_requests[0].mac) == "02:00:5e:10:00:98"


@pytest.mark.parametrize(
    ("annotations", "code"),
    [
        ({"ipAddrs": "10.65.0.7"}, 7),
        ({"ipAddrs": "[]"}, 7),
        ({"ipAddrs": '["ten"]'}, 7),
        ({"ipAddrs": '["10.65.0.7", "10.65.0.8"]'}, 7),
        ({"ipv4pools": '["fd00::/64"]'}, 7),
        ({"ipv6pools": '["pool"]'}, 7),
        ({"ipv4pools": '["pool-1"]'}, 7),
        ({"ipFamilies": '["IPv5"]'}, 7),
        ({"hwAddr": "nothing"}, 7),
        ({"hwAddr": "01:00:5e:10:00:01"}, 7),
        ({"hwAddr": "00:00:00:00:00:00"}, 7),
        ({"floatingIPs": '["1.2.3.4"]'}, 7),
        ({"ipAddrsNoIpam": '["1.2.3.4"]'}, 7),
        ({"allowedSourcePrefixes": "1.2.3.0/24"}, 7),
        ({"allowedSourcePrefixes": '["1.2.3.0/33"]'}, 7),
        ({"allowedSourcePrefixes": "[]"}, 7),
        ({"allowedSourcePrefixes": '[{"cidr": "1.2.3.0/24"}]'}, 7),
    ],
)
def test_annotations_that_cannot_be_followed(
    setup: CniSetup, api: KubernetesApi, annotations: dict[str, str], code: int
) -> None:
    annotate(api, **annotations)
    shape = error_of(setup.call("ADD", a_pod_network(api), CNI_ARGS=ARGUMENTS))
    assert shape["code"] == code
    assert f"cni.projectcalico.org/{next(iter(annotations))}" in json.dumps(shape)
    assert setup.workloads.attach_requests == []


def test_addresses_without_ipam_where_the_network_allows_them(setup: CniSetup, api: KubernetesApi) -> None:
    annotate(api, ipAddrsNoIpam='["fd00::7", "192.0.2.7/24"]')
    network = a_pod_network(api, cniVersion="1.1.0", feature_control={"ip_addrs_no_ipam": True})
    result = stdout_of(setup.call("ADD", network, CNI_ARGS=f"{ARGUMENTS};IP=10.65.0.9"))
    assert [each["address"] for each in result["ips"]] == ["192.0.2.7/32", "fd00::7/128"]
    assert setup.ipam.requests == []
    assert not setup.ipam.held
    assert setup.call("CHECK", {**network, "prevResult": result}, CNI_ARGS=ARGUMENTS) == CallReply()
    assert stdout_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS)) == result
    assert setup.call("DEL", network, CNI_ARGS=ARGUMENTS) == CallReply()
    assert not setup.workloads.attached


@pytest.mark.parametrize(
    ("annotations", "changes", "says"),
    [
        ({}, {"feature_control": {}}, "feature_control.ip_addrs_no_ipam is not true"),
        ({"ipAddrs": '["10.65.0.7"]'}, {}, "cni.projectcalico.org/ipAddrs"),
        ({}, {"ipam": {"type": "host-local"}}, "needs ipam.type calico-ipam"),
        ({}, {"runtimeConfig": {"ips": ["10.65.0.8"]}}, "runtimeConfig.ips"),
        ({"ipAddrsNoIpam": '["192.0.2.7", "192.0.2.8"]'}, {}, "only one address of a family"),
        ({"ipAddrsNoIpam": '["seven"]'}, {}, "'seven'"),
        ({"ipAddrsNoIpam": "[]"}, {}, "empty"),
    ],
)
def test_addresses_without_ipam_that_cannot_be_had(
    setup: CniSetup, api: KubernetesApi, annotations: dict[str, str], changes: dict[str, Any], says: str
) -> None:
    annotate(api, **{"ipAddrsNoIpam": '["192.0.2.7"]', **annotations})
    network = a_pod_network(api, **{"feature_control": {"ip_addrs_no_ipam": True}, **changes})
    error = error_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))
    assert (error["code"], "cni.projectcalico.org/ipAddrsNoIpam" in json.dumps(error)) == (7, True)
    assert says in error["msg"]
    assert setup.workloads.attach_requests == []


def test_requested_addresses_need_our_ipam(setup: CniSetup, api: KubernetesApi) -> None:
    annotate(api, ipAddrs='["10.65.0.7"]')
    shape = error_of(setup.call("ADD", a_pod_network(api, ipam={"type": "host-local"}), CNI_ARGS=ARGUMENTS))
    assert shape["code"] == 7


def test_names_that_are_not_text(setup: CniSetup, api: KubernetesApi) -> None:
    """ADD and CHECK refuse them; DEL cannot have anything under such a name, and says so by succeeding."""
    network = a_pod_network(api, prevResult={"cniVersion": "1.0.0", "ips": []})
    arguments = b"K8S_POD_NAMESPACE=shop;K8S_POD_NAME=\xff".decode(errors="surrogateescape")
    for command in ("ADD", "CHECK"):
        assert error_of(setup.call(command, network, CNI_ARGS=arguments))["code"] == 4
    assert setup.call("DEL", network, CNI_ARGS=arguments) == CallReply()


# --- delete ---------------------------------------------------------------------------------------------------------


def test_a_delete_that_was_put_off_knows_the_pod(namespace_fd: int, api: KubernetesApi, tmp_path: Path) -> None:
    setup = CniSetup(namespace_fd, state=tmp_path)
    network = a_pod_network(api)
    stdout_of(setup.call("ADD", network, CNI_ARGS=ARGUMENTS))
    setup.workloads.failure = Unavailable("store", "away")
    assert setup.call("DEL", network, CNI_ARGS=ARGUMENTS).status == 0
    assert setup.workloads.attached
    assert setup.integration.replay() == 1
    assert not setup.workloads.attached
    setup.integration.close()
