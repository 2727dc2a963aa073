"""The program as the agent runs it: against a socket that answers, breaks or is not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calico_core.interfaces.integration import Call, CallReply
from calico_core.node.socket_api import SocketServer
from calico_mesos import install as installer
from tests.doubles.mesos_agent import AgentFailure, MesosAgent

from .conftest import HOST, Setup

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="the node's socket answers root alone")
INFO = {"ip_addresses": [{"protocol": "IPv4"}], "groups": ["web"], "labels": {"labels": [{"key": "k", "value": "v"}]}}
VERSION = b'{"command":"version"}'


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A python that cannot be run makes a failed fall-back visible without a node's packages."""
    installer.install(tmp_path / "bin", socket=str(tmp_path / "node.sock"), python="/no/python")
    return tmp_path / "bin" / installer.PROGRAM


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[Call], CallReply | None]], None]]:
    servers = []

    def start(handler: Callable[[Call], CallReply | None]) -> None:
        server = SocketServer(str(tmp_path / "node.sock"), handler, workers=4)
        server.start()
        servers.append(server)

    yield start
    for server in servers:
        server.stop()


def run(program: Path, stdin: bytes) -> tuple[int, object]:
    done = subprocess.run([str(program)], input=stdin, capture_output=True, timeout=20, check=False)
    return done.returncode, json.loads(done.stdout)


@needs_root
def test_life_of_a_container(program: Path, serve: Callable[..., None], setup: Setup) -> None:
    serve(setup.integration.handle)
    agent = MesosAgent(str(program), hostname=HOST)
    addresses = agent.prepare("c1", [INFO])
    assert addresses == ("10.65.0.1",)
    agent.isolate("c1", 4321)
    (attached,) = setup.workloads.attached.values()
    assert attached.endpoint.profile_ids == (f"default_{HOST}", "web")
    assert attached.endpoint.labels == {"k": "v"}
    with pytest.raises(AgentFailure, match="already been configured"):
        agent.isolate("c1", 4321)
    agent.cleanup("c1")
    assert not setup.workloads.attached
    assert not setup.ipam.held
    assert [request["command"] for request in agent.requests] == [
        "allocate", "isolate", "isolate", "release", "cleanup",
    ]  # fmt: skip


@needs_root
def test_reserved_addresses_leak_when_the_allocation_fails(
    program: Path, serve: Callable[..., None], setup: Setup
) -> None:
    """As with the real module: this is what a reconciler has to find."""
    serve(setup.integration.handle)
    agent = MesosAgent(str(program), hostname=HOST)
    both = {"ip_addresses": [{"ip_address": "10.65.0.9"}, *({"protocol": "IPv4"} for _ in range(32))]}
    setup.ipam.pools = setup.ipam.pools[1:]
    with pytest.raises(AgentFailure, match="is in no Calico pool"):
        agent.prepare("c1", [both])
    setup.ipam.pools = Setup().ipam.pools
    both["ip_addresses"].append({"protocol": "IPv4"})
    with pytest.raises(AgentFailure, match="At most 32"):
        agent.prepare("c1", [both])
    agent.cleanup("c1")
    assert [str(address) for address in setup.ipam.held] == ["10.65.0.9"]


@needs_root
def test_restarted_agent_forgets(program: Path, serve: Callable[..., None], setup: Setup) -> None:
    serve(setup.integration.handle)
    agent = MesosAgent(str(program), hostname=HOST)
    agent.prepare("c1", [INFO])
    agent.isolate("c1", 4321)
    agent.restart()
    agent.cleanup("c1")
    assert len(setup.workloads.attached) == 1
    assert len(setup.ipam.held) == 1


@needs_root
def test_node_that_answers_nothing_on_standard_output(program: Path, serve: Callable[..., None]) -> None:
    serve(lambda call: CallReply(status=1, stderr=b'no "integration" takes it\n'))
    assert run(program, VERSION) == (1, {"error": "no ?integration? takes it"})


@needs_root
def test_node_that_says_in_process(program: Path, serve: Callable[..., None]) -> None:
    serve(lambda call: None)
    status, shape = run(program, VERSION)
    assert status == 1
    assert "/no/python cannot be run" in str(shape)


def test_no_node(program: Path) -> None:
    status, shape = run(program, VERSION)
    assert status == 1
    assert "The node does not answer at" in str(shape)


def test_in_process_gets_the_request(tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "[\\"$*\\", $(cat)]"\n')
    stand_in.chmod(0o755)
    installer.install(tmp_path / "bin", socket=str(tmp_path / "run" / "node.sock"), python=str(stand_in))
    arguments = f"-I -m calico_core.node.oneshot {tmp_path}/run calico-mesos"
    assert run(tmp_path / "bin" / installer.PROGRAM, VERSION) == (0, [arguments, {"command": "version"}])


@pytest.mark.parametrize("answer", [b"", b"R\0\0", b"?", b"R" + b"\0" * 8 + b"\0\0\0\x09part"])
def test_connection_that_breaks_after_the_request(program: Path, tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "node.sock"))
        listener.listen()

        def break_off() -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1 << 16).startswith(b"CAL1")
                connection.sendall(answer)

        thread = threading.Thread(target=break_off)
        thread.start()
        status, shape = run(program, VERSION)
        thread.join(10)
    assert status == 1
    assert str(shape).count("Whether it was served is not known") == 1


def test_request_that_is_too_long(program: Path) -> None:
    assert run(program, b" " * ((8 << 20) + 1)) == (1, {"error": "The request is longer than 8 MiB."})


def test_install_writes_once_and_uninstall_removes_its_own(tmp_path: Path) -> None:
    first = installer.install(tmp_path, python=sys.executable)
    assert [path.name for path in first] == ["calico_mesos", "modules.json.sample"]
    assert not installer.install(tmp_path, python=sys.executable)
    sample = json.loads((tmp_path / "modules.json.sample").read_text())
    (parameter, _) = sample["libraries"][0]["modules"][0]["parameters"]
    assert parameter == {"key": "isolator_command", "value": str(tmp_path / "calico_mesos")}
    assert installer.uninstall(tmp_path) == first
    assert not installer.uninstall(tmp_path)
    (tmp_path / "calico_mesos").write_text("somebody else's")
    assert not installer.uninstall(tmp_path)


def test_shim_loads_next_to_nothing(program: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-ISX", "importtime", str(program), "--help"], capture_output=True, check=True, timeout=20
    )
    loaded = {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()[1:]}
    assert not loaded & {"os", "site", "json", "socket", "struct", "re", "signal", "subprocess", "typing"}


@pytest.mark.parametrize(
    ("infos", "text"),
    [
        ([INFO, INFO], "multiple NetworkInfos"),
        ([{"protocol": "IPv4"}], "deprecated"),
        ([{"ip_addresses": [{"protocol": "IPv4", "ip_address": "10.0.0.1"}]}], "both"),
        ([{"ip_addresses": [{"protocol": "IPv6"}]}], "IPv6 is not supported"),
        ([{"groups": ["a"]}], "no address"),
    ],
)
def test_agent_refuses_without_asking(infos: list[dict[str, object]], text: str) -> None:
    agent = MesosAgent("/no/such/program")
    assert agent.prepare("c0", []) == ()
    with pytest.raises(AgentFailure, match=text):
        agent.prepare("c1", infos)
    assert not agent.requests
