"""Other plugins around ours, the real reference ones: IPAM delegated to, chains behind us, ourselves behind another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import (
    REFERENCE,
    Container,
    a_network,
    assert_settles,
    chain,
    containers,
    whole_state,
)
from tests.e2e.observing import MakeLab
from tests.waiting import eventually

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference CNI plugins are not installed"),
]


@pytest.fixture
def leases(tmp_path: Path) -> Path:
    return tmp_path / "leases"


def with_host_local(leases: Path, **changes: Any) -> dict[str, Any]:
    ipam = {
        "type": "host-local",
        "subnet": "10.77.0.0/24",
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(leases),
        **changes,
    }
    return a_network(ipam=ipam)


def taken(leases: Path) -> list[str]:
    folder = leases / "net1"
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("10.")) if folder.is_dir() else []


def test_host_local_gives_the_addresses(shared_host: LabHost, shared_container: Container, leases: Path) -> None:
    before = whole_state(shared_host)
    configuration = with_host_local(leases)
    result = shared_container.call("ADD", configuration)
    assert result["ips"] == [{"address": "10.77.0.2/32", "interface": 1}]
    assert taken(leases) == ["10.77.0.2"]
    assert shared_container.call("ADD", configuration) == result
    assert taken(leases) == ["10.77.0.2"]
    assert shared_container.call("CHECK", {**configuration, "prevResult": result}) is None
    shutil.move(leases / "net1" / "10.77.0.2", leases / "kept")
    assert "host-local" in shared_container.refused("CHECK", {**configuration, "prevResult": result})["msg"]
    shutil.move(leases / "kept", leases / "net1" / "10.77.0.2")
    for _ in range(2):
        shared_container.call("DEL", configuration)
        assert taken(leases) == []
    assert_settles(shared_host, before)


def test_every_failure_gives_the_address_back(shared_host: LabHost, shared_container: Container, leases: Path) -> None:
    before = whole_state(shared_host)
    shared_container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far")
    assert shared_container.refused("ADD", with_host_local(leases))["code"] == 106
    assert taken(leases) == []
    shared_container.ip("link", "delete", "eth0")
    # too small a subnet: the plugin's own words and code
    error = shared_container.refused("ADD", with_host_local(leases, subnet="10.77.0.0/31"))
    assert "too small" in error["msg"]
    assert taken(leases) == []
    labels = {"cni": {"labels": [{"key": "a b", "value": "c"}]}}
    assert shared_container.refused("ADD", {**with_host_local(leases), "args": labels})["code"] == 7
    assert taken(leases) == []
    assert_settles(shared_host, before)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Any]:
    """An IPAM plugin of a few lines of shell; the commands it heard are in the file ``heard``."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(add: str) -> dict[str, str]:
        script = folder / "odd-ipam"
        script.write_text(f'#!/bin/sh\ncat >> {tmp_path}/stdin\necho $CNI_COMMAND >> {tmp_path}/heard\n'
                          f'[ $CNI_COMMAND = ADD ] || exit 0\n{add}\n')  # fmt: skip
        script.chmod(0o755)
        return {"CNI_PATH": f"/does/not/exist:relative:{folder}"}

    make.heard = lambda: (tmp_path / "heard").read_text().split()  # type: ignore[attr-defined]
    make.stdin = (tmp_path / "stdin").read_text  # type: ignore[attr-defined]
    return make


@pytest.mark.parametrize(
    ("add", "code", "says"),
    [
        ("exit 3", 104, "it said nothing"),
        ("echo no luck >&2; exit 1", 104, "no luck"),
        ("""echo '{"code": 11, "msg": "busy"}'; exit 1""", 11, "busy"),
        ("echo '{}'", 104, "no address"),
        ("echo null", 104, "cannot be used"),
        ("echo words", 104, "cannot be used"),
        ("true", 104, "cannot be used"),
        ("""echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.77.0/33"}]}'""", 104, "cannot be used"),
        ("""echo '{"cniVersion": "7.0.0", "ips": [{"address": "10.77.0.9/24"}]}'""", 104, "7.0.0"),
    ],
)
def test_a_plugin_that_fails(
    shared_host: LabHost, shared_container: Container, stand_in: Any, add: str, code: int, says: str
) -> None:
    before = whole_state(shared_host)
    configuration = a_network(ipam={"type": "odd-ipam"}, shade={"of": ["blue"]})
    error = shared_container.refused("ADD", configuration, environment=stand_in(add))
    assert (error["code"], says in error["msg"]) == (code, True), error
    assert stand_in.heard() == ["ADD", "DEL"]
    assert_settles(shared_host, before)


