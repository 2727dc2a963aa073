"""The desired state of one host: all that a dataplane driver is told.

Policy calculation produces :class:`HostChanges`, a batch; a driver keeps the :class:`HostState` that the batches add
up to. What many endpoints share (a set, a list of rules, a list of policies) is held once and named by its content or
its origin, so that a driver can program it once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NewType

import msgspec
from netaddr import EUI, IPAddress, IPNetwork
from pyroaring import BitMap, FrozenBitMap

from calico_core.model.addresses import WIDTH
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.model.rules import PortRange

SetId = NewType("SetId", str)
"""Name of an address set: ``tag-`` or ``sel-`` and 16 hex digits of what it is made from; stable over restarts."""
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


class HostRule(Value, frozen=True):
    """One rule as the kernel can hold it: protocols are numbers, tags and selectors are sets.

    An AND of its matches. ``src_nets`` and ports: any one of them; ``src_sets``: all of them; the ``not_`` fields:
    none of them. Empty means "no such match". ``icmp`` is (type, code or None). A rule whose addresses are all of one
    family says so in ``ip_version``; it must never be rendered wider than that.
    """

    action: Literal["allow", "deny", "pass", "log"]
    ip_version: Literal[4, 6] | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    src_nets: tuple[IPNetwork, ...] = ()
    not_src_nets: tuple[IPNetwork, ...] = ()
    src_sets: tuple[SetId, ...] = ()
    not_src_sets: tuple[SetId, ...] = ()
    src_ports: tuple[PortRange, ...] = ()
    not_src_ports: tuple[PortRange, ...] = ()
    dst_nets: tuple[IPNetwork, ...] = ()
    not_dst_nets: tuple[IPNetwork, ...] = ()
    dst_sets: tuple[SetId, ...] = ()
    not_dst_sets: tuple[SetId, ...] = ()
    dst_ports: tuple[PortRange, ...] = ()
    not_dst_ports: tuple[PortRange, ...] = ()
    icmp: tuple[int, int | None] | None = None
    not_icmp: tuple[int, int | None] | None = None
    log_prefix: str | None = None

    @property
    def sets(self) -> tuple[SetId, ...]:
        return self.src_sets + self.not_src_sets + self.dst_sets + self.not_dst_sets


class HostRules(Value, frozen=True):
    """The rules of one profile or policy, both directions."""

    id: RulesId
    inbound: tuple[HostRule, ...] = ()
    outbound: tuple[HostRule, ...] = ()


class TierPolicies(Value, frozen=True):
    """The policies of one tier that apply in one direction, in order. When none of them decides: deny, or pass on."""

    tier: str
    policies: tuple[RulesId, ...]
    default_action: Literal["deny", "pass"] = "deny"


class PolicyList(Value, frozen=True):
    """What one direction of an endpoint goes through: tiers in order, then profiles in order, then drop.
    Equal lists are one object, so that a driver gives them one chain."""

    tiers: tuple[TierPolicies, ...] = ()
    profiles: tuple[RulesId, ...] = ()


class HostWorkload(Value, frozen=True):
    """A local workload endpoint. ``inbound`` is towards the workload. Inactive: known, and closed."""

    key: WorkloadEndpointKey
    interface: str
    is_active: bool
    mac: EUI | None = None
    nets: tuple[IPNetwork, ...] = ()
    inbound: PolicyList = PolicyList()
    outbound: PolicyList = PolicyList()


class HostPools(Value, frozen=True):
    """Address pools as the host needs them: traffic from ``masquerade`` to outside ``all`` leaves with the host's
    address."""

    all: tuple[IPNetwork, ...] = ()
    masquerade: tuple[IPNetwork, ...] = ()


class HostChanges(Value, frozen=True):
    """One batch. ``is_complete``: it is the whole state, whatever it does not name is to go. ``pools`` None:
    unchanged. New things never refer to something that this or an earlier batch did not bring; nothing that is
    removed is still referred to once the whole batch is applied."""

    is_complete: bool = False
    sets: tuple[SetChange, ...] = ()
    rules: tuple[HostRules, ...] = ()
    workloads: tuple[HostWorkload, ...] = ()
    pools: HostPools | None = None
    removed_sets: tuple[SetId, ...] = ()
    removed_rules: tuple[RulesId, ...] = ()
    removed_workloads: tuple[WorkloadEndpointKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.is_complete
            or self.sets
            or self.rules
            or self.workloads
            or self.pools is not None
            or self.removed_sets
            or self.removed_rules
            or self.removed_workloads
        )


class HostState:
    """What the batches so far add up to. Owned by one thread."""

    def __init__(self) -> None:
        self.sets: dict[SetId, AddressSet] = {}
        self.rules: dict[RulesId, HostRules] = {}
        self.workloads: dict[WorkloadEndpointKey, HostWorkload] = {}
        self.pools = HostPools()

    def update(self, changes: HostChanges) -> None:
        if changes.is_complete:
            self.sets.clear()
            self.rules.clear()
            self.workloads.clear()
        for change in changes.sets:
            before = AddressSet() if change.is_new else self.sets[change.id]
            self.sets[change.id] = (before - change.removed) | change.added
        self.rules.update((rules.id, rules) for rules in changes.rules)
        self.workloads.update((workload.key, workload) for workload in changes.workloads)
        if changes.pools is not None:
            self.pools = changes.pools
        for workload in changes.removed_workloads:
            self.workloads.pop(workload, None)
        for rules_id in changes.removed_rules:
            self.rules.pop(rules_id, None)
        for set_id in changes.removed_sets:
            self.sets.pop(set_id, None)


__all__ = [
    "AddressSet",
    "BitMap",
    "HostChanges",
    "HostPools",
    "HostRule",
    "HostRules",
    "HostState",
    "HostWorkload",
    "PolicyList",
    "RulesId",
    "SetChange",
    "SetId",
    "TierPolicies",
]
