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
from calico_core.interfaces.ipam import Companion
from calico_core.ipam.draft import Draft, affinity_prefix
from calico_core.ipam.steps import Fresh, Need, Plan, both
from calico_core.log import get_logger
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import (
    BLOCKS,
    POOLS,
    RESERVATIONS,
    AffinityKey,
    BlockKey,
    IpamConfigKey,
    Key,
    PoolKey,
    ReservationKey,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from calico_core.ipam.jobs import Job
    from calico_core.ipam.knowledge import Knowledge
    from calico_core.ipam.races import Races
    from calico_core.ipam.round_trips import RoundTrips

log = get_logger(__name__)

_READS_IN_A_ROW = 8


class _Member(NamedTuple):
    job: Job
    plan: Plan
    companion: Companion


class _Attempt(NamedTuple):
    members: tuple[_Member, ...]
    draft: Draft
    preconditions: tuple[Precondition, ...]
    operations: tuple[Operation, ...]

    @classmethod
    def of(cls, members: Sequence[_Member], draft: Draft) -> _Attempt:
        """Members may agree on what they bring, such as the profile they all want to exist."""
        theirs = [check for member in members for check in member.companion.preconditions]
        writes = [operation for member in members for operation in member.companion.operations]
        preconditions = (*draft.preconditions(), *dict.fromkeys(theirs))
        operations = (*draft.operations(), *dict.fromkeys(writes))
        if max(len(preconditions), len(operations)) > MAX_TRANSACTION_OPERATIONS:
            raise InvalidRequest("addresses", "too many for one transaction, ask for fewer at a time")
        return cls(tuple(members), draft, preconditions, operations)

    @property
    def is_idle(self) -> bool:
        return not self.operations and not any(member.companion.preconditions for member in self.members)

    @property
    def compared(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(check.key for check in self.preconditions if isinstance(check, Compare)))

    def settle(self) -> None:
        for member in self.members:
            member.job.plan = member.plan


class Attempts:
    """The caller has the turn of ``versions`` for the length of a call."""

    def __init__(self, knowledge: Knowledge, round_trips: RoundTrips) -> None:
        self._knowledge = knowledge
        self._round_trips = round_trips

    def commit(self, versions: Sequence[int], jobs: Sequence[Job], races: Races) -> None:
        """Until the plans of the jobs are committed, together with their companions; the jobs then have their plans.

        A job alone: raises what its planner raises, ``Contended``, ``Conflict`` naming a key of its companion,
        ``Unavailable``. Of several, one that would raise is left unsettled and ``goes_alone`` from now on; one for
        which there was no room is left as it is. ``Contended`` and ``Unavailable`` are about all of them.
        """
        fresh = Fresh()
        doubtful: list[_Attempt] = []
        remaining = list(jobs)
        while attempt := self._planned(remaining, fresh, races):
            if attempt.is_idle:
                attempt.settle()
                return
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
                    self._take_in(attempt, result.revision)
                    return
                self._learn(zip(attempt.compared, result.current, strict=True), result.revision, fresh)
            landed = self._landed(doubtful, fresh, races, outage)
            if landed is not None:
                landed.settle()
                return
            if result is not None:
                remaining = self._without_culprits(attempt, result, remaining)
                self._find_cause(attempt, result, fresh)
                races.lost()
            elif outage is not None:
                _wait_out(outage, races, len(doubtful) - 1)

    def _take_in(self, attempt: _Attempt, revision: int) -> None:
        attempt.draft.committed(revision)
        for cidr in attempt.draft.claimed():
            log.info("ipam.block_claimed", block=str(cidr), host=self._knowledge.host)
        for theirs in attempt.draft.reclaimed():
            log.info("ipam.block_reclaimed", block=str(theirs.cidr), host=self._knowledge.host, owner=theirs.host)
        attempt.settle()
        for member in attempt.members:
            if member.companion.committed is not None:
                member.companion.committed(revision)

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
        if self._knowledge.reservations:  # one that is gone by now would make us refuse what is free
            self._load_reservations()

    def _load_reservations(self) -> None:
        listing = self._round_trips.list(RESERVATIONS)
        parsed = ((parse_key(entry.key), entry) for entry in listing.entries)
        there = [(key, entry) for key, entry in parsed if isinstance(key, ReservationKey)]
        self._knowledge.learn_reservations(there, listing.revision)

    # --- reading -----------------------------------------------------------------------------------

    def _planned(self, jobs: list[Job], fresh: Fresh, races: Races) -> _Attempt | None:
        """Everything known that the plans need. Jobs that cannot go with the others are taken out of ``jobs``; None
        when none is left."""
        rounds = 0
        while jobs:
            step = self._attempt_alone(jobs[0], fresh) if len(jobs) == 1 else self._attempt_together(jobs, fresh)
            if isinstance(step, _Attempt):
                return step
            if step is None:
                continue
            rounds += 1
            if rounds > _READS_IN_A_ROW:  # somebody writes faster than we read
                races.lost()
            self._read(step, fresh)
        return None

    def _attempt_alone(self, job: Job, fresh: Fresh) -> _Attempt | Need:
        draft = Draft(self._knowledge)
        plan = job.planner(fresh, draft)
        return plan if isinstance(plan, Need) else _Attempt.of([_Member(job, plan, job.companion(plan))], draft)

    def _attempt_together(self, jobs: list[Job], fresh: Fresh) -> _Attempt | Need | None:
        draft = Draft(self._knowledge)
        members: list[_Member] = []
        need: Need | None = None
        for job in tuple(jobs):
            fork = draft.fork()
            try:
                plan = job.planner(fresh, fork)
                if isinstance(plan, Need):
                    need = both(need, plan) if need else plan
                    continue
                member = _Member(job, plan, job.companion(plan))
            except Exception as error:  # the companion is the caller's code; it happens again in its own thread
                log.debug("ipam.goes_alone", what=job.what, reason=str(error))
                job.goes_alone = True
                jobs.remove(job)
                continue
            if not plan.is_partial and _has_room(fork, [*members, member]):
                draft = fork
                members.append(member)
            else:
                jobs.remove(job)
                job.goes_alone = job.goes_alone or not members
        if need is not None:
            return need
        return _Attempt.of(members, draft) if members else None

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

    def _without_culprits(self, attempt: _Attempt, result: TransactionResult, jobs: list[Job]) -> list[Job]:
        """The jobs whose companions did not refuse. Raises ``Conflict`` for a job that is alone."""
        current = dict(zip(attempt.compared, result.current, strict=True))
        remaining = list(jobs)
        for member in attempt.members:
            checks = [check for check in member.companion.preconditions if isinstance(check, Compare)]
            failed = next((check for check in checks if _revision(current[check.key]) != check.mod_revision), None)
            if failed is None:
                continue
            if len(attempt.members) == 1:
                raise Conflict(failed.key, current[failed.key])
            member.job.goes_alone = True
            remaining.remove(member.job)
        return remaining

    def _find_cause(self, attempt: _Attempt, result: TransactionResult, fresh: Fresh) -> None:
        """Sees to it that the next plan knows more."""
        current = dict(zip(attempt.compared, result.current, strict=True))
        fresh.claims_lost += sum(1 for cidr in attempt.draft.claimed() if current[BlockKey(cidr).path] is not None)
        compares = [check for check in attempt.preconditions if isinstance(check, Compare)]
        if any(_revision(current[check.key]) != check.mod_revision for check in compares):
            return
        for member in attempt.members:
            for check in member.companion.preconditions:
                if isinstance(check, NoneNewer):
                    self._require_none_newer(check)
        if attempt.draft.rests_on_reservations:
            self._load_reservations()
        for version in attempt.draft.claimed_versions:  # another process of this host claimed a block
            self.load(version, fresh)

    def _require_none_newer(self, check: NoneNewer) -> None:
        for entry in self._round_trips.list(check.prefix).entries:
            if entry.mod_revision > check.revision:
                raise Conflict(entry.key, entry)

    def _landed(
        self, doubtful: list[_Attempt], fresh: Fresh, races: Races, error: Unavailable | None
    ) -> _Attempt | None:
        """The attempt that timed out and was applied all the same, or None when none was so far."""
        for attempt in reversed(doubtful):
            paths = tuple(dict.fromkeys([*attempt.compared, *(operation.key for operation in attempt.operations)]))
            current = self._read_in_spite(paths, fresh, races, error)
            if all(m.plan.is_done() and _is_applied(m.companion, current) for m in attempt.members):
                addresses = [str(address) for member in attempt.members for address in member.plan.addresses]
                log.info("ipam.timeout_had_landed", addresses=addresses)
                return attempt
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


def _has_room(draft: Draft, members: Sequence[_Member]) -> bool:
    """Whether the members fit into one transaction, and agree where they write the same key."""
    checks = {check for member in members for check in member.companion.preconditions}
    writes = {operation for member in members for operation in member.companion.operations}
    if draft.weight + max(len(checks), len(writes)) > MAX_TRANSACTION_OPERATIONS:
        return False
    return len({operation.key for operation in writes}) == len(writes)


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
