"""``calicoctl node`` and ``status``: with a node that answers, and without one."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.integration import Call, CallReply
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hosts import NodeStatus
from calico_core.model.keys import NodeStatusKey, WorkloadEndpointKey
from calico_core.node import startup
from calico_core.node.socket_api import SocketServer
from calico_core.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl

needs_root_socket = pytest.mark.skipif(os.geteuid() != 0, reason="the socket speaks to root only")


class Answers:
    """What a running node would say; ``reply`` may be changed."""

    def __init__(self) -> None:
        self.status: dict[str, object] = {
            "host": "rack-a",
            "version": "1.2.3",
            "pid": os.getpid(),
            "started": 0.0,
            "datastore": "sqlite:///x",
            "dataplane": "nftables",
            "is_in_sync": True,
            "endpoints": {"/e/1": {"status": "up", "reason": ""}, "/e/2": {"status": "error", "reason": "no set"}},
            "bad_records": ["/bad"],
            "last_error": "",
            "routing": {
                "driver": "bird",
                "is_running": True,
                "last_error": "",
                "peers": [{"ip": "192.0.2.2", "origin": "mesh", "state": "Established", "since": "12:00", "info": ""}],
            },
            "integrations": {"cni": "ready"},
        }
        times = {"container": "c1", "network": "blue", "began": 0.0}
        self.slow: dict[str, object] = {
            "attaches": 3,
            "slowest": [
                {
                    **times,
                    "endpoint": "/calico/v1/host/rack-a/workload/cni/c1/endpoint/e1",
                    "ms": 30.5,
                    "steps": [["lock_ms", 0.5], ["record_ms", 20.0]],
                    "error": "the datastore is away",
                },
                {
                    **times,
                    "endpoint": "/calico/v1/host/rack-a/workload/cni/c2/endpoint/e1",
                    "ms": 8.0,
                    "steps": [["record_ms", 2.0], ["policy_ms", 5.0]],
                    "error": "",
                },
            ],
        }

    def __call__(self, call: Call) -> CallReply:
        assert call.program == "node"
        answers = {b"status": self.status, b"slow": self.slow}
        return CallReply(stdout=json.dumps(answers[call.stdin]).encode())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Answers]:
    answers = Answers()
    server = SocketServer(str(tmp_path / "run" / "node.sock"), answers)
    server.start()
    yield answers
    server.stop()


@pytest.mark.parametrize("command", [("status",), ("node", "status")])
def test_status_without_a_node_is_1(bare: Calicoctl, command: tuple[str, ...]) -> None:
    done = bare(*command)
    assert done.code == 1
    assert "not running" in done.out
    assert "node.sock" in done.err


@needs_root_socket
def test_status_of_a_node(bare: Calicoctl, node: Answers) -> None:
    text = bare.ok("status")
    for part in ("rack-a", "in sync", "1 error", "no set", "cni: ready", "/bad", "192.0.2.2", "Established"):
        assert part in text
    assert bare("status", "-o", "json").json == node.status


@needs_root_socket
def test_status_of_a_node_that_is_not_in_sync_is_1(bare: Calicoctl, node: Answers) -> None:
    node.status["is_in_sync"] = False
    done = bare("status")
    assert done.code == 1
    assert "not in sync" in done.out


def test_stopping_when_none_runs(calicoctl: Calicoctl) -> None:
    assert calicoctl.ok("node", "stop") == "No node runs on this host.\n"


@needs_root_socket
def test_stopping_with_endpoints_is_5(calicoctl: Calicoctl, records: TypedRecords, node: Answers) -> None:
    record = WorkloadEndpoint(state="active", name="cali1", ipv4_nets=(IPNetwork("10.65.0.1/32"),))
    records.put(WorkloadEndpointKey("rack-a", "cni", "pod", "e1"), record)
    with subprocess.Popen(["calico-node", "60"], executable="/bin/sleep") as process:
        node.status["pid"] = process.pid
        done = calicoctl("node", "stop")
        still_runs = process.poll() is None
        process.kill()
    assert still_runs
    assert done.code == 5
    assert "e1" in done.err
    assert "--force" in done.err


@needs_root_socket
def test_the_pid_of_another_namespace_is_never_signalled(calicoctl: Calicoctl, node: Answers) -> None:
    with subprocess.Popen(["somebody-else", "60"], executable="/bin/sleep") as process:
        node.status["pid"] = process.pid
        done = calicoctl("node", "stop", "--force")
        still_runs = process.poll() is None
        process.kill()
    assert still_runs
    assert done.code == 5
    assert "container" in done.err


def test_hosts_of_the_datastore(calicoctl: Calicoctl, records: TypedRecords) -> None:
    for number, (host, as_number) in enumerate((("rack-a", "64512"), ("rack-b", ""), ("rack-c", "")), 1):
        startup.claim_host(
            records,
            host=host,
            ipv4=IPAddress(f"192.0.2.{number}"),
            ipv6=None,
            settings=load_settings({"AS": as_number}),
        )
    records.put(NodeStatusKey("rack-a"), NodeStatus(version="1", started=0.0, state="running"))
    records.put(NodeStatusKey("rack-b"), NodeStatus(version="1", started=0.0, state="stopped"))
    rows = calicoctl("node", "show", "-o", "json").json
    assert [(row["host"], row["ipv4"], row["as_number"], row["alive"]) for row in rows] == [
        ("rack-a", "192.0.2.1", "64512", True),
        ("rack-b", "192.0.2.2", "(inherited)", False),
        ("rack-c", "192.0.2.3", "(inherited)", False),
    ]
    assert "| rack-a " in calicoctl.ok("node", "show")


# --- node slow -----------------------------------------------------------------------------------------------


@needs_root_socket
def test_the_slowest_attaches_and_what_they_spent_their_time_on(bare: Calicoctl, node: Answers) -> None:
    lines = bare.ok("node", "slow").splitlines()
    text = "\n".join(lines)
    for part in (
        "1970-01-01T00:00:00Z",
        "cni/c1/endpoint/e1",
        "30.5",
        "record=20.0",
        "policy=5.0",
        "datastore is away",
    ):
        assert part in text
    assert "(failed in)=10.0" in text, "the step that it did not live to end"
    assert text.index("cni/c1/") < text.index("cni/c2/")
    first = json.loads(bare.ok("-o", "json", "node", "slow", "--count", "1"))
    assert [each["ms"] for each in first] == [30.5]
    assert first[0]["steps"]["lock"] == 0.5


@needs_root_socket
def test_slow_without_a_node(bare: Calicoctl) -> None:
    done = bare("node", "slow")
    assert done.code != 0
    assert "node.sock" in done.err
