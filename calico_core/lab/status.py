"""What is there of a laboratory, and what should be and is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from netaddr import IPAddress

from calico_core.dataplane.linux import netns
from calico_core.lab import fabric as links
from calico_core.lab import processes
from calico_core.lab.host import LabHost
from calico_core.lab.record import LabRecord


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``node_pid`` None: no node runs. ``is_complete``: namespace and link are there."""

    name: str
    addresses: tuple[IPAddress, ...]
    namespace: str
    is_complete: bool
    node_pid: int | None
    is_node_ready: bool


class WorkloadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``network`` is empty when it is not attached."""

    name: str
    host: str
    namespace: str
    network: str
    addresses: tuple[IPAddress, ...]


class LabStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What ``calicoctl lab status`` shows. ``missing`` names what should be there and is not."""

    name: str
    state: str
    created: str
    directory: str
    fabric: str
    datastore: str
    routing: str
    hosts: tuple[HostStatus, ...]
    workloads: tuple[WorkloadStatus, ...]
    processes: tuple[str, ...]
    missing: tuple[str, ...]


def look(record: LabRecord, directory: Path, hosts: Sequence[LabHost]) -> LabStatus:
    """Compare the record with the kernel."""
    missing = [name for name in record.namespaces if not (netns.NAMED / name).exists()]
    found = tuple(map(_look_at_host, hosts))
    missing += [
        f"{each.name}: {links.UPLINK}" for each in found if not each.is_complete and each.namespace not in missing
    ]
    running = [each for each in record.processes if processes.is_running(each)]
    missing += [f"{each.host}: {each.what} (pid {each.pid})" for each in record.processes if each not in running]
    return LabStatus(
        name=record.name,
        state=record.state,
        created=record.created,
        directory=str(directory),
        fabric=record.fabric.kind,
        datastore=record.datastore,
        routing=record.routing,
        hosts=found,
        workloads=tuple(
            WorkloadStatus(
                name=each.name,
                host=each.host,
                namespace=each.namespace,
                network=each.network,
                addresses=each.addresses,
            )
            for each in record.workloads
        ),
        processes=tuple(f"{each.host}: {each.what} (pid {each.pid})" for each in running),
        missing=tuple(missing),
    )


def _look_at_host(host: LabHost) -> HostStatus:
    pid = host.node_pid
    return HostStatus(
        name=host.name,
        addresses=host.addresses,
        namespace=host.namespace.name,
        is_complete=host.namespace.exists() and host.has_uplink,
        node_pid=pid,
        is_node_ready=pid is not None and host.is_node_ready,
    )
