"""The address management seam. One implementation is shipped (``block``)."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.datastore import Operation, Precondition, Records
from calico_core.model.workloads import AddressRequest


class Companion(NamedTuple):
    """Writes of the caller that are committed in the same transaction as the addresses, under its own preconditions;
    also when nothing had to change about the addresses.
    If one of those fails the whole transaction is refused with ``Conflict`` naming the key."""

    preconditions: tuple[Precondition, ...] = ()
    operations: tuple[Operation, ...] = ()
    committed: Callable[[int], None] | None = None
    """Told the revision of the transaction, when that is known: not after a commit whose answer was lost."""


MakeCompanion = Callable[[tuple[IPAddress, ...]], Companion]
"""Given the addresses about to be committed (IPv4 first); may be called once per attempt, and by the thread of another
caller whose request goes in the same transaction."""


class Allocation(NamedTuple):
    """One assigned address, with who holds it. ``sequence`` tells this assignment from every other of the address;
    None when older software made it."""

    address: IPAddress
    handle: str | None
    attributes: dict[str, object]
    sequence: int | None = None


class Ipam(abc.ABC):
    """Addresses in blocks. Block, affinity, handle and address are claimed in one transaction, so that a crash leaves
    nothing half done. Safe for several threads. Source: ipam specification."""

    @classmethod
    @abc.abstractmethod
    def open(cls, records: Records, host: str) -> Ipam: ...

    @abc.abstractmethod
    def auto_assign(
        self,
        request: AddressRequest,
        companion: MakeCompanion | None = None,
        *,
        deadline_s: float = 20.0,
    ) -> tuple[IPAddress, ...]:
        """Assign all that the request asks for, or nothing. IPv4 first, requested addresses before automatic ones.

        Repeating with the same handle returns what it holds. Raises ``NoPools``, ``PoolExhausted``,
        ``AddressInUse``, ``OutsidePools``, ``Contended``, ``Conflict`` (from the companion), ``Unavailable``.
        """

    @abc.abstractmethod
    def release(
        self,
        addresses: Sequence[IPAddress],
        *,
        handle: str | None = None,
        sequences: Mapping[IPAddress, int | None] | None = None,
    ) -> tuple[IPAddress, ...]:
        """Free addresses; those that were free already are returned. With ``handle``, an address held by another
        raises ``StaleRelease`` and nothing is freed; likewise one assigned at another number than ``sequences`` says
        (see :class:`Allocation`)."""

    @abc.abstractmethod
    def release_by_handle(
        self,
        handles: Sequence[str],
        companion: Companion | None = None,
        *,
        sequences: Mapping[IPAddress, int | None] | None = None,
    ) -> tuple[IPAddress, ...]:
        """Free everything the handles hold, together with the companion's writes; what was freed. Unknown handles
        are fine: the companion is committed all the same. An address that ``sequences`` names at another number than
        the recorded one was assigned again since, and stays."""

    @abc.abstractmethod
    def by_handle(self, handle: str) -> tuple[IPAddress, ...]:
        """What a handle holds; empty for an unknown one."""

    @abc.abstractmethod
    def allocation(self, address: IPAddress) -> Allocation | None:
        """Who holds an address, or None when it is free."""

    @abc.abstractmethod
    def claim_affinity(self, cidr: IPNetwork, host: str) -> None:
        """Give a block to a host. Raises ``AffinityHeld``, ``OutsidePools``."""

    @abc.abstractmethod
    def release_affinity(self, cidr: IPNetwork, host: str) -> None:
        """Take a block from a host: deleted when empty, left without owner otherwise. Not owned is fine."""

    @abc.abstractmethod
    def release_host(self, host: str) -> None:
        """Clean up after a host that is gone: its affinities, and every address that was assigned for its workloads,
        whoever owns the block. An address that is assigned again meanwhile stays."""

    def sweep(self) -> None:
        """Make addresses that have cooled down available again where nobody does it on the way. For a resident process
        to call now and then, while a cool-down is configured."""

    def close(self) -> None:
        """Stop background work, if there is any."""
