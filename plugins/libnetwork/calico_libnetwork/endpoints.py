"""CreateEndpoint, Join, Leave, DeleteEndpoint: a container's attachment to one network.

The engine moves, names and addresses the container end itself; we make the pair and tell it the routes. Addresses are
its own to release. Source: libnetwork specification 3.3 to 3.5.
"""

from __future__ import annotations

import contextlib
import hashlib

import msgspec
from netaddr import EUI, IPAddress

from calico_core.errors import CalicoError, Conflict, KeyExists
from calico_core.interfaces.datastore import Versioned
from calico_core.interfaces.integration import IntegrationContext
from calico_core.log import get_logger
from calico_core.model.addresses import mac_from_bytes
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.ids import check_interface, check_name
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.workloads import Attach, Detach, PairRequest, WiredInterface
from calico_libnetwork.errors import Refused
from calico_libnetwork.host_address import parse_host_address
from calico_libnetwork.network_record import NetworkKey, NetworkRecord, find_network
from calico_libnetwork.networks import network_profile
from calico_libnetwork.sandboxes import FIRST_HOP, ORCHESTRATOR, Sandboxes
from calico_libnetwork.wire import (
    CreatedEndpoint,
    CreateEndpoint,
    EndpointOnly,
    InterfaceName,
    Join,
    Joined,
    MadeInterface,
    StaticRoute,
)

WORKLOAD = "libnetwork"
CONTAINER_PREFIX = "cali"
PEER_PREFIX = "tmp"

_CONNECTED, _VIA = 1, 0
_ID_LENGTH = 11  # with a prefix of four: the kernel's 15
_POLICY_S = 5.0

log = get_logger(__name__)


class Endpoints:
    """Calls for one endpoint must not overlap. Nothing here is kept in memory only."""

    def __init__(self, context: IntegrationContext) -> None:
        self._context = context
        self._sandboxes = Sandboxes(context.records, context.host)

    def create(self, request: CreateEndpoint) -> CreatedEndpoint:
        addresses = _addresses(request)
        standing = find_network(self._context.records, request.network_id)
        network = standing or _recovered(request)
        given = request.interface.mac_address
        mac = given or _mac(request.endpoint_id)
        self._context.workloads.attach(
            Attach(
                key=self._key(request.endpoint_id),
                interface=self._interface(request.endpoint_id),
                addresses=addresses,
                profiles=(network.profile,),
                new_profiles=() if standing else (network_profile(network.profile),),
                mac=mac,
                mtu_bytes=self._mtu_bytes(network),
                network=request.network_id,
                policy_timeout_s=_POLICY_S,
            )
        )
        if standing is None:
            with contextlib.suppress(KeyExists):
                self._context.records.create(NetworkKey(network.network_id), network)
            log.warning("libnetwork.network_recovered", network=network.network_id[:12])
        return CreatedEndpoint(interface=MadeInterface(mac_address="" if given else str(mac)))

    def join(self, request: Join) -> Joined:
        """The file of the sandbox may not exist yet: it is a name to us."""
        found: Versioned[WorkloadEndpoint] | None = self._context.records.get(self._key(request.endpoint_id))
        if found is None:
            raise Refused(f"Endpoint {request.endpoint_id[:12]} does not exist: CreateEndpoint comes before Join.")
        network = find_network(self._context.records, request.network_id) or NetworkRecord(
            network_id=request.network_id
        )
        name = self._interface_name(request.endpoint_id, network)
        if not network.is_calico_ipam:
            self._make_pair(request.endpoint_id, found.record, network)
            return Joined(interface_name=name)
        hop = self._sandboxes.join(request.sandbox_key or request.endpoint_id, request.endpoint_id)
        try:
            if hop != FIRST_HOP and not network.pools:
                raise Refused(
                    "This container has a Calico network already. A further one must have been created with --subnet,"
                    " because its routes lead to that subnet alone."
                )
            wired = self._make_pair(request.endpoint_id, found.record, network)
            self._remember(found, request.sandbox_key, hop)
        except CalicoError:
            self._sandboxes.leave(request.endpoint_id)
            raise
        return _primary(name, hop, found.record, wired) if hop == FIRST_HOP else _further(name, hop, network)

    def leave(self, request: EndpointOnly) -> None:
        """The namespace's end took the pair with it most times. The engine goes on whatever we answer."""
        self._sandboxes.leave(request.endpoint_id)
        try:
            self._context.workloads.remove_pair(self._interface(request.endpoint_id))
        except CalicoError as error:
            log.warning("libnetwork.interface_left", endpoint=request.endpoint_id[:12], reason=str(error))

    def delete(self, request: EndpointOnly) -> None:
        self._sandboxes.leave(request.endpoint_id)
        self._context.workloads.detach(
            Detach(key=self._key(request.endpoint_id), interface=self._interface(request.endpoint_id))
        )

    def _make_pair(self, endpoint_id: str, record: WorkloadEndpoint, network: NetworkRecord) -> WiredInterface:
        """A failure leaves no half of it."""
        interface = self._interface(endpoint_id)
        try:
            return self._context.workloads.make_pair(
                self._key(endpoint_id),
                PairRequest(
                    interface=interface,
                    peer=f"{PEER_PREFIX}{endpoint_id[:_ID_LENGTH]}",
                    mac=record.mac,
                    mtu_bytes=self._mtu_bytes(network),
                    addresses=record.nets,
                ),
            )
        except CalicoError:
            self._context.workloads.remove_pair(interface)
            raise

    def _remember(self, found: Versioned[WorkloadEndpoint], sandbox: str, hop: IPAddress) -> None:
        record = msgspec.structs.replace(found.record, netns=sandbox or None, ipv4_gateway=hop)
        if record == found.record:
            return
        try:
            self._context.records.swap(found, record)
        except Conflict as error:
            # somebody changed its profiles: theirs stands, and ours is in memory
            log.warning("libnetwork.sandbox_not_recorded", endpoint=error.key)

    def _interface_name(self, endpoint_id: str, network: NetworkRecord) -> InterfaceName:
        return InterfaceName(
            src_name=f"{PEER_PREFIX}{endpoint_id[:_ID_LENGTH]}",
            dst_prefix=network.interface_prefix or CONTAINER_PREFIX,
        )

    def _mtu_bytes(self, network: NetworkRecord) -> int | None:
        return network.mtu_bytes or self._context.settings.mtu_bytes or None

    def _key(self, endpoint_id: str) -> WorkloadEndpointKey:
        return WorkloadEndpointKey(self._context.host, ORCHESTRATOR, WORKLOAD, endpoint_id)

    def _interface(self, endpoint_id: str) -> str:
        prefix = self._context.settings.interface_prefixes[0]
        return check_interface(f"{prefix}{endpoint_id[:_ID_LENGTH]}", field="EndpointID")


