"""The desired state of one host: all that a dataplane driver is told.

Policy calculation produces :class:`HostChanges`, a batch; a driver keeps the :class:`HostState` that the batches add
up to. What many endpoints share (a set, a list of rules, a list of policies) is held once and named by its content or
its origin, so that a driver can program it once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, NewType, TypeVar

import msgspec
from netaddr import EUI, IPAddress, IPNetwork
from pyroaring import BitMap, FrozenBitMap

from calico_core.model.addresses import WIDTH
from calico_core.model.keys import HostEndpointKey, WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.model.rules import PortRange

T = TypeVar("T")

SetId = NewType("SetId", str)
"""Name of a set: ``tag-`` or ``sel-`` (addresses) or ``npt-`` (named ports) and 16 hex digits of what it is made from;
stable over restarts."""
ANY_INTERFACE = "*"
"""In the place of an interface's name: every interface of the host that is no workload's and has no endpoint of its
own."""
RulesId = NewType("RulesId", str)
"""Name of a list of rules: ``profile/<name>`` or ``policy/<tier>/<name>``."""


class AddressSet(Value, frozen=True):
    """Members of a set. IPv4 hosts are a bitmap of integers, IPv6 hosts a set of integers, anything wider a CIDR.
    The three never overlap as values; CIDRs may contain hosts."""

    v4: FrozenBitMap = msgspec.field(default_factory=FrozenBitMap)
    v6: frozenset[int] = frozenset()
    nets: frozenset[IPNetwork] = frozenset()

    @classmethod
    def of(cls, members: Iterable[IPNetwork | IPAddress]) -> AddressSet:
        v4: list[int] = []
        v6: list[int] = []
        nets: list[IPNetwork] = []
        for member in members:
            if isinstance(member, IPNetwork) and member.prefixlen != WIDTH[member.version]:
                nets.append(member)
                continue
            value = member.first if isinstance(member, IPNetwork) else int(member)
            (v4 if member.version == 4 else v6).append(value)
        return cls(v4=FrozenBitMap(v4), v6=frozenset(v6), nets=frozenset(nets))

    def __bool__(self) -> bool:
        return bool(self.v4 or self.v6 or self.nets)

    def __len__(self) -> int:
        return len(self.v4) + len(self.v6) + len(self.nets)

    def __sub__(self, other: AddressSet) -> AddressSet:
        return AddressSet(v4=self.v4 - other.v4, v6=self.v6 - other.v6, nets=self.nets - other.nets)

    def __or__(self, other: AddressSet) -> AddressSet:
        return AddressSet(v4=self.v4 | other.v4, v6=self.v6 | other.v6, nets=self.nets | other.nets)

    def networks(self) -> list[IPNetwork]:
        """Every member as a CIDR, sorted; for people and tests."""
        hosts = [IPNetwork((value, 32), version=4) for value in self.v4]
        hosts += [IPNetwork((value, 128), version=6) for value in self.v6]
        return sorted([*hosts, *self.nets])


class SetChange(Value, frozen=True):
    """A set gains and loses members. ``is_new``: it did not exist before, ``added`` is all of it."""

    id: SetId
    is_new: bool = False
    added: AddressSet = msgspec.field(default_factory=AddressSet)
    removed: AddressSet = msgspec.field(default_factory=AddressSet)


class PortMember(NamedTuple):
    """One endpoint's port of a name. ``version`` 4 or 6; ``address`` and ``protocol`` as numbers."""

    version: int
    address: int
    protocol: int
    port: int


class PortSetChange(Value, frozen=True):
    """As :class:`SetChange`, of a set of (address, protocol, port)."""

    id: SetId
    is_new: bool = False
    added: frozenset[PortMember] = frozenset()
    removed: frozenset[PortMember] = frozenset()


