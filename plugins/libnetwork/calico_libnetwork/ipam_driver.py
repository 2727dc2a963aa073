"""The calls of ``IpamDriver``. Source: libnetwork specification 4.

The engine names neither network nor endpoint here. Every address gets a handle of its own, which tells the time it was
assigned; attributes tell by whom.
"""

from __future__ import annotations

import secrets
import time

from netaddr import IPAddress, IPNetwork

from calico_core.errors import AddressInUse, CalicoError, InvalidRequest, NoPools, PoolExhausted, StaleRelease
from calico_core.interfaces.integration import IntegrationContext
from calico_core.interfaces.ipam import Allocation
from calico_core.log import get_logger
from calico_core.model.addresses import contains, host_network, parse_network
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import HOSTS, PoolKey
from calico_core.model.workloads import AddressRequest
from calico_libnetwork.errors import Refused
from calico_libnetwork.network_record import list_networks
from calico_libnetwork.sandboxes import ORCHESTRATOR
from calico_libnetwork.wire import (
    Address,
    AddressSpaces,
    IpamCapabilities,
    Nothing,
    Pool,
    ReleaseAddress,
    ReleasePool,
    RequestAddress,
    RequestPool,
)

ANY_POOL = {4: "CalicoPoolIPv4", 6: "CalicoPoolIPv6"}
DUMMY = {4: "0.0.0.0/0", 6: "::/0"}
GATEWAY = "com.docker.network.gateway"
GRACE_S = 60.0
"""An assignment older than this that no endpoint uses belongs to a container that is gone."""

_IPAM_S = 8.0
_NO_ADDRESS = "There are no available IP addresses in the configured Calico IP pools"
_POOL_GONE = (
    "The network references a Calico pool which has been deleted or disabled. Create it again, or remove the network."
)
_NO_MATCH = "The requested subnet must match the CIDR of a configured Calico IP Pool."

log = get_logger(__name__)


