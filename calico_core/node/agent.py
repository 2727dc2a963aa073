"""The host agent: journey A, state to kernel. One engine thread owns calculation and dataplane.

The syncer and the link monitor post into a mailbox; the engine takes what has gathered, feeds the resolver, applies
one batch to the dataplane and says which endpoints are programmed. Integrations wait for that word. Nothing is
removed from the kernel before the first in-sync, and nothing while the datastore is away.
"""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import NamedTuple

import msgspec
from netaddr import IPAddress

from calico_core.datastore.syncer import SyncBatch, Syncer, SyncStatus, Update
from calico_core.errors import CalicoError, NotReady
from calico_core.interfaces.dataplane import ApplyReport, Dataplane, is_whole_policy
from calico_core.interfaces.datastore import Datastore
from calico_core.log import get_logger
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import HostChanges, HostWorkload
from calico_core.model.keys import (
    BGP_HOSTS,
    V1,
    GlobalConfigKey,
    HostConfigKey,
    HostEndpointKey,
    Key,
    ProfileRulesKey,
    ReadyKey,
    WorkloadEndpointKey,
)
from calico_core.model.record import Value
from calico_core.model.workloads import InterfaceEvent
from calico_core.node.counters import AgentCounters, CountedRule
from calico_core.node.flow_cutter import FlowCutter
from calico_core.node.host_endpoint_status import HostEndpointStatuses
from calico_core.node.mailbox import Mailbox
from calico_core.node.metrics import AgentFigures
from calico_core.node.progress import EndpointProgress
from calico_core.node.remembered import RememberedInterfaces
from calico_core.node.removal_guard import RemovalFreeze, RemovalGuard
from calico_core.policy.resolver import PolicyResolver

log = get_logger(__name__)

_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 10.0
_REFRESH_JITTER = 1.2
_COUNTS_WAIT_S = 4.0
_COUNTS_FOR_METRICS_S = 1.0
_COUNTS_LAST_S = 10.0


class AgentState(Value, frozen=True):
    """What the agent reports: handed to the reporter after every pass."""

    is_in_sync: bool
    is_applied: bool
    endpoints: dict[WorkloadEndpointKey, tuple[str, str]]
    """Status (``up``, ``down``, ``error``) and reason of each local endpoint."""
    bad_records: tuple[str, ...] = ()
    last_error: str = ""
    host_endpoints: dict[HostEndpointKey, tuple[str, str]] = msgspec.field(default_factory=dict)
    """The same of its host endpoints."""
    freeze: RemovalFreeze | None = None
    """Deletions wait for confirmation. ``since`` is monotonic."""


class _HostAddresses(NamedTuple):
    """An interface of the host and all its addresses; None: it is gone."""

    name: str
    addresses: frozenset[IPAddress] | None


class _RemovalsConfirmed(NamedTuple):
    """A person says that what was deleted is meant to be."""


class _CountsWanted(NamedTuple):
    """Somebody waits for the counters of rules, which only the engine may read."""

    reply: Future[tuple[CountedRule, ...]]


Reporter = Callable[[AgentState], None]
_Item = SyncBatch | InterfaceEvent | _HostAddresses | _RemovalsConfirmed | _CountsWanted


