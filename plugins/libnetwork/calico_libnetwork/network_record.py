"""What we keep of a Docker network. The engine sends it once, at creation."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidRecord
from calico_core.interfaces.datastore import Records
from calico_core.log import get_logger
from calico_core.model import codec, ids
from calico_core.model.keys import Key
from calico_core.model.record import Record

NETWORKS = "/calico/libnetwork/v1/"

log = get_logger(__name__)


class NetworkRecord(Record, frozen=True):
    """``pools``: subnets the user named, none when any pool will do. ``made_pools``: those that exist for this network
    alone. ``is_profile_ours``: we made the profile and may delete it. ``is_calico_ipam`` False: the engine, or another
    plugin, hands out addresses."""

    network_id: str = ""
    profile: str = ""
    is_profile_ours: bool = False
    is_calico_ipam: bool = True
    pools: tuple[IPNetwork, ...] = ()
    made_pools: tuple[IPNetwork, ...] = ()
    aux_addresses: tuple[IPAddress, ...] = ()
    interface_prefix: str = ""
    mtu_bytes: int = 0
    options: dict[str, str] = msgspec.field(default_factory=dict)


class NetworkKey(Key, frozen=True):
    record_type: ClassVar[Any] = NetworkRecord
    network_id: str

    @property
    def path(self) -> str:
        return f"{NETWORKS}{ids.escape(self.network_id)}"


def find_network(records: Records, network_id: str) -> NetworkRecord | None:
    """None as well for what another version left there."""
    found = records.get(NetworkKey(network_id))
    record: NetworkRecord | None = found.record if found is not None else None
    return record if record is not None and record.network_id == network_id else None


def list_networks(records: Records) -> tuple[NetworkRecord, ...]:
    """Of all hosts. One that does not decode is left out, and named in the log."""
    networks = []
    for entry in records.store.list(NETWORKS).entries:
        key = NetworkKey(ids.unescape(entry.key.removeprefix(NETWORKS)))
        try:
            record: NetworkRecord = codec.decode(key, entry.value)
        except InvalidRecord as error:
            log.warning("libnetwork.record_invalid", key=error.key, reason=error.reason)
            continue
        if record.network_id:
            networks.append(record)
    return tuple(networks)
