"""What the agent counts for metrics and liveness. Written by the engine thread alone, read by any."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

from calico_core.interfaces.dataplane import ApplyReport, RuleCount
from calico_core.model.hoststate import HostChanges, HostRules, RulesId, SetId


class Timing:
    """A sum and a number of durations, as a Prometheus summary without quantiles."""

    __slots__ = ("count", "sum_s")

    def __init__(self) -> None:
        self.count = 0
        self.sum_s = 0.0

    def note(self, seconds: float) -> None:
        self.count += 1
        self.sum_s += seconds


class CountedRule(NamedTuple):
    """A rule of the host's, what it does, and what it has matched. ``action`` '': it changes just now."""

    rules: RulesId
    direction: Literal["inbound", "outbound"]
    rule: int
    action: str
    packets: int
    bytes: int

    @classmethod
    def of(cls, count: RuleCount, rules: HostRules | None) -> CountedRule:
        found = () if rules is None else rules.inbound if count.direction == "inbound" else rules.outbound
        action = found[count.rule].action if count.rule < len(found) else ""
        return cls(count.rules, count.direction, count.rule, action, count.packets, count.bytes)


class AgentCounters:
    """Totals since the start, and what is in force now."""

    def __init__(self) -> None:
        self.updates = 0
        self.resyncs_started = 0
        self.changes_given = 0
        self.calculation = Timing()
        self.apply = Timing()
        self.first_apply_s = 0.0
        self.failures = 0
        self.healed = 0
        self.busy_since: float | None = None
        """``time.monotonic()`` of the pass under way; None while the engine waits."""
        self._rules: set[RulesId] = set()
        self._sets: set[SetId] = set()

    @property
    def policies(self) -> int:
        return sum(each.startswith("policy/") for each in tuple(self._rules))

    @property
    def sets(self) -> int:
        return len(self._sets)

    @property
    def busy_s(self) -> float:
        """How long the pass under way takes already."""
        since = self.busy_since
        return 0.0 if since is None else max(0.0, time.monotonic() - since)

    def note_changes(self, changes: HostChanges) -> None:
        """Of one batch for the dataplane."""
        self.changes_given += len(changes.sets) + len(changes.rules) + len(changes.workloads)
        self.changes_given += len(changes.removed_sets) + len(changes.removed_rules) + len(changes.removed_workloads)
        if changes.is_complete:
            self._rules.clear()
            self._sets.clear()
        self._rules.update(rules.id for rules in changes.rules)
        self._rules.difference_update(changes.removed_rules)
        self._sets.update(change.id for change in changes.sets)
        self._sets.difference_update(changes.removed_sets)

    def note_apply(self, seconds: float, *, is_first: bool) -> None:
        self.apply.note(seconds)
        if is_first:
            self.first_apply_s = seconds

    def note_report(self, report: ApplyReport) -> None:
        self.failures += len(report.failures)
        self.healed += len(report.healed)
