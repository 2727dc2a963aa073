"""Workload and host endpoints. Source: datastore specification 4.1 and 4.2."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.errors import CalicoError, InvalidRequest
from calico_core.model.addresses import WIDTH
from calico_core.model.ids import check_host_interface, check_interface, check_label, check_name
from calico_core.model.record import Record
from calico_core.model.rules import PORT_PROTOCOLS, check_port_name, protocol_number

ALL_INTERFACES = "*"
"""As the name of a host endpoint: every interface of the host that has no host endpoint of its own."""


class Nat(Record, frozen=True):
    """A floating address: ``ext_ip`` is translated to ``int_ip``, which the endpoint must carry."""

    int_ip: IPAddress
    ext_ip: IPAddress


class EndpointPort(Record, frozen=True):
    """A port that rules may call by its name, as in ``dst_ports: [http]``. Names are the endpoint's own: several
    endpoints use one for different numbers."""

    name: str
    protocol: str | int
    port: int

    def __post_init__(self) -> None:
        try:
            check_port_name(self.name)
            if protocol_number(self.protocol) not in PORT_PROTOCOLS:
                raise InvalidRequest("protocol", f"{self.protocol!r} is not tcp, udp, sctp, udplite or dccp")
        except CalicoError as error:
            raise ValueError(str(error)) from error
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} is not between 1 and 65535")


class Dns(Record, frozen=True):
    """What a container is told of DNS, as the CNI specification has it."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class EndpointAttachment(Record, frozen=True):
    """A network that uses an endpoint which several may share: under which interface it was asked for, and the
    profiles that it brings. ``created`` is seconds since the epoch."""

    network: str
    ifname: str
    profile_ids: tuple[str, ...] = ()
    created: float | None = None


