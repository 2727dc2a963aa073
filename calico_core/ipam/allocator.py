"""Address management by blocks with host affinity: the shipped implementation of the ``Ipam`` seam.

A node keeps one :class:`BlockIpam` for all its integrations, so that it knows its own blocks and assigns in one round
trip, and so that calls which arrive together share it; a command-line tool may open one for a single call. The planners
decide, :mod:`attempts` carries out, :mod:`turns` says who goes when; here is the translation from and to the seam.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from calico_core.errors import CalicoError, Contended, InvalidRequest, StaleRelease, Unavailable
from calico_core.interfaces.ipam import Allocation, Companion, Ipam, MakeCompanion
from calico_core.ipam import blocks
from calico_core.ipam.affinities import Affinities
from calico_core.ipam.assignment import plan_assignment, wanted_versions
from calico_core.ipam.attempts import Attempts
from calico_core.ipam.decoding import decode_or_none
from calico_core.ipam.draft import Draft, handle_blocks
from calico_core.ipam.jobs import Job
from calico_core.ipam.knowledge import Knowledge
from calico_core.ipam.races import Races
from calico_core.ipam.releases import Release, plan_release, plan_release_by_handle, plan_sweep
from calico_core.ipam.round_trips import RoundTrips
from calico_core.ipam.steps import Fresh, Need, Plan, possible_blocks
from calico_core.ipam.turns import Turns
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.blocks import Block, Handle
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import BLOCKS, BlockKey, HandleKey, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from netaddr import IPAddress, IPNetwork

    from calico_core.interfaces.datastore import Entry, Records
    from calico_core.ipam.steps import Planner
    from calico_core.model.workloads import AddressRequest

log = get_logger(__name__)

_DEADLINE_S = 20.0
_READS_OF_A_HANDLE = 8
_HANDLES_AT_ONCE = 16  # leaves a transaction room for their blocks
_BLOCKS_AT_ONCE = 20


class BlockIpam(Ipam):
    """Safe for several threads; changes of one family wait for each other, and who waits goes together in the next
    transaction. ``round_trips`` counts what calls cost."""

    def __init__(self, records: Records, host: str, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        if not host:
            raise InvalidRequest("host", "the name of the host whose blocks are used")
        self.host = host
        self.round_trips = RoundTrips(records.store)
        self._clock_ns = clock_ns
        self._knowledge = Knowledge(host)
        self._attempts = Attempts(self._knowledge, self.round_trips)
        self._affinities = Affinities(self.round_trips, clock_ns=clock_ns)
        self._turns = Turns()

    @classmethod
    def open(cls, records: Records, host: str) -> BlockIpam:
        return cls(records, host)

    # --- assigning ---------------------------------------------------------------------------------

    def auto_assign(
        self, request: AddressRequest, companion: MakeCompanion | None = None, *, deadline_s: float = _DEADLINE_S
    ) -> tuple[IPAddress, ...]:
        _check(request)

        def planner(fresh: Fresh, draft: Draft) -> Plan | Need:
            return plan_assignment(self._knowledge, request, fresh, draft, now_ns=self._clock_ns())

        what = f"addresses for {request.handle}"
        versions = wanted_versions(request)
        plan = self._settle(
            Job(
                versions,
                planner,
                companion,
                handles=(request.handle, *request.takes_over),
                what=what,
                deadline_s=deadline_s,
            )
        )
        log.debug("ipam.assigned", handle=request.handle, addresses=[str(address) for address in plan.addresses])
        return plan.addresses

    # --- releasing ---------------------------------------------------------------------------------

    def release(
        self,
        addresses: Sequence[IPAddress],
        *,
        handle: str | None = None,
        sequences: Mapping[IPAddress, int | None] | None = None,
    ) -> tuple[IPAddress, ...]:
        remaining = list(dict.fromkeys(addresses))
        was_free: list[IPAddress] = []
        end = time.monotonic() + _DEADLINE_S
        while remaining:
            part = tuple(remaining)

            def planner(fresh: Fresh, draft: Draft, part: tuple[IPAddress, ...] = part) -> Plan | Need:
                release = Release(self._knowledge, sequences or {}, self._clock_ns())
                return plan_release(release, part, handle, fresh, draft)

            versions = {address.version for address in remaining}
            plan = self._settle(_releasing(versions, planner, None, None, "a release of addresses", end))
            was_free += plan.was_free
            settled = {*plan.addresses, *plan.was_free}
            remaining = [address for address in remaining if address not in settled] if plan.is_partial else []
        return tuple(was_free)

    def release_by_handle(
        self,
        handles: Sequence[str],
        companion: Companion | None = None,
        *,
        sequences: Mapping[IPAddress, int | None] | None = None,
    ) -> tuple[IPAddress, ...]:
        names = tuple(dict.fromkeys(handles))
        if not all(names):
            raise InvalidRequest("handle", "must not be empty")
        groups = [names[start : start + _HANDLES_AT_ONCE] for start in range(0, len(names), _HANDLES_AT_ONCE)] or [()]
        freed: list[IPAddress] = []
        end = time.monotonic() + _DEADLINE_S
        for group in groups:
            is_partial = True
            while is_partial:
                planner = self._planner_by_handle(group, companion, sequences or {})
                what = "a release by handle"
                plan = self._settle(_releasing((4, 6), planner, _constant(companion), group, what, end))
                freed += plan.addresses
                companion, is_partial = None, plan.is_partial
        log.debug("ipam.released", handles=names, addresses=[str(address) for address in freed])
        return tuple(freed)

    def _planner_by_handle(
        self, names: Sequence[str], companion: Companion | None, sequences: Mapping[IPAddress, int | None]
    ) -> Planner:
        used = max(len(companion.operations), len(companion.preconditions)) if companion else 0

        def planner(fresh: Fresh, draft: Draft) -> Plan | Need:
            release = Release(self._knowledge, sequences, self._clock_ns(), used)
            return plan_release_by_handle(release, names, fresh, draft)

        return planner

    def sweep(self) -> None:
        """Make what has cooled down available again, in blocks that nobody writes otherwise. One listing, and a
        transaction for every 20 blocks in which there is something to do."""
        now = blocks.moment(self._clock_ns())
        cidrs = [block.cidr for block in self._listed_blocks() if blocks.cooled(block, now, 0) is not block]
        end = time.monotonic() + _DEADLINE_S
        for start in range(0, len(cidrs), _BLOCKS_AT_ONCE):
            part = tuple(cidrs[start : start + _BLOCKS_AT_ONCE])

            def planner(fresh: Fresh, draft: Draft, part: tuple[IPNetwork, ...] = part) -> Plan | Need:
                return plan_sweep(Release(self._knowledge, {}, self._clock_ns()), part, fresh, draft)

            self._settle(_releasing({cidr.version for cidr in part}, planner, None, None, "a sweep of blocks", end))

    # --- questions ---------------------------------------------------------------------------------

    def by_handle(self, handle: str) -> tuple[IPAddress, ...]:
        key = HandleKey(handle)
        keys: tuple[Key, ...] = (key,)
        for _attempt in range(_READS_OF_A_HANDLE):
            found = {read: entry for read, entry, _revision in self.round_trips.read(keys)}
            entry = found[key]
            if entry is None:
                return ()
            record: Handle = codec.decode(key, entry.value)
            named = tuple(BlockKey(cidr) for cidr in handle_blocks(record))
            if all(block in found for block in named):
                return _held(handle, [(block, found[block]) for block in named])
            keys = (key, *named)
        raise Contended(f"handle {handle}", _READS_OF_A_HANDLE)

    def allocation(self, address: IPAddress) -> Allocation | None:
        for key, entry, _revision in self.round_trips.read(possible_blocks(address)):
            if entry is None:
                continue
            block: Block = codec.decode(key, entry.value)
            held = blocks.attributes_at(block, blocks.ordinal_of(block, address)) if not block.deleted else None
            if held is not None:
                sequence = blocks.sequence_at(block, blocks.ordinal_of(block, address))
                return Allocation(address, held.handle_id, dict(held.secondary or {}), sequence)
        return None

    # --- affinities --------------------------------------------------------------------------------

    def claim_affinity(self, cidr: IPNetwork, host: str) -> None:
        self._affinities.claim(cidr.cidr, host, Races(f"block {cidr}", _DEADLINE_S))

    def release_affinity(self, cidr: IPNetwork, host: str) -> None:
        self._affinities.release(cidr.cidr, host, Races(f"block {cidr}", _DEADLINE_S))

    def release_host(self, host: str) -> None:
        self._affinities.release_all(host, Races(f"blocks of {host}", _DEADLINE_S))
        for block in self._listed_blocks():
            held = blocks.ordinals_on(block, host)
            if held:
                self._release_listed(block, held)

    def _release_listed(self, block: Block, ordinals: Sequence[int]) -> None:
        """Each address only if it is still the assignment that was listed."""
        numbers = {blocks.address_at(block, ordinal): blocks.sequence_at(block, ordinal) for ordinal in ordinals}
        by_handle: dict[str | None, list[IPAddress]] = {}
        for ordinal in ordinals:
            held = blocks.attributes_at(block, ordinal)
            by_handle.setdefault(held.handle_id if held else None, []).append(blocks.address_at(block, ordinal))
        try:
            self.release(tuple(numbers), sequences=numbers)
        except StaleRelease:  # one of them was given to somebody else: the others without it
            for handle, addresses in by_handle.items():
                for address in addresses:
                    self._release_unless_stale(address, handle, numbers)

    def _release_unless_stale(
        self, address: IPAddress, handle: str | None, numbers: Mapping[IPAddress, int | None]
    ) -> None:
        try:
            self.release([address], handle=handle, sequences=numbers)
        except StaleRelease as stale:
            log.info("ipam.assigned_again", address=str(address), reason=str(stale))

    # --- inside ------------------------------------------------------------------------------------

    def _settle(self, job: Job) -> Plan:
        """Its plan once committed, or its error. One thread leads, for itself and for some of those that wait."""
        while not job.is_settled:
            group = self._turns.enter(job)
            if not group:
                continue
            try:
                self._lead(group)
            finally:
                for version in job.versions:
                    self._knowledge.families[version].keep_own(self.host)
                self._turns.leave(group)
        if job.error is not None:
            raise job.error
        assert job.plan is not None
        return job.plan

    def _lead(self, group: Sequence[Job]) -> None:
        versions = sorted(group[0].versions)
        races = Races(group[0].what, min(job.deadline_s for job in group))
        if len(group) == 1:
            self._attempts.commit(versions, group, races)
            return
        try:
            self._attempts.commit(versions, group, races)
        except Unavailable as error:
            for job in group:
                if not job.is_settled:
                    job.error = Unavailable(error.endpoint, error.cause, maybe_applied=error.maybe_applied)
                    job.error.__cause__ = error
        except CalicoError as error:
            log.debug("ipam.group_refused", reason=str(error))
            for job in group:
                job.goes_alone = True

    def _listed_blocks(self) -> list[Block]:
        found: list[Block] = []
        for entry in self.round_trips.list(BLOCKS).entries:
            key = parse_key(entry.key)
            block = decode_or_none(key, entry) if isinstance(key, BlockKey) else None
            if isinstance(block, Block) and not block.deleted:
                found.append(block)
        return found


def _releasing(
    versions: Iterable[int],
    planner: Planner,
    companion: MakeCompanion | None,
    handles: Sequence[str] | None,
    what: str,
    end: float,
) -> Job:
    deadline_s = max(end - time.monotonic(), 0.0)
    return Job(versions, planner, companion, handles=handles, what=what, deadline_s=deadline_s)


def _check(request: AddressRequest) -> None:
    if not request.handle:
        raise InvalidRequest("handle", "must not be empty: addresses without one cannot be traced or released")
    for field, number in (("num_v4", request.num_v4), ("num_v6", request.num_v6)):
        if number < 0:
            raise InvalidRequest(field, f"{number} must not be negative")


def _constant(companion: Companion | None) -> MakeCompanion | None:
    return None if companion is None else lambda _addresses: companion


def _held(handle: str, entries: Sequence[tuple[BlockKey, Entry | None]]) -> tuple[IPAddress, ...]:
    found: list[IPAddress] = []
    for key, entry in entries:
        if entry is None:
            log.warning("ipam.handle_names_missing_block", handle=handle, block=str(key.cidr))
            continue
        block = decode_or_none(key, entry)
        if block is not None and not block.deleted:
            found += blocks.addresses_of(block, handle)
    return tuple(found)
