"""Networks that share one interface of a container (``interface_mode: single``, and every version before 0.3.0).

Source: cni specification 5.4 and 6, scenario 19.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from tests.e2e.cni.containers import (
    Container,
    a_network,
    assert_settles,
    containers,
    finish,
    records,
    store_dump,
    whole_state,
)
from tests.e2e.cni.test_garbage import collect, on_store
from tests.e2e.observing import MakeLab
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root

OLD = "0.2.0"


@pytest.fixture(scope="module", params=["sqlite", "etcd"])
def host(request: pytest.FixtureRequest) -> Iterator[LabHost]:
    """One for all: every case ends where it began, and its node runs."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    lab = Laboratory.create(f"es{os.getpid() % 100000}{request.param[0]}", 1, datastore=request.param, routing="none")
    lab.up()
    try:
        lab.hosts[0].start_node()
        lab.hosts[0].install_cni()
        yield lab.hosts[0]
    finally:
        lab.down()


@pytest.fixture
def container(host: LabHost) -> Iterator[Container]:
    with containers(host, 1) as (only,):
        yield only


def a_single(name: str, **changes: Any) -> dict[str, Any]:
    return a_network(**{"name": name, "interface_mode": "single", **changes})


def address_of(result: Any) -> str:
    text = result["ip4"]["ip"] if "ip4" in result else result["ips"][0]["address"]
    return str(text).partition("/")[0]


def endpoints(host: LabHost, container: Container) -> list[dict[str, Any]]:
    found = records(host)
    return [json.loads(value) for key, value in found.items() if f"/{container.id}/endpoint/" in key]


def responds(host: LabHost, address: str) -> bool:
    return host.run(["ping", "-c1", "-W10", address], check=False).returncode == 0


@pytest.mark.parametrize("interface", ["eth0", "eth1"])
@pytest.mark.parametrize("version", [OLD, "1.0.0"])
def test_a_further_network_only_adds_its_profile(
    host: LabHost, container: Container, version: str, interface: str
) -> None:
    """Whatever the second call names its interface; before 0.3.0 that is how it is without the key."""
    before = whole_state(host)
    mode = "auto" if version == OLD else "single"
    first, second = (a_single(name, cniVersion=version, interface_mode=mode) for name in ("a", "b"))
    one = container.call("ADD", first)
    links = links_of(container)
    two = container.call("ADD", second, interface=interface)
    assert two["cniVersion"] == version
    assert address_of(two) == address_of(one)
    assert container.call("ADD", second, interface=interface) == two
    assert container.call("ADD", first) == one
    assert links_of(container) == links
    (record,) = endpoints(host, container)
    assert record["profile_ids"] == ["a", "b"]
    assert record["handle"] == f"a.{container.id}"
    assert len(records(host)["in use"]) == 1
    assert any(key.startswith("/calico/v1/policy/profile/b/") for key in store_keys(host))
    if version != OLD:
        assert two["interfaces"][1]["name"] == "eth0", "it is the one there is"
        for configuration, result, name in ((first, one, "eth0"), (second, two, interface)):
            assert container.call("CHECK", {**configuration, "prevResult": result}, interface=name) is None
    # the network that made it goes first
    for _ in range(2):
        container.call("DEL", first)
        (record,) = endpoints(host, container)
        assert record["profile_ids"] == ["b"]
        assert responds(host, address_of(one))
        assert links_of(container) == links
    for _ in range(2):
        container.call("DEL", second, interface=interface)
        assert_settles(host, before)


def links_of(container: Container) -> list[tuple[int, str, str]]:
    """Index, name and address of each; whether one has its carrier yet is of no interest."""
    return [(link["ifindex"], link["ifname"], link["address"]) for link in json.loads(container.ip("-j", "link"))]


def store_keys(host: LabHost) -> list[str]:
    return list(json.loads(host.run([*store_dump(host)]).stdout))


def test_what_the_second_network_allows_goes_with_it(host: LabHost) -> None:
    """Its members reach the container while it is in force, and in the kernel when ADD and DEL return."""
    before = whole_state(host)
    with containers(host, 2) as (shared, peer):
        target = address_of(shared.call("ADD", a_single("a")))
        peer.call("ADD", a_single("b"))
        assert not reaches(peer, target, within_s=1)
        shared.call("ADD", a_single("b"), interface="eth1")
        assert reaches(peer, target)
        shared.call("DEL", a_single("b"), interface="eth1")
        eventually(lambda: not reaches(peer, target, within_s=1))
        shared.call("DEL", a_single("a"))
        peer.call("DEL", a_single("b"))
    assert_settles(host, before)


