"""Address management by blocks with host affinity: the shipped implementation of the ``Ipam`` seam.

A node keeps one :class:`BlockIpam` for all its integrations, so that it knows its own blocks and assigns in one round
trip; a command-line tool may open one for a single call. The planners decide, :mod:`attempts` carries out, here are
the locks and the translation from and to the seam.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from calico_core.errors import Contended, InvalidRecord, InvalidRequest
from calico_core.interfaces.datastore import MAX_TRANSACTION_OPERATIONS, Entry
from calico_core.interfaces.ipam import Allocation, Companion, Ipam, MakeCompanion
from calico_core.ipam import blocks
from calico_core.ipam.affinities import Affinities
from calico_core.ipam.assignment import plan_assignment, wanted_versions
from calico_core.ipam.attempts import Attempts
from calico_core.ipam.draft import handle_blocks
from calico_core.ipam.knowledge import Knowledge
from calico_core.ipam.races import Races
from calico_core.ipam.releases import plan_release, plan_release_by_handle
from calico_core.ipam.round_trips import RoundTrips
from calico_core.ipam.steps import Fresh, Need, Plan, possible_blocks
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.blocks import Block, Handle
from calico_core.model.keys import BlockKey, HandleKey, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from netaddr import IPAddress, IPNetwork

    from calico_core.interfaces.datastore import Records
    from calico_core.model.workloads import AddressRequest

log = get_logger(__name__)

_DEADLINE_S = 20.0
_READS_OF_A_HANDLE = 8
_HANDLES_AT_ONCE = 16  # leaves a transaction room for their blocks


class BlockIpam(Ipam):
    """Safe for several threads; changes of one family wait for each other. ``round_trips`` counts what calls cost."""

    def __init__(self, records: Records, host: str, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        if not host:
            raise InvalidRequest("host", "the name of the host whose blocks are used")
        self.host = host
        self.round_trips = RoundTrips(records.store)
        self._clock_ns = clock_ns
        self._knowledge = Knowledge(host)
        self._attempts = Attempts(self._knowledge, self.round_trips)
        self._affinities = Affinities(self.round_trips, clock_ns=clock_ns)
        self._locks = {4: threading.Lock(), 6: threading.Lock()}

    @classmethod
    def open(cls, records: Records, host: str) -> BlockIpam:
        return cls(records, host)

    # --- assigning ---------------------------------------------------------------------------------

    def auto_assign(
        self, request: AddressRequest, companion: MakeCompanion | None = None, *, deadline_s: float = _DEADLINE_S
    ) -> tuple[IPAddress, ...]:
        _check(request)
        versions = wanted_versions(request)
        what = f"addresses for {request.handle}"
        with self._family_locks(versions, what, deadline_s):
            planner = self._assignment_planner(request)
            plan = self._attempts.commit(versions, planner, companion, Races(what, deadline_s))
        for cidr in plan.draft.claimed():
            log.info("ipam.block_claimed", block=str(cidr), host=self.host)
        log.debug("ipam.assigned", handle=request.handle, addresses=[str(address) for address in plan.addresses])
        return plan.addresses

    def _assignment_planner(self, request: AddressRequest) -> Callable[[Fresh], Plan | Need]:
        return lambda fresh: plan_assignment(self._knowledge, request, fresh, seed=self._clock_ns())

    # --- releasing ---------------------------------------------------------------------------------

    def release(self, addresses: Sequence[IPAddress], *, handle: str | None = None) -> tuple[IPAddress, ...]:
        remaining = list(dict.fromkeys(addresses))
        was_free: list[IPAddress] = []
        versions = tuple(sorted({address.version for address in remaining}))
        races = Races("a release of addresses", _DEADLINE_S)
        with self._family_locks(versions, "a release of addresses", _DEADLINE_S):
            while remaining:
                part = tuple(remaining)
                plan = self._attempts.commit(
                    versions,
                    lambda fresh, part=part: plan_release(  # type: ignore[misc]
                        self._knowledge, part, handle, fresh, room=MAX_TRANSACTION_OPERATIONS
                    ),
                    None,
                    races,
                )
                was_free += plan.was_free
                settled = {*plan.addresses, *plan.was_free}
                remaining = [address for address in remaining if address not in settled] if plan.is_partial else []
        return tuple(was_free)

    def release_by_handle(self, handles: Sequence[str], companion: Companion | None = None) -> tuple[IPAddress, ...]:
        names = tuple(dict.fromkeys(handles))
        if not all(names):
            raise InvalidRequest("handle", "must not be empty")
        groups = [names[start : start + _HANDLES_AT_ONCE] for start in range(0, len(names), _HANDLES_AT_ONCE)] or [()]
        freed: list[IPAddress] = []
        races = Races("a release by handle", _DEADLINE_S)
        with self._family_locks((4, 6), "a release by handle", _DEADLINE_S):
            for group in groups:
                is_partial = True
                while is_partial:
                    planner = self._release_planner(group, companion)
                    plan = self._attempts.commit((4, 6), planner, _constant(companion), races)
                    freed += plan.addresses
                    companion, is_partial = None, plan.is_partial
        log.debug("ipam.released", handles=names, addresses=[str(address) for address in freed])
        return tuple(freed)

    def _release_planner(self, names: Sequence[str], companion: Companion | None) -> Callable[[Fresh], Plan | Need]:
        used = max(len(companion.operations), len(companion.preconditions)) if companion else 0
        room = MAX_TRANSACTION_OPERATIONS - used
        return lambda fresh: plan_release_by_handle(self._knowledge, names, fresh, room=room)

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
            held = blocks.attributes_at(block, blocks.ordinal_of(block, address))
            if held is not None:
                return Allocation(address, held.handle_id, dict(held.secondary or {}))
        return None

    # --- affinities --------------------------------------------------------------------------------

    def claim_affinity(self, cidr: IPNetwork, host: str) -> None:
        self._affinities.claim(cidr.cidr, host, Races(f"block {cidr}", _DEADLINE_S))

    def release_affinity(self, cidr: IPNetwork, host: str) -> None:
        self._affinities.release(cidr.cidr, host, Races(f"block {cidr}", _DEADLINE_S))

    def release_host(self, host: str) -> None:
        self._affinities.release_all(host, Races(f"blocks of {host}", _DEADLINE_S))

    # --- inside ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _family_locks(self, versions: Sequence[int], what: str, timeout_s: float) -> Iterator[None]:
        """Always in the same order. The call's own deadline begins after the wait."""
        with contextlib.ExitStack() as held:
            for version in sorted(versions):
                if not self._locks[version].acquire(timeout=timeout_s):
                    raise Contended(f"{what}, waiting for other calls of this host", 0)
                held.callback(self._locks[version].release)
            try:
                yield
            finally:
                for version in versions:
                    self._knowledge.families[version].keep_own(self.host)


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
        try:
            found += blocks.addresses_of(codec.decode(key, entry.value), handle)
        except InvalidRecord as error:
            log.warning("ipam.record_malformed", key=error.key, path=error.path, reason=error.reason)
    return tuple(found)
