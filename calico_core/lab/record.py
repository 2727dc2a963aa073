"""What ``lab.json`` holds: everything a laboratory made or is about to make, so that any process can remove it.

A thing is written down before it is made; a thing written down but never made is removed without a word.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from netaddr import IPAddress, IPNetwork

FabricKind = Literal["bridge", "router"]
RoutingDriver = Literal["bird", "none"]
#: ``planned``: written down, perhaps half made. ``up``: complete.
LabState = Literal["planned", "up"]


class FabricRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The namespace between the hosts. ``addresses`` are reachable from every host; services listen there."""

    kind: FabricKind
    namespace: str
    addresses: tuple[IPAddress, ...]


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A host: its namespace, its own addresses with their subnets, and the fabric's address in each of them.

    ``port`` is the link's name in the fabric.
    """

    name: str
    namespace: str
    port: str
    addresses: tuple[IPAddress, ...]
    subnets: tuple[IPNetwork, ...]
    gateways: tuple[IPAddress, ...]


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A process by pid and start time (clock ticks since boot, proc(5)): a recycled pid is somebody else's."""

    what: str
    host: str
    pid: int
    started: int


class WorkloadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A container: a namespace and, once attached, what the CNI result said."""

    number: int
    name: str
    host: str
    namespace: str
    container_id: str
    interface: str = "eth0"
    network: str = ""
    cni_args: dict[str, str] = {}
    addresses: tuple[IPAddress, ...] = ()


class LabRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The whole laboratory. ``datastore`` is the URL that its nodes and its calicoctl are given."""

    name: str
    state: LabState
    created: str
    datastore: str
    has_own_etcd: bool
    ipv6: bool
    routing: RoutingDriver
    fabric: FabricRecord
    hosts: tuple[HostRecord, ...]
    processes: tuple[ProcessRecord, ...] = ()
    workloads: tuple[WorkloadRecord, ...] = ()
    next_workload: int = 1

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Names of all of them, workloads first, the fabric last."""
        return (
            *(workload.namespace for workload in self.workloads),
            *(host.namespace for host in self.hosts),
            self.fabric.namespace,
        )
