"""The host agent: journey A, state to kernel. One engine thread owns calculation and dataplane.

The syncer and the link monitor post into a mailbox; the engine takes what has gathered, feeds the resolver, applies
one batch to the dataplane and says which endpoints are programmed. Integrations wait for that word. Nothing is
removed from the kernel before the first in-sync, and nothing while the datastore is away.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from netaddr import IPAddress

from calico_core.datastore.syncer import SyncBatch, Syncer, SyncStatus, Update
from calico_core.errors import CalicoError
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
from calico_core.model.workloads import InterfaceEvent
from calico_core.node.agent_state import AgentState, CountsWanted, HostAddresses, Item, RemovalsConfirmed, Reporter
from calico_core.node.counters import AgentCounters
from calico_core.node.flow_cutter import FlowCutter
from calico_core.node.host_endpoint_status import HostEndpointStatuses
from calico_core.node.mailbox import Mailbox
from calico_core.node.metrics import AgentFigures
from calico_core.node.pace import Pace
from calico_core.node.progress import EndpointProgress
from calico_core.node.remembered import RememberedInterfaces
from calico_core.node.removal_guard import RemovalFreeze, RemovalGuard
from calico_core.node.rule_counts import RuleCounts
from calico_core.policy.resolver import PolicyResolver

log = get_logger(__name__)


_REST_S = 0.02
"""Between two passes that nobody waits for. Felix takes what a tick of 10 ms has gathered."""


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
        resolver: PolicyResolver | None = None,
        cuts_denied_flows: bool = True,
    ) -> None:
        """``on_config`` hears, in the engine thread, of every configuration key of the datastore.
        ``confirm_removals_after_s``: see ``RemovalGuard``. ``resolver``: a new one, of this host; the engine's own from
        now on. ``remembered``: what an earlier life of the node had."""
        self._host = host
        self._dataplane = dataplane
        self._reporter = reporter
        self._on_death = on_death
        self._on_config = on_config
        self.counters = AgentCounters()
        self._mailbox: Mailbox[Item] = Mailbox()
        self._resolver = resolver if resolver is not None else PolicyResolver(host)
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
        self.rule_counts = RuleCounts(dataplane, self._mailbox.post)
        self._own_addresses: dict[str, frozenset[IPAddress]] = {}
        self._cutter = FlowCutter(dataplane) if cuts_denied_flows else None
        # Owned by the engine thread.
        self._is_store_in_sync = False
        self._is_in_sync = False
        self._rests_until = 0.0
        self._is_behind = True  # the dataplane does not have all that it was to have
        self._failures: dict[str, str] = {}
        self._pace = Pace(refresh_interval_s)
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
        return self._pace.last_error

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
            rules=self.rule_counts.for_metrics(),
            kernel=self._dataplane.figures(),
            label_index=self._resolver.index_figures(),
        )

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
        self._mailbox.post(RemovalsConfirmed())
        return reason

    def _post_addresses(self, name: str, addresses: frozenset[IPAddress] | None) -> None:
        self._mailbox.post(HostAddresses(name, addresses))

    # --- engine thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        self._pace.note_refresh()
        try:
            while not self._mailbox.is_closed:
                items = self._gather(self._mailbox.take(self._wait_s()))
                self.counters.busy_since = time.monotonic()
                if not self._mailbox.is_closed:
                    self._pass(items)
                self._rests_until = time.monotonic() + _REST_S
                self.counters.busy_since = None
        except Exception:
            log.exception("engine.died")
            self._progress.close()
            if self._on_death is not None:
                self._on_death()

    def _gather(self, items: list[Item]) -> list[Item]:
        """With what else comes while the engine rests, unless somebody waits. The first change after a quiet time
        goes to the kernel at once; of many a second several go together, and attaches find the interpreter free."""
        while items and not any(map(self._is_urgent, items)):
            left = self._rests_until - time.monotonic()
            if left <= 0 or self._mailbox.is_closed:
                break
            items += self._mailbox.take(left)
        return items

    def _is_urgent(self, item: Item) -> bool:
        if not isinstance(item, SyncBatch):
            return not isinstance(item, HostAddresses | InterfaceEvent)
        if item.is_snapshot or not item.updates:
            return True
        return any(isinstance(each.key, WorkloadEndpointKey) and each.key.host == self._host for each in item.updates)

    def _wait_s(self) -> float | None:
        times = self._pace.times(refreshes=not self._is_behind)
        now = time.monotonic()
        times += [at for at in (self._guard.next_look(now), self._remembered.next_look(now)) if at is not None]
        cutting = self._cutter.next_look(now) if self._cutter is not None else None
        times += [cutting] if cutting is not None else []
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _pass(self, items: list[Item]) -> None:
        """One pass of the engine: everything that has gathered becomes one batch for the kernel."""
        events: dict[str, InterfaceEvent] = {}
        addressed = 0
        for item in items:
            match item:
                case InterfaceEvent():
                    events[item.name] = item
                case HostAddresses(name, addresses):
                    addressed += 1
                    self._resolver.set_interface(name, addresses)
                    self._own_addresses[name] = addresses or frozenset()
                case CountsWanted(reply):
                    self.rule_counts.answer(reply)
                case RemovalsConfirmed():
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
            for key in self._resolver.allowed_sources.take_ignored():
                reason = "WorkloadSourceSpoofing is Disabled: it may send from its own addresses only"
                log.warning("endpoint.source_prefixes_ignored", endpoint=key.path, reason=reason)
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
        if not changes and not self._pace.is_retry_due:
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
            self._pace.note_failure(str(error))
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
        self.counters.failing = len(self._failures)
        if report.is_clean:
            self._pace.note_success()
        else:
            self._pace.note_failure(report.failures[0].reason)
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
            self._pace.note_failure(str(error))
            return
        self._note(report, () if self._is_behind else self._progress.of_interface(event.name))
        if report.failures:
            self._pace.note_failure(report.failures[0].reason)

    def _refresh(self) -> None:
        if self._is_behind or not self._pace.is_refresh_due:
            return
        self._pace.note_refresh()
        try:
            report = self._dataplane.resync()
        except CalicoError as error:
            log.error("dataplane.resync_failed", reason=str(error))
            self._pace.note_failure(str(error))
            return
        self._take_report(report, self._progress.of_interface(""))

    def _state(self) -> AgentState:
        return AgentState(
            is_in_sync=self._is_in_sync,
            is_applied=self._applied.is_set(),
            endpoints=dict(self._progress.status),
            host_endpoints=self._host_endpoints.status(self._failures),
            bad_records=tuple(self._syncer.bad_records),
            last_error=self._pace.last_error,
            freeze=self._freeze,
        )
