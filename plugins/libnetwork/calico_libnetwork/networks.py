"""CreateNetwork and DeleteNetwork: a Docker network is a profile, a record, and pools when the addresses are not ours.

All writes of a call are one transaction. Source: libnetwork specification 3.1, 3.2 and 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from netaddr import IPAddress, IPNetwork

from calico_core.errors import Conflict, InvalidRequest
from calico_core.interfaces.datastore import Compare, Delete, Operation, Precondition, Put, Records, absent
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.addresses import contains
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.ids import check_name
from calico_core.model.keys import (
    HOSTS,
    POOLS,
    Key,
    PoolKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
)
from calico_core.model.pools import Pool
from calico_core.model.rules import Rule, RuleLists
from calico_core.model.workloads import NewProfile
from calico_libnetwork.errors import Refused
from calico_libnetwork.host_address import is_dummy_gateway, parse_host_address
from calico_libnetwork.network_options import NetworkOptions, parse_options
from calico_libnetwork.network_record import NetworkKey, NetworkRecord, find_network, list_networks
from calico_libnetwork.wire import CreateNetwork, IpamData

IPIP_DEVICE = "tunl0"

_ATTEMPTS = 5
_DOCKER_ID = re.compile(r"[0-9a-f]{64}")

log = get_logger(__name__)


class _Blocks(NamedTuple):
    """What the engine says about addresses. ``pools`` without the ``/0`` that stands for "any"."""

    is_calico_ipam: bool
    pools: tuple[IPNetwork, ...]
    aux_addresses: tuple[IPAddress, ...]


class Networks:
    """Calls for one network must not overlap."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def create(self, request: CreateNetwork) -> NetworkRecord:
        """Repeating it leaves everything as it is, rules edited meanwhile included."""
        blocks = _blocks(request)
        options = parse_options(request.options, is_calico_ipam=blocks.is_calico_ipam)
        standing = find_network(self._records, request.network_id)
        if standing is not None:
            return standing
        for _attempt in range(_ATTEMPTS):
            record = self._try_create(request.network_id, blocks, options)
            if record is not None:
                log.info("libnetwork.network_created", network=request.network_id[:12], profile=record.profile)
                return record
        raise Conflict(NetworkKey(request.network_id).path, None)

    def delete(self, network_id: str) -> None:
        """Absent is fine. A record that was lost does not keep the profile that is named by the id."""
        record = find_network(self._records, network_id) or NetworkRecord(
            network_id=network_id, profile=network_id, is_profile_ours=bool(_DOCKER_ID.fullmatch(network_id))
        )
        endpoints = self._endpoints()
        operations: list[Operation] = [Delete(NetworkKey(network_id).path)]
        if record.is_profile_ours and not self._is_profile_used(record, endpoints):
            operations += [Delete(key.path) for key in _profile_keys(record.profile)]
        for pool in record.made_pools:
            if any(contains(pool, IPAddress(net.first, net.version)) for each in endpoints for net in each.nets):
                log.warning("libnetwork.pool_kept", pool=pool, network=network_id[:12], reason="endpoints use it")
                continue
            operations.append(Delete(PoolKey(pool).path))
        self._records.store.transact([], operations)
        log.info("libnetwork.network_deleted", network=network_id[:12], profile=record.profile)

    def _try_create(self, network_id: str, blocks: _Blocks, options: NetworkOptions) -> NetworkRecord | None:
        """None: somebody else wrote one of the keys meanwhile."""
        profile = network_profile(options.profile or check_name(network_id, field="NetworkID"))
        is_new_profile = all(self._records.store.get(key.path) is None for key in _profile_keys(profile.name))
        pools = () if blocks.is_calico_ipam else self._foreign_pools(blocks.pools, options)
        record = NetworkRecord(
            network_id=network_id,
            profile=profile.name,
            is_profile_ours=is_new_profile or self._is_made_by_another_network(profile.name),
            is_calico_ipam=blocks.is_calico_ipam,
            pools=blocks.pools,
            made_pools=tuple(pool.cidr for pool in pools),
            aux_addresses=blocks.aux_addresses,
            interface_prefix=options.interface_prefix,
            mtu_bytes=options.mtu_bytes,
            options=options.generic,
        )
        writes: list[tuple[Key, object]] = [(PoolKey(pool.cidr), pool) for pool in pools]
        if is_new_profile:
            writes += zip(_profile_keys(profile.name), (profile.rules, profile.tags, profile.labels), strict=True)
        preconditions: list[Precondition] = [absent(key.path) for key, _ in writes]
        operations: list[Operation] = [Put(key.path, codec.encode(value)) for key, value in writes]
        # a record of another version may stand at our key
        standing = self._records.store.get(NetworkKey(network_id).path)
        preconditions.append(Compare(NetworkKey(network_id).path, standing.mod_revision if standing else 0))
        operations.append(Put(NetworkKey(network_id).path, codec.encode(record)))
        return record if self._records.store.transact(preconditions, operations).committed else None

    def _foreign_pools(self, subnets: Sequence[IPNetwork], options: NetworkOptions) -> tuple[Pool, ...]:
        """Known to routing and masquerading, and never assigned from."""
        standing = [found.record for found in self._records.list(POOLS) if isinstance(found.record, Pool)]
        made = []
        for subnet in subnets:
            for pool in standing:
                if pool.cidr == subnet and not pool.ipam:
                    break
                if _overlap(pool.cidr, subnet):
                    advice = "use --ipam-driver calico-ipam, or another subnet"
                    raise Refused(f"The subnet {subnet} overlaps the Calico IP pool {pool.cidr}: {advice}.")
            else:
                ipip = options.is_ipip and subnet.version == 4
                made.append(
                    Pool(
                        cidr=subnet,
                        ipam=False,
                        masquerade=options.is_nat_outgoing,
                        ipip=IPIP_DEVICE if ipip else None,
                        ipip_mode="always" if ipip else "",
                    )
                )
        return tuple(made)

    def _is_made_by_another_network(self, profile: str) -> bool:
        return any(each.profile == profile and each.is_profile_ours for each in list_networks(self._records))

    def _is_profile_used(self, record: NetworkRecord, endpoints: Sequence[WorkloadEndpoint]) -> bool:
        return any(record.profile in each.profile_ids for each in endpoints) or any(
            each.profile == record.profile and each.network_id != record.network_id
            for each in list_networks(self._records)
        )

    def _endpoints(self) -> tuple[WorkloadEndpoint, ...]:
        found = (each.record for each in self._records.list(HOSTS))
        return tuple(record for record in found if isinstance(record, WorkloadEndpoint))


