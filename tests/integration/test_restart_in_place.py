"""``calicoctl node restart``: the process stays, its program and everything in it is new."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from calico_core.errors import ToolFailed
from calico_core.interfaces.integration import Call
from calico_core.lab.host import READY_LINE, LabHost, executable
from calico_core.lab.topology import Laboratory
from calico_core.node.socket_api import call_node
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root


@pytest.fixture
def host() -> Iterator[LabHost]:
    with Laboratory.create(f"r{uuid.uuid4().hex[:8]}", 1, datastore="sqlite", routing="none") as made:
        yield made.hosts[0]


def sockets(host: LabHost) -> dict[str, int]:
    paths = (host.socket, *host.plugin_directory.iterdir())
    return {path.name: path.stat().st_ino for path in paths}


def open_sockets(host: LabHost) -> set[str]:
    """And pipes, by what makes each one unique."""
    found = set()
    for entry in Path(f"/proc/{host.node_pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.add(str(entry.readlink()))
    return {each for each in found if each.startswith(("socket:", "pipe:"))}


def test_again_and_again_it_is_the_same_process_with_the_same_sockets(host: LabHost) -> None:
    host.start_node()
    pid, before = host.node_pid, sockets(host)
    assert set(before) == {"node.sock", "calico.sock", "calico-ipam.sock"}
    opened = open_sockets(host)
    for _ in range(10):
        assert "serves after" in host.calicoctl("node", "restart").stdout
        now = open_sockets(host)
        assert len(now & opened) == len(before), "nothing but the listening ones is inherited"
        opened = now
    assert host.node_pid == pid
    assert sockets(host) == before
    host.stop_node()
    assert not host.socket.exists()
    assert not list(host.plugin_directory.iterdir())


def test_a_stop_in_the_middle_ends_it(host: LabHost) -> None:
    """Whichever program has it by then."""
    for _ in range(3):
        host.start_node()
        assert host.node_pid is not None
        reply = call_node(str(host.socket), Call(program="node", environment={}, stdin=b"restart"))
        assert reply is not None
        assert reply.status == 0
        os.kill(host.node_pid, signal.SIGTERM)
        eventually(lambda: host.node_pid is None, within_s=30)
        assert not host.socket.exists()
        assert not list(host.plugin_directory.iterdir())


@pytest.mark.skipif(shutil.which("bird") is None, reason="BIRD is not installed")
def test_the_first_process_of_a_container_keeps_its_routing_daemon() -> None:
    """And takes it along when it ends."""
    with Laboratory.create(f"r{uuid.uuid4().hex[:8]}", 1, datastore="sqlite", routing="bird") as lab:
        host = lab.hosts[0]
        container = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *executable("calico-node"), "run")
        with host.node_log.open("w") as log:
            outside = subprocess.Popen(
                ["nsenter", f"--net={host.namespace}", "--", *container], env=host.environment, stdout=log, stderr=log
            )
        try:
            eventually(lambda: READY_LINE in host.node_log.read_text(), within_s=30)
            (first,) = children(outside.pid)
            eventually(lambda: len(children(first)) == 1, within_s=30)  # begun with when the datastore is believed
            daemons = children(first)
            for _ in range(3):
                host.calicoctl("node", "restart")
            assert children(first) == daemons
            os.kill(first, signal.SIGTERM)
            assert outside.wait(30) == 0
            assert "bird.stopped" in host.node_log.read_text()
        finally:
            outside.kill()
            outside.wait()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_nobody_to_start_anew_is_said(host: LabHost) -> None:
    with pytest.raises(ToolFailed, match="no node answers"):
        host.calicoctl("node", "restart")
