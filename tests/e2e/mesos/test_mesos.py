"""A Mesos agent's network module, played by a double, against a real node. Source: mesos specification 3, 11, 12."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe
from calico_core.lab.station import PlainStation
from calico_mesos import install as installer
from tests.doubles.mesos_agent import AgentFailure, MesosAgent
from tests.e2e.observing import MakeLab, kernel_state, workload_keys
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root

ALLOWED_S, DENIED_S = 5.0, 0.5


class Containers:
    """Processes in network namespaces of their own, attached through the agent."""

    def __init__(self, agent: MesosAgent) -> None:
        self.agent = agent
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *groups: str, addresses: tuple[str, ...] = ()) -> PlainStation:
        """Everything the agent does for a container, up to the moment its task may run."""
        wanted: list[dict[str, str]] = [{"ip_address": each} for each in addresses] or [{"protocol": "IPv4"}]
        info: dict[str, Any] = {"ip_addresses": wanted, "groups": list(groups)}
        found = self.agent.prepare(name, [info])
        process = self.make_namespace(name)
        self.agent.isolate(name, process.pid)
        return PlainStation(
            name=name,
            namespace=Path(f"/proc/{process.pid}/ns/net"),
            addresses=tuple(IPAddress(each) for each in found),
        )

    def make_namespace(self, name: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["unshare", "-n", "sleep", "600"])
        self._processes[name] = process
        deadline = time.monotonic() + 10
        while Path(f"/proc/{process.pid}/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return process

    def end(self, name: str) -> None:
        """The task's end, and the agent's cleaning up."""
        self.kill(name)
        self.agent.cleanup(name)

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def close(self) -> None:
        for name in list(self._processes):
            with contextlib.suppress(AgentFailure):
                self.end(name)


@pytest.fixture
def host(make_lab: MakeLab) -> LabHost:
    return make_lab(1).hosts[0]


@pytest.fixture
def containers(host: LabHost) -> Iterator[Containers]:
    installer.install(host.directory / "mesos", socket=str(host.socket))
    program = host.directory / "mesos" / installer.PROGRAM
    command = f"nsenter --net={host.namespace} -- {program}"  # an agent lives in its host's namespace
    running = Containers(MesosAgent(command, hostname="agent-1", environment=host.environment))
    yield running
    running.close()


def reaches(source: Any, target: Any, within_s: float = ALLOWED_S) -> bool:
    return probe(source, target, timeout_s=within_s).is_reachable


def test_netgroups_decide_who_talks_and_nothing_is_left(host: LabHost, containers: Containers) -> None:
    before = kernel_state(host)
    a, b = containers.start("a", "star-1"), containers.start("b", "star-1")
    c, d = containers.start("c", "star-2"), containers.start("d", "star-2")
    p = containers.start("p", "public")
    for source, target, is_allowed in (
        (a, b, True), (b, a, True), (c, d, True), (d, c, True),
        (a, c, False), (d, b, False), (c, a, False),
        (a, p, True), (d, p, True), (p, a, False),
        (host, a, True), (host, p, True), (a, host, True), (p, host, True),
    ):  # fmt: skip
        within_s = ALLOWED_S if is_allowed else DENIED_S
        assert reaches(source, target, within_s) is is_allowed, (source.name, target.name)
    for name in "abcdp":
        containers.end(name)
    assert workload_keys(host) == []
    assert kernel_state(host) == before


def test_reserved_address_routes_and_record(host: LabHost, containers: Containers) -> None:
    container = containers.start("a", "star-1", addresses=("192.168.77.5",))
    routes = subprocess.run(
        ["nsenter", f"--net={container.namespace}", "ip", "route"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [route.split(" proto")[0].strip() for route in routes] == [
        "default via 169.254.1.1 dev eth0",
        "169.254.1.1 dev eth0 scope link",
    ]
    assert containers.agent.requests[0]["command"] == "reserve"
    with pytest.raises(AgentFailure, match=r"IP '192\.168\.77\.5' already in use\."):
        containers.start("b", addresses=("192.168.77.5",))
    (endpoint,) = json.loads(host.calicoctl("endpoint", "show", "-o", "json").stdout)
    assert endpoint["orchestrator"] == "mesos"
    containers.end("a")
    assert workload_keys(host) == []


def test_process_that_is_gone_leaves_nothing(host: LabHost, containers: Containers) -> None:
    before = kernel_state(host)
    agent = containers.agent
    agent.prepare("a", [{"ip_addresses": [{"protocol": "IPv4"}]}])
    dead = containers.make_namespace("a")
    containers.kill("a")
    with pytest.raises(AgentFailure, match=f"Process {dead.pid} has no network namespace"):
        agent.isolate("a", dead.pid)
    with pytest.raises(AgentFailure, match="in the host's own network namespace"):
        agent.isolate("a", host.node_pid or 0)
    agent.cleanup("a")
    assert workload_keys(host) == []
    assert kernel_state(host) == before


def test_twenty_at_once(host: LabHost, containers: Containers) -> None:
    """One new netgroup, made once; unique addresses; nothing left."""
    names = [f"c{number}" for number in range(20)]
    with ThreadPoolExecutor(10) as pool:
        stations = list(pool.map(lambda name: containers.start(name, "crowd"), names))
        assert len({station.addresses for station in stations}) == 20
        assert reaches(stations[0], stations[-1])
        list(pool.map(containers.end, names))
    assert workload_keys(host) == []


def test_node_that_is_down_is_done_without(host: LabHost, containers: Containers) -> None:
    """The same program serves the request itself, and the endpoint opens when the node is back."""
    first = containers.start("a", "star-1")
    host.stop_node()
    second = containers.start("b", "star-1")
    host.start_node()
    eventually(lambda: reaches(first, second, DENIED_S))
    host.stop_node()
    containers.end("a")
    containers.end("b")
    host.start_node()
    assert workload_keys(host) == []


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ('{"command":"cleanup","args":{"hostname":"h","container_id":"c"}}', "Failed to communicate with etcd at"),
        ("nonsense", "JSON is malformed"),
    ],
)
def test_neither_node_nor_datastore(tmp_path: Path, request_: str, text: str) -> None:
    """One JSON object all the same, within the time that the agent can stand still."""
    installer.install(tmp_path / "bin", socket=str(tmp_path / "run" / "node.sock"))
    done = subprocess.run(
        ["unshare", "-n", str(tmp_path / "bin" / installer.PROGRAM)],
        env={
            "PATH": os.environ["PATH"],
            "NODENAME": "h",
            "CALICO_DATASTORE": "etcd3://127.0.0.1:1",
            "CALICO_RUN_DIRECTORY": str(tmp_path / "run"),
            "CALICO_STATE_DIRECTORY": str(tmp_path / "state"),
        },
        input=request_,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"].startswith(text)
