"""Our table in the kernel: desired state in, one transaction out, and what went wrong by subject.

The kernel's content is known from reading it once and from our own commits; its generation counter tells whether
anybody else has written since. Changes of elements and of chains whose rules have the usual shapes go by netlink
messages of our own, everything else through libnftables.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Literal

import msgspec

from calico_core.dataplane.denials import Origins
from calico_core.dataplane.kernel_policy import TableReport
from calico_core.dataplane.nftables.beside_docker import BesideDocker
from calico_core.dataplane.nftables.counts import NftCounts
from calico_core.dataplane.nftables.library import NftLibrary
from calico_core.dataplane.nftables.names import FAMILY, TABLE
from calico_core.dataplane.nftables.netfilter import NftSocket
from calico_core.dataplane.reconcile import Plan, Table, rebuild, reconcile
from calico_core.errors import KernelRefused, ToolFailed
from calico_core.interfaces.dataplane import Failure, Figure, RuleCount, timing_figures
from calico_core.log import get_logger
from calico_core.model.hoststate import HostState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from calico_core.dataplane.claims import Down
    from calico_core.dataplane.nftables.builder import TableBuilder
    from calico_core.interfaces.dataplane import DataplaneOptions
    from calico_core.model.hoststate import HostChanges, RulesId

#: Beyond this many elements libnftables' fixed cost no longer matters.
_NETLINK_ELEMENTS = 4096
#: How many rounds of closing what the kernel refused before the table is made anew.
_ISOLATION_ROUNDS = 20
#: After so many refusals in a row the table is made anew, lest something we do not see stands in the way.
_REBUILD_AFTER = 3
#: No counter has this value: the next resync reads.
_UNKNOWN = -1
_WHOLE_TABLE = f"table {FAMILY} {TABLE}"

log = get_logger(__name__)


def _builders() -> type[TableBuilder]:
    """Imported here: a process for one call asks only whether the table stands."""
    from calico_core.dataplane.nftables.builder import TableBuilder

    return TableBuilder


class PolicyTable:
    """The table of one network namespace. One thread."""

    def __init__(
        self,
        options: DataplaneOptions,
        namespace_fd: int | None = None,
        origins: Origins | None = None,
        down: Down | None = None,
    ) -> None:
        """``down``: see :class:`Down`."""
        self._options, self._down = options, down
        self._library = NftLibrary(namespace_fd)
        self._socket = NftSocket(namespace_fd, options.netlink_timeout_s)
        families = (4, 6) if options.is_ipv6_enabled else (4,)
        self._docker = BesideDocker(self._socket, namespace_fd, prefixes=options.interface_prefixes, families=families)
        self._state = HostState()
        self._origins = Origins() if origins is None else origins
        self._built: TableBuilder | None = None
        self._observed: Table | None = None
        self._generation: int | None = None
        self._closed: dict[str, str] = {}
        self._refusals = 0
        self._counts = NftCounts()

    def close(self) -> None:
        self._library.close()
        self._socket.close()

    # --- calls of the driver ----------------------------------------------------------------------

    def stands(self) -> bool:
        return self._socket.has_table()

    def ensure_closed(self) -> None:
        """The base with nobody in it, unless a table stands."""
        if self.stands():
            return
        desired = _builders()(self._options, self._origins)
        plan = rebuild(desired.table)
        self._transact(plan, desired)
        self._generation = None
        log.info("table.created", table=_WHOLE_TABLE)

    def follow(self, changes: HostChanges, state: HostState) -> TableReport:
        """``state`` has taken in the batch."""
        self._state = state
        names: set[str] | None = None
        if changes.is_complete or self._closed:
            self._closed = {}
            self._builder = _builders().of(self._options, state, origins=self._origins, down=self._down)
        else:
            names = self._builder.update(changes, state)
        if self._generation is None:
            if not self._try_read():
                return TableReport(failures=self._failures())
            names = None
        return self._make_right(names)

    def resync(self) -> TableReport:
        """Compare with the kernel, unless its generation is the one we made."""
        retried = bool(self._closed)
        if retried:
            self._closed = {}
            self._builder = _builders().of(self._options, self._state, origins=self._origins, down=self._down)
        believed = self._observed
        if self._is_untouched():
            return self._make_right(None) if retried else TableReport(failures=self._failures())
        if not self._try_read():
            return TableReport(failures=self._failures())
        foreign = _describe(self._observed, believed)
        report = self._make_right(None)
        if foreign:
            log.warning("table.healed", found=foreign)
        return msgspec.structs.replace(report, healed=foreign)

    def purge(self) -> None:
        """Remove the table, and what was added to Docker's.

        First nobody enters it any more: a packet on its way through goes by the rules it began with, but by the sets
        as they are now, and would find itself unknown to them.
        """
        from calico_core.dataplane.nftables.script import delete_table

        for lines in (self._empty_hooks(), delete_table()):
            errors = self._library.run("\n".join(lines) + "\n") if lines else []
            if errors:
                raise KernelRefused(f"delete {_WHOLE_TABLE}", errno.EBUSY, errors[0].reason)
        self._observed, self._generation = None, None
        self._docker.remove()

    def _empty_hooks(self) -> list[str]:
        found, _ = self._socket.read()
        hooks = [name for name, each in found.chains.items() if each.hook] if found is not None else []
        return [f"flush chain {FAMILY} {TABLE} {name}" for name in hooks]

    def live_beside_docker(self) -> tuple[tuple[str, ...], tuple[Failure, ...]]:
        """What was changed for it, and what could not be."""
        try:
            return self._docker.ensure(), ()
        except (ToolFailed, KernelRefused) as error:
            log.warning("docker.not_let_through", error=str(error))
            return (), (Failure("docker", str(error)),)

    def rule_counts(self) -> tuple[RuleCount, ...]:
        """Of the rules as they stand; a chain that somebody else changed has none."""
        totals: dict[tuple[RulesId, Literal["inbound", "outbound"], int], list[int]] = {}
        for chain, counts in self._socket.counts().items():
            counted = self._builder.counted.get(chain)
            if counted is None or len(counted.numbers) != len(counts):
                continue
            for number, (packets, size_bytes) in zip(counted.numbers, counts, strict=True):
                if number is None:
                    continue
                total = totals.setdefault((counted.rules, counted.direction, number), [0, 0])
                total[0] += packets
                total[1] += size_bytes
        return tuple(RuleCount(*name, *total) for name, total in sorted(totals.items()))

    def figures(self) -> tuple[Figure, ...]:
        """Any thread."""
        execution = timing_figures("exec_time_micros", self._docker.execution, units_a_second=1e6)
        table = Table() if self._built is None else self._built.table
        return (*self._counts.figures(table), *execution)

    def observe(self) -> Table | None:
        """What the kernel holds now."""
        return self._socket.read()[0]

    @property
    def desired(self) -> Table:
        return self._builder.table

    @property
    def _builder(self) -> TableBuilder:
        """Of the engine's thread."""
        if self._built is None:
            self._built = _builders()(self._options, self._origins, self._down)
        return self._built

    @_builder.setter
    def _builder(self, built: TableBuilder) -> None:
        self._built = built

    # --- commit -----------------------------------------------------------------------------------

    def _make_right(self, names: Iterable[str] | None) -> TableReport:
        before = self._observed
        plan = reconcile(self._builder.table, before, names)
        if not plan:
            return TableReport(failures=self._failures())
        lost: frozenset[tuple[int, int]] = frozenset()
        if plan.takes_elements:
            from calico_core.dataplane.nftables.lost_addresses import lost_addresses

            lost = lost_addresses(plan, self._builder, before)
        path = self._commit(plan)
        if _WHOLE_TABLE in self._closed:
            return TableReport(failures=self._failures())
        # without a path too: then what the kernel would not answer for stands all the same
        return TableReport(changes=plan.changes, failures=self._failures(), lost=lost, path=path)

    def _commit(self, plan: Plan) -> str:
        try:
            path = self._transact(plan, self._builder)
            self._refusals = 0
            return path
        except KernelRefused as error:
            self._refusals += 1
            log.warning("table.refused", error=str(error), refusals=self._refusals)
        # perhaps the table is not what we believed: look, and try what really differs
        try:
            self._read()
            return self._rebuild() or self._isolate()
        except KernelRefused as error:
            self._fail(error)
            return "none"

    def _rebuild(self) -> str:
        """Empty when it is not time for it, or refused too."""
        if self._refusals != _REBUILD_AFTER:
            return ""
        try:
            path = self._transact(rebuild(self._builder.table), self._builder)
        except KernelRefused as error:
            log.warning("table.rebuild_refused", error=str(error))
            return ""
        log.warning("table.rebuilt", refusals=self._refusals)
        self._refusals = 0
        return path

    def _isolate(self) -> str:
        """Close what the kernel refuses until the rest passes; then make the table anew as a last resort."""
        for _ in range(_ISOLATION_ROUNDS):
            plan = reconcile(self._builder.table, self._observed)
            guilty: dict[str, str] = {}
            try:
                return self._transact(plan, self._builder, guilty) if plan else "none"
            except KernelRefused as error:
                if not guilty or guilty.keys() <= self._closed.keys():
                    log.warning("table.not_isolated", error=str(error))
                    break
                self._close(guilty)
        return self._transact(rebuild(self._builder.table), self._builder)

    def _close(self, guilty: dict[str, str]) -> None:
        for subject, reason in guilty.items():
            log.error("table.closed", subject=subject, reason=reason)
        self._closed |= guilty
        self._builder = _builders().of(self._options, self._state, self._closed, self._origins, self._down)

    def _transact(self, plan: Plan, builder: TableBuilder, guilty: dict[str, str] | None = None) -> str:
        """One transaction. When it is refused nothing has changed, and ``guilty`` receives what could be told."""
        desired = builder.table
        has_elements = plan.element_count > 0
        self._counts.note(has_elements=has_elements)
        is_small = plan.element_count <= _NETLINK_ELEMENTS and guilty is None
        try:
            if is_small and self._socket.change(plan, desired, self._observed):
                path = "netlink"
            else:
                self._run_script(plan, builder, guilty)
                path = "libnftables"
        except KernelRefused:
            self._counts.note_refusal(has_elements=has_elements)
            raise
        if plan.is_rebuild or self._observed is None:
            self._observed = Table(desired.chains, desired.sets)
        else:
            self._observed.follow(desired, plan.names)
        # a generation further than our own step means that somebody else wrote: read before trusting it again
        now = self._socket.generation()
        is_ours = self._generation is not None and now == (self._generation + 1) & 0xFFFFFFFF
        self._generation = now if is_ours else _UNKNOWN
        return path

    def _run_script(self, plan: Plan, builder: TableBuilder, guilty: dict[str, str] | None) -> None:
        from calico_core.dataplane.nftables.script import render_plan

        lines, subjects = render_plan(plan, builder.table, self._observed, builder.subject_of)
        errors = self._library.run("\n".join(lines) + "\n")
        if not errors:
            return
        for error in errors:
            subject = subjects[error.line - 1] if 0 < error.line <= len(subjects) else ""
            if subject and guilty is not None:
                guilty[subject] = error.reason
        first = errors[0]
        command = lines[first.line - 1] if 0 < first.line <= len(lines) else "the transaction"
        raise KernelRefused(f"nftables: {command}", errno.EINVAL, first.reason)

    def _is_untouched(self) -> bool:
        """Nobody has written to the rules of this namespace since our last commit."""
        try:
            return self._generation is not None and self._socket.generation() == self._generation
        except KernelRefused:
            return False

    def _try_read(self) -> bool:
        try:
            self._read()
        except KernelRefused as error:
            self._fail(error)
            return False
        return True

    def _fail(self, error: KernelRefused) -> None:
        """Nothing of the batch is in force, whoever was found guilty: the table fails as a whole. The next call reads
        and starts from there."""
        self._generation = None
        self._closed = {_WHOLE_TABLE: str(error)}
        log.error("table.failed", error=str(error))

    def _read(self) -> None:
        self._counts.list_calls += 1
        try:
            self._observed, self._generation = self._socket.read()
        except KernelRefused:
            self._counts.list_errors += 1
            raise

    def _failures(self) -> tuple[Failure, ...]:
        if not self._builder.problems and not self._closed:
            return ()
        reasons = {**self._builder.problems, **self._closed}
        return tuple(Failure(subject, reason) for subject, reason in sorted(reasons.items()))


def _describe(found: Table | None, believed: Table | None) -> tuple[str, ...]:
    """What somebody else changed: the difference between what we left and what stands."""
    if believed is None:
        return ()
    if found is None:
        return (_WHOLE_TABLE,)
    return tuple(
        f"{'set' if name in believed.sets or name in found.sets else 'chain'} {name}"
        for name in believed.differences(found)
    )
