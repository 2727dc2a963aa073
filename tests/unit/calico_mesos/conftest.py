"""A Mesos integration on doubles: no node, no kernel, no root."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.integration import Call, CallReply, IntegrationContext
from calico_core.model.keys import HostIpKey
from calico_core.settings import Settings
from calico_mesos.commands import Commands
from calico_mesos.errors import Refused
from calico_mesos.integration import MesosIntegration
from tests.doubles.ipam import MemoryIpam
from tests.doubles.workloads import MemoryWorkloads

HOST = "node1"
HOST_ADDRESS = "172.16.0.1"
CONTAINER = "c0ffee00-1234-4321-aaaa-000000000001"
UID = "0b5e7f34-8b0b-4a9c-9d5e-1b1f1c3f0001"
DEAD_PID = 999_999


class Setup:
    """The integration and what it stands on. Every process but :data:`DEAD_PID` has the namespace 77."""

    def __init__(self, *, is_strict: bool = False) -> None:
        self.ipam = MemoryIpam()
        self.records = TypedRecords(MemoryDatastore())
        self.records.put(HostIpKey(HOST), HOST_ADDRESS)
        self.workloads = MemoryWorkloads(self.ipam, self.records)
        self.settings = Settings(mesos_strict=is_strict)
        self.context = IntegrationContext(
            workloads=self.workloads, ipam=self.ipam, records=self.records, settings=self.settings, host=HOST
        )
        self.integration = MesosIntegration()
        self.integration.prepare(self.context)
        self.integration._commands = Commands(self.context, open_namespace=_namespace)

    def send(self, stdin: bytes) -> tuple[CallReply, Any]:
        reply = self.integration.handle(Call(program="calico-mesos", environment={}, stdin=stdin))
        assert len(reply.stdout) < 40_960
        return reply, json.loads(reply.stdout)

    def ask(self, command: str, **arguments: Any) -> Any:
        """The reply of a command that succeeds."""
        reply, shape = self.send(json.dumps({"command": command, "args": arguments}).encode())
        assert shape.pop("error", "absent") is None, shape
        assert reply.status == 0
        return shape

    def refused(self, command: str, **arguments: Any) -> str:
        """The text of a command that fails."""
        reply, shape = self.send(json.dumps({"command": command, "args": arguments}).encode())
        assert reply.status == 1
        assert set(shape) == {"error"}
        return str(shape["error"])

    def isolate(self, **changes: Any) -> Any:
        return self.ask("isolate", **an_isolate(**changes))


@contextlib.contextmanager
def _namespace(pid: int) -> Iterator[int]:
    if pid == DEAD_PID:
        raise Refused(f"Process {pid} has no network namespace: No such file or directory.")
    yield 77


def an_isolate(**changes: Any) -> dict[str, Any]:
    whole = {"hostname": HOST, "container_id": CONTAINER, "pid": 4321, "ipv4_addrs": ["10.65.0.9"], **changes}
    return {key: value for key, value in whole.items() if value is not None}


@pytest.fixture
def setup() -> Setup:
    return Setup()
