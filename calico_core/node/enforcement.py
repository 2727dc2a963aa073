"""What the dataplane is told, and what became of it: which endpoints are in force, what failed, when to try again."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterable, Mapping

from calico_core.errors import CalicoError
from calico_core.interfaces.dataplane import ApplyReport, Dataplane, is_whole_policy
from calico_core.log import get_logger
from calico_core.model.hoststate import HostChanges
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.workloads import InterfaceEvent
from calico_core.node.counters import AgentCounters
from calico_core.node.pace import Pace
from calico_core.node.progress import EndpointProgress

log = get_logger(__name__)


class Enforcement:
    """The engine thread's. ``refresh_interval_s``: as of ``Pace``. ``applied``: set once the first complete state is in
    the kernel; any thread may wait for it."""

    def __init__(
        self,
        dataplane: Dataplane,
        progress: EndpointProgress,
        counters: AgentCounters,
        *,
        refresh_interval_s: float,
    ) -> None:
        self._dataplane, self._progress, self._counters = dataplane, progress, counters
        self._pace = Pace(refresh_interval_s)
        self._is_behind = True  # the dataplane does not have all that it was to have
        self._failures: dict[str, str] = {}
        self._losers: dict[str, str] = {}
        self._refused_since: float | None = None
        self.refusal = ""
        """Why policy as a whole is not in force as it was to be, or ''."""
        self.applied = threading.Event()

    @property
    def last_error(self) -> str:
        """Why the kernel does not have all that it was to have, or ''. Any thread."""
        return self._pace.last_error

    @property
    def refused_s(self) -> float:
        """For how long policy as a whole has not been in force as it was to be; 0: it is. Any thread."""
        since = self._refused_since
        return 0.0 if since is None else max(time.monotonic() - since, 1e-9)

    @property
    def failures(self) -> Mapping[str, str]:
        """Subjects that are not as wanted, and why."""
        return self._failures

    def times(self) -> list[float]:
        """When to come again without a change."""
        return self._pace.times(refreshes=not self._is_behind)

    def apply(self, changes: HostChanges) -> None:
        """One batch for the kernel. With no changes: what failed before is tried again when it is time; the dataplane
        keeps what it was told."""
        if not changes and not self._pace.is_retry_due:
            if not self._is_behind:
                self._decide()
            return
        started = time.perf_counter()
        self._counters.note_changes(changes)
        try:
            report = self._dataplane.apply(changes)
        except CalicoError as error:
            self._counters.failures += 1
            log.error("dataplane.apply_failed", reason=str(error))
            self._is_behind = True
            self._note_refused(str(error))
            self._pace.note_failure(str(error))
            return
        self._counters.note_apply(time.perf_counter() - started, is_first=changes.is_complete)
        log.debug("dataplane.applied", changes=report.changes, ms=round((time.perf_counter() - started) * 1000, 2))
        self._is_behind = False
        if changes.is_complete:
            gc.freeze()  # the snapshot stays: collections need not walk it
        concerned = {workload.key for workload in changes.workloads}
        self._take_report(report, self._progress.of_interface("") if changes.is_complete else concerned)

    def follow_link(self, event: InterfaceEvent) -> None:
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

    def refresh(self) -> None:
        """A look at everything, when it is time for one."""
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

    # --- inside --------------------------------------------------------------------------------------

    def _take_report(self, report: ApplyReport, looked_at: Iterable[WorkloadEndpointKey]) -> None:
        """What an apply or a resync says of everything we want."""
        self._note(report, looked_at)
        self._failures, self._losers = dict(report.failures), dict(report.losers)
        self._counters.failing = len(self._failures)
        if report.is_clean:
            self._pace.note_success()
        else:
            self._pace.note_failure(report.failures[0].reason)
        self._decide()

    def _decide(self) -> None:
        """Tell waiting attaches which records are in force now."""
        whole = next((reason for subject, reason in self._failures.items() if is_whole_policy(subject)), "")
        self._note_refused(whole)
        self._progress.decide(self._losers | self._failures, whole=whole)
        if not whole:
            self.applied.set()

    def _note_refused(self, reason: str) -> None:
        """'': it is not."""
        self.refusal = reason
        if not reason:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = time.monotonic()

    def _note(self, report: ApplyReport, looked_at: Iterable[WorkloadEndpointKey]) -> None:
        self._counters.note_report(report)
        known = self._losers | self._failures
        for subject, reason in (*report.losers, *report.failures):
            if known.get(subject) != reason:
                log.warning("dataplane.object_failed", subject=subject, reason=reason)
        for healed in report.healed:
            log.warning("dataplane.healed", what=healed)
        self._progress.note_links(looked_at, report.endpoints_without_link)