class HostRule(Value, frozen=True):
    """One rule as the kernel can hold it: protocols are numbers, tags and selectors are sets, so are named ports.

    An AND of its matches. ``src_nets``: any one of them; ``src_sets``: all of them; the ``not_`` fields: none of them.
    Empty means "no such match". ``src_ports`` and ``src_port_sets`` are one match: the port is in a range, or (source
    address, protocol, source port) is in one of the sets; likewise the other sides and, as "in none of either", the
    ``not_`` forms. ``icmp`` is (type, code or None). A rule whose addresses are all of one family says so in
    ``ip_version``; it must never be rendered wider than that. ``reject`` is a deny that answers.
    """

    action: Literal["allow", "deny", "reject", "pass", "log"]
    ip_version: Literal[4, 6] | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    src_nets: tuple[IPNetwork, ...] = ()
    not_src_nets: tuple[IPNetwork, ...] = ()
    src_sets: tuple[SetId, ...] = ()
    not_src_sets: tuple[SetId, ...] = ()
    src_ports: tuple[PortRange, ...] = ()
    not_src_ports: tuple[PortRange, ...] = ()
    src_port_sets: tuple[SetId, ...] = ()
    not_src_port_sets: tuple[SetId, ...] = ()
    dst_nets: tuple[IPNetwork, ...] = ()
    not_dst_nets: tuple[IPNetwork, ...] = ()
    dst_sets: tuple[SetId, ...] = ()
    not_dst_sets: tuple[SetId, ...] = ()
    dst_ports: tuple[PortRange, ...] = ()
    not_dst_ports: tuple[PortRange, ...] = ()
    dst_port_sets: tuple[SetId, ...] = ()
    not_dst_port_sets: tuple[SetId, ...] = ()
    icmp: tuple[int, int | None] | None = None
    not_icmp: tuple[int, int | None] | None = None
    log_prefix: str | None = None

    @property
    def sets(self) -> tuple[SetId, ...]:
        """The address sets it names."""
        return self.src_sets + self.not_src_sets + self.dst_sets + self.not_dst_sets

    @property
    def port_sets(self) -> tuple[SetId, ...]:
        return self.src_port_sets + self.not_src_port_sets + self.dst_port_sets + self.not_dst_port_sets


class HostRules(Value, frozen=True):
    """The rules of one profile or policy, both directions. Those of a profile never pass on: where the stored rule
    does, it is an allow by now (felix specification 4.5.4), so no driver has to ask whose rules it renders.
    ``is_staged``: the first that matches is counted and decides nothing, and none of them logs."""

    id: RulesId
    inbound: tuple[HostRule, ...] = ()
    outbound: tuple[HostRule, ...] = ()
    is_staged: bool = False


class TierPolicies(Value, frozen=True):
    """The policies of one tier that apply in one direction, in order. When none of them decides: deny, or pass on, as
    where all of them are staged."""

    tier: str
    policies: tuple[RulesId, ...]
    default_action: Literal["deny", "pass"] = "deny"


class PolicyList(Value, frozen=True):
    """What one direction of an endpoint goes through: tiers in order, then profiles in order, then drop.
    Equal lists are one object, so that a driver gives them one chain."""

    tiers: tuple[TierPolicies, ...] = ()
    profiles: tuple[RulesId, ...] = ()


class HostNat(Value, frozen=True):
    """A floating address: what comes for ``external`` goes to ``internal``, an address of the workload, and what the
    workload sends to its own floating address comes back to it as from there. The first of several that share an
    ``internal`` address, sorted, is the one it is seen as."""

    internal: IPAddress
    external: IPAddress


class HostWorkload(Value, frozen=True):
    """A local workload endpoint. ``inbound`` is towards the workload. Inactive: known, and closed.
    ``allowed_source_prefixes``: what it may send from beside ``nets``; nothing is routed to it for their sake."""

    key: WorkloadEndpointKey
    interface: str
    is_active: bool
    mac: EUI | None = None
    nets: tuple[IPNetwork, ...] = ()
    allowed_source_prefixes: tuple[IPNetwork, ...] = ()
    nats: tuple[HostNat, ...] = ()
    inbound: PolicyList = PolicyList()
    outbound: PolicyList = PolicyList()


class HostInterface(Value, frozen=True):
    """An interface of the host under policy: a host endpoint, resolved. ``inbound`` is towards the host.

    ``inbound`` and ``outbound`` judge what ends at or comes from the host itself, fail-safe ports aside, and deny what
    none of their rules allows. ``forward_…`` judge what is forwarded through the interface; what all of their tiers
    pass on passes, and so does everything where there is none.
    ``untracked_…`` come before connection tracking: allow passes without being tracked, deny drops, what none of the
    rules decides goes on as if they were not there. ``pre_dnat`` likewise, before destinations are translated. What one
    of these allows inbound is not asked again at this interface, neither by ``inbound`` nor by ``forward_inbound`` (in
    the reference the accept mark outlives the table); a workload it is forwarded to is asked all the same.

    ``spares``, of the endpoint of all interfaces: those that are not its business either, sorted.
    """

    key: HostEndpointKey
    interface: str
    inbound: PolicyList = PolicyList()
    outbound: PolicyList = PolicyList()
    forward_inbound: PolicyList = PolicyList()
    forward_outbound: PolicyList = PolicyList()
    untracked_inbound: PolicyList = PolicyList()
    untracked_outbound: PolicyList = PolicyList()
    pre_dnat: PolicyList = PolicyList()
    spares: tuple[str, ...] = ()


