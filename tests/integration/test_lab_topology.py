"""Laboratories in the kernel: hosts reach each other, and nothing stays behind, whatever happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.errors import InvalidRequest, NamespaceGone, NotReady, ToolFailed
from calico_core.lab import fabric, processes
from calico_core.lab import host as host_module
from calico_core.lab.journal import ROOT
from calico_core.lab.probes import probe
from calico_core.lab.record import ProcessRecord
from calico_core.lab.topology import Laboratory
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root


def own_links() -> set[str]:
    """Of the machine's own namespace and of the kinds that a laboratory makes: a tunnel's module, which any other test
    may load, makes one of its own kind everywhere."""
    with RouteSocket() as route_socket:
        found = {link.name for link in route_socket.links() if link.kind in ("bridge", "veth")}
    return {name for name in found if not name.startswith("veth")}


def namespaces_of(name: str) -> list[str]:
    folder = Path("/run/netns")
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith(name)) if folder.exists() else []


def processes_of(name: str) -> list[str]:
    """Processes that speak of the laboratory in their command line (not this test run's own)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"/{name}" in line:
                found.append(f"{entry.name} {line}")
    return found


def assert_nothing_left(name: str) -> None:
    assert namespaces_of(name) == []
    assert processes_of(name) == []
    assert not (ROOT / name).exists()


@pytest.fixture
def name() -> Iterator[str]:
    """A name of its own for each test; whatever the test leaves is removed and fails it."""
    chosen = f"t{uuid.uuid4().hex[:8]}"
    before = own_links()
    yield chosen
    leftovers = namespaces_of(chosen), (ROOT / chosen).exists()
    if (ROOT / chosen).exists():
        Laboratory.load(chosen).down()
    assert leftovers == ([], False)
    assert own_links() == before


@pytest.mark.parametrize("kind_of_fabric", ["bridge", "router"])
def test_hosts_reach_each_other_and_the_fabric(name: str, kind_of_fabric: str) -> None:
    started = time.monotonic()
    with Laboratory.create(name, 3, fabric=kind_of_fabric, ipv6=True, routing="none") as lab:  # type: ignore[arg-type]
        assert time.monotonic() - started < 10
        first, second, third = lab.hosts
        for kind in ("tcp", "udp", "icmp"):
            for version in (4, 6):
                for target in (second, third, lab.fabric):
                    result = probe(first, target, kind, ip_version=version)  # type: ignore[arg-type]
                    assert result.is_reachable, (kind, version, target.name, result)
        status = lab.status()
        assert status.missing == ()
        assert [host.is_complete for host in status.hosts] == [True, True, True]
        assert [host.node_pid for host in status.hosts] == [None, None, None]
    assert_nothing_left(name)


def test_up_and_down_can_be_repeated(name: str) -> None:
    lab = Laboratory.create(name, 1)
    lab.up()
    identity = lab.hosts[0].namespace.stat().st_ino
    lab.up()
    assert lab.hosts[0].namespace.stat().st_ino == identity
    lab.down()
    lab.down()
    assert_nothing_left(name)
    with pytest.raises(InvalidRequest, match="there is no laboratory"):
        Laboratory.load(name)


def test_another_process_takes_it_down(name: str) -> None:
    lab = Laboratory.create(name, 2).up()
    lab.add_workload("host1")
    code = f"from calico_core.lab.topology import Laboratory; Laboratory.load({name!r}).down()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, env={**os.environ, "PYTHONPATH": _path()})
    assert_nothing_left(name)
    with pytest.raises(InvalidRequest):
        lab.status()


def test_a_namespace_of_somebody_else_is_neither_taken_nor_removed(name: str) -> None:
    netns.create_namespace(f"{name}-host1")
    try:
        with pytest.raises(InvalidRequest, match=f"{name}-host1 exists"):
            Laboratory.create(name, 1)
        assert namespaces_of(name) == [f"{name}-host1"]
        assert not (ROOT / name).exists()
    finally:
        netns.delete_namespace(f"{name}-host1")


def test_a_failure_half_way_takes_everything_down(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # so there is no etcd
    with pytest.raises((NotReady, ToolFailed), match="etcd"):
        Laboratory.create(name, 2, datastore="etcd").up()
    assert_nothing_left(name)


@pytest.mark.parametrize("after", [0, 1, 2, 4, 7, 10])
def test_a_crash_in_the_middle_of_up_is_cleaned_by_down(name: str, after: int) -> None:
    """The process is killed before its n-th namespace, link or route request; another one cleans up."""
    code = f"""
import os, signal
from calico_core.dataplane.linux import netlink, netns
from calico_core.lab.topology import Laboratory
left = [{after}]
def dying(function):
    def wrapped(*arguments, **keywords):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*arguments, **keywords)
    return wrapped
netns.create_namespace = dying(netns.create_namespace)
netlink.NetlinkSocket.execute = dying(netlink.NetlinkSocket.execute)
Laboratory.create({name!r}, 2).up()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=30, check=False, env={**os.environ, "PYTHONPATH": _path()}
    )
    assert done.returncode == -signal.SIGKILL
    lab = Laboratory.load(name)
    assert lab.status().state == "planned"
    lab.down()
    assert_nothing_left(name)


@pytest.mark.skipif(shutil.which("etcd") is None, reason="the etcd binary is not installed")
def test_a_crash_before_a_started_process_was_written_down(name: str) -> None:
    code = f"""
import os, signal
from calico_core.lab import processes
from calico_core.lab.topology import Laboratory
spawn = processes.spawn
def dying(*arguments, **keywords):
    spawn(*arguments, **keywords)
    os.kill(os.getpid(), signal.SIGKILL)
processes.spawn = dying
Laboratory.create({name!r}, 1, datastore="etcd").up()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=30, check=False, env={**os.environ, "PYTHONPATH": _path()}
    )
    assert done.returncode == -signal.SIGKILL
    lab = Laboratory.load(name)
    _wait_inside(lab.fabric.namespace)
    lab.down()
    assert_nothing_left(name)


def test_after_a_crash_up_starts_again(name: str) -> None:
    lab = Laboratory.create(name, 2)
    record = lab.record
    fabric.build(record.fabric, record.hosts[:1])  # the attempt that did not finish
    lab.up()
    assert probe(*lab.hosts).is_reachable
    lab.down()
    assert_nothing_left(name)


def test_down_ends_processes_it_never_heard_of_but_only_in_its_namespaces(name: str) -> None:
    lab = Laboratory.create(name, 1).up()
    host = lab.hosts[0]
    stray = processes.spawn(
        "stray",
        ("sleep", "300"),
        host="",
        namespace=host.namespace,
        environment=os.environ,
        log_file=lab.directory / "log",
    )
    outside = subprocess.Popen(["sleep", "300"])
    try:
        assert [each.pid for each in _wait_inside(host.namespace)] == [stray.pid]
        lab.down()
        assert not processes.is_running(stray)
        assert outside.poll() is None
    finally:
        outside.kill()
        outside.wait(10)
    assert_nothing_left(name)


def test_a_recorded_pid_that_now_belongs_to_somebody_else_is_left_alone(name: str) -> None:
    with Laboratory.create(name, 1) as lab:
        bystander = subprocess.Popen(["sleep", "300"])
        try:
            recycled = ProcessRecord(what="calico-node", host="host1", pid=bystander.pid, started=1)
            lab._journal.update(lambda now: msgspec.structs.replace(now, processes=(recycled,)))
            assert lab.hosts[0].node_pid is None
            assert lab.status().missing == (f"host1: calico-node (pid {bystander.pid})",)
            lab.down()
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait(10)


def test_a_process_that_ignores_sigterm_is_killed(name: str) -> None:
    with Laboratory.create(name, 1) as lab:
        log_file = lab.directory / "log"
        stubborn = processes.spawn(
            "stubborn",
            ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"),
            host="",
            namespace=lab.hosts[0].namespace,
            environment=os.environ,
            log_file=log_file,
        )
        eventually(lambda: "ready" in processes.tail(log_file))
        started = time.monotonic()
        processes.stop([stubborn], grace_s=0.2)
        assert 0.2 <= time.monotonic() - started < 10
        assert not processes.is_running(stubborn)


@pytest.mark.skipif(shutil.which("etcd") is None, reason="the etcd binary is not installed")
def test_etcd_answers_on_the_fabric(name: str) -> None:
    with Laboratory.create(name, 2, fabric="router", datastore="etcd") as lab:
        assert lab.record.datastore == "etcd3://172.31.255.1:2379"
        for host in lab.hosts:
            assert host.environment["CALICO_DATASTORE"] == lab.record.datastore
            assert probe(host, lab.fabric, "tcp", 2379, has_server=True).is_reachable
        done = lab.hosts[0].run(
            ["etcdctl", "--endpoints=http://172.31.255.1:2379", "put", "a", "b"], environment={"ETCDCTL_API": "3"}
        )
        assert done.stdout.strip() == "OK"
    assert_nothing_left(name)


def test_programs_of_a_host_see_its_network_and_settings_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS", "http://elsewhere:2379")
    monkeypatch.setenv("CALICO_LOG_LEVEL", "debug")
    with Laboratory.create(name, ["rack-a"], environment={"CALICO_MTU": "1400"}) as lab:
        host = lab.host("rack-a")
        assert "eth0" in host.run(["ls", "/proc/self/net/dev_snmp6"]).stdout
        environment = dict(line.partition("=")[::2] for line in host.run(["env"]).stdout.splitlines())
        assert "ETCD_ENDPOINTS" not in environment
        assert "CALICO_LOG_LEVEL" not in environment
        assert environment["CALICO_MTU"] == "1400"
        assert environment["NODENAME"] == "rack-a"
        assert environment["CALICO_SOCKET"] == str(host.socket)
        assert len(str(host.socket)) < 100
        with pytest.raises(ToolFailed) as caught:
            host.run(["sh", "-c", "echo why >&2; exit 3"])
        assert (caught.value.code, caught.value.stderr) == (3, "why\n")
        with pytest.raises(ToolFailed, match="no end after"):
            host.run(["sleep", "30"], timeout_s=0.2)
        with pytest.raises(InvalidRequest, match="not one of rack-a"):
            lab.host("rack-b")


def test_workloads_are_numbered_and_removed(name: str) -> None:
    with Laboratory.create(name, 1) as lab:
        first = lab.add_workload("host1")
        second = lab.add_workload(lab.hosts[0], "web")
        assert (first.name, second.name) == ("w-1", "web")
        assert "lo" in first.run(["cat", "/proc/self/net/dev"]).stdout
        with pytest.raises(InvalidRequest, match="exists already"):
            lab.add_workload("host1", "web")
        first.delete()
        first.delete()
        assert [each.name for each in lab.workloads] == ["web"]
        assert lab.add_workload("host1").name == "w-3"
        assert lab.workload("web").container_id == second.container_id
        with pytest.raises(InvalidRequest, match="no CNI plugin"):
            second.attach(network="net")
    assert_nothing_left(name)


def test_a_node_that_does_not_start_says_why_and_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Laboratory.create(name, 1) as lab:
        (node,) = lab.hosts
        broken = ("sh", "-c", "echo no such database; exit 7")
        monkeypatch.setattr(host_module, "executable", lambda _: broken)
        with pytest.raises(ToolFailed, match="no such database"):
            node.start_node()
        silent = ("sh", "-c", "echo still waiting; exec sleep 300")
        monkeypatch.setattr(host_module, "executable", lambda _: silent)
        with pytest.raises(NotReady, match="still waiting"):
            node.start_node(timeout_s=3)
        assert node.node_pid is None
        assert processes.inside([node.namespace]) == []


def test_a_node_is_found_stopped_and_killed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in program that does what the laboratory waits for: a socket, and the line."""
    program = (
        "import os, socket, time; s = socket.socket(socket.AF_UNIX); s.bind(os.environ['CALICO_SOCKET']);"
        "print('Calico node started successfully'); time.sleep(300)"
    )
    monkeypatch.setattr(host_module, "executable", lambda _: (sys.executable, "-c", program))
    with Laboratory.create(name, 1) as lab:
        (node,) = lab.hosts
        assert node.start_node() > 0
        pid = node.node_pid
        assert pid is not None
        assert node.start_node() == 0.0
        assert node.node_pid == pid
        status = Laboratory.load(name).status().hosts[0]
        assert (status.node_pid, status.is_node_ready) == (pid, True)
        node.kill_node()
        assert node.node_pid is None
        node.start_node()
        assert node.node_pid not in (None, pid)
        node.stop_node()
        node.stop_node()
        assert node.node_pid is None
        node.start_node()
        lab.down()
        with pytest.raises(InvalidRequest, match="no laboratory"):
            node.start_node()
    assert_nothing_left(name)


def test_a_namespace_that_went_is_named(name: str) -> None:
    lab = Laboratory.create(name, 1).up()
    host = lab.hosts[0]
    netns.delete_namespace(host.namespace.name)
    assert lab.status().missing == (host.namespace.name,)
    with pytest.raises(NamespaceGone, match=host.namespace.name):
        host.run(["true"])
    with pytest.raises(NamespaceGone):
        probe(host, lab.fabric)
    lab.down()
    assert_nothing_left(name)


def _wait_inside(namespace: Path) -> list[ProcessRecord]:
    eventually(lambda: processes.inside([namespace]))
    return processes.inside([namespace])


def _path() -> str:
    return os.pathsep.join(each for each in sys.path if each)
