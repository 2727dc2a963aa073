"""The executables on a real node: every version, repeats, damage, many at once, crashes at any point."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import (
    VERSIONS,
    Container,
    a_network,
    assert_settles,
    containers,
    finish,
    records,
    whole_state,
)
from tests.e2e.cni.test_garbage import on_store
from tests.e2e.observing import MakeLab
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root

LEGACY_FIELDS = {"state", "name", "mac", "profile_ids", "labels", "ipv4_nets", "ipv6_nets"}
MANY = 64
MANY_WITHIN_S = 20.0  # generous: the machine may be busy; what it took is printed


@pytest.fixture
def host(make_lab: MakeLab) -> LabHost:
    found: LabHost = make_lab(1).hosts[0]
    return found


@pytest.fixture
def container(host: LabHost) -> Iterator[Container]:
    with containers(host, 1) as (only,):
        yield only


def address_in(result: Any) -> str:
    text = result["ip4"]["ip"] if "ip4" in result else result["ips"][0]["address"]
    assert isinstance(text, str)
    assert text.endswith("/32")
    return text


def test_a_caller_that_permits_the_hosts_own_namespace(shared_host: LabHost) -> None:
    """Refused before anything of the host's is touched, and what was refused may be deleted."""
    before = whole_state(shared_host)
    own = {"CNI_NETNS": str(shared_host.namespace), "CNI_NETNS_OVERRIDE": "TRUE"}
    nobody = Container(shared_host, "nobody")
    for command, changes in (("ADD", {}), ("CHECK", {"prevResult": {"cniVersion": "1.0.0", "ips": []}})):
        error = nobody.refused(command, a_network(**changes), environment=own)
        assert (error["code"], "CNI_NETNS_OVERRIDE: cannot be honoured" in error["msg"]) == (8, True)
        assert whole_state(shared_host) == before
    nobody.call("DEL", environment=own)
    assert whole_state(shared_host) == before
    # addresses are of no namespace
    nobody.call("ADD", program="calico-ipam", environment=own)
    nobody.call("DEL", program="calico-ipam", environment=own)
    assert whole_state(shared_host) == before


