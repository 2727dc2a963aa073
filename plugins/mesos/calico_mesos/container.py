"""A container on this host: its names, all computable from its id, and what we keep of it.

``isolate`` is told the addresses but not by which handle they are held; ``cleanup`` is told neither. So the first
leaves a note for the second. It is written last, and says thereby that the container was finished.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, NamedTuple

from netaddr import IPAddress

from calico_core.interfaces.datastore import Records
from calico_core.model import codec, ids
from calico_core.model.keys import Key, WorkloadEndpointKey
from calico_core.model.record import Record

ORCHESTRATOR = "mesos"
_INTERFACE_LENGTH = 15


class Holding(Record, frozen=True):
    """One address; ``handle`` None when nobody held it through Mesos, and cleanup has to leave it alone."""

    address: IPAddress
    handle: str | None = None


class ContainerRecord(Record, frozen=True):
    holdings: tuple[Holding, ...] = ()


class ContainerKey(Key, frozen=True):
    record_type: ClassVar[Any] = ContainerRecord
    host: str
    container_id: str

    @property
    def path(self) -> str:
        return f"{_containers(self.host)}{ids.escape(self.container_id)}"


def isolated_addresses(records: Records, host: str) -> dict[IPAddress, str]:
    """Of every container of the host, with whose it is. Raises ``InvalidRecord``."""
    found: dict[IPAddress, str] = {}
    prefix = _containers(host)
    for entry in records.store.list(prefix).entries:
        container_id = ids.unescape(entry.key.removeprefix(prefix))
        record: ContainerRecord = codec.decode(ContainerKey(host, container_id), entry.value)
        found |= {holding.address: f"container {container_id}" for holding in record.holdings}
    return found


def _containers(host: str) -> str:
    return f"/calico/mesos/v1/host/{host}/container/"


class Container(NamedTuple):
    """``interface`` is the host side."""

    key: WorkloadEndpointKey
    record_key: ContainerKey
    interface: str


def identify(host: str, container_id: str, *, prefix: str) -> Container:
    """``prefix``: of host interfaces."""
    digest = hashlib.sha1(container_id.encode(), usedforsecurity=False).hexdigest()
    return Container(
        key=WorkloadEndpointKey(host, ORCHESTRATOR, container_id, digest),
        record_key=ContainerKey(host, container_id),
        interface=f"{prefix}{digest}"[:_INTERFACE_LENGTH],
    )
