"""Metrics in Prometheus' text format, version 0.0.4. Names are those that dashboards of the reference system know.

Source: felix specification 9, node specification 10.3.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from calico_core.datastore.syncer import SyncStatus
from calico_core.interfaces.routing import RoutingStatus
from calico_core.model.keys import (
    HostEndpointKey,
    HostIpKey,
    Key,
    PolicyKey,
    ProfileRulesKey,
    TierKey,
    WorkloadEndpointKey,
)
from calico_core.node.counters import AgentCounters, CountedRule, Timing

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
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
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Metric(NamedTuple):
    """``samples``: (suffix of the name, labels, value)."""

    name: str
    kind: Literal["counter", "gauge", "summary"]
    help: str
    samples: tuple[tuple[str, Mapping[str, str], float], ...]


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


def render(metrics: Iterable[Metric]) -> bytes:
    lines: list[str] = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{suffix}{_labels(labels)} {value:.17g}" for suffix, labels, value in metric.samples]
    return ("\n".join(lines) + "\n").encode()


def collect(host: str, started: float, agent: AgentFigures | None, routing: RoutingStatus | None) -> list[Metric]:
    """``started``: seconds since the epoch. None: not there yet."""
    metrics = [_gauge("felix_host", "This host.", 1, host=host), *_process(started)]
    if agent is not None:
        metrics += [*_calculation(agent), *_cluster(agent.cluster), *_dataplane(agent.counters)]
        metrics += [_denied(agent.rules), *_removals(agent)]
    if routing is not None:
        metrics.append(_peers(routing))
    return metrics


def _calculation(agent: AgentFigures) -> list[Metric]:
    counters = agent.counters
    by_status = tuple(("", {"status": name}, float(count)) for name, count in sorted(agent.endpoints.items()))
    return [
        _gauge("felix_active_local_endpoints", "Endpoints of this host.", agent.endpoints.total()),
        Metric("calico_local_endpoints", "gauge", "Endpoints of this host by status.", by_status),
        _gauge("felix_active_local_policies", "Policies in force on this host.", counters.policies),
        _gauge("felix_active_local_selectors", "Selectors and tags that rules in force name.", counters.sets),
        _counter("felix_calc_graph_updates_processed", "Datastore updates taken.", counters.updates),
        _counter("felix_calc_graph_output_events", "Objects given to the dataplane.", counters.changes_given),
        _summary("felix_calc_graph_update_time_seconds", "Calculation of one batch.", counters.calculation),
        _gauge("felix_resync_state", "1 waiting, 2 resync, 3 in sync.", _SYNC_STATES[agent.sync_status]),
        _counter("felix_resyncs_started", "Snapshots of the datastore begun.", counters.resyncs_started),
    ]


def _cluster(counts: Counter[type[Key]]) -> list[Metric]:
    return [
        _gauge(f"felix_cluster_num_{name}", f"In the datastore: {name.replace('_', ' ')}.", counts[kind])
        for name, kind in _CLUSTER.items()
    ]


def _dataplane(counters: AgentCounters) -> list[Metric]:
    return [
        _summary("felix_int_dataplane_apply_time_seconds", "Kernel changes of one batch.", counters.apply),
        _counter(
            "felix_int_dataplane_failures", "Objects that could not be programmed at an attempt.", counters.failures
        ),
        _gauge("felix_int_dataplane_initial_resync_time_seconds", "The first complete apply.", counters.first_apply_s),
        _gauge("felix_ipsets_calico", "Address sets in force.", counters.sets),
        _counter("calico_dataplane_healed", "Foreign changes to our part of the kernel undone.", counters.healed),
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
        _gauge("calico_removals_frozen", "1 while deletions wait for confirmation.", float(agent.is_frozen)),
        _gauge("calico_removals_waiting", "Deletions that wait.", agent.waiting),
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
        _counter("process_cpu_seconds_total", "User and system time.", used.ru_utime + used.ru_stime),
        _gauge("process_start_time_seconds", "Since the epoch.", started),
    ]
    resident = _resident_bytes()
    return metrics if resident is None else [*metrics, _gauge("process_resident_memory_bytes", "Memory.", resident)]


def _resident_bytes() -> int | None:
    """proc(5), statm: the second figure, in pages."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    return Metric(name, "gauge", text, (("", labels, value),))


def _counter(name: str, text: str, value: float) -> Metric:
    return Metric(name, "counter", text, (("", {}, value),))


def _summary(name: str, text: str, timing: Timing) -> Metric:
    return Metric(name, "summary", text, (("_sum", {}, timing.sum_s), ("_count", {}, timing.count)))


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items()) + "}"


Collect = Callable[[], list[Metric]]
