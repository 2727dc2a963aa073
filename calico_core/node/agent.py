"""The host agent: journey A, state to kernel. One engine thread owns calculation and dataplane.

The syncer and the link monitor post into a mailbox; the engine takes what has gathered, feeds the resolver, applies
one batch to the dataplane and says which endpoints are programmed. Integrations wait for that word. Nothing is
removed from the kernel before the first in-sync, and nothing while the datastore is away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from calico_core.datastore.syncer import SyncBatch, Syncer, SyncStatus
from calico_core.errors import CalicoError
from calico_core.interfaces.dataplane import ApplyReport, Dataplane
from calico_core.interfaces.datastore import Datastore
from calico_core.log import get_logger
from calico_core.model.hoststate import HostChanges
from calico_core.model.keys import V1, Key, ReadyKey, WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.model.workloads import InterfaceEvent
from calico_core.node.mailbox import Mailbox
from calico_core.policy.resolver import PolicyResolver

log = get_logger(__name__)

_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 10.0


class AgentState(Value, frozen=True):
    """What the agent reports: handed to the reporter after every pass."""

    is_in_sync: bool
    is_applied: bool
    endpoints: dict[WorkloadEndpointKey, tuple[str, str]]
    """Status (``up``, ``down``, ``error``) and reason of each local endpoint."""
    bad_records: tuple[str, ...] = ()
    last_error: str = ""


Reporter = Callable[[AgentState], None]


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
    ) -> None:
        self._host = host
        self._dataplane = dataplane
        self._refresh_interval_s = refresh_interval_s
        self._reporter = reporter
        self._on_death = on_death
        self._mailbox: Mailbox[SyncBatch | InterfaceEvent] = Mailbox()
        self._resolver = PolicyResolver(host)
        self._syncer = Syncer(store, (V1,), self._mailbox.post, ready_key=ReadyKey().path, name="sync-policy")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stop_monitor: Callable[[], None] = lambda: None
        # Owned by the engine thread.
        self._is_store_in_sync = False
        self._is_in_sync = False
        self._is_applied = False
        self._records: dict[WorkloadEndpointKey, int] = {}
        self._status: dict[WorkloadEndpointKey, tuple[str, str]] = {}
        self._dirty: dict[WorkloadEndpointKey, int] = {}
        self._retry_s = 0.0
        self._retry_at: float | None = None
        self._refresh_at = 0.0
        self._last_error = ""
        # Shared with waiting threads.
        self._programmed = threading.Condition()
        self._programmed_at: dict[WorkloadEndpointKey, int] = {}
        self._failed_at: dict[WorkloadEndpointKey, int] = {}

    def start(self) -> None:
        """Close the host to unknown workloads, then follow the datastore."""
        self._dataplane.ensure_closed()
        self._stop_monitor = self._dataplane.watch_interfaces(self._mailbox.post)
        self._thread.start()
        self._syncer.start()

    def stop(self) -> None:
        """The kernel keeps enforcing."""
        self._syncer.stop()
        self._stop_monitor()
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(10)

    @property
    def is_alive(self) -> bool:
        """Whether both of its threads run; the supervisor restarts a node whose agent has died."""
        return self._thread.is_alive() and self._syncer.is_alive

    @property
    def is_in_sync(self) -> bool:
        return self._is_in_sync and self._is_applied

    def wait_in_sync(self, timeout_s: float) -> bool:
        """Until the first complete state is in the kernel."""
        with self._programmed:
            return self._programmed.wait_for(lambda: self._is_applied or self._mailbox.is_closed, timeout_s)

    def wait_programmed(self, key: WorkloadEndpointKey, revision: int, timeout_s: float) -> bool:
        def is_decided() -> bool:
            return (
                self._programmed_at.get(key, 0) >= revision
                or self._failed_at.get(key, 0) >= revision
                or self._mailbox.is_closed
            )

        with self._programmed:
            self._programmed.wait_for(is_decided, timeout_s)
            return self._programmed_at.get(key, 0) >= revision

    # --- engine thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        self._refresh_at = time.monotonic() + self._refresh_interval_s
        try:
            while not self._mailbox.is_closed:
                items = self._mailbox.take(self._wait_s())
                if not self._mailbox.is_closed:
                    self._pass(items)
        except Exception:
            log.exception("engine.died")
            if self._on_death is not None:
                self._on_death()

    def _wait_s(self) -> float | None:
        times = [self._retry_at] if self._retry_at is not None else []
        if self._refresh_interval_s > 0 and self._is_applied:
            times.append(self._refresh_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _pass(self, items: list[SyncBatch | InterfaceEvent]) -> None:
        """One pass of the engine: everything that has gathered becomes one batch for the kernel."""
        events: dict[str, InterfaceEvent] = {}
        for item in items:
            if isinstance(item, InterfaceEvent):
                events[item.name] = item
            else:
                self._take(item)
        if not self._is_in_sync and self._is_store_in_sync:
            self._is_in_sync = True
            self._resolver.in_sync()
            log.info("engine.in_sync", endpoints=len(self._records))
        if self._is_in_sync:
            self._apply(self._resolver.flush())
        for event in events.values():
            self._note(self._dataplane.interface_changed(event))
        self._refresh()
        if self._reporter is not None and (items or self._last_error):
            self._reporter(self._state())

    def _take(self, batch: SyncBatch) -> None:
        updates: list[tuple[Key, object]] = []
        for update in batch.updates:
            updates.append((update.key, update.record))
            if isinstance(update.key, WorkloadEndpointKey) and update.key.host == self._host:
                self._track(update.key, update.record is not None, update.mod_revision)
        self._resolver.apply(updates)
        if batch.status is SyncStatus.IN_SYNC:
            self._is_store_in_sync = True

    def _track(self, key: WorkloadEndpointKey, is_present: bool, revision: int) -> None:
        if is_present:
            self._records[key] = revision
            self._dirty[key] = revision
            return
        self._records.pop(key, None)
        self._status.pop(key, None)
        self._dirty.pop(key, None)
        with self._programmed:
            self._programmed_at.pop(key, None)
            self._failed_at.pop(key, None)

    def _apply(self, changes: HostChanges) -> None:
        is_retry = self._retry_at is not None and time.monotonic() >= self._retry_at
        if not changes and not is_retry:
            self._announce(())
            return
        started = time.perf_counter()
        try:
            report = self._dataplane.apply(changes)
        except CalicoError as error:
            log.error("dataplane.apply_failed", reason=str(error))
            self._schedule_retry(str(error))
            return
        log.debug("dataplane.applied", changes=report.changes, ms=round((time.perf_counter() - started) * 1000, 2))
        failed = tuple(failure.subject for failure in report.failures)
        self._note(report)
        if report.is_clean:
            self._retry_at, self._retry_s, self._last_error = None, 0.0, ""
        else:
            self._schedule_retry(report.failures[0].reason)
        self._is_applied = True
        self._announce(failed)

    def _announce(self, failed: tuple[str, ...]) -> None:
        """Tell waiting attaches which records are in force now."""
        if not self._is_applied:
            return
        with self._programmed:
            for key, revision in self._dirty.items():
                (self._failed_at if key.path in failed else self._programmed_at)[key] = revision
            self._programmed.notify_all()
        for key in self._dirty:
            if key.path in failed:
                self._status[key] = ("error", self._last_error)
            elif self._status.get(key, ("", ""))[0] != "down":
                self._status[key] = ("up", "")
        self._dirty.clear()

    def _note(self, report: ApplyReport) -> None:
        for failure in report.failures:
            log.warning("dataplane.object_failed", subject=failure.subject, reason=failure.reason)
        for healed in report.healed:
            log.warning("dataplane.healed", what=healed)
        for key in report.endpoints_without_link:
            if key in self._records:
                self._status[key] = ("down", "its interface does not exist")

    def _schedule_retry(self, reason: str) -> None:
        self._last_error = reason
        self._retry_s = min(max(self._retry_s * 2, _RETRY_FIRST_S), _RETRY_MAX_S)
        self._retry_at = time.monotonic() + self._retry_s

    def _refresh(self) -> None:
        if not self._is_applied or self._refresh_interval_s <= 0 or time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + self._refresh_interval_s
        try:
            self._note(self._dataplane.resync())
        except CalicoError as error:
            log.error("dataplane.resync_failed", reason=str(error))
            self._schedule_retry(str(error))

    def _state(self) -> AgentState:
        return AgentState(
            is_in_sync=self._is_in_sync,
            is_applied=self._is_applied,
            endpoints=dict(self._status),
            bad_records=tuple(self._syncer.bad_records),
            last_error=self._last_error,
        )