def network_profile(name: str) -> NewProfile:
    """Containers of one network talk to each other and may open connections to anywhere."""
    rules = RuleLists(
        id=name,
        inbound_rules=(Rule(action="allow", src_tag=name),),
        outbound_rules=(Rule(action="allow"),),
    )
    return NewProfile(name=name, tags=(name,), rules=rules)


def _profile_keys(name: str) -> tuple[Key, Key, Key]:
    return ProfileRulesKey(name), ProfileTagsKey(name), ProfileLabelsKey(name)


def _blocks(request: CreateNetwork) -> _Blocks:
    data = request.ipv4_data + request.ipv6_data
    for version, each in ((4, request.ipv4_data), (6, request.ipv6_data)):
        if len(each) > 1:
            raise Refused(f"Calico supports one IPv{version} subnet for each network, not {len(each)}.")
    if not data:
        raise InvalidRequest("IPv4Data", "is empty: a network needs a subnet or the IPAM of Calico")
    is_dummy = {_is_calico(each) for each in data}
    if len(is_dummy) > 1:
        raise Refused("Calico IPAM has to serve both address families of a network, or none.")
    return _Blocks(
        is_calico_ipam=is_dummy.pop(),
        pools=tuple(each.pool for each in data if each.pool is not None and each.pool.prefixlen > 0),
        aux_addresses=tuple(
            parse_host_address(text, field=f"AuxAddresses.{name}")[0]
            for each in data
            for name, text in each.aux_addresses.items()
        ),
    )


def _is_calico(data: IpamData) -> bool:
    if not data.gateway:
        raise InvalidRequest("Gateway", "is missing: every subnet needs one")
    if data.pool is None:
        raise InvalidRequest("Pool", "is missing: every gateway needs its subnet")
    parse_host_address(data.gateway, field="Gateway")
    return is_dummy_gateway(data.gateway)


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return bool(one.version == other.version and one.first <= other.last and other.first <= one.last)