class HostPeers(Value, frozen=True):
    """Who may send encapsulated packets to this host: the addresses of all hosts, while a pool encapsulates so."""

    addresses: tuple[IPAddress, ...] = ()
    is_ipip: bool = False
    is_vxlan: bool = False


class HostPools(Value, frozen=True):
    """Address pools as the host needs them: traffic from ``masquerade`` to outside ``all`` leaves with the host's
    address. ``hosts``: the addresses of all hosts, while a pool masquerades."""

    all: tuple[IPNetwork, ...] = ()
    masquerade: tuple[IPNetwork, ...] = ()
    hosts: tuple[IPAddress, ...] = ()


class HostChanges(Value, frozen=True):
    """One batch. ``is_complete``: it is the whole state, whatever it does not name is to go. ``pools`` and ``peers``
    None: unchanged. ``removed_interfaces`` are names of interfaces. New things never refer to something that this or
    an earlier batch did not bring; nothing that is removed is still referred to once the whole batch is applied."""

    is_complete: bool = False
    sets: tuple[SetChange, ...] = ()
    port_sets: tuple[PortSetChange, ...] = ()
    rules: tuple[HostRules, ...] = ()
    workloads: tuple[HostWorkload, ...] = ()
    interfaces: tuple[HostInterface, ...] = ()
    pools: HostPools | None = None
    peers: HostPeers | None = None
    removed_sets: tuple[SetId, ...] = ()
    removed_port_sets: tuple[SetId, ...] = ()
    removed_rules: tuple[RulesId, ...] = ()
    removed_workloads: tuple[WorkloadEndpointKey, ...] = ()
    removed_interfaces: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.is_complete
            or self.sets
            or self.port_sets
            or self.rules
            or self.workloads
            or self.interfaces
            or self.pools is not None
            or self.peers is not None
            or self.removed_sets
            or self.removed_port_sets
            or self.removed_rules
            or self.removed_workloads
            or self.removed_interfaces
        )


class HostState:
    """What the batches so far add up to. Owned by one thread. ``interfaces`` by their name."""

    def __init__(self) -> None:
        self.sets: dict[SetId, AddressSet] = {}
        self.port_sets: dict[SetId, frozenset[PortMember]] = {}
        self.rules: dict[RulesId, HostRules] = {}
        self.workloads: dict[WorkloadEndpointKey, HostWorkload] = {}
        self.interfaces: dict[str, HostInterface] = {}
        self.pools = HostPools()
        self.peers = HostPeers()

    def copy(self) -> HostState:
        """Shares the values, which are frozen."""
        made = HostState()
        made.sets, made.port_sets, made.rules = dict(self.sets), dict(self.port_sets), dict(self.rules)
        made.workloads, made.interfaces = dict(self.workloads), dict(self.interfaces)
        made.pools, made.peers = self.pools, self.peers
        return made

    def update(self, changes: HostChanges) -> None:
        if changes.is_complete:
            for table in (self.sets, self.port_sets, self.rules, self.workloads, self.interfaces):
                table.clear()
        for change in changes.sets:
            before = AddressSet() if change.is_new else self.sets[change.id]
            self.sets[change.id] = (before - change.removed) | change.added
        for ports in changes.port_sets:
            members: frozenset[PortMember] = frozenset() if ports.is_new else self.port_sets[ports.id]
            self.port_sets[ports.id] = (members - ports.removed) | ports.added
        self.rules.update((rules.id, rules) for rules in changes.rules)
        self.workloads.update((workload.key, workload) for workload in changes.workloads)
        self.interfaces.update((interface.interface, interface) for interface in changes.interfaces)
        self.pools = self.pools if changes.pools is None else changes.pools
        self.peers = self.peers if changes.peers is None else changes.peers
        _forget(self.workloads, changes.removed_workloads)
        _forget(self.interfaces, changes.removed_interfaces)
        _forget(self.rules, changes.removed_rules)
        _forget(self.sets, changes.removed_sets)
        _forget(self.port_sets, changes.removed_port_sets)


def _forget(table: dict[T, Any], names: Iterable[T]) -> None:
    for name in names:
        table.pop(name, None)


__all__ = [
    "ANY_INTERFACE",
    "AddressSet",
    "BitMap",
    "HostChanges",
    "HostInterface",
    "HostNat",
    "HostPeers",
    "HostPools",
    "HostRule",
    "HostRules",
    "HostState",
    "HostWorkload",
    "PolicyList",
    "PortMember",
    "PortSetChange",
    "RulesId",
    "SetChange",
    "SetId",
    "TierPolicies",
]
