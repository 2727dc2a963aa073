"""What the node tells of itself as metrics. Names are those that dashboards of the reference system know.

Source: felix specification 9, node specification 10.3.
"""

from __future__ import annotations

import re
import resource
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from calico_core.datastore.syncer import SyncStatus
from calico_core.interfaces.dataplane import Figure
from calico_core.interfaces.integration import Gauge
from calico_core.interfaces.routing import RoutingStatus
from calico_core.log import get_logger
from calico_core.model.keys import (
    HostEndpointKey,
    HostIpKey,
    Key,
    PolicyKey,
    ProfileRulesKey,
    TierKey,
    WorkloadEndpointKey,
)
from calico_core.node.counters import AgentCounters, CountedRule
from calico_core.node.dataplane_metrics import NO_INDEX, of_batches, of_drivers, of_label_index
from calico_core.node.log_counts import LogCounts
from calico_core.node.metric import Metric, by_label, counter, gauge, summary
from calico_core.policy.label_index import IndexFigures

log = get_logger(__name__)

_SYNC_STATES = {SyncStatus.WAIT: 1, SyncStatus.RESYNC: 2, SyncStatus.IN_SYNC: 3}
_CLUSTER: dict[str, type[Key]] = {
    "hosts": HostIpKey,
    "workload_endpoints": WorkloadEndpointKey,
    "host_endpoints": HostEndpointKey,
    "policies": PolicyKey,
    "profiles": ProfileRulesKey,
    "tiers": TierKey,
}
_DENYING = frozenset({"deny", "reject"})
_MOST_RULES = 500
_NOT_OF_NAMES = re.compile(r"[^a-zA-Z0-9_]")


class AgentFigures(NamedTuple):
    """What the agent knows at the moment of asking. ``cluster``: how many records of each kind of key there are."""

    counters: AgentCounters
    sync_status: SyncStatus
    cluster: Counter[type[Key]]
    endpoints: Counter[str]
    """Local ones by status."""
    is_frozen: bool = False
    """Deletions wait for confirmation."""
    waiting: int = 0
    """How many."""
    rules: tuple[CountedRule, ...] = ()
    """Counters of rules; empty when the engine had no time to read them."""
    kernel: tuple[Figure, ...] = ()
    """Of the dataplane's driver."""
    label_index: IndexFigures = NO_INDEX


def collect(
    host: str,
    started: float,
    agent: AgentFigures | None,
    routing: RoutingStatus | None,
    logs: LogCounts | None = None,
    integrations: Sequence[Metric] = (),
) -> list[Metric]:
    """``started``: seconds since the epoch. None: not there yet. ``integrations``: what they tell of themselves; one
    whose name is another's is left out, and the log says so."""
    metrics = [gauge("felix_host", "This host.", 1, host=host), *_process(started), *_logs(logs or LogCounts())]
    if agent is not None:
        metrics += [
            *_calculation(agent),
            *_cluster(agent.cluster),
            *_dataplane(agent),
            *of_label_index(agent.label_index),
        ]
        metrics += [_denied(agent.rules), *_removals(agent)]
    if routing is not None:
        metrics.append(_peers(routing))
    return [*metrics, *_not_taken(integrations, {each.name: each.help for each in metrics})]


def _not_taken(metrics: Iterable[Metric], taken: dict[str, str]) -> list[Metric]:
    """Of two that come to one name the first stands: with both, no figure of the page would be read."""
    found: list[Metric] = []
    for metric in metrics:
        if metric.name in taken:
            log.warning("metrics.name_taken", name=metric.name, stands=taken[metric.name], left_out=metric.help)
            continue
        taken[metric.name] = metric.help
        found.append(metric)
    return found


def of_integration(integration: str, gauges: Iterable[Gauge]) -> list[Metric]:
    """They may come from a third party: what cannot stand on the page raises here, and not when it is rendered."""
    return [
        gauge(_NOT_OF_NAMES.sub("_", f"calico_{integration}_{each.name}"), str(each.text), float(each.value))
        for each in gauges
    ]


def _logs(counts: LogCounts) -> list[Metric]:
    return [
        counter("felix_logs_dropped", "Events that came faster than file or syslog took them.", counts.dropped),
        counter("felix_log_errors", "Events that could not be written to file or syslog.", counts.errors),
    ]


def _calculation(agent: AgentFigures) -> list[Metric]:
    counters = agent.counters
    return [
        gauge("felix_active_local_endpoints", "Endpoints of this host.", agent.endpoints.total()),
        by_label("calico_local_endpoints", "gauge", "Endpoints of this host by status.", "status", agent.endpoints),
        gauge("felix_active_local_policies", "Policies in force on this host.", counters.policies),
        gauge("felix_active_local_selectors", "Selectors and tags that rules in force name.", counters.sets),
        counter("felix_calc_graph_updates_processed", "Datastore updates taken.", counters.updates),
        counter("felix_calc_graph_output_events", "Objects given to the dataplane.", counters.changes_given),
        summary("felix_calc_graph_update_time_seconds", "Calculation of one batch.", counters.calculation),
        gauge("felix_resync_state", "1 waiting, 2 resync, 3 in sync.", _SYNC_STATES[agent.sync_status]),
        counter("felix_resyncs_started", "Snapshots of the datastore begun.", counters.resyncs_started),
    ]


def _cluster(counts: Counter[type[Key]]) -> list[Metric]:
    return [
        gauge(f"felix_cluster_num_{name}", f"In the datastore: {name.replace('_', ' ')}.", counts[kind])
        for name, kind in _CLUSTER.items()
    ]


def _dataplane(agent: AgentFigures) -> list[Metric]:
    return [
        *of_batches(agent.counters),
        *of_drivers(agent.kernel),
        gauge("calico_dataplane_failing", "Objects that are not as wanted now.", agent.counters.failing),
        counter("calico_dataplane_healed", "Foreign changes to our part of the kernel undone.", agent.counters.healed),
    ]


def _denied(rules: tuple[CountedRule, ...]) -> Metric:
    """Rules that denied nothing yet are not named: there may be very many."""
    denying = [each for each in rules if each.action in _DENYING and each.packets]
    denying.sort(key=lambda each: -each.packets)
    samples = tuple(
        (
            "",
            {"rules": str(each.rules), "direction": each.direction, "rule": str(each.rule)},
            float(each.packets),
        )
        for each in denying[:_MOST_RULES]
    )
    text = "Packets that a rule denied since it was written; rules as the host numbers them, from 0."
    return Metric("calico_denied_packets", "counter", text, samples)


def _removals(agent: AgentFigures) -> list[Metric]:
    return [
        gauge("calico_removals_frozen", "1 while deletions wait for confirmation.", float(agent.is_frozen)),
        gauge("calico_removals_waiting", "Deletions that wait.", agent.waiting),
    ]


def _peers(routing: RoutingStatus) -> Metric:
    counts = Counter((peer.state, str(peer.ip.version)) for peer in routing.peers)
    samples = tuple(
        ("", {"status": state, "ip_version": version}, float(count))
        for (state, version), count in sorted(counts.items())
    )
    return Metric("bgp_peers", "gauge", "BGP sessions.", samples)


def _process(started: float) -> list[Metric]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    metrics = [
        counter("process_cpu_seconds_total", "User and system time.", used.ru_utime + used.ru_stime),
        gauge("process_start_time_seconds", "Since the epoch.", started),
    ]
    resident = _resident_bytes()
    return metrics if resident is None else [*metrics, gauge("process_resident_memory_bytes", "Memory.", resident)]


def _resident_bytes() -> int | None:
    """proc(5), statm: the second figure, in pages."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return None
