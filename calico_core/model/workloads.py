"""Attaching and detaching a workload: what an integration asks and what it is told."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.model.endpoints import Dns, WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.pools import Use
from calico_core.model.record import Value
from calico_core.model.rules import RuleLists

Device = Literal["veth", "netkit"]
"""What a pair of links is made of. A kernel without netkit gets veth in its place."""


class AddressRequest(Value, frozen=True):
    """Addresses wanted. ``requested`` are exact addresses (they count towards the numbers); ``pools_v4`` and
    ``pools_v6`` empty means any enabled pool. ``use``: what for; pools that are not for it give none. The same handle
    asking again gets what it already holds, up to the number asked for. ``takes_over``: handles that give up a
    requested address which they hold."""

    handle: str
    num_v4: int = 0
    num_v6: int = 0
    requested: tuple[IPAddress, ...] = ()
    pools_v4: tuple[IPNetwork, ...] = ()
    pools_v6: tuple[IPNetwork, ...] = ()
    use: Use = "Workload"
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    takes_over: tuple[str, ...] = ()


class NewProfile(Value, frozen=True):
    """A profile to create if it does not exist; an existing one is never touched. ``is_own``: of one endpoint alone; it
    is written in any case, and goes with the endpoint."""

    name: str
    tags: tuple[str, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    rules: RuleLists = RuleLists()
    is_own: bool = False


class Attach(Value, frozen=True):
    """Attach one interface.

    ``addresses``: an :class:`AddressRequest` to be committed together with the endpoint, or addresses the caller
    already holds. ``namespace``: path or description for messages; ``namespace_fd`` None means no interface is made
    (the caller or a later :meth:`Workloads.make_pair` does it). ``routes``: destinations beside the default route.
    ``floating``: addresses that lead to the workload's own of the same family. ``allowed_source_prefixes``: what it may
    send from beside its own. ``labels``, ``dns`` and ``pod_uid`` go to the record. An existing record of another
    ``container_id`` is replaced only with ``replaces``. ``shared_handle``: further networks of the container may share
    the endpoint, and join it if it stands; the handle that holds its addresses if it does not. Of what joins, only
    profiles count. ``mac`` None: a random one; with ``may_change_mac`` others may give the interface another later, so
    what nobody asked for is not recorded, and the workload not held to it.
    ``requires_mtu``: fail where neither the request nor the node names an MTU. ``queues``: of each end, both ways.
    ``device``: what a new pair is made of. ``is_borrowed``: the interface and its addresses are somebody else's, who
    takes both back.
    """

    key: WorkloadEndpointKey
    interface: str
    addresses: AddressRequest | tuple[IPAddress, ...]
    namespace_fd: int | None = None
    namespace: str = ""
    container_interface: str = "eth0"
    profiles: tuple[str, ...] = ()
    new_profiles: tuple[NewProfile, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    mac: EUI | None = None
    may_change_mac: bool = False
    mtu_bytes: int | None = None
    requires_mtu: bool = False
    queues: int = 1
    device: Device = "veth"
    dns: Dns | None = None
    pod_uid: str | None = None
    container_id: str | None = None
    network: str | None = None
    replaces: bool = False
    shared_handle: str | None = None
    is_default_route: bool = True
    routes: tuple[IPNetwork, ...] = ()
    floating: tuple[IPAddress, ...] = ()
    allowed_source_prefixes: tuple[IPNetwork, ...] = ()
    allow_ip_forwarding: bool = False
    is_borrowed: bool = False
    policy_timeout_s: float = 10.0

    @property
    def wants_ipv6(self) -> bool:
        wanted = self.addresses
        if isinstance(wanted, AddressRequest):
            return bool(wanted.num_v6) or any(address.version == 6 for address in wanted.requested)
        return any(address.version == 6 for address in wanted)


class Attached(Value, frozen=True):
    """``addresses`` as /32 and /128. ``steps``: name and milliseconds of each step, in order of completion.
    ``is_policy_programmed``: the kernel enforces the endpoint's policy now; False only when nobody could say.
    ``missing_routes``: as of :class:`WiredInterface`."""

    addresses: tuple[IPNetwork, ...]
    interface: str
    host_mac: EUI | None
    mac: EUI | None
    mtu_bytes: int | None
    is_policy_programmed: bool
    endpoint: WorkloadEndpoint
    steps: tuple[tuple[str, float], ...] = ()
    missing_routes: tuple[IPNetwork, ...] = ()


class Detach(Value, frozen=True):
    """Undo an attach. Everything already gone is success.

    ``handles``: released in the same transaction as the record goes (the first that exists in the caller's naming);
    not where the record says that the addresses are somebody else's. ``keeps_handles``: nor where there is no record,
    or one that does not change, for the caller has yet to look elsewhere for what they belong to.
    ``container_id``: the record is deleted only if it names the same container or none, so that a late call cannot
    hit the next owner; ``network`` is compared in the same way. An endpoint that several networks share loses what
    ``network`` brought under ``container_interface``, and goes with the last of them. ``is_shared``: it may be such a
    one, so its interface stays while nobody can say, and an endpoint under another interface's name is not meant.
    ``needs_ready``: while the datastore is not ready only the interface goes, and ``StoreNotReady`` says that the rest
    is to be done later. ``is_replaceable``: another container's attach may have taken the endpoint over (``replaces``),
    and calls its interface the same, so while nobody can say whose it is only ``namespace_fd`` tells: the interface
    goes if it leads there. Without a namespace it is nobody's or the other's.
    """

    key: WorkloadEndpointKey
    interface: str
    handles: tuple[str, ...] = ()
    keeps_handles: bool = False
    container_id: str | None = None
    network: str | None = None
    container_interface: str = "eth0"
    is_shared: bool = False
    needs_ready: bool = False
    is_replaceable: bool = False
    namespace_fd: int | None = None


class WiringRequest(Value, frozen=True):
    """An interface pair to make. ``addresses`` are /32 and /128. ``mac`` None: a random, locally administered one.
    ``routes``: destinations that the container reaches through the pair beside the default route. ``queues``: how many
    a new pair gets at each end, both ways. ``device``: what it is made of; one that stands is kept as it is."""

    interface: str
    container_interface: str
    namespace_fd: int
    namespace: str
    addresses: tuple[IPNetwork, ...]
    mac: EUI | None = None
    mtu_bytes: int | None = None
    queues: int = 1
    device: Device = "veth"
    is_default_route: bool = True
    routes: tuple[IPNetwork, ...] = ()
    allow_ip_forwarding: bool = False


class WiredInterface(Value, frozen=True):
    """What stands. ``is_new`` False: it was there already, equal to what was asked. ``missing_routes``: destinations
    that another interface of the container leads to, and that it kept."""

    interface: str
    host_mac: EUI
    mac: EUI
    mtu_bytes: int
    is_new: bool = True
    missing_routes: tuple[IPNetwork, ...] = ()


class PairRequest(Value, frozen=True):
    """A pair whose container end stays in the host namespace for the caller (Docker) to move."""

    interface: str
    peer: str
    mac: EUI | None = None
    mtu_bytes: int | None = None
    addresses: tuple[IPNetwork, ...] = ()


class InterfaceEvent(Value, frozen=True):
    """A link of the host changed. ``resync``: events were lost, look at everything again."""

    kind: Literal["up", "down", "deleted", "resync"]
    name: str = ""
    index: int = 0