def reaches(container: Container, address: str, *, within_s: int = 10) -> bool:
    command = ["nsenter", f"--net={container.namespace}", "--", "ping", "-c1", f"-W{within_s}", address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_both_at_once(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    networks = {"a": "eth0", "b": "eth1", "c": "eth2"}
    for _ in range(5):
        running = [container.start("ADD", a_single(name), interface=each) for name, each in networks.items()]
        results = [finish(each) for each in running]
        assert {status for status, _ in results} == {0}, results
        assert len({address_of(result) for _, result in results}) == 1
        (record,) = endpoints(host, container)
        assert {each["network"] for each in record["attachments"]} == set(networks)
        assert len(records(host)["in use"]) == 1
        assert responds(host, address_of(results[0][1]))
        running = [container.start("DEL", a_single(name), interface=each) for name, each in networks.items()]
        assert {finish(each)[0] for each in running} == {0}
        assert_settles(host, before)


def test_del_before_add_and_add_after_del(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    container.call("DEL", a_single("b"), interface="eth1")
    one = container.call("ADD", a_single("a"))
    container.call("DEL", a_single("b"), interface="eth1")
    assert responds(host, address_of(one))
    container.call("ADD", a_single("b"), interface="eth1")
    container.call("DEL", a_single("a"))
    assert container.call("ADD", a_single("a")) == one
    container.call("DEL", a_single("b"), interface="eth1")
    assert responds(host, address_of(one))
    container.call("DEL", a_single("a"))
    assert_settles(host, before)


def test_a_network_of_its_own_stays_its_own(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    own = a_network(name="own")
    container.call("ADD", a_single("a"))
    result = container.call("ADD", own, interface="eth1")
    standing = whole_state(host)
    assert container.refused("ADD", a_network(name="own2"))["code"] == 106
    assert container.refused("ADD", a_network(name="own2"), interface="eth1")["code"] == 106
    assert_settles(host, standing)
    assert len(endpoints(host, container)) == 2
    assert container.ip("route").startswith("default via 169.254.1.1 dev eth0 ")
    assert container.call("CHECK", {**own, "prevResult": result}, interface="eth1") is None
    container.call("DEL", a_single("a"))
    (record,) = endpoints(host, container)
    assert record["network"] == "own"
    assert f"inet {address_of(result)}/32 " in container.ip("address", "show", "eth1")
    container.call("DEL", own, interface="eth1")
    assert_settles(host, before)


def test_what_was_made_alone_is_not_shared(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    container.call("ADD", a_network(name="own"))
    standing = whole_state(host)
    for interface in ("eth0", "eth1"):
        assert container.refused("ADD", a_single("b"), interface=interface)["code"] == 106
        container.call("DEL", a_single("b"), interface=interface)
        assert_settles(host, standing)
    container.call("DEL", a_single("own"))  # the mode was changed since
    assert_settles(host, before)


def test_gc_takes_one_networks_part(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    one = container.call("ADD", a_single("a"))
    container.call("ADD", a_single("b"), interface="eth1")
    age(host, container)
    both = [{"containerID": container.id, "ifname": each} for each in ("eth0", "eth1")]
    standing = records(host)
    for name in ("a", "b", "c"):
        assert collect(container, both, name=name, interface_mode="single") is None
        assert records(host) == standing
    # the network that made it: its handle is old and in no list, and holds the address of the other
    for _ in range(2):
        assert collect(container, [], name="a", interface_mode="single") is None
        (record,) = endpoints(host, container)
        assert [each["network"] for each in record["attachments"]] == ["b"]
        assert responds(host, address_of(one))
        assert len(records(host)["in use"]) == 1
    assert collect(container, [], name="b", interface_mode="single") is None
    assert_settles(host, before)


def age(host: LabHost, container: Container) -> None:
    """Let the endpoint, its attachments and its address look two minutes old."""
    then = time.time() - 120
    dump = json.loads(host.run([*store_dump(host)]).stdout)
    for key, value in dump.items():
        if key.startswith("/calico/v1/host/") and f"/{container.id}/endpoint/" in key:
            record = json.loads(value) | {"created": then}
            for each in record["attachments"]:
                each["created"] = then
        elif "/assignment/" in key and container.id in value:
            record = json.loads(value)
            for each in record["attributes"]:
                if each.get("secondary", {}).get("container") == container.id:
                    each["secondary"]["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(then))
        else:
            continue
        on_store(host, "store.put(sys.argv[2], sys.argv[3].encode())", key, json.dumps(record))


def test_check_names_what_is_missing(host: LabHost, container: Container) -> None:
    container.call("ADD", a_single("a"))
    two = container.call("ADD", a_single("b"), interface="eth1")
    checked = a_single("b", prevResult=two)
    assert "not shared by network c" in container.refused("CHECK", {**checked, "name": "c"}, interface="eth1")["msg"]
    container.ip("link", "delete", "eth0")
    assert "eth0 is no longer a pair" in container.refused("CHECK", checked, interface="eth1")["msg"]
    assert container.call("ADD", a_single("b"), interface="eth1")["ips"] == two["ips"]
    assert container.call("CHECK", checked, interface="eth1") is None
    for name, interface in (("a", "eth0"), ("b", "eth1")):
        container.call("DEL", a_single(name), interface=interface)


def test_the_node_is_down(host: LabHost, container: Container) -> None:
    """The node makes it, a process that works instead joins, the node takes it back."""
    before = whole_state(host)
    one = container.call("ADD", a_single("a"))
    host.kill_node()
    assert address_of(container.call("ADD", a_single("b"), interface="eth1")) == address_of(one)
    container.call("DEL", a_single("a"))
    (record,) = endpoints(host, container)
    assert record["profile_ids"] == ["b"]
    host.start_node()
    assert responds(host, address_of(one))
    container.call("DEL", a_single("b"), interface="eth1")
    assert_settles(host, before)


def test_a_node_killed_while_a_network_joins(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    for delay_ms in (2, 5, 8):
        container.call("ADD", a_single("a"))
        joining = container.start("ADD", a_single("b"), interface="eth1")
        time.sleep(delay_ms / 1000)
        host.kill_node()
        status, shape = finish(joining)
        assert status == 0 or shape["code"] == 11, shape
        host.start_node()
        container.call("ADD", a_single("b"), interface="eth1")
        container.call("DEL", a_single("a"))
        assert len(endpoints(host, container)) == 1
        container.call("DEL", a_single("b"), interface="eth1")
        assert_settles(host, before)


def test_a_datastore_that_is_away(make_lab: MakeLab, stop_etcd: Callable[[Laboratory], Callable[[], None]]) -> None:
    """Nobody can say who else uses the interface: it stays, and the rest is done when somebody can."""
    lab = make_lab(1, datastore="etcd")
    host: LabHost = lab.hosts[0]
    before = whole_state(host)
    with containers(host, 1) as (container,):
        one = container.call("ADD", a_single("a"))
        container.call("ADD", a_single("b"), interface="eth1")
        resume = stop_etcd(lab)
        container.call("DEL", a_single("a"))
        assert responds(host, address_of(one))
        resume()
        deadline = time.monotonic() + 30
        while endpoints(host, container)[0]["profile_ids"] != ["b"]:
            assert time.monotonic() < deadline
        assert responds(host, address_of(one))
        container.call("DEL", a_single("b"), interface="eth1")
        assert_settles(host, before)


def test_a_recreated_pod(host: LabHost) -> None:
    before = whole_state(host)
    pod = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"}
    first, second = (a_single(name, orchestrator="k8s") for name in ("a", "b"))
    with containers(host, 2) as (old, new):
        for each, interface in ((first, "eth0"), (second, "net1")):
            old.call("ADD", each, interface=interface, environment=pod)
        one = new.call("ADD", first, environment=pod)
        new.call("ADD", second, interface="net1", environment=pod)
        for each, interface in ((first, "eth0"), (second, "net1")):
            old.call("DEL", each, interface=interface, environment=pod)
        assert responds(host, address_of(one))
        assert len(records(host)["in use"]) == 1
        new.call("DEL", first, environment=pod)
        assert responds(host, address_of(one))
        new.call("DEL", second, interface="net1", environment=pod)
        assert_settles(host, before)
