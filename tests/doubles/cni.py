"""A CNI integration on doubles or on a node's service, and calls to it: no node, no kernel, no root."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from calico_cni.integration import CniIntegration
from calico_core.dataplane.memory import MemoryDataplane
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.interfaces.integration import Call, CallReply, IntegrationContext
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.keys import ReadyKey
from calico_core.settings import Settings
from calico_core.workload.gate import NoAgent
from calico_core.workload.service import WorkloadService
from tests.doubles.ipam import MemoryIpam
from tests.doubles.ipam_store import add_pool
from tests.doubles.workloads import MemoryWorkloads

HOST = "node1"
CONTAINER = "8f3c21d9a7"
NOWHERE = Path("/dev/null/state")
FIXTURES = Path(__file__).parents[1] / "fixtures" / "cni"


class CniCalls:
    """Calls to an integration. ``call`` runs a command with everything at a valid default."""

    def __init__(self, namespace_fd: int, context: IntegrationContext) -> None:
        self.namespace_fd = namespace_fd
        context.records.put(ReadyKey(), "true")
        self.prepare(context)

    def prepare(self, context: IntegrationContext) -> None:
        self.context = context
        self.integration = CniIntegration()
        self.integration.prepare(context)

    def call(
        self,
        command: str,
        configuration: dict[str, Any] | bytes | None = None,
        *,
        program: str = "calico",
        container: str = CONTAINER,
        interface: str = "eth0",
        namespace_fd: int | None = -1,
        caller_left: Callable[[], bool] = lambda: False,
        **environment: str,
    ) -> CallReply:
        stdin = configuration if isinstance(configuration, bytes) else json.dumps(configuration or a_network()).encode()
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": "/run/netns/c1",
            "CNI_IFNAME": interface,
            "CNI_PATH": "/opt/cni/bin",
            **environment,
        }
        return self.integration.handle(
            Call(
                program=program,
                environment=variables,
                stdin=stdin,
                namespace_fd=self.namespace_fd if namespace_fd == -1 else namespace_fd,
                caller_left=caller_left,
            )
        )


class CniSetup(CniCalls):
    """The integration on doubles. Without a ``state`` directory nothing can be put off."""

    def __init__(self, namespace_fd: int, *, is_resident: bool = True, state: Path = NOWHERE) -> None:
        self.ipam = MemoryIpam()
        self.records = TypedRecords(MemoryDatastore())
        self.workloads = MemoryWorkloads(self.ipam, self.records)
        context = IntegrationContext(
            workloads=self.workloads,
            ipam=self.ipam,
            records=self.records,
            settings=Settings(state_directory=str(state)),
            host=HOST,
            is_resident=is_resident,
        )
        super().__init__(namespace_fd, context)


class CniOnService(CniCalls):
    """The integration on a node's workload service and address management. Datastore and interfaces are in memory."""

    def __init__(self, namespace_fd: int, state: Path, **settings: Any) -> None:
        self.store = MemoryDatastore()
        self.records = TypedRecords(self.store)
        self.ipam = BlockIpam(self.records, HOST)
        self.wiring = MemoryDataplane(DataplaneOptions(host=HOST)).wiring()
        self.service = WorkloadService(
            records=self.records, ipam=self.ipam, wiring=self.wiring, gate=NoAgent(), host=HOST
        )
        context = IntegrationContext(
            workloads=self.service,
            ipam=self.ipam,
            records=self.records,
            settings=Settings(state_directory=str(state), **settings),
            host=HOST,
        )
        super().__init__(namespace_fd, context)
        add_pool(self.store, "10.65.0.0/24")

    def restart(self, **settings: Any) -> None:
        """As with other settings."""
        self.integration.close()
        changed = msgspec.structs.replace(self.context.settings, **settings)
        self.prepare(msgspec.structs.replace(self.context, settings=changed))

    def close(self) -> None:
        self.integration.close()
        self.service.close()

    def left(self) -> list[str]:
        """Paths of endpoints and handles."""
        paths = [entry.key for entry in self.store.list("/calico/").entries]
        return [path for path in paths if "/workload/" in path or "/handle/" in path]


def a_network(**changes: Any) -> dict[str, Any]:
    """A minimal configuration; a change to None removes the key."""
    whole = {"cniVersion": "1.0.0", "name": "net1", "type": "calico", "ipam": {"type": "calico-ipam"}, **changes}
    return {key: value for key, value in whole.items() if value is not None}


def stdout_of(reply: CallReply) -> Any:
    """The reply's object, after checking that it is a success."""
    assert reply.status == 0, reply.stdout
    return json.loads(reply.stdout)


def error_of(reply: CallReply) -> Any:
    assert reply.status == 1
    shape = json.loads(reply.stdout)
    assert isinstance(shape["code"], int)
    assert shape["msg"]
    return shape