def test_every_version_from_add_to_del(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    for version in VERSIONS:
        configuration = a_network(cniVersion=version)
        assert container.call("VERSION", configuration)["supportedVersions"] == list(VERSIONS)
        result = container.call("ADD", configuration)
        assert result["cniVersion"] == version
        assert ("ip4" in result) == (version < "0.3.0")
        address = address_in(result)
        assert f"inet {address} " in container.ip("address", "show", "eth0")
        assert container.ip("route") == "default via 169.254.1.1 dev eth0 \n169.254.1.1 dev eth0 scope link \n"
        with_result = {**configuration, "prevResult": result}
        if version >= "0.4.0":
            assert container.call("CHECK", with_result) is None
        else:
            assert container.refused("CHECK", with_result)["code"] == 1
        if version >= "1.1.0":
            assert container.call("STATUS", configuration) is None
        else:
            assert container.refused("STATUS", configuration)["code"] == 1
            assert container.refused("GC", configuration)["code"] == 1
        assert container.call("DEL", with_result if version >= "0.4.0" else configuration) is None
        assert_settles(host, before)


def test_add_again_changes_nothing_and_del_again_is_fine(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    first = container.call("ADD")
    standing = whole_state(host)
    assert container.call("ADD") == first
    assert whole_state(host) == standing
    for _ in range(3):
        assert container.call("DEL", environment={"CNI_NETNS": ""}) is None
    assert_settles(host, before)


def test_the_same_namespace_with_a_new_container_id(host: LabHost, container: Container) -> None:
    """A sandbox made anew: the old one's late DEL must not touch it."""
    before = whole_state(host)
    container.call("ADD", container_id="old")
    container.call("DEL", container_id="old")
    result = container.call("ADD", container_id="new")
    container.call("DEL", container_id="old")
    with_result = a_network(prevResult=result)
    assert container.call("CHECK", with_result, container_id="new") is None
    container.call("DEL", container_id="new")
    assert_settles(host, before)


def test_routes_in_a_result_are_those_of_its_interface(shared_host: LabHost) -> None:
    """The default route stays with the interface that came first, and the result of the second does not claim it."""
    before = whole_state(shared_host)
    other = a_network(
        name="other", ipam={"type": "calico-ipam", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24"}]}
    )
    with containers(shared_host, 1, prefix="r") as (container,):
        for _ in range(2):  # the second time all stands already
            first = container.call("ADD", a_network())
            second = container.call("ADD", other, interface="eth1")
            assert first["routes"] == [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]
            assert second["routes"] == [{"dst": "192.0.2.0/24", "gw": "169.254.1.1"}]
            default = container.ip("route", "show", "default")
            assert (default.count("default"), "dev eth0" in default) == (1, True)
        container.call("CHECK", a_network(prevResult=first))
        container.call("CHECK", {**other, "prevResult": second}, interface="eth1")
        container.call("DEL", other, interface="eth1")
        container.call("DEL", a_network())
    assert_settles(shared_host, before)


def test_a_new_sandbox_of_the_same_pod(host: LabHost) -> None:
    """The kubelet makes it before the old one is gone, and deletes the old one late and twice."""
    before = whole_state(host)
    configuration = a_network(orchestrator="k8s")
    pod = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"}
    with containers(host, 2) as (old, new):
        first = old.call("ADD", configuration, environment=pod)
        second = new.call("ADD", configuration, environment=pod)
        assert first["interfaces"][0]["name"] == second["interfaces"][0]["name"]
        assert address_in(first) != address_in(second)
        for _ in range(2):
            old.call("DEL", configuration, environment=pod)
            assert new.call("CHECK", {**configuration, "prevResult": second}, environment=pod) is None
        assert len(records(host)["in use"]) == 1
        new.call("DEL", configuration, environment=pod)
        assert_settles(host, before)


def test_the_interface_of_a_container_that_was_never_deleted(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    container.call("ADD", container_id="old")
    standing = whole_state(host)
    assert container.refused("ADD", container_id="new")["code"] == 106
    assert_settles(host, standing)
    container.call("DEL", container_id="new")
    assert_settles(host, standing)
    container.call("DEL", container_id="old")
    assert_settles(host, before)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        json.dumps(a_network(cniVersion="9.9.9")).encode(),
        json.dumps(a_network(name="a/b")).encode(),
        json.dumps(a_network(ipam={"type": "../../bin/sh"})).encode(),
        json.dumps(a_network(ipam={"type": "no-such-plugin"})).encode(),
        json.dumps(a_network(ipam={"type": "calico-ipam", "ipv4_pools": ["10.1.2.0/24"]})).encode(),
        json.dumps(a_network(mtu="large")).encode(),
        json.dumps(a_network(runtimeConfig={"ips": ["172.31.0.1"]})).encode(),
        json.dumps(a_network(prevResult={"cniVersion": "1.0.0", "interfaces": []})).encode(),
        json.dumps(a_network(interface_mode="single", ipam={"type": "host-local"})).encode(),
    ],
)
def test_a_refused_configuration_leaves_no_trace(
    shared_host: LabHost, shared_container: Container, damage: bytes
) -> None:
    before = whole_state(shared_host)
    shared_container.refused("ADD", damage)
    assert whole_state(shared_host) == before
    assert shared_container.ip("-o", "link").count("\n") == 1


def test_many_at_once(host: LabHost, capsys: pytest.CaptureFixture[str]) -> None:
    before = whole_state(host)
    with containers(host, MANY) as made, ThreadPoolExecutor(MANY) as pool:
        started = time.monotonic()
        results = list(pool.map(lambda each: each.call("ADD"), made))
        added = time.monotonic()
        assert len({address_in(result) for result in results}) == MANY
        state = records(host)
        assert len(state["in use"]) == MANY
        assert sum("/workload/" in key for key in state) == MANY
        for container, result in zip(made, results, strict=True):
            assert f"inet {address_in(result)} " in container.ip("address", "show", "eth0")
        deleting = time.monotonic()
        list(pool.map(lambda each: each.call("DEL"), made))
        deleted = time.monotonic()
        assert_settles(host, before)
    assert added - started < MANY_WITHIN_S
    assert deleted - deleting < MANY_WITHIN_S
    with capsys.disabled():
        print(f"\n{MANY} at once: ADD {added - started:.2f} s, DEL {deleted - deleting:.2f} s")


def test_nothing_grows_with_the_number_of_calls(host: LabHost) -> None:
    """Scenario 57, in small: ``CNI_CYCLES=10000`` is the whole of it."""
    cycles, workers = int(os.environ.get("CNI_CYCLES", "240")), 8
    before = whole_state(host)
    with containers(host, workers) as used, ThreadPoolExecutor(workers) as pool:

        def run(container: Container, number: int) -> None:
            for cycle in range(number):
                identity = f"{container.id}-{cycle}"  # as runtimes do: each container once
                container.call("ADD", container_id=identity)
                container.call("DEL", container_id=identity)

        def round_of(number: int) -> tuple[int, int, int]:
            list(pool.map(lambda each: run(each, number), used))
            return weight(host.node_pid)

        first = round_of(cycles // workers // 2)
        last = round_of(cycles // workers // 2)
    assert_settles(host, before)
    for what, was, now, slack in zip(("descriptors", "threads", "KiB"), first, last, (8, 4, 8192), strict=True):
        assert now <= was + slack, f"{what}: {was} after half of {cycles} cycles, {now} after all"


def weight(pid: int | None) -> tuple[int, int, int]:
    """Descriptors, threads and resident KiB of a process."""
    folder = Path("/proc", str(pid))
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return len(list((folder / "fd").iterdir())), int(status["Threads"]), int(status["VmRSS"].split()[0])


def test_del_during_add(host: LabHost, container: Container) -> None:
    """The runtime's time is over while the node still works: after both have ended, everything is gone."""
    before = whole_state(host)
    for delay_ms in (0, 2, 4, 6, 9, 13):
        adding = container.start("ADD")
        time.sleep(delay_ms / 1000)
        adding.send_signal(signal.SIGKILL)
        deleting = container.start("DEL")
        assert finish(deleting)[0] == 0
        adding.communicate()
        # an ADD that arrived after the DEL is a new attachment, which its own DEL ends
        assert finish(container.start("DEL"))[0] == 0
        assert_settles(host, before)


@pytest.mark.parametrize("follows", ["DEL", "ADD"])
def test_a_node_killed_at_any_point_of_an_add(host: LabHost, container: Container, follows: str) -> None:
    before = whole_state(host)
    outcomes = []
    for delay_ms in (2, 4, 6, 8, 11, 15):
        adding = container.start("ADD")
        time.sleep(delay_ms / 1000)
        host.kill_node()
        status, shape = finish(adding)
        outcomes.append(status)
        assert status == 0 or shape["code"] in {11, 104}, shape
        host.start_node()
        if follows == "ADD":
            result = container.call("ADD")
            assert container.call("CHECK", a_network(prevResult=result)) is None
        container.call("DEL")
        assert_settles(host, before)
    assert len(outcomes) == 6


def test_killed_in_process_at_any_point(host: LabHost, container: Container) -> None:
    """The node is down, and the process that works instead of it dies too."""
    before = whole_state(host)
    host.kill_node()
    for delay_ms in range(150, 900, 150):
        adding = container.start("ADD")
        time.sleep(delay_ms / 1000)
        adding.kill()
        adding.communicate()
        container.call("DEL")
        assert records(host) == before["store"]
        assert container.ip("-o", "link").count("\n") == 1
    host.start_node()
    assert_settles(host, before)


def test_the_mtu_of_a_node_that_is_down(host: LabHost) -> None:
    host.calicoctl("pool", "add", "192.168.0.0/16", "--vxlan")
    eventually(lambda: "vxlan.calico" in host.run(["ip", "link"]).stdout)
    configuration = a_network(cniVersion="1.1.0", require_mtu_file=True)
    with containers(host, 2) as (before, after):
        mtu_bytes = before.call("ADD", configuration)["interfaces"][1]["mtu"]
        assert mtu_bytes < 1500
        host.kill_node()
        assert after.call("ADD", configuration)["interfaces"][1]["mtu"] == mtu_bytes
        assert f"mtu {mtu_bytes} " in after.ip("link", "show", "eth0")


def test_del_of_everything_that_may_be_gone(host: LabHost, container: Container) -> None:
    before = whole_state(host)
    container.call("DEL")  # never added
    for namespace in ("", "/does/not/exist", "/etc/hostname", f"/proc/{2**22}/ns/net"):
        container.call("ADD")
        container.call("DEL", environment={"CNI_NETNS": namespace})
        assert_settles(host, before)
    container.call("ADD")
    container.ip("link", "delete", "eth0")
    container.call("DEL", a_network(prevResult="rubbish"))
    assert_settles(host, before)


def test_an_endpoint_of_the_plugin_before(host: LabHost, container: Container) -> None:
    """Its record has a random id, and says neither which container nor which network it is of."""
    before = whole_state(host)
    container.call("ADD")
    found = records(host)
    (key,) = [key for key in found if f"/{container.id}/endpoint/" in key]
    old = {name: value for name, value in json.loads(found[key]).items() if name in LEGACY_FIELDS}
    on_store(host, "store.delete(sys.argv[2])", key)
    legacy = f"{key.rpartition('/')[0]}/{uuid.uuid4().hex}"
    on_store(host, "store.put(sys.argv[2], sys.argv[3].encode())", legacy, json.dumps(old))
    assert len(records(host)["in use"]) == 1
    container.call("DEL")
    assert_settles(host, before)