class IpamDriver:
    """Any thread."""

    def __init__(self, context: IntegrationContext) -> None:
        self._context = context

    def capabilities(self, _request: Nothing) -> IpamCapabilities:
        return IpamCapabilities()

    def address_spaces(self, _request: Nothing) -> AddressSpaces:
        return AddressSpaces()

    def request_pool(self, request: RequestPool) -> Pool:
        if request.sub_pool:
            raise Refused("Calico IPAM does not support sub pools (--ip-range): configure Calico IP pools first.")
        if request.options:
            raise Refused("Arbitrary options are not supported")
        version = 6 if request.v6 else 4
        dummy = {GATEWAY: DUMMY[version]}
        if request.pool is None:
            return Pool(pool_id=ANY_POOL[version], pool=DUMMY[version], data=dummy)
        found = self._context.records.get(PoolKey(request.pool))
        if found is None or not found.record.gives("Workload") or request.pool.version != version:
            raise Refused(_NO_MATCH)
        return Pool(pool_id=str(request.pool), pool=str(request.pool), data=dummy)

    def release_pool(self, _request: ReleasePool) -> Nothing:
        return Nothing()

    def request_address(self, request: RequestAddress) -> Address:
        if request.options.get("RequestAddressType") == GATEWAY:
            if request.address is None or int(request.address) != 0:
                raise Refused("Calico IPAM does not support specifying a gateway.")
            return Address(address=DUMMY[request.address.version])
        version, pool = _pool_of(request.pool_id)
        if request.address is None:
            return self._any(request.pool_id, version, pool)
        if pool is not None and not contains(pool, request.address):
            raise Refused(f"The address {request.address} is not in the pool {pool} of the network")
        return self._exactly(request.address, request.pool_id)

    def release_address(self, request: ReleaseAddress) -> Nothing:
        """The dummy gateway and an address that is free already need no datastore, or no change."""
        address = request.address
        if address is None or int(address) == 0:
            return Nothing()
        allocation = self._context.ipam.allocation(address)
        if allocation is None:
            return Nothing()
        self._refuse_foreign(allocation)
        try:
            self._context.ipam.release([address], handle=allocation.handle)
        except StaleRelease as error:
            log.info("libnetwork.address_kept", address=error.address, holder=error.found)
        return Nothing()

    # --- assigning -------------------------------------------------------------------------------

    def _any(self, pool_id: str, version: int, pool: IPNetwork | None) -> Address:
        pools = (pool,) if pool is not None else ()
        request = AddressRequest(
            handle=self._handle(),
            num_v4=int(version == 4),
            num_v6=int(version == 6),
            pools_v4=pools if version == 4 else (),
            pools_v6=pools if version == 6 else (),
            attributes=self._attributes(pool_id),
        )
        try:
            (address,) = self._context.ipam.auto_assign(request, deadline_s=_IPAM_S)
        except NoPools as error:
            raise Refused(_POOL_GONE if pool is not None else _NO_ADDRESS) from error
        except PoolExhausted as error:
            raise Refused(_NO_ADDRESS) from error
        return Address(address=str(host_network(address)))

    def _exactly(self, address: IPAddress, pool_id: str) -> Address:
        try:
            self._assign(address, pool_id)
        except AddressInUse:
            if not self._give_up_leftover(address):
                raise
            self._assign(address, pool_id)
        return Address(address=str(host_network(address)))

    def _assign(self, address: IPAddress, pool_id: str) -> None:
        request = AddressRequest(
            handle=self._handle(),
            num_v4=int(address.version == 4),
            num_v6=int(address.version == 6),
            requested=(address,),
            attributes=self._attributes(pool_id),
        )
        self._context.ipam.auto_assign(request, deadline_s=_IPAM_S)

    def _give_up_leftover(self, address: IPAddress) -> bool:
        """Free the address if a container of this host held it that is gone: an engine that was killed does not
        release, and asks for the same address again. Source: libnetwork specification 8."""
        allocation = self._context.ipam.allocation(address)
        if allocation is None:
            return True
        attributes = allocation.attributes
        is_ours = attributes.get("orchestrator") == ORCHESTRATOR and attributes.get("node") == self._context.host
        if not is_ours or _age_s(allocation.handle) < GRACE_S or self._is_used(address, self._context.host):
            return False
        if any(address in network.aux_addresses for network in list_networks(self._context.records)):
            return False
        try:
            self._context.ipam.release([address], handle=allocation.handle)
        except StaleRelease:
            return False  # another call was quicker
        log.info("libnetwork.address_taken_over", address=address, holder=allocation.handle)
        return True

    def _refuse_foreign(self, allocation: Allocation) -> None:
        """A call that comes late must not free what is somebody else's by now. Addresses without attributes are of
        earlier plugins."""
        orchestrator = allocation.attributes.get("orchestrator", ORCHESTRATOR)
        node = str(allocation.attributes.get("node", self._context.host))
        if orchestrator != ORCHESTRATOR:
            raise Refused(f"The address {allocation.address} is held by {orchestrator}: it is not released")
        if node != self._context.host and self._is_used(allocation.address, node):
            raise Refused(f"The address {allocation.address} is in use on {node}: it is not released")

    def _is_used(self, address: IPAddress, host: str) -> bool:
        net = host_network(address)
        found = (each.record for each in self._context.records.list(f"{HOSTS}{host}/workload/"))
        return any(isinstance(record, WorkloadEndpoint) and net in record.nets for record in found)

    def _handle(self) -> str:
        return f"{ORCHESTRATOR}.{self._context.host}.{time.time_ns():016x}{secrets.token_hex(4)}"

    def _attributes(self, pool_id: str) -> dict[str, str]:
        return {"orchestrator": ORCHESTRATOR, "node": self._context.host, "pool": pool_id}


def _pool_of(pool_id: str) -> tuple[int, IPNetwork | None]:
    """Family, and the pool if the network has one of its own."""
    for version, name in ANY_POOL.items():
        if pool_id == name:
            return version, None
    try:
        pool = parse_network(pool_id, field="PoolID")
    except CalicoError as error:
        known = ", ".join(ANY_POOL.values())
        raise InvalidRequest("PoolID", f"{pool_id!r} is not {known} or the CIDR of a pool") from error
    return pool.version, pool


def _age_s(handle: str | None) -> float:
    """By the time in the handle; 0 for one that was made otherwise."""
    try:
        return time.time() - int((handle or "").rpartition(".")[2][:16], 16) / 1e9
    except ValueError:
        return 0.0
