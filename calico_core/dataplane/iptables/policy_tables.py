"""Our chains and sets in the kernel: desired state in, one transaction a table out, and what went wrong by subject.

Order of a commit: new sets and members, then chains (one process a family), then the sets that nothing names any more.
The kernel's content is known from reading it once and from our own commits; a refusal, and every resync, reads again.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.denials import Origins
from calico_core.dataplane.iptables import layout, saved
from calico_core.dataplane.iptables.builder import TablesBuilder
from calico_core.dataplane.iptables.desired import Touched
from calico_core.dataplane.iptables.ipsets import parse_saved as parse_sets
from calico_core.dataplane.iptables.ipsets import room, write_commands
from calico_core.dataplane.iptables.names import NAT, RAW
from calico_core.dataplane.iptables.saved import Line, SavedTable
from calico_core.dataplane.kernel_policy import TableReport
from calico_core.dataplane.linux import sysctl
from calico_core.dataplane.reconcile import Table, reconcile
from calico_core.errors import ToolFailed
from calico_core.interfaces.dataplane import Failure, Figure, RuleCount, timing_figures
from calico_core.log import get_logger
from calico_core.model.hoststate import HostState

if TYPE_CHECKING:
    from calico_core.dataplane.claims import Down
    from calico_core.dataplane.iptables.tools import Tools
    from calico_core.dataplane.reconcile import Plan
    from calico_core.interfaces.dataplane import DataplaneOptions
    from calico_core.model.hoststate import HostChanges, RulesId

    TableId = tuple[int, str]
    #: By family and chain, or family and the address that is led to: addresses.
    _Sources = dict[tuple[int, str], frozenset[int]]

#: How many rounds of closing what the kernel refused before the batch fails as a whole.
_ISOLATION_ROUNDS = 20
# The kernel frees the rules of a transaction a little later; until then it holds the sets they named.
_REMOVAL_TRIES, _REMOVAL_PAUSE_S = 6, 0.01
_PURGE_TRIES = 100
# iptables: "line 7 failed", "Error occurred at line: 7", "line 7: RULE_APPEND failed"; ipset: "Error in line 7: …".
_AT_LINE = re.compile(r"\bline:? (\d+)")

_COUNTED = (
    *(f"iptables_{verb}_{what}" for verb in ("save", "restore") for what in ("calls", "errors")),
    *("iptables_lines_executed", "ipset_calls", "ipset_errors", "ipset_lines_executed"),
)

log = get_logger(__name__)


class _Refused(Exception):
    """Control flow inside this module: a program refused a script. ``guilty``: reason by subject, if it could be
    told."""

    def __init__(self, where: str, error: ToolFailed, guilty: dict[str, str]) -> None:
        super().__init__(f"{where}: {error}")
        self.where, self.error, self.guilty = where, error, guilty


class _Observed:
    """What the kernel holds of ours. ``leftovers``: sets to be removed that we do not otherwise know."""

    __slots__ = ("leftovers", "sets", "tables")

    def __init__(self, tables: dict[TableId, SavedTable], sets: Table, leftovers: set[str]) -> None:
        self.tables, self.sets, self.leftovers = tables, sets, leftovers

    @property
    def sources(self) -> _Sources:
        return {
            (family, name): addresses
            for (family, table), each in self.tables.items()
            if table in (RAW, NAT)
            for name, addresses in each.sources.items()
        }


class PolicyTables:
    """The tables of one network namespace. One thread."""

    def __init__(
        self,
        options: DataplaneOptions,
        tools: Tools,
        origins: Origins | None = None,
        down: Down | None = None,
    ) -> None:
        """``down``: see :class:`Down`."""
        self._options, self._tools, self._down = options, tools, down
        self._appends = options.chain_insert == "Append"
        self._families: tuple[int, ...] = (4, 6) if sysctl.has_ipv6() else (4,)
        self._state = HostState()
        self._origins = Origins() if origins is None else origins
        self._builder = TablesBuilder(options, self._families, self._origins, down=down)
        self._observed: _Observed | None = None
        self._closed: dict[str, str] = {}
        self._sources_before: _Sources = {}  # before batches that failed: some of their tables may have been written
        self._sets_seen = 0
        #: Sets to be removed that the kernel has not let go yet.
        self._held: set[str] = set()

    def close(self) -> None:
        """Nothing is held between calls."""

    # --- calls of the driver ----------------------------------------------------------------------

    def ensure_closed(self) -> None:
        """The fixed chains with nobody in them, where they are missing; what stands is not touched.

        :raises ToolFailed: a program is missing, or refused.
        """
        observed = self._read()
        builder = TablesBuilder(self._options, self._families, self._origins)
        absent = {
            where: frozenset(each.chains.keys() - observed.tables[where].table.chains.keys())
            for where, each in builder.desired.tables.items()
        }
        try:
            changes = self._write_chains(builder, observed, Touched(absent, frozenset()), keeps_jumps=True)
        except _Refused as refused:
            raise refused.error from refused
        if changes:
            log.info("iptables.closed", backend=self._tools.backend, changes=changes)

    def follow(self, changes: HostChanges, state: HostState) -> TableReport:
        """``state`` has taken in the batch."""
        self._state = state
        touched: Touched | None = None
        if changes.is_complete or self._closed:
            self._rebuild({})
        else:
            self._builder.update(changes, state)
            touched = self._builder.desired.take_touched()
        has_looked = self._observed is None
        if self._observed is None:
            touched = None
            try:
                self._observed = self._read()
            except ToolFailed as error:
                return self._failed("table iptables", error)
        return self._make_right(self._observed, touched, has_looked=has_looked)

    def resync(self) -> TableReport:
        """Compare with the kernel."""
        if self._closed:
            self._rebuild({})
        believed = self._observed
        try:
            found = self._observed = self._read()
        except ToolFailed as error:
            return self._failed("table iptables", error)
        foreign = _describe(believed, found)
        report = self._make_right(found, None, has_looked=True)
        if foreign:
            log.warning("iptables.healed", found=foreign)
        return msgspec.structs.replace(report, healed=foreign)

    def purge(self) -> None:
        """Remove all chains, jumps and sets of ours.

        :raises ToolFailed: something could not be removed.
        """
        self.purge_chains()
        self._observed = observed = self._read()
        error = self._remove_sets({*observed.sets.sets, *observed.leftovers}, tries=_PURGE_TRIES)
        self._observed = None
        if error is not None:
            raise error

    def purge_chains(self) -> None:
        """Remove the chains and the jumps to them."""
        observed, self._observed = self._read(), None
        nothing = TablesBuilder(self._options, self._families)
        for table in nothing.desired.tables.values():
            table.chains.clear()
        try:
            self._write_chains(nothing, observed, None)
        except _Refused as refused:
            raise refused.error from refused

    def differences(self) -> list[str]:
        """What the kernel holds of ours that is not as wanted."""
        desired = _Observed({}, self._builder.desired.sets, set())
        for where, table in self._builder.desired.tables.items():
            each = desired.tables[where] = SavedTable()
            each.table, each.jumps = table, saved.wanted_jumps(where[1], table)
        return list(_describe(desired, self._read()))

    def rule_counts(self) -> tuple[RuleCount, ...]:
        """Sums over the families, and over the tables that a rule stands in.

        :raises ToolFailed: the counters could not be read.
        """
        found: dict[tuple[RulesId, layout.Direction, int], list[int]] = {}
        for family in self._families:
            counted = self._builder.policies.counted_chains(family)
            for name, lines in saved.parse_counters(self._tools.save(family, with_counters=True), counted):
                rules_id, direction, numbers = counted[name]
                # a chain that somebody changed is for the next resync
                if len(lines) != len(numbers):
                    continue
                for number, (packets, size) in zip(numbers, lines, strict=True):
                    if number is not None:
                        total = found.setdefault((rules_id, direction, number), [0, 0])
                        total[0] += packets
                        total[1] += size
        return tuple(RuleCount(*which, *total) for which, total in sorted(found.items()))

    def figures(self) -> tuple[Figure, ...]:
        """Any thread: ``list`` copies at once what the engine may change meanwhile."""
        counts = self._tools.counts
        found = [Figure(name, counts[name]) for name in _COUNTED]
        for (family, name), table in list(self._builder.desired.tables.items()):
            labels = {"ip_version": str(family), "table": name}
            chains = list(table.chains.values())
            found.append(Figure("iptables_chains", len(chains), labels))
            found.append(Figure("iptables_rules", sum(len(each.tags) for each in chains), labels))
        execution = timing_figures("exec_time_micros", self._tools.execution, units_a_second=1e6)
        return (*found, Figure("ipsets_total", self._sets_seen), *execution)

    # --- commit -----------------------------------------------------------------------------------

    def _make_right(self, observed: _Observed, touched: Touched | None, *, has_looked: bool) -> TableReport:
        """``has_looked``: ``observed`` was read just now."""
        sources = self._sources_before = _merged(self._sources_before, observed.sources)
        for _ in range(_ISOLATION_ROUNDS):
            try:
                changes = self._commit(observed, touched)
            except _Refused as refused:
                log.warning("iptables.refused", error=str(refused))
                self._observed = None
                try:
                    observed = self._observed = self._read()
                except ToolFailed as error:
                    return self._failed(refused.where, error)
                touched = None
                if not has_looked:
                    # perhaps the kernel was not what we believed: try what really differs
                    has_looked = True
                    continue
                new = refused.guilty.keys() - self._closed.keys()
                if not new:
                    return self._failed(refused.where, refused.error)
                self._close({subject: refused.guilty[subject] for subject in new})
                continue
            self._sources_before = {}
            return TableReport(changes=changes, failures=self._failures(), lost=_lost(sources, self._builder.held))
        return self._failed("table iptables", "too much of it is refused")

    def _commit(self, observed: _Observed, touched: Touched | None) -> int:
        plan = reconcile(self._builder.desired.sets, observed.sets, None if touched is None else touched.sets)
        commands = write_commands(
            plan,
            self._builder.desired.sets,
            observed.sets,
            max_elements=room(self._options.max_set_size),
            in_the_way=observed.leftovers,
        )
        if commands:
            subjects = [self._builder.desired.subject_of(each.set_name) for each in commands]
            script = "\n".join(each.text for each in commands) + "\n"
            try:
                self._tools.restore_sets(script)
            except ToolFailed as error:
                raise _Refused("table ipset", error, _guilty(error, subjects)) from error
            observed.sets.follow(self._builder.desired.sets, plan.names - {*plan.removed_sets})
        changes = plan.changes - len(plan.removed_sets) + self._write_chains(self._builder, observed, touched)
        doomed = {*plan.removed_sets, *observed.leftovers} - self._builder.desired.sets.sets.keys()
        if not doomed:
            return changes
        strange = doomed - {*plan.removed_sets} - self._held
        self._remove_sets(doomed)
        # a set that is still held goes another time
        observed.sets.follow(self._builder.desired.sets, plan.removed_sets)
        return changes + len(plan.removed_sets) + len(strange)

    def _write_chains(
        self, builder: TablesBuilder, observed: _Observed, touched: Touched | None, *, keeps_jumps: bool = False
    ) -> int:
        """One process for each family that differs. ``keeps_jumps``: those to chains that are not desired stay."""
        changes = 0
        for family in self._families:
            lines: list[Line] = []
            plans: list[tuple[str, Plan, dict[str, saved.Jumps]]] = []
            for table in layout.TABLES:
                desired, found = builder.desired.tables[family, table], observed.tables[family, table]
                names = None if touched is None else touched.chains.get((family, table), frozenset())
                plan = reconcile(desired, found.table, names)
                wanted = (found.jumps if keeps_jumps else {}) | saved.wanted_jumps(table, desired)
                jumps = saved.jump_commands(wanted, found.jumps, appends=self._appends)
                if not plan and not jumps:
                    continue
                lines += saved.render_table(table, plan, desired, jumps, builder.desired.subject_of)
                plans.append((table, plan, wanted))
                changes += plan.changes + len(jumps)
            if not lines:
                continue
            try:
                self._tools.restore(family, "\n".join(line.text for line in lines) + "\n")
            except ToolFailed as error:
                guilty = _guilty(error, [line.subject for line in lines])
                raise _Refused(f"table ip{'' if family == 4 else '6'}tables", error, guilty) from error
            for table, plan, wanted in plans:
                found = observed.tables[family, table]
                found.table.follow(builder.desired.tables[family, table], plan.names)
                found.jumps = wanted
                if table == RAW:
                    found.sources = {name: each for (of, name), each in builder.sources.items() if of == family}
                elif table == NAT:
                    found.sources = {name: each for (of, name), each in builder.leading.items() if of == family}
        return changes

    def _remove_sets(self, names: set[str], tries: int = _REMOVAL_TRIES) -> ToolFailed | None:
        """Those the kernel still holds are left for another time: they do no harm."""
        observed, waiting = self._observed, sorted(names)
        error: ToolFailed | None = None
        for attempt in range(tries):
            if attempt:
                time.sleep(_REMOVAL_PAUSE_S)
            try:
                self._tools.restore_sets("".join(f"destroy {name}\n" for name in waiting))
                waiting, error = [], None
                break
            except ToolFailed as failure:
                error = failure
                at = _AT_LINE.search(failure.stderr)
                # what stands before the refused line is gone
                waiting = waiting[int(at[1]) - 1 :] if at else waiting
                if "does not exist" in failure.stderr:
                    waiting = waiting[1:]
        self._held = set(waiting)
        if observed is not None:
            observed.leftovers = set(waiting)
        if waiting:
            log.debug("iptables.sets_held", names=waiting, error=str(error))
        return error if waiting else None

    def _rebuild(self, closed: dict[str, str]) -> None:
        self._closed = closed
        self._builder = TablesBuilder.of(self._options, self._families, self._state, closed, self._origins, self._down)
        self._builder.desired.take_touched()

    def _close(self, guilty: dict[str, str]) -> None:
        for subject, reason in guilty.items():
            log.error("iptables.part_closed", subject=subject, reason=reason)
        self._rebuild({**self._closed, **guilty})

    def _failed(self, where: str, error: ToolFailed | str) -> TableReport:
        """The batch is not in force, whoever was found guilty. The next call reads and starts from there."""
        self._observed = None
        self._closed = {where: str(error)}
        log.error("iptables.failed", error=str(error))
        return TableReport(failures=self._failures())

    def _failures(self) -> tuple[Failure, ...]:
        reasons = {**self._builder.problems, **self._closed}
        return tuple(Failure(subject, reason) for subject, reason in sorted(reasons.items()))

    def _read(self) -> _Observed:
        tables = {
            (family, name): each
            for family in self._families
            for name, each in saved.parse_saved(self._tools.save(family), appends=self._appends).items()
        }
        text = self._tools.save_sets()
        self._sets_seen = sum(line.startswith("create ") for line in text.splitlines())
        found = parse_sets(text, room(self._options.max_set_size))
        leftovers = {name for name, each in found.items() if not each.kind}
        sets = Table(sets={name: each for name, each in found.items() if each.kind})
        return _Observed(tables, sets, leftovers)


def _guilty(error: ToolFailed, subjects: list[str]) -> dict[str, str]:
    """The subjects of the lines an error names."""
    reason = next((line for line in error.stderr.splitlines() if _AT_LINE.search(line)), "refused").strip()
    numbers = (int(number) for number in _AT_LINE.findall(error.stderr))
    named = {subjects[number - 1] for number in numbers if 0 < number <= len(subjects)}
    return {subject: reason for subject in sorted(named) if subject}


def _describe(believed: _Observed | None, found: _Observed) -> tuple[str, ...]:
    """What somebody else changed: the difference between what we left and what stands."""
    if believed is None:
        return ()
    names: list[str] = []
    for (family, table), each in believed.tables.items():
        names += saved.differences(family, table, each, found.tables[family, table])
    # those the kernel still held when they were to go are no surprise
    sets = {*believed.sets.differences(found.sets), *found.leftovers} - believed.leftovers
    return (*names, *(f"set {name}" for name in sorted(sets)))


def _merged(one: _Sources, other: _Sources) -> _Sources:
    return {where: one.get(where, frozenset()) | other.get(where, frozenset()) for where in one.keys() | other.keys()}


def _lost(before: _Sources, after: _Sources) -> frozenset[tuple[int, int]]:
    """Addresses whose interface may no longer send from them: their connections are to be cut."""
    return frozenset(
        (where[0], value) for where, had in before.items() for value in had - after.get(where, frozenset())
    )
