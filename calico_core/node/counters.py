"""What the agent counts for metrics and liveness. Written by the engine thread alone, read by any."""

from __future__ import annotations

import time
from collections import Counter
from typing import Literal, NamedTuple

from calico_core.interfaces.dataplane import ApplyReport, RuleCount
from calico_core.model.hoststate import HostChanges, HostRules, RulesId, SetId
from calico_core.stopwatch import Timing


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
        self.messages: Counter[str] = Counter()
        """Objects given to the dataplane by kind, in the reference system's words."""
        self.batches = 0
        self.link_events, self.link_batches = 0, 0
        self.address_events, self.address_batches = 0, 0
        self.calculation = Timing()
        self.apply = Timing()
        self.first_apply_s = 0.0
        self.failures = 0
        self.failing = 0
        """Objects that the last look at everything left undone."""
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
        messages = Counter(
            {
                "IPSetUpdate": sum(change.is_new for change in changes.sets),
                "IPSetDeltaUpdate": sum(not change.is_new for change in changes.sets),
                "PortSetUpdate": len(changes.port_sets),
                "IPSetRemove": len(changes.removed_sets) + len(changes.removed_port_sets),
                "ActivePolicyUpdate": len(changes.rules),
                "ActivePolicyRemove": len(changes.removed_rules),
                "WorkloadEndpointUpdate": len(changes.workloads),
                "WorkloadEndpointRemove": len(changes.removed_workloads),
                "HostEndpointUpdate": len(changes.interfaces),
                "HostEndpointRemove": len(changes.removed_interfaces),
                "IPAMPoolUpdate": int(changes.pools is not None),
                "HostMetadataUpdate": int(changes.peers is not None),
            }
        )
        self.batches += 1
        self.changes_given += messages.total()
        self.messages.update(messages)
        if changes.is_complete:
            self._rules.clear()
            self._sets.clear()
        self._rules.update(rules.id for rules in changes.rules)
        self._rules.difference_update(changes.removed_rules)
        self._sets.update(change.id for change in changes.sets)
        self._sets.difference_update(changes.removed_sets)

    def note_events(self, *, links: int, addresses: int) -> None:
        """What the kernel told since the last pass."""
        self.link_events += links
        self.link_batches += links > 0
        self.address_events += addresses
        self.address_batches += addresses > 0

    def note_apply(self, seconds: float, *, is_first: bool) -> None:
        self.apply.note(seconds)
        if is_first:
            self.first_apply_s = seconds

    def note_report(self, report: ApplyReport) -> None:
        self.failures += len(report.failures)
        self.healed += len(report.healed)
