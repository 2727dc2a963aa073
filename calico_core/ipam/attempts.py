"""Carries out plans: reads what a planner needs, tries its transaction, learns from refusals, tries again.

A refusal brings the state that refused it, so a lost race costs one round trip. A transaction that timed out may have
landed: what it would have written is read again before anything is tried, and because every attempt compares the
handle and the blocks, one that lands late can only make the next attempt fail.
Source: ipam specification 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from calico_core.errors import Conflict, InvalidRequest, Unavailable
from calico_core.interfaces.datastore import (
    MAX_TRANSACTION_OPERATIONS,
    Compare,
    Entry,
    NoneNewer,
    Operation,
    Precondition,
    Put,
    TransactionResult,
)
from calico_core.interfaces.ipam import Companion, MakeCompanion
from calico_core.ipam.draft import affinity_prefix
from calico_core.ipam.steps import Fresh, Need, Plan, Planner
from calico_core.log import get_logger
from calico_core.model.keys import BLOCKS, POOLS, AffinityKey, BlockKey, IpamConfigKey, Key, PoolKey, parse_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from calico_core.ipam.knowledge import Knowledge
    from calico_core.ipam.races import Races
    from calico_core.ipam.round_trips import RoundTrips

log = get_logger(__name__)

_READS_IN_A_ROW = 8


class _Attempt(NamedTuple):
    plan: Plan
    companion: Companion
    preconditions: tuple[Precondition, ...]
    operations: tuple[Operation, ...]

    @classmethod
    def of(cls, plan: Plan, make_companion: MakeCompanion | None) -> _Attempt:
        companion = make_companion(plan.addresses) if make_companion else Companion()
        preconditions = (*plan.draft.preconditions(), *companion.preconditions)
        operations = (*plan.draft.operations(), *companion.operations)
        if max(len(preconditions), len(operations)) > MAX_TRANSACTION_OPERATIONS:
            raise InvalidRequest("addresses", "too many for one transaction, ask for fewer at a time")
        return cls(plan, companion, preconditions, operations)

    @property
    def is_idle(self) -> bool:
        return not self.operations and not self.companion.preconditions

    @property
    def compared(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(check.key for check in self.preconditions if isinstance(check, Compare)))


class Attempts:
    """The caller holds the locks of ``versions`` for the length of a call."""

    def __init__(self, knowledge: Knowledge, round_trips: RoundTrips) -> None:
        self._knowledge = knowledge
        self._round_trips = round_trips

    def commit(
        self, versions: Sequence[int], planner: Planner, make_companion: MakeCompanion | None, races: Races
    ) -> Plan:
        """Until a plan is committed, together with its companion. Raises what the planner raises, ``Contended``,
        ``Conflict`` naming a key of the companion, ``Unavailable``."""
        fresh = Fresh()
        doubtful: list[_Attempt] = []
        while True:
            attempt = _Attempt.of(self._planned(planner, fresh, races), make_companion)
            if attempt.is_idle:
                return attempt.plan
            result: TransactionResult | None = None
            outage: Unavailable | None = None
            try:
                result = self._round_trips.transact(attempt.preconditions, attempt.operations, attempt.compared)
            except Unavailable as error:
                if not (error.maybe_applied or doubtful):
                    raise
                outage = error
                doubtful.append(attempt)
            else:
                self._notice_rewind(versions, result.revision)
                if result.committed:
                    attempt.plan.draft.committed(result.revision)
                    if attempt.companion.committed is not None:
                        attempt.companion.committed(result.revision)
                    return attempt.plan
                self._learn(zip(attempt.compared, result.current, strict=True), result.revision, fresh)
            landed = self._landed(doubtful, fresh, races, outage)
            if landed is not None:
                return landed
            if result is not None:
                self._find_cause(attempt, result, fresh)
                races.lost()
            elif outage is not None:
                _wait_out(outage, races, len(doubtful) - 1)

    def load(self, version: int, fresh: Fresh) -> None:
        """Pools and own affinities of a family, anew."""
        family = self._knowledge.families[version]
        listing = self._round_trips.list(f"{POOLS}v{version}/pool/")
        there = {parse_key(entry.key): entry for entry in listing.entries}
        for key in {*(PoolKey(cidr) for cidr in family.pools), *(key for key in there if isinstance(key, PoolKey))}:
            self._knowledge.learn(key, there.get(key), listing.revision)
        listing = self._round_trips.list(affinity_prefix(self._knowledge.host, version))
        there = {parse_key(entry.key): entry for entry in listing.entries}
        known = [AffinityKey(self._knowledge.host, cidr) for cidr in family.affinities]
        for affinity in dict.fromkeys([*known, *(key for key in there if isinstance(key, AffinityKey))]):
            self._knowledge.learn(affinity, there.get(affinity), listing.revision)
        family.affinities_as_of = listing.revision
        fresh.loaded.add(version)

    # --- reading -----------------------------------------------------------------------------------

    def _planned(self, planner: Planner, fresh: Fresh, races: Races) -> Plan:
        rounds = 0
        while isinstance(step := planner(fresh), Need):
            rounds += 1
            if rounds > _READS_IN_A_ROW:  # somebody writes faster than we read
                races.lost()
            self._read(step, fresh)
        return step

    def _read(self, need: Need, fresh: Fresh) -> None:
        keys: list[Key] = list(need.keys)
        for version in need.load:
            self.load(version, fresh)
            keys += [BlockKey(cidr) for cidr in self._knowledge.families[version].affinities]
        if need.load:
            keys.append(IpamConfigKey())
        for version in need.listing:
            listing = self._round_trips.list(f"{BLOCKS}ipv{version}/block/")
            parsed = ((parse_key(entry.key), entry) for entry in listing.entries)
            self._knowledge.families[version].learn_listing(
                [(key, entry) for key, entry in parsed if isinstance(key, BlockKey)], listing.revision
            )
            fresh.listed.add(version)
        for key, entry, revision in self._round_trips.read(tuple(dict.fromkeys(keys))):
            self._knowledge.learn(key, entry, revision)
            fresh.keys.add(key)

    def _learn(self, entries: Iterable[tuple[str, Entry | None]], revision: int, fresh: Fresh) -> None:
        for path, entry in entries:
            key = parse_key(path)
            if key is not None:
                self._knowledge.learn(key, entry, revision)
                fresh.keys.add(key)

    def _notice_rewind(self, versions: Sequence[int], revision: int) -> None:
        """A store whose revision went back was restored from a backup: what we know is of another life."""
        for version in versions:
            family = self._knowledge.families[version]
            if revision < family.revision:
                log.warning("ipam.store_rewound", known=family.revision, revision=revision)
                self._knowledge.clear(version)
            family.revision = revision

    # --- refusals and timeouts -----------------------------------------------------------------------

    def _find_cause(self, attempt: _Attempt, result: TransactionResult, fresh: Fresh) -> None:
        """Raises ``Conflict`` when the caller's part refused; otherwise sees to it that the next plan knows more."""
        current = dict(zip(attempt.compared, result.current, strict=True))
        for check in attempt.companion.preconditions:
            if isinstance(check, Compare) and _revision(current[check.key]) != check.mod_revision:
                raise Conflict(check.key, current[check.key])
        fresh.claims_lost += sum(1 for cidr in attempt.plan.draft.claimed() if current[BlockKey(cidr).path] is not None)
        compares = [check for check in attempt.preconditions if isinstance(check, Compare)]
        if any(_revision(current[check.key]) != check.mod_revision for check in compares):
            return
        for check in attempt.companion.preconditions:
            if isinstance(check, NoneNewer):
                self._require_none_newer(check)
        for version in attempt.plan.draft.claimed_versions:  # another process of this host claimed a block
            self.load(version, fresh)

    def _require_none_newer(self, check: NoneNewer) -> None:
        for entry in self._round_trips.list(check.prefix).entries:
            if entry.mod_revision > check.revision:
                raise Conflict(entry.key, entry)

    def _landed(self, doubtful: list[_Attempt], fresh: Fresh, races: Races, error: Unavailable | None) -> Plan | None:
        """The attempt that timed out and was applied all the same, or None when none was so far."""
        for attempt in reversed(doubtful):
            paths = tuple(dict.fromkeys([*attempt.compared, *(operation.key for operation in attempt.operations)]))
            current = self._read_in_spite(paths, fresh, races, error)
            if attempt.plan.is_done() and _is_applied(attempt.companion, current):
                log.info("ipam.timeout_had_landed", addresses=[str(address) for address in attempt.plan.addresses])
                return attempt.plan
        return None

    def _read_in_spite(
        self, paths: Sequence[str], fresh: Fresh, races: Races, error: Unavailable | None
    ) -> dict[str, Entry | None]:
        """Until the store answers or the deadline passes; then the first error, which says that it may have landed."""
        step = 0
        while True:
            try:
                current, revision = self._round_trips.read_paths(paths)
            except Unavailable as again:
                _wait_out(error or again, races, step)
                step += 1
            else:
                self._learn(current.items(), revision, fresh)
                return current


def _wait_out(outage: Unavailable, races: Races, step: int) -> None:
    """Before asking a store again that did not answer. Past the deadline the outage is raised; what was tried may
    have landed."""
    if races.is_over:
        raise Unavailable(outage.endpoint, outage.cause, maybe_applied=True) from outage
    races.pause(step)


def _revision(entry: Entry | None) -> int:
    return entry.mod_revision if entry else 0


def _is_applied(companion: Companion, current: dict[str, Entry | None]) -> bool:
    for operation in companion.operations:
        entry = current[operation.key]
        if isinstance(operation, Put):
            if entry is None or entry.value != operation.value:
                return False
        elif entry is not None:
            return False
    return True