def test_an_old_plugin_and_what_it_is_told(shared_host: LabHost, shared_container: Container, stand_in: Any) -> None:
    before = whole_state(shared_host)
    answer = """echo '{"cniVersion": "0.2.0", "ip4": {"ip": "10.77.0.9/24", "gateway": "10.77.0.1"}}'"""
    configuration = a_network(
        ipam={"type": "odd-ipam", "colour": "blue"},
        shade={"of": ["blue"]},
        runtimeConfig={"bandwidth": {"ingressRate": 1}},
        args={"cni": {"labels": []}, "org.example": {"x": 1.5}},
    )
    result = shared_container.call("ADD", configuration, environment=stand_in(answer))
    assert result["ips"] == [{"address": "10.77.0.9/32", "interface": 1}]
    assert '"shade": {"of": ["blue"]}' in stand_in.stdin()
    assert '"colour": "blue"' in stand_in.stdin()
    assert '"runtimeConfig": {"bandwidth": {"ingressRate": 1}}' in stand_in.stdin()
    assert '"args": {"cni": {"labels": []}, "org.example": {"x": 1.5}}' in stand_in.stdin()
    assert shared_container.call("DEL", configuration, environment=stand_in(answer)) is None
    assert stand_in.heard() == ["ADD", "DEL"]
    assert_settles(shared_host, before)


def test_a_plugin_that_is_gone_at_del(shared_host: LabHost, shared_container: Container, stand_in: Any) -> None:
    """The rest goes; nobody can promise that somebody else's address is free."""
    before = whole_state(shared_host)
    configuration = a_network(ipam={"type": "odd-ipam"})
    answer = """echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.9/24"}]}'"""
    shared_container.call("ADD", configuration, environment=stand_in(answer))
    assert shared_container.refused("DEL", configuration, environment={"CNI_PATH": "/nowhere"})["code"] == 104
    assert_settles(shared_host, before)


DUAL_STACK = {"type": "calico-ipam", "assign_ipv6": True}
CHAIN: list[dict[str, Any]] = [
    {"type": "calico", "ipam": DUAL_STACK},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "511"}, "mac": "02:00:5e:00:00:07", "promisc": True},
    {
        "type": "bandwidth",
        "runtimeConfig": {"bandwidth": {"ingressRate": 8000000, "ingressBurst": 800000}},
    },
    {
        "type": "portmap",
        "snat": True,
        "runtimeConfig": {"portMappings": [{"hostPort": 8088, "containerPort": 80, "protocol": "tcp"}]},
    },
]


def test_tuning_bandwidth_and_portmap_after_us(make_lab: MakeLab) -> None:
    host: LabHost = make_lab(1).hosts[0]
    before = whole_state(host)
    with containers(host, 2) as (container, other):
        alone = other.call("ADD", a_network(ipam=DUAL_STACK))
        result = chain(container, "ADD", CHAIN)
        link = result["interfaces"][0]["name"]
        assert "02:00:5e:00:00:07" in container.ip("link", "show", "eth0")
        assert "tbf" in host.run(["tc", "qdisc", "show", "dev", link]).stdout
        assert "8088" in host.run(["iptables", "-t", "nat", "-S"]).stdout
        chain(container, "CHECK", CHAIN[:1], prevResult=result)
        for address in addresses_of(result):
            assert pings(other, address), "the host reaches it under the MAC that tuning gave it"
        for address in addresses_of(alone):
            assert pings(container, address), "and lets it send from there"
        chain(container, "DEL", CHAIN, prevResult=result)
        other.call("DEL")
        assert "8088" not in host.run(["iptables", "-t", "nat", "-S"]).stdout
        assert_settles(host, before)


@pytest.mark.parametrize(("plugin", "key"), [("bridge", "bridge"), ("macvlan", "master")])
def test_our_ipam_under_other_plugins(shared_host: LabHost, shared_container: Container, plugin: str, key: str) -> None:
    """Not ``ptp``, which wants a subnet: it looks for a route that the kernel makes for none of our addresses."""
    before = whole_state(shared_host)
    shared_host.run(["ip", "link", "add", "br-cni", "type", "bridge"])
    whole = {"cniVersion": "1.0.0", "name": "net1", "type": plugin, "ipam": {"type": "calico-ipam"}, key: "br-cni"}
    try:
        result = shared_container.call("ADD", whole, program=plugin)
        (address,) = [each["address"] for each in result["ips"]]
        assert address.endswith("/32")
        assert address in shared_container.ip("-4", "address", "show", "eth0")
        assert shared_container.call("CHECK", {**whole, "prevResult": result}, program="calico-ipam") is None
        shared_container.call("DEL", {**whole, "prevResult": result}, program=plugin)
    finally:
        shared_host.run(["ip", "link", "delete", "br-cni"])
    assert_settles(shared_host, before)


