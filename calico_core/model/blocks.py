"""What IPAM keeps: blocks, affinities, handles, its configuration. Source: ipam specification 2."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from netaddr import IPNetwork

from calico_core.model.record import Record


class AllocationAttributes(Record, frozen=True, omit_defaults=False):
    """Who holds addresses of a block: the handle, and why (node, orchestrator, workload, timestamp …).

    ``released_at``: nobody holds them any more, they cool down before they are given again. Older documents call the
    handle ``primary``. ``alternate_owner`` is another program's, and kept.
    """

    handle_id: str | None = None
    secondary: dict[str, Any] | None = None
    released_at: datetime | UnsetType | None = msgspec.field(default=UNSET, name="releasedAt")
    alternate_owner: dict[str, Any] | UnsetType | None = msgspec.field(default=UNSET, name="alternateOwnerAttrs")
    primary: str | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.primary is not UNSET:
            msgspec.structs.force_setattr(self, "handle_id", self.handle_id or self.primary)
            msgspec.structs.force_setattr(self, "primary", UNSET)

    @property
    def cooling_since(self) -> datetime | None:
        return self.released_at if isinstance(self.released_at, datetime) else None


class Block(Record, frozen=True, omit_defaults=False):
    """A /26 or /122 (or the pool's size): the unit of compare-and-swap.

    ``allocations`` maps ordinal (address − first address) to an index of ``attributes``; ``unallocated`` is the FIFO
    of free ordinals. ``sequence_number`` grows with each write and never repeats for a re-created block.
    ``affinity_claim_time`` None: written by older software, long ago. A ``deleted`` block counts as absent.
    """

    cidr: IPNetwork
    affinity: str | None = None
    strict_affinity: bool = False
    allocations: tuple[int | None, ...] = ()
    unallocated: tuple[int, ...] | None = None
    attributes: tuple[AllocationAttributes, ...] = ()
    sequence_number: int = msgspec.field(default=0, name="sequenceNumber")
    sequence_for_allocation: dict[str, int] = msgspec.field(default_factory=dict, name="sequenceNumberForAllocation")
    host_affinity: str | None = msgspec.field(default=None, name="hostAffinity")
    affinity_claim_time: datetime | None = msgspec.field(default=None, name="affinityClaimTime")
    deleted: bool = False

    def __post_init__(self) -> None:
        if self.cidr.size > 4096 or len(self.allocations) != self.cidr.size:
            raise ValueError(f"allocations: {self.cidr} needs {self.cidr.size} entries (at most 4096)")
        free = {ordinal for ordinal, index in enumerate(self.allocations) if index is None}
        if self.unallocated is None:
            msgspec.structs.force_setattr(self, "unallocated", tuple(sorted(free)))
        elif len(self.unallocated) != len(free) or set(self.unallocated) != free:
            raise ValueError("unallocated: must list exactly the free ordinals, once each")
        if any(index is not None and not 0 <= index < len(self.attributes) for index in self.allocations):
            raise ValueError("allocations: an index has no entry in attributes")
        if self.affinity is None and self.host_affinity:
            msgspec.structs.force_setattr(self, "affinity", f"host:{self.host_affinity}")

    @property
    def owner(self) -> str | None:
        """The host with affinity, or None."""
        return self.affinity[5:] if self.affinity and self.affinity.startswith("host:") else None

    @property
    def is_empty(self) -> bool:
        return len(self.unallocated or ()) == len(self.allocations)


class Affinity(Record, frozen=True, omit_defaults=False):
    """That a host owns a block. An index: the block itself is the truth. An empty value reads as confirmed."""

    state: Literal["confirmed", "pending", "pendingDeletion"] = "confirmed"
    deleted: bool = False


class Reservation(Record, frozen=True):
    """Addresses that are never chosen automatically; who names one of them may have it."""

    cidrs: tuple[IPNetwork, ...] = ()


class Handle(Record, frozen=True):
    """A caller's name for a group of addresses, counted per block (``cidr`` text → count)."""

    block: dict[str, int]
    id: str | None = None


class IpamConfig(Record, frozen=True, omit_defaults=False):
    """Cluster-wide allocation rules. ``max_blocks_per_host`` 0 means 20 per family."""

    strict_affinity: bool = False
    auto_allocate_blocks: bool = True
    max_blocks_per_host: int = msgspec.field(default=0, name="maxBlocksPerHost")
    cooldown_s: int = msgspec.field(default=0, name="ipCooldownSeconds")

    def __post_init__(self) -> None:
        if not self.strict_affinity and not self.auto_allocate_blocks:
            raise ValueError("auto_allocate_blocks: cannot be off unless strict_affinity is on")
        if not 0 <= self.cooldown_s <= 1200:
            raise ValueError("ipCooldownSeconds: from 0 to 1200")