def _primary(name: InterfaceName, hop: IPAddress, record: WorkloadEndpoint, wired: WiredInterface) -> Joined:
    routes = [StaticRoute(destination=f"{hop}/32", route_type=_CONNECTED)]
    gateway_ipv6 = ""
    if record.ipv6_nets:
        gateway_ipv6 = str(wired.host_mac.ipv6_link_local())
        routes.append(StaticRoute(destination=f"{gateway_ipv6}/128", route_type=_CONNECTED))
    return Joined(interface_name=name, gateway=str(hop), gateway_ipv6=gateway_ipv6, static_routes=tuple(routes))


def _further(name: InterfaceName, hop: IPAddress, network: NetworkRecord) -> Joined:
    """Only the network's own subnets lead there; of IPv6 the hop is not, so those stay with the first network."""
    connected = StaticRoute(destination=f"{hop}/32", route_type=_CONNECTED)
    subnets = (
        StaticRoute(destination=str(pool), route_type=_VIA, next_hop=str(hop))
        for pool in network.pools
        if pool.version == 4
    )
    return Joined(interface_name=name, static_routes=(connected, *subnets), disable_gateway_service=True)


def _addresses(request: CreateEndpoint) -> tuple[IPAddress, ...]:
    texts = ((4, request.interface.address), (6, request.interface.address_ipv6))
    found = tuple(
        parse_host_address(text, field="Interface.Address", version=version)[0] for version, text in texts if text
    )
    if not found:
        raise Refused("No address assigned for endpoint")
    return found


def _recovered(request: CreateEndpoint) -> NetworkRecord:
    """The record was lost, perhaps with a restored datastore; the engine still believes in the network. Our IPAM
    answers host addresses, which tells whose they are."""
    text = request.interface.address or request.interface.address_ipv6
    _, subnet = parse_host_address(text, field="Interface.Address")
    return NetworkRecord(
        network_id=request.network_id,
        profile=check_name(request.network_id, field="NetworkID"),
        is_profile_ours=True,
        is_calico_ipam=subnet.size == 1,
    )


def _mac(endpoint_id: str) -> EUI:
    """Locally administered, and the same whenever the call is repeated. Not that of the host end: the container's
    link-local address would be its gateway's."""
    return mac_from_bytes(b"\x02" + hashlib.sha1(endpoint_id.encode(), usedforsecurity=False).digest()[:5])
