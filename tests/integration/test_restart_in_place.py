"""``calicoctl node restart``: the process stays, its program and everything in it is new."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from calico_core.errors import ToolFailed
from calico_core.interfaces.integration import Call
from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from calico_core.node.socket_api import call_node

pytestmark = pytest.mark.needs_root


@pytest.fixture
def host() -> Iterator[LabHost]:
    with Laboratory.create(f"r{uuid.uuid4().hex[:8]}", 1, datastore="sqlite", routing="none") as made:
        yield made.hosts[0]


def wait_until(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sockets(host: LabHost) -> dict[str, int]:
    paths = (host.socket, *host.plugin_directory.iterdir())
    return {path.name: path.stat().st_ino for path in paths}


def descriptors(host: LabHost) -> int:
    return len(os.listdir(f"/proc/{host.node_pid}/fd"))  # noqa: PTH208 - as many names


def test_again_and_again_it_is_the_same_process_with_the_same_sockets(host: LabHost) -> None:
    host.start_node()
    pid, before = host.node_pid, sockets(host)
    assert set(before) == {"node.sock", "calico.sock", "calico-ipam.sock"}
    host.calicoctl("node", "restart")
    open_then = descriptors(host)
    for _ in range(10):
        assert "serves after" in host.calicoctl("node", "restart").stdout
    assert host.node_pid == pid
    assert sockets(host) == before
    assert descriptors(host) <= open_then + 4  # threads come and go
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
        wait_until(lambda: host.node_pid is None)
        assert not host.socket.exists()
        assert not list(host.plugin_directory.iterdir())


def test_nobody_to_start_anew_is_said(host: LabHost) -> None:
    with pytest.raises(ToolFailed, match="no node answers"):
        host.calicoctl("node", "restart")