def test_policy_on_the_interface_of_another_plugin(make_lab: MakeLab, leases: Path) -> None:
    lab = make_lab(1, environment={"FELIX_INTERFACEPREFIX": "veth"})
    host: LabHost = lab.hosts[0]
    before = whole_state(host)
    ipam = {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "dataDir": str(leases)}
    ours = {"type": "calico", "mode": "policy-only"}
    plugins = [{"type": "ptp", "ipam": {**ipam, "subnet": "10.78.0.0/24"}}, ours]
    others = [{"type": "ptp", "ipam": {**ipam, "subnet": "10.79.0.0/24"}}, ours]
    with containers(host, 2) as (first, second):
        result = chain(first, "ADD", plugins)
        assert result["interfaces"][0]["name"].startswith("veth")
        other = chain(second, "ADD", others, name="other")
        target = result["ips"][0]["address"].partition("/")[0]
        source = other["ips"][0]["address"].partition("/")[0]
        assert target != source
        assert not pings(second, target)
        host.calicoctl("profile", "net1", "rule", "add", "inbound", "allow", "from", "tag", "other")
        eventually(lambda: pings(second, target), every_s=0.1)
        chain(first, "CHECK", plugins[1:], prevResult=result)
        chain(first, "DEL", plugins, prevResult=result)
        chain(second, "DEL", others, name="other", prevResult=other)
    assert whole_state(host)["store"] == before["store"]


def test_an_interface_on_which_no_policy_would_be_in_force(
    shared_host: LabHost, shared_container: Container, leases: Path
) -> None:
    before = whole_state(shared_host)
    ipam = {"type": "host-local", "subnet": "10.78.0.0/24", "dataDir": str(leases)}
    ptp = {"cniVersion": "1.0.0", "name": "net1", "type": "ptp", "ipam": ipam}
    result = shared_container.call("ADD", ptp, program="ptp")
    error = shared_container.refused("ADD", a_network(prevResult=result))
    assert error["code"] == 7
    assert "prefix" in error["msg"]
    shared_container.call("DEL", a_network(prevResult=result))
    shared_container.call("DEL", ptp, program="ptp")
    assert_settles(shared_host, before)


def addresses_of(result: dict[str, Any]) -> list[str]:
    """Of both families."""
    v4, v6 = (str(each["address"]).partition("/")[0] for each in result["ips"])
    return [v4, v6]


def pings(container: Container, address: str) -> bool:
    argv = ["nsenter", f"--net={container.namespace}", "--", "ping", "-c", "1", "-W", "1", address]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("has_own_root", [False, True])
def test_a_plugin_that_only_the_caller_sees(
    shared_host: LabHost, shared_container: Container, leases: Path, tmp_path: Path, *, has_own_root: bool
) -> None:
    """As when the node runs in a container: it and its caller see different file systems. ``has_own_root``: the caller
    is not at the root of its namespace either."""
    before = whole_state(shared_host)
    hidden, root = tmp_path / "hidden", tmp_path / "root"
    hidden.mkdir()
    root.mkdir()
    configuration = with_host_local(leases)
    program = shared_host.cni_bin_directory / "calico"

    def call(command: str, **keys: Any) -> Any:
        seen = f"{root}{hidden}" if has_own_root else hidden
        steps = [f"mount --rbind / {root}"] if has_own_root else []
        steps += [f"mount -t tmpfs tmpfs {seen}", f"cp {REFERENCE}/host-local {seen}"]
        steps += [f"exec chroot {root} {program}" if has_own_root else f"exec {program}"]
        script = " && ".join(steps)
        done = subprocess.run(
            ["nsenter", f"--net={shared_host.namespace}", "unshare", "-m", "sh", "-c", script],
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": shared_container.id,
                "CNI_NETNS": str(shared_container.namespace),
                "CNI_IFNAME": "eth0",
                "CNI_PATH": f"relative:/does/not/exist:/etc:{hidden}",
                "PATH": os.environ["PATH"],
            },
            input=json.dumps({**configuration, **keys}).encode(),
            capture_output=True,
            check=False,
        )
        return json.loads(done.stdout) if done.stdout else None

    error = call("ADD", ipam={"type": "no-such-plugin"})
    assert (error["code"], "is not in CNI_PATH" in error["msg"]) == (104, True), error
    error = call("ADD", ipam={"type": "passwd"})  # a file, and not to be executed
    assert (error["code"], "is not in CNI_PATH" in error["msg"]) == (104, True), error
    result = call("ADD")
    assert result.get("ips") == [{"address": "10.77.0.2/32", "interface": 1}], result
    assert taken(leases) == ["10.77.0.2"]
    assert list(hidden.iterdir()) == [], "the node does not see it"
    assert call("CHECK", prevResult=result) is None
    assert call("DEL") is None
    assert taken(leases) == []
    assert_settles(shared_host, before)
