"""The host agent: journey A, state to kernel. One engine thread owns calculation and dataplane.

The syncer and the link monitor post into a mailbox; the engine takes what has gathered, feeds the resolver, applies
one batch to the dataplane and says which endpoints are programmed. Integrations wait for that word. Nothing is
removed from the kernel before the first in-sync, and nothing while the datastore is away.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from netaddr import IPAddress

from calico_core.datastore.known_records import Update
from calico_core.datastore.syncer import SyncBatch, Syncer, SyncStatus
from calico_core.errors import DataplaneError
from calico_core.interfaces.dataplane import Dataplane
from calico_core.interfaces.datastore import Datastore
from calico_core.log import get_logger
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import HostWorkload
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
from calico_core.node.enforcement import Enforcement
from calico_core.node.flow_cutter import FlowCutter, LookFailed
from calico_core.node.gathering import Gathering
from calico_core.node.host_endpoint_status import HostEndpointStatuses
from calico_core.node.mailbox import Mailbox
from calico_core.node.metrics import AgentFigures
from calico_core.node.progress import EndpointProgress
from calico_core.node.remembered import Remembered
from calico_core.node.removal_guard import RemovalGuard
from calico_core.node.removals import Removals
from calico_core.node.rule_counts import RuleCounts
from calico_core.policy.resolver import PolicyResolver

log = get_logger(__name__)


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
        settings_differ: Callable[[], bool] = lambda: False,
        confirm_removals_after_s: float = 300.0,
        remembered: Remembered | None = None,
        resolver: PolicyResolver | None = None,
        cuts_denied_flows: bool = True,
        give_up_after_s: float = 90.0,
        max_set_size: int = 1 << 20,
        has_ipv6: bool = True,
    ) -> None:
        """``on_config`` hears, in the engine thread, of every configuration key of the datastore. ``settings_differ``:
        whether the node is to start anew because of what it heard: then it does not begin with the old ones.
        ``confirm_removals_after_s``: see ``RemovalGuard``. ``resolver``: a new one, of this host; the engine's own from
        now on. ``remembered``: what an earlier life of the node had. ``give_up_after_s``: how long the kernel may
        refuse policy as a whole before the agent ends; 0: for ever. ``max_set_size`` and ``has_ipv6``: as
        ``DataplaneOptions`` has them."""
        self._host = host
        self._dataplane = dataplane
        self._reporter = reporter
        self._on_death = on_death
        self._on_config = on_config
        self._settings_differ = settings_differ
        self.counters = AgentCounters()
        self._mailbox: Mailbox[Item] = Mailbox()
        self._resolver = resolver if resolver is not None else PolicyResolver(host)
        # the addresses that hosts have of IPv6 stand beside their routing
        self._syncer = Syncer(store, (V1, BGP_HOSTS), self._mailbox.post, ready_key=ReadyKey().path, name="sync-policy")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._give_up_after_s = give_up_after_s
        self._stop_monitor: Callable[[], None] = lambda: None
        self._stop_addresses: Callable[[], None] = lambda: None
        self.rule_counts = RuleCounts(dataplane, self._mailbox.post)
        self._cutter = (
            FlowCutter(dataplane, self._mailbox.post, max_set_size=max_set_size, has_ipv6=has_ipv6)
            if cuts_denied_flows
            else None
        )
        # Owned by the engine thread.
        self._gathering = Gathering(self._mailbox, host)
        self._is_store_in_sync = False
        self._is_in_sync = False
        self._own_addresses: dict[str, frozenset[IPAddress]] = {}
        self._host_endpoints = HostEndpointStatuses()
        # Written by the engine thread alone, read by any.
        exists = self._interface_exists
        guard = RemovalGuard(
            host, exists=exists, count=self._syncer.count_keys, confirm_after_s=confirm_removals_after_s
        )
        self._removals = Removals(guard, remembered or Remembered(None), exists)
        self._profiles: set[str] = set()  # those with rules
        self._progress = EndpointProgress()
        self._enforcement = Enforcement(dataplane, self._progress, self.counters, refresh_interval_s=refresh_interval_s)

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
        if not self._thread.is_alive() and self._is_in_sync:
            self._removals.save(is_last=True)
        if self._cutter is not None:
            self._cutter.stop()

    @property
    def is_alive(self) -> bool:
        """Whether its threads run; the supervisor restarts a node whose agent has died."""
        cuts = self._cutter is None or self._cutter.is_alive
        return self._thread.is_alive() and self._syncer.is_alive and cuts

    @property
    def is_in_sync(self) -> bool:
        return self._enforcement.applied.is_set()

    def wait_in_sync(self, timeout_s: float) -> bool:
        """Until the first complete state is in the kernel."""
        return self._enforcement.applied.wait(timeout_s)

    def wait_programmed(self, key: WorkloadEndpointKey, revision: int, timeout_s: float) -> bool:
        return self._progress.wait(key, revision, timeout_s)

    @property
    def last_error(self) -> str:
        """Why the kernel does not have all that it was to have, or ''."""
        return self._enforcement.last_error

    @property
    def is_refused(self) -> bool:
        """Whether the kernel refuses policy as a whole: what stood before stays in force. Any thread."""
        return self._enforcement.refused_s > 0

    def workload(self, key: WorkloadEndpointKey) -> HostWorkload | None:
        """What the dataplane was told of an endpoint. Any thread."""
        return self._resolver.workload(key)

    def figures(self) -> AgentFigures:
        """For metrics. Any thread."""
        statuses = Counter(status for status, _ in list(self._progress.status.values()))
        freeze = self._removals.freeze
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
        freeze = self._removals.freeze
        return freeze.reason if freeze is not None else ""

    @property
    def doubts_store(self) -> bool:
        """Whether what the datastore no longer has may be lost rather than deleted: removals wait, or it is not in
        sync. Any thread."""
        return self._removals.is_waiting or self._syncer.status is not SyncStatus.IN_SYNC

    @property
    def trusts_store(self) -> bool:
        """Whether what is deleted at this moment may go: the agent has begun, hears of changes and doubts nothing. Any
        thread."""
        return self._is_in_sync and self._syncer.is_following and not self.doubts_store

    def confirm_removals(self) -> str:
        """What is deleted in the datastore shall go from the kernel too. Gives what it was held back for; '' when it
        was not."""
        reason = self.frozen_because
        self._mailbox.post(RemovalsConfirmed())
        return reason

    def _interface_exists(self, name: str) -> bool:
        return self._dataplane.wiring().exists(name)

    def _post_addresses(self, name: str, addresses: frozenset[IPAddress] | None) -> None:
        self._mailbox.post(HostAddresses(name, addresses))

    # --- engine thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._mailbox.is_closed:
                items = self._gathering.take(self._wait_s())
                self.counters.busy_since = time.monotonic()
                if not self._mailbox.is_closed:
                    self._pass(items)
                self._gathering.rest()
                self.counters.busy_since = None
        except Exception:
            log.exception("engine.died")
            self._progress.close()
            if self._on_death is not None:
                self._on_death()

    def _wait_s(self) -> float | None:
        now = time.monotonic()
        times = [*self._enforcement.times(), *self._removals.times(now)]
        cutting = self._cutter.next_look(now) if self._cutter is not None and not self.is_refused else None
        times += [cutting] if cutting is not None else []
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _pass(self, items: list[Item]) -> None:
        """One pass of the engine: everything that has gathered becomes one batch for the kernel."""
        events = self._take(items)
        gone = [event.name for event in events.values() if event.kind == "deleted"]
        self._follow(self._removals.look(gone, is_in_sync=self._syncer.status is SyncStatus.IN_SYNC))
        self._enter_sync()
        if self._is_in_sync:
            self._calculate_and_apply()
            self._removals.save()
            self._cut_flows()
        for event in events.values():
            self._enforcement.follow_link(event)
        self._enforcement.refresh()
        if self._reporter is not None:
            self._reporter(self._state())
        if 0 < self._give_up_after_s < self._enforcement.refused_s:
            # perhaps a program was changed, or another life finds another way; policy stays as it is meanwhile
            raise DataplaneError(f"policy is refused for {self._enforcement.refused_s:.0f} s: {self.last_error}")

    def _take(self, items: Iterable[Item]) -> dict[str, InterfaceEvent]:
        """Gives the latest event of each interface."""
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
                    self._follow(self._removals.confirm())
                case LookFailed():
                    if self._cutter is not None:
                        self._cutter.take_back(item, time.monotonic())
                case _:
                    self._take_batch(item)
        self.counters.note_events(links=len(events), addresses=addressed)
        return events

    def _take_batch(self, batch: SyncBatch) -> None:
        self.counters.updates += len(batch.updates)
        self.counters.resyncs_started += batch.status is SyncStatus.RESYNC
        self._follow(self._removals.pass_on(batch))
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
        if self._is_in_sync or not self._is_store_in_sync or not self._removals.may_begin():
            return
        if self._settings_differ():
            return
        self._is_in_sync = True
        self._resolver.in_sync()
        log.info("engine.in_sync", endpoints=len(self._progress))

    def _track(self, key: WorkloadEndpointKey, record: WorkloadEndpoint | None, revision: int) -> None:
        if record is None:
            self._progress.remove(key)
        else:
            refusal = self._resolver.refusal(record)
            self._progress.write(key, revision, record.name, is_active=record.state == "active", refusal=refusal)

    def _calculate_and_apply(self) -> None:
        started = time.perf_counter()
        changes = self._resolver.flush()
        self.counters.calculation.note(time.perf_counter() - started)
        for key in self._resolver.allowed_sources.take_ignored():
            reason = "WorkloadSourceSpoofing is Disabled: it may send from its own addresses only"
            log.warning("endpoint.source_prefixes_ignored", endpoint=key.path, reason=reason)
        self._enforcement.apply(changes)
        self._host_endpoints.note(changes)
        if self._cutter is not None:
            self._cutter.note(changes, time.monotonic())

    def _cut_flows(self) -> None:
        """Not while the kernel goes by older policy: what that permits would begin again with its next packet."""
        if self._cutter is not None and not self.is_refused and self._cutter.wants(time.monotonic()):
            self._cutter.look(self._dataplane.wanted(), frozenset().union(*self._own_addresses.values()))

    def _state(self) -> AgentState:
        return AgentState(
            is_in_sync=self._is_in_sync,
            is_applied=self.is_in_sync,
            endpoints=dict(self._progress.status),
            host_endpoints=self._host_endpoints.status(self._enforcement.failures, self._enforcement.refusal),
            bad_records=tuple(self._syncer.bad_records),
            last_error=self.last_error,
            freeze=self._removals.freeze,
        )
