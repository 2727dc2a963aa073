"""Metrics of the dataplane and of the label index, under the names that dashboards of the reference system know.

All are there whatever driver runs, as there: those of another driver are 0. Source: felix specification 9.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from calico_core.interfaces.dataplane import Figure
from calico_core.node.counters import AgentCounters
from calico_core.node.metric import Kind, Metric, by_label, counter, gauge, summary, summed
from calico_core.policy.label_index import IndexFigures

_OF_DRIVERS: tuple[tuple[str, Kind, str], ...] = (
    ("nft_calls", "counter", "Transactions of nftables."),
    ("nft_errors", "counter", "Transactions that the kernel refused."),
    ("nft_list_calls", "counter", "Readings of our table."),
    ("nft_list_errors", "counter", "Readings that failed."),
    ("nft_set_calls", "counter", "Transactions with elements of sets or maps."),
    ("nft_set_errors", "counter", "Such transactions that were refused."),
    ("nft_chains", "gauge", "Chains of our table."),
    ("nft_rules", "gauge", "Rules of our table."),
    ("nft_maps", "gauge", "Maps of our table."),
    ("nft_sets", "gauge", "Sets of our table."),
    ("iptables_chains", "gauge", "Chains of ours."),
    ("iptables_rules", "gauge", "Rules in them."),
    ("iptables_lines_executed", "counter", "Lines given to iptables-restore."),
    ("iptables_restore_calls", "counter", "Runs of iptables-restore."),
    ("iptables_restore_errors", "counter", "Runs that failed."),
    ("iptables_save_calls", "counter", "Runs of iptables-save."),
    ("iptables_save_errors", "counter", "Runs that failed."),
    ("ipset_calls", "counter", "Runs of ipset."),
    ("ipset_errors", "counter", "Runs that failed."),
    ("ipset_lines_executed", "counter", "Lines given to ipset restore."),
    ("ipsets_total", "gauge", "Address sets of this host, those of others too where the driver sees them."),
    ("route_table_num_ifaces", "gauge", "Interfaces that are to have routes."),
    ("route_table_num_routes", "gauge", "Routes of ours."),
    ("route_table_partial_resync_seconds", "summary", "Making the routes of some interfaces right."),
    ("route_table_resync_seconds", "summary", "Comparing all routes with the kernel."),
    ("route_table_conntrack_wait_seconds", "summary", "Forgetting connections of addresses that went."),
    ("exec_time_micros", "summary", "Runs of other programs."),
)
NO_INDEX = IndexFigures(0, 0, 0, 0, 0, 0)


def of_drivers(figures: Iterable[Figure]) -> Iterator[Metric]:
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.name, []).append(figure)

    def total(name: str) -> float:
        return sum(figure.value for figure in found.get(name, ()))

    for name, kind, text in _OF_DRIVERS:
        if kind == "summary":
            yield summed(f"felix_{name}", text, total(f"{name}_sum"), total(f"{name}_count"))
        else:
            samples = tuple(("", figure.labels, figure.value) for figure in found.get(name, ()))
            yield Metric(f"felix_{name}", kind, text, samples or (("", {}, 0.0),))


def of_batches(counters: AgentCounters) -> Iterator[Metric]:
    prefix = "felix_int_dataplane"
    yield summary(f"{prefix}_apply_time_seconds", "Kernel changes of one batch.", counters.apply)
    yield counter(f"{prefix}_failures", "Objects that could not be programmed at an attempt.", counters.failures)
    text = "The first complete apply."
    yield gauge(f"{prefix}_initial_resync_time_seconds", text, counters.first_apply_s)
    text = "Objects given to the dataplane by kind."
    yield by_label(f"{prefix}_messages", "counter", text, "type", dict(counters.messages))
    text = "Objects of one batch for the dataplane."
    yield summed(f"{prefix}_msg_batch_size", text, counters.changes_given, counters.batches)
    text = "Changes of links taken at once."
    yield summed(f"{prefix}_iface_msg_batch_size", text, counters.link_events, counters.link_batches)
    text = "Changes of the host's own addresses taken at once."
    yield summed(f"{prefix}_addr_msg_batch_size", text, counters.address_events, counters.address_batches)
    yield gauge("felix_ipsets_calico", "Address sets in force.", counters.sets)


def of_label_index(index: IndexFigures) -> Iterator[Metric]:
    prefix = "felix_label_index"
    yield gauge(f"{prefix}_num_endpoints", "Endpoints and network sets whose labels are known.", index.items)
    text = "Selectors of sets in use; optimized: only some changes of endpoints test them."
    filed = {"true": float(index.filed), "false": float(index.unfiled)}
    yield by_label(f"{prefix}_num_active_selectors", "gauge", text, "optimized", filed)
    text = "Tests of one endpoint against one selector."
    tests = {"true": float(index.matches), "false": float(index.mismatches)}
    yield by_label(f"{prefix}_selector_evals", "counter", text, "result", tests)
    text = "How selectors were answered: by tests of single endpoints, or by algebra over all at once."
    ways = {"test": float(index.matches + index.mismatches), "algebra": float(index.evaluations)}
    yield by_label(f"{prefix}_strategy_evals", "counter", text, "strategy", ways)