class WorkloadEndpoint(Record, frozen=True):
    """One interface of a container. ``name`` is the host side. ``allowed_source_prefixes``: what it may send from
    beside its own addresses, on a host that lets workloads do so; stored under the name the reference has for it. The
    fields after ``profile_id`` are ours: readers of the reference system ignore them; absence means unknown.
    ``created`` is seconds since the epoch; ``own_profiles`` are deleted with the endpoint. ``network``, ``ifname`` and
    ``dns``, what another IPAM plugin said, are of the attachment that made it. ``attachments`` are those that stand
    now, where several networks may share the endpoint, and ``handle`` holds its addresses then: the last one to go
    releases them, whoever made the endpoint. ``is_borrowed``: interface and addresses are somebody else's, who takes
    both back. ``pod_uid``: of the Kubernetes pod that it is of; a later one of the same name has labels of its own."""

    state: Literal["active", "inactive"]
    name: str
    mac: EUI | None = None
    profile_ids: tuple[str, ...] = ()
    ipv4_nets: tuple[IPNetwork, ...] = ()
    ipv6_nets: tuple[IPNetwork, ...] = ()
    ipv4_gateway: IPAddress | None = None
    ipv6_gateway: IPAddress | None = None
    ipv4_nat: tuple[Nat, ...] = ()
    ipv6_nat: tuple[Nat, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    ports: tuple[EndpointPort, ...] = ()
    allowed_source_prefixes: tuple[IPNetwork, ...] = msgspec.field(default=(), name="allow_spoofed_source_ips")
    profile_id: str | None = None
    container_id: str | None = None
    ifname: str | None = None
    network: str | None = None
    netns: str | None = None
    own_profiles: tuple[str, ...] = ()
    created: float | None = None
    attachments: tuple[EndpointAttachment, ...] = ()
    handle: str | None = None
    is_borrowed: bool = False
    dns: Dns | None = None
    pod_uid: str | None = None

    def __post_init__(self) -> None:
        try:
            self._check()
        except CalicoError as error:
            raise ValueError(str(error)) from error
        if self.profile_id is not None and not self.profile_ids:
            msgspec.structs.force_setattr(self, "profile_ids", (self.profile_id,))
        if self.profile_id is not None:
            msgspec.structs.force_setattr(self, "profile_id", None)

    def _check(self) -> None:
        check_interface(self.name)
        for profile in self.profile_ids:
            check_name(profile, field="profile_ids")
        for label in self.labels:
            check_label(label)
        for version, gateway in ((4, self.ipv4_gateway), (6, self.ipv6_gateway)):
            if gateway is not None and gateway.version != version:
                raise InvalidRequest(f"ipv{version}_gateway", f"{gateway} is not an IPv{version} address")
        for version, nets, nats in ((4, self.ipv4_nets, self.ipv4_nat), (6, self.ipv6_nets, self.ipv6_nat)):
            for net in nets:
                if net.version != version or net.prefixlen != WIDTH[version]:
                    raise InvalidRequest(f"ipv{version}_nets", f"{net} is not an IPv{version} /{WIDTH[version]}")
            held = {net.first for net in nets}
            for nat in nats:
                if nat.int_ip.version != version or nat.ext_ip.version != version:
                    raise InvalidRequest(f"ipv{version}_nat", f"addresses must be IPv{version}")
                if nat.int_ip.value not in held:
                    raise InvalidRequest(f"ipv{version}_nat", f"{nat.int_ip} is not an address of the endpoint")

    def is_made_for(self, network: str | None, ifname: str) -> bool:
        """Whether its interface is as this attachment wanted it, and not only shared by it."""
        return not self.attachments or (self.network, self.ifname) == (network, ifname)

    @property
    def nets(self) -> tuple[IPNetwork, ...]:
        """All addresses as /32 and /128, IPv4 first."""
        return self.ipv4_nets + self.ipv6_nets


class HostEndpoint(Record, frozen=True):
    """An interface of the host itself, found by ``name`` or by an address it is expected to have.

    ``name`` may be :data:`ALL_INTERFACES`. Of rules, only the expected addresses are known as the endpoint's."""

    name: str | None = None
    expected_ipv4_addrs: tuple[IPAddress, ...] = ()
    expected_ipv6_addrs: tuple[IPAddress, ...] = ()
    profile_ids: tuple[str, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    ports: tuple[EndpointPort, ...] = ()
    profile_id: str | None = None
    state: Any = msgspec.UNSET
    mac: Any = msgspec.UNSET
    ipv4_nets: Any = msgspec.UNSET
    ipv6_nets: Any = msgspec.UNSET
    ipv4_gateway: Any = msgspec.UNSET
    ipv6_gateway: Any = msgspec.UNSET
    ipv4_nat: Any = msgspec.UNSET
    ipv6_nat: Any = msgspec.UNSET

    def __post_init__(self) -> None:
        for field in _WORKLOADS_ONLY:
            if getattr(self, field) is not msgspec.UNSET:
                raise ValueError(f"{field}: belongs to workload endpoints, not to host endpoints")
        if self.name is None and not self.expected_ipv4_addrs and not self.expected_ipv6_addrs:
            raise ValueError("name: give an interface name or at least one expected address")
        try:
            if self.name is not None and self.name != ALL_INTERFACES:
                check_host_interface(self.name)
            for profile in self.profile_ids:
                check_name(profile, field="profile_ids")
            for label in self.labels:
                check_label(label)
        except CalicoError as error:
            raise ValueError(str(error)) from error
        for version, addresses in ((4, self.expected_ipv4_addrs), (6, self.expected_ipv6_addrs)):
            if any(address.version != version for address in addresses):
                raise ValueError(f"expected_ipv{version}_addrs: addresses must be IPv{version}")
        if self.profile_id is not None:
            if not self.profile_ids:
                msgspec.structs.force_setattr(self, "profile_ids", (self.profile_id,))
            msgspec.structs.force_setattr(self, "profile_id", None)

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """All it is expected to have, IPv4 first."""
        return self.expected_ipv4_addrs + self.expected_ipv6_addrs


_WORKLOADS_ONLY = (
    "state", "mac", "ipv4_nets", "ipv6_nets", "ipv4_gateway", "ipv6_gateway", "ipv4_nat", "ipv6_nat",
)  # fmt: skip


class EndpointStatus(Record, frozen=True):
    """What the agent says of an endpoint: ``up``, ``down``, ``error`` (with why, an addition of ours)."""

    status: Literal["up", "down", "error"]
    reason: str | None = None
