"""A node's workload service on a memory store, with the real address management and wiring kept in memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from calico_core.dataplane.memory import MemoryDataplane
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.keys import ReadyKey, WorkloadEndpointKey
from calico_core.model.rules import Rule, RuleLists
from calico_core.model.workloads import AddressRequest, Attach, Detach, NewProfile
from calico_core.workload.service import WorkloadService
from tests.doubles.ipam_store import add_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "rack-a"


class OpenGate:
    """An agent that has always programmed everything, and knows nothing of the datastore by heart. ``asked``: keys
    and revisions waited for."""

    def __init__(self) -> None:
        self.asked: list[tuple[WorkloadEndpointKey, int]] = []
        self.answer = True

    def wait_programmed(self, key: WorkloadEndpointKey, revision: int, timeout_s: float) -> bool:
        self.asked.append((key, revision))
        return self.answer

    def knows_ready(self) -> bool:
        return False

    def knows_profile(self, name: str) -> bool:
        return False


class Bench:
    """The service with everything it stands on in reach."""

    def __init__(self) -> None:
        self.store = MemoryDatastore()
        self.records = TypedRecords(self.store)
        self.ipam = BlockIpam(self.records, HOST)
        self.wiring = MemoryDataplane(DataplaneOptions(host=HOST)).wiring()
        self.gate = OpenGate()
        self.service = WorkloadService(
            records=self.records, ipam=self.ipam, wiring=self.wiring, gate=self.gate, host=HOST
        )
        self.records.put(ReadyKey(), "true")
        self.pool = add_pool(self.store, "10.65.0.0/24")
        self.namespace_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        self.service.close()
        os.close(self.namespace_fd)

    @property
    def revision(self) -> int:
        return self.store.list("/calico/").revision

    def contents(self, *, without: str = "/calico/ipam/v2/") -> dict[str, bytes]:
        """Everything but the blocks and affinities a host keeps."""
        return {
            entry.key: entry.value for entry in self.store.list("/calico/").entries if not entry.key.startswith(without)
        }

    def attach_request(self, container_id: str = "c1", **fields: object) -> Attach:
        values: dict[str, object] = {
            "key": endpoint_key(),
            "interface": f"cali{container_id}",
            "addresses": AddressRequest(handle=f"net.{container_id}", num_v4=1),
            "namespace_fd": self.namespace_fd,
            "namespace": f"/run/netns/{container_id}",
            "profiles": ("web",),
            "new_profiles": (a_profile("web"),),
            "container_id": container_id,
        }
        return Attach(**{**values, **fields})

    def detach_request(self, container_id: str = "c1", **fields: object) -> Detach:
        values: dict[str, object] = {
            "key": endpoint_key(),
            "interface": f"cali{container_id}",
            "handles": (f"net.{container_id}",),
            "container_id": container_id,
        }
        return Detach(**{**values, **fields})


def endpoint_key(endpoint: str = "e1") -> WorkloadEndpointKey:
    return WorkloadEndpointKey(HOST, "cni", "pod-1", endpoint)


def a_profile(name: str) -> NewProfile:
    return NewProfile(name=name, tags=(name,), rules=RuleLists(inbound_rules=(Rule(action="allow", src_tag=name),)))


def addresses(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(IPAddress(text) for text in texts)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def second_key() -> WorkloadEndpointKey:
    return endpoint_key("e2")
