"""Networks that share an interface and one that does not, in any order of calls: a model knows what must stand.

The real workload service and address management on a memory store; interfaces are kept in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from calico_cni.integration import CniIntegration
from calico_core.dataplane.memory import MemoryDataplane
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.interfaces.integration import Call, CallReply, IntegrationContext
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.keys import BLOCKS, HOSTS, ReadyKey
from calico_core.settings import Settings
from calico_core.workload.gate import NoAgent
from calico_core.workload.service import WorkloadService
from tests.doubles.cni import a_network
from tests.doubles.ipam_store import add_pool, check_laws

HOST = "rack-a"
SHARING = ("a", "b", "c")
ALONE = "own"

Attachment = tuple[str, str, str]
"""Network, container, interface."""

attachments = st.tuples(
    st.sampled_from((*SHARING, ALONE)), st.sampled_from(("c1", "c2")), st.sampled_from(("eth0", "eth1"))
)
# a mode that an operator changed between ADD and DEL must not matter to the latter
calls = st.lists(st.tuples(st.sampled_from(("ADD", "ADD", "DEL")), attachments, st.booleans()), max_size=30)


class Host:
    """A node's parts, and what should be there."""

    def __init__(self) -> None:
        self.store = MemoryDatastore()
        self.records = TypedRecords(self.store)
        self.wiring = MemoryDataplane(DataplaneOptions(host=HOST)).wiring()
        self.ipam = BlockIpam(self.records, HOST)
        self.service = WorkloadService(
            records=self.records, ipam=self.ipam, wiring=self.wiring, gate=NoAgent(), host=HOST
        )
        self.records.put(ReadyKey(), "true")
        add_pool(self.store, "10.65.0.0/24")
        self.namespaces = {each: os.open("/proc/self/ns/uts", os.O_RDONLY) for each in ("c1", "c2")}
        self.integration = CniIntegration()
        self.integration.prepare(
            IntegrationContext(
                workloads=self.service,
                ipam=self.ipam,
                records=self.records,
                settings=Settings(state_directory="/dev/null/state"),
                host=HOST,
            )
        )
        self.model: set[Attachment] = set()

    def close(self) -> None:
        self.integration.close()
        self.service.close()
        for descriptor in self.namespaces.values():
            os.close(descriptor)

    def call(self, command: str, attachment: Attachment, *, mode: str) -> CallReply:
        network, container, interface = attachment
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}",
            "CNI_IFNAME": interface,
        }
        stdin = json.dumps(a_network(name=network, interface_mode=mode)).encode()
        return self.integration.handle(
            Call(program="calico", environment=environment, stdin=stdin, namespace_fd=self.namespaces[container])
        )

    def shared_by(self, container: str) -> set[Attachment]:
        return {each for each in self.model if each[1] == container and each[0] != ALONE}

    def is_refused(self, attachment: Attachment) -> bool:
        """The container's first interface is of the other kind."""
        network, container, interface = attachment
        if network == ALONE:
            return interface == "eth0" and bool(self.shared_by(container))
        return (ALONE, container, "eth0") in self.model

    def check(self) -> None:
        found = [each.record for each in self.records.list(f"{HOSTS}{HOST}/workload/")]
        shared = {record.container_id: record for record in found if record.attachments}
        alone = {(ALONE, record.container_id, record.ifname) for record in found if not record.attachments}
        assert alone == {each for each in self.model if each[0] == ALONE}
        in_use = 0
        for block in self.records.list(BLOCKS):
            in_use += sum(holder is not None for holder in block.record.allocations)
        assert in_use == len(found)
        assert {container for container in self.namespaces if self.shared_by(container)} == set(shared)
        for container, record in shared.items():
            wanted = self.shared_by(container)
            assert record.handle == f"{record.network}.{container}"
            assert {(each.network, container, each.ifname) for each in record.attachments} == wanted
            assert set(record.profile_ids) == {network for network, _, _ in wanted}
            assert self.ipam.by_handle(record.handle) == tuple(net.ip for net in record.nets)
        for record in found:
            assert self.wiring.exists(record.name)
        check_laws(self.store)


@contextmanager
def a_host() -> Iterator[Host]:
    host = Host()
    try:
        yield host
    finally:
        host.close()


@example(
    calls=[
        ("ADD", ("b", "c2", "eth1"), False),
        ("ADD", ("a", "c2", "eth0"), False),
        ("DEL", ("b", "c2", "eth1"), False),
    ]
)
@example(calls=[("ADD", (ALONE, "c2", "eth0"), False), ("DEL", (ALONE, "c2", "eth1"), True)])
@settings(max_examples=100, deadline=None)
@given(calls=calls)
def test_any_order_of_calls(calls: list[tuple[str, Attachment, bool]]) -> None:
    with a_host() as host:
        addresses: dict[str, Any] = {}
        for command, attachment, is_changed in calls:
            mode = "per-attachment" if attachment[0] == ALONE else "single"
            if command == "DEL":
                other = "single" if mode == "per-attachment" else "per-attachment"
                assert host.call("DEL", attachment, mode=other if is_changed else mode) == CallReply()
                host.model.discard(attachment)
            elif attachment not in host.model and host.is_refused(attachment):
                reply = host.call("ADD", attachment, mode=mode)
                assert json.loads(reply.stdout)["code"] == 106
            else:
                had = host.shared_by(attachment[1])
                reply = host.call("ADD", attachment, mode=mode)
                assert reply.status == 0, reply.stdout
                ips = json.loads(reply.stdout)["ips"]
                if attachment[0] != ALONE:
                    assert not had or ips == addresses[attachment[1]], "who joins gets what is there"
                    addresses[attachment[1]] = ips
                host.model.add(attachment)
            host.check()
        for attachment in sorted(host.model):
            host.call("DEL", attachment, mode="auto")
        host.model.clear()
        host.check()