class Agent:
    """Implements ``workload.gate.PolicyGate``."""

    def __init__(
        self,
        *,
        store: Datastore,
        host: str,
        dataplane: Dataplane,
        refresh_interval_s: float = 60.0,
        reporter: Reporter | None = None,
        on_death: Callable[[], None] | None = None,
        on_config: Callable[[Key, str | None], None] | None = None,
        confirm_removals_after_s: float = 300.0,
        remembered: RememberedInterfaces | None = None,
        interface_prefix: str = "",
        cuts_denied_flows: bool = True,
    ) -> None:
        """``on_config`` hears, in the engine thread, of every configuration key of the datastore.
        ``confirm_removals_after_s``: see ``RemovalGuard``; ``remembered``: what an earlier life of the node had."""
        self._host = host
        self._dataplane = dataplane
        self._refresh_interval_s = refresh_interval_s
        self._reporter = reporter
        self._on_death = on_death
        self._on_config = on_config
        self.counters = AgentCounters()
        self._mailbox: Mailbox[_Item] = Mailbox()
        self._resolver = PolicyResolver(host, interface_prefix=interface_prefix)
        # the addresses that hosts have of IPv6 stand beside their routing
        self._syncer = Syncer(store, (V1, BGP_HOSTS), self._mailbox.post, ready_key=ReadyKey().path, name="sync-policy")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stop_monitor: Callable[[], None] = lambda: None
        self._stop_addresses: Callable[[], None] = lambda: None
        self._remembered = remembered or RememberedInterfaces(None)
        self._guard = RemovalGuard(
            host,
            exists=lambda name: dataplane.wiring().exists(name),
            count=self._syncer.count_keys,
            confirm_after_s=confirm_removals_after_s,
        )
        self._freeze: RemovalFreeze | None = None
        self._counted: tuple[CountedRule, ...] = ()
        self._counted_until = 0.0
        self._own_addresses: dict[str, frozenset[IPAddress]] = {}
        self._cutter = FlowCutter(dataplane) if cuts_denied_flows else None
        # Owned by the engine thread.
        self._is_store_in_sync = False
        self._is_in_sync = False
        self._is_behind = True  # the dataplane does not have all that it was to have
        self._failures: dict[str, str] = {}
        self._retry_s = 0.0
        self._retry_at: float | None = None
        self._refresh_at = 0.0
        self._last_error = ""
        # Shared with asking threads, written by the engine alone.
        self._profiles: set[str] = set()  # those with rules
        # Shared with waiting threads.
        self._progress = EndpointProgress()
        self._host_endpoints = HostEndpointStatuses()
        self._applied = threading.Event()

    def start(self) -> None:
        """Close the host to unknown workloads, then follow the datastore."""
        self._dataplane.ensure_closed()
        self._stop_monitor = self._dataplane.watch_interfaces(self._mailbox.post)
        # all that is there now is in the box before the engine takes its first look
        self._stop_addresses = self._dataplane.watch_addresses(self._post_addresses)
        if self._cutter is not None:
            self._cutter.start()
        self._thread.start()
        self._syncer.start()

    def stop(self) -> None:
        """The kernel keeps enforcing."""
        self._syncer.stop()
        self._stop_monitor()
        self._stop_addresses()
        self._mailbox.close()
        self._progress.close()
        if self._thread.is_alive():
            self._thread.join(10)
        if self._cutter is not None:
            self._cutter.stop()

    @property
    def is_alive(self) -> bool:
        """Whether both of its threads run; the supervisor restarts a node whose agent has died."""
        return self._thread.is_alive() and self._syncer.is_alive

    @property
    def is_in_sync(self) -> bool:
        return self._applied.is_set()

    def wait_in_sync(self, timeout_s: float) -> bool:
        """Until the first complete state is in the kernel."""
        return self._applied.wait(timeout_s)

    def wait_programmed(self, key: WorkloadEndpointKey, revision: int, timeout_s: float) -> bool:
        return self._progress.wait(key, revision, timeout_s)

    @property
    def last_error(self) -> str:
        """Why the kernel does not have all that it was to have, or ''."""
        return self._last_error

    def workload(self, key: WorkloadEndpointKey) -> HostWorkload | None:
        """What the dataplane was told of an endpoint. Any thread."""
        return self._resolver.workload(key)

    def figures(self) -> AgentFigures:
        """For metrics. Any thread."""
        statuses = Counter(status for status, _ in list(self._progress.status.values()))
        freeze = self._freeze
        return AgentFigures(
            counters=self.counters,
            sync_status=self._syncer.status,
            cluster=self._syncer.count_keys(),
            endpoints=statuses,
            is_frozen=freeze is not None,
            waiting=freeze.waiting if freeze is not None else 0,
            rules=self._counts_for_metrics(),
            kernel=self._dataplane.figures(),
            label_index=self._resolver.index_figures(),
        )

    def _counts_for_metrics(self) -> tuple[CountedRule, ...]:
        """A look at the kernel, so at most once in a while however often we are asked."""
        now = time.monotonic()
        if now >= self._counted_until:
            self._counted_until = now + _COUNTS_LAST_S
            with contextlib.suppress(CalicoError):
                self._counted = self.rule_counts(_COUNTS_FOR_METRICS_S)
        return self._counted

    def knows_ready(self) -> bool:
        return self._syncer.status is SyncStatus.IN_SYNC

    def knows_profile(self, name: str) -> bool:
        return self.knows_ready() and name in self._profiles

    @property
    def frozen_because(self) -> str:
        """Why the kernel keeps what the datastore no longer has, or ''."""
        freeze = self._freeze
        return freeze.reason if freeze is not None else ""

    def confirm_removals(self) -> str:
        """What is deleted in the datastore shall go from the kernel too. Gives what it was held back for; '' when it
        was not."""
        reason = self.frozen_because
        self._mailbox.post(_RemovalsConfirmed())
        return reason

    def rule_counts(self, timeout_s: float = _COUNTS_WAIT_S) -> tuple[CountedRule, ...]:
        """What each rule has matched since it was last written. Any thread; raises ``NotReady`` when the engine does
        not come to it in time."""
        reply: Future[tuple[CountedRule, ...]] = Future()
        self._mailbox.post(_CountsWanted(reply))
        try:
            return reply.result(timeout_s)
        except TimeoutError:
            reply.cancel()
            raise NotReady(f"the agent is busy: no counters within {timeout_s:g} s") from None

    def _post_addresses(self, name: str, addresses: frozenset[IPAddress] | None) -> None:
        self._mailbox.post(_HostAddresses(name, addresses))

    # --- engine thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        self._refresh_at = self._next_refresh()
        try:
            while not self._mailbox.is_closed:
                items = self._mailbox.take(self._wait_s())
                self.counters.busy_since = time.monotonic()
                if not self._mailbox.is_closed:
                    self._pass(items)
                self.counters.busy_since = None
        except Exception:
            log.exception("engine.died")
            self._progress.close()
            if self._on_death is not None:
                self._on_death()

    def _wait_s(self) -> float | None:
        times = [self._retry_at] if self._retry_at is not None else []
        if self._refresh_interval_s > 0 and not self._is_behind:
            times.append(self._refresh_at)
        now = time.monotonic()
        times += [at for at in (self._guard.next_look(now), self._remembered.next_look(now)) if at is not None]
        cutting = self._cutter.next_look(now) if self._cutter is not None else None
        times += [cutting] if cutting is not None else []
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _pass(self, items: list[_Item]) -> None:
        """One pass of the engine: everything that has gathered becomes one batch for the kernel."""
        events: dict[str, InterfaceEvent] = {}
        addressed = 0
        for item in items:
            match item:
                case InterfaceEvent():
                    events[item.name] = item
                case _HostAddresses(name, addresses):
                    addressed += 1
                    self._resolver.set_interface(name, addresses)
                    self._own_addresses[name] = addresses or frozenset()
                case _CountsWanted(reply):
                    self._count_rules(reply)
                case _RemovalsConfirmed():
                    self._remembered.forget()
                    self._follow(self._guard.confirm())
                case _:
                    self._take(item)
        self.counters.note_events(links=len(events), addresses=addressed)
        self._look_at_removals(events)
        self._enter_sync()
        if self._is_in_sync:
            started = time.perf_counter()
            changes = self._resolver.flush()
            self.counters.calculation.note(time.perf_counter() - started)
            self._apply(changes)
            self._remembered.save(self._guard.interfaces, time.monotonic())
            self._cut_flows()
        for event in events.values():
            self._follow_link(event)
        self._refresh()
        if self._reporter is not None:
            self._reporter(self._state())

    def _take(self, batch: SyncBatch) -> None:
        self.counters.updates += len(batch.updates)
        self.counters.resyncs_started += batch.status is SyncStatus.RESYNC
        self._follow(self._guard.pass_on(batch, time.monotonic()))
        if batch.status is SyncStatus.IN_SYNC:
            self._is_store_in_sync = True

    def _follow(self, passed: Iterable[Update]) -> None:
        updates: list[tuple[Key, object]] = []
        for update in passed:
            updates.append((update.key, update.record))
            if isinstance(update.key, ProfileRulesKey):
                change = self._profiles.discard if update.record is None else self._profiles.add
                change(update.key.profile)
            elif isinstance(update.key, WorkloadEndpointKey) and update.key.host == self._host:
                self._track(update.key, update.record, update.mod_revision)
            elif isinstance(update.key, HostEndpointKey) and update.key.host == self._host:
                follow = self._host_endpoints.remove if update.record is None else self._host_endpoints.write
                follow(update.key)
            elif self._on_config is not None and isinstance(update.key, GlobalConfigKey | HostConfigKey):
                self._on_config(update.key, update.record)
        self._resolver.apply(updates)

    def _count_rules(self, reply: Future[tuple[CountedRule, ...]]) -> None:
        if not reply.set_running_or_notify_cancel():
            return
        try:
            counts = self._dataplane.rule_counts()
            rules = self._dataplane.wanted().rules
            reply.set_result(tuple(CountedRule.of(each, rules.get(each.rules)) for each in counts))
        except CalicoError as error:
            reply.set_exception(error)

    def _enter_sync(self) -> None:
        """The first complete state may take away whatever an earlier life of this node left in the kernel."""
        if self._is_in_sync or not self._is_store_in_sync:
            return
        reason = self._remembered.missing(self._guard.interfaces, self._dataplane.wiring().exists, time.monotonic())
        if reason:
            self._note_freeze(RemovalFreeze(reason=reason, since=self._remembered.since, waiting=0))
            return
        self._note_freeze(None)
        self._is_in_sync = True
        self._resolver.in_sync()
        log.info("engine.in_sync", endpoints=len(self._progress))

    def _look_at_removals(self, events: Mapping[str, InterfaceEvent]) -> None:
        for event in events.values():
            if event.kind == "deleted":
                self._follow(self._guard.interface_gone(event.name))
        now = time.monotonic()
        self._follow(self._guard.look(now, is_in_sync=self._syncer.status is SyncStatus.IN_SYNC))
        if self._is_in_sync:
            self._note_freeze(self._guard.freeze(now))

    def _note_freeze(self, freeze: RemovalFreeze | None) -> None:
        before, self._freeze = self._freeze, freeze
        if freeze is not None and before is None:
            log.error("removals.frozen", reason=freeze.reason, waiting=freeze.waiting)
        elif freeze is None and before is not None:
            log.warning("removals.released", reason=before.reason)

    def _track(self, key: WorkloadEndpointKey, record: WorkloadEndpoint | None, revision: int) -> None:
        if record is None:
            self._progress.remove(key)
        else:
            self._progress.write(key, revision, record.name, is_active=record.state == "active")

    def _apply(self, changes: HostChanges) -> None:
        is_retry = self._retry_at is not None and time.monotonic() >= self._retry_at
        if not changes and not is_retry:
            if not self._is_behind:
                self._decide()
            return
        started = time.perf_counter()
        self.counters.note_changes(changes)
        try:
            report = self._dataplane.apply(changes)
        except CalicoError as error:
            self.counters.failures += 1
            log.error("dataplane.apply_failed", reason=str(error))
            self._is_behind = True
            self._schedule_retry(str(error))
            return
        self.counters.note_apply(time.perf_counter() - started, is_first=changes.is_complete)
        log.debug("dataplane.applied", changes=report.changes, ms=round((time.perf_counter() - started) * 1000, 2))
        self._is_behind = False
        self._host_endpoints.note(changes)
        if self._cutter is not None:
            self._cutter.note(changes, time.monotonic())
        if changes.is_complete:
            gc.freeze()  # the snapshot stays: collections need not walk it
        concerned = {workload.key for workload in changes.workloads}
        self._take_report(report, self._progress.of_interface("") if changes.is_complete else concerned)

    def _cut_flows(self) -> None:
        if self._cutter is not None and self._cutter.wants(time.monotonic()):
            self._cutter.look(self._dataplane.wanted(), frozenset().union(*self._own_addresses.values()))

    def _take_report(self, report: ApplyReport, looked_at: Iterable[WorkloadEndpointKey]) -> None:
        """What an apply or a resync says of everything we want."""
        self._note(report, looked_at)
        self._failures = dict(report.failures)
        if report.is_clean:
            self._retry_at, self._retry_s, self._last_error = None, 0.0, ""
        else:
            self._schedule_retry(report.failures[0].reason)
        self._decide()

    def _decide(self) -> None:
        """Tell waiting attaches which records are in force now."""
        whole = next((reason for subject, reason in self._failures.items() if is_whole_policy(subject)), "")
        self._progress.decide(self._failures, whole=whole)
        if not whole:
            self._applied.set()

    def _note(self, report: ApplyReport, looked_at: Iterable[WorkloadEndpointKey]) -> None:
        self.counters.note_report(report)
        for failure in report.failures:
            if self._failures.get(failure.subject) != failure.reason:
                log.warning("dataplane.object_failed", subject=failure.subject, reason=failure.reason)
        for healed in report.healed:
            log.warning("dataplane.healed", what=healed)
        self._progress.note_links(looked_at, report.endpoints_without_link)

    def _follow_link(self, event: InterfaceEvent) -> None:
        """Routes alone depend on links: what fails here says nothing about policy."""
        try:
            report = self._dataplane.interface_changed(event)
        except CalicoError as error:
            log.error("dataplane.link_failed", interface=event.name, reason=str(error))
            self._schedule_retry(str(error))
            return
        self._note(report, () if self._is_behind else self._progress.of_interface(event.name))
        if report.failures:
            self._schedule_retry(report.failures[0].reason)

    def _schedule_retry(self, reason: str) -> None:
        self._last_error = reason
        self._retry_s = min(max(self._retry_s * 2, _RETRY_FIRST_S), _RETRY_MAX_S)
        self._retry_at = time.monotonic() + self._retry_s

    def _next_refresh(self) -> float:
        """Up to a fifth later than said, so that hosts that were started together do not work together."""
        return time.monotonic() + self._refresh_interval_s * random.uniform(1.0, _REFRESH_JITTER)

    def _refresh(self) -> None:
        if self._is_behind or self._refresh_interval_s <= 0 or time.monotonic() < self._refresh_at:
            return
        self._refresh_at = self._next_refresh()
        try:
            report = self._dataplane.resync()
        except CalicoError as error:
            log.error("dataplane.resync_failed", reason=str(error))
            self._schedule_retry(str(error))
            return
        self._take_report(report, self._progress.of_interface(""))

    def _state(self) -> AgentState:
        return AgentState(
            is_in_sync=self._is_in_sync,
            is_applied=self._applied.is_set(),
            endpoints=dict(self._progress.status),
            host_endpoints=self._host_endpoints.status(self._failures),
            bad_records=tuple(self._syncer.bad_records),
            last_error=self._last_error,
            freeze=self._freeze,
        )
