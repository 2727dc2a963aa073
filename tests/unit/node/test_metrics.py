"""Prometheus' text, and the figures in it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from netaddr import IPAddress

from calico_core.datastore.syncer import SyncStatus
from calico_core.interfaces.dataplane import ApplyReport, Failure, Figure
from calico_core.interfaces.routing import PeerStatus, RoutingStatus
from calico_core.model.hoststate import HostChanges, HostRules, RulesId, SetChange, SetId
from calico_core.model.keys import PolicyKey, WorkloadEndpointKey
from calico_core.node.counters import AgentCounters, CountedRule
from calico_core.node.log_counts import LogCounts
from calico_core.node.metric import Metric, render
from calico_core.node.metrics import AgentFigures, collect
from calico_core.policy.label_index import IndexFigures

NAMES = (Path(__file__).parents[2] / "fixtures" / "metric_names.txt").read_text().split()


def figures(text: bytes) -> dict[str, float]:
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_text_form() -> None:
    metrics = [
        Metric("a_total", "counter", "What.", (("", {}, 3.0),)),
        Metric("b", "summary", "How\nlong \\ \ud800.", (("_sum", {}, 0.25), ("_count", {"x": 'q"\\\n'}, 1e9))),
    ]
    assert render(metrics).decode().splitlines() == [
        "# HELP a_total What.",
        "# TYPE a_total counter",
        "a_total 3",
        "# HELP b How\\nlong \\\\ ?.",
        "# TYPE b summary",
        "b_sum 0.25",
        'b_count{x="q\\"\\\\\\n"} 1000000000',
    ]


def test_before_anything_runs() -> None:
    found = figures(render(collect("rack-a", 5.0, None, None)))
    assert found['felix_host{host="rack-a"}'] == 1
    assert found["process_start_time_seconds"] == 5
    assert found["process_resident_memory_bytes"] > 1e6
    assert not any(name.startswith("felix_cluster") for name in found)


def test_every_name_that_dashboards_know_is_there() -> None:
    """Those of a driver that does not run, too."""
    counters = AgentCounters()
    counters.note_changes(HostChanges(is_complete=True))
    agent = AgentFigures(counters, SyncStatus.IN_SYNC, Counter(), Counter())
    metrics = {each.name: each for each in collect("h", 0.0, agent, None)}
    assert set(NAMES) <= metrics.keys()
    assert [name for name in NAMES if not metrics[name].samples] == []


def test_figures_of_a_driver_keep_their_labels_and_summaries_have_two_samples() -> None:
    kernel = (
        Figure("nft_calls", 4),
        Figure("iptables_chains", 2, {"ip_version": "4", "table": "filter"}),
        Figure("iptables_chains", 3, {"ip_version": "6", "table": "filter"}),
        Figure("exec_time_micros_sum", 2500.0),
        Figure("exec_time_micros_count", 2),
    )
    index = IndexFigures(items=9, filed=4, unfiled=1, matches=5, mismatches=6, evaluations=7)
    agent = AgentFigures(AgentCounters(), SyncStatus.IN_SYNC, Counter(), Counter(), kernel=kernel, label_index=index)
    found = figures(render(collect("h", 0.0, agent, None, log_counts(dropped=2, errors=3))))
    expected = {
        "felix_nft_calls": 4,
        "felix_nft_errors": 0,
        'felix_iptables_chains{ip_version="4",table="filter"}': 2,
        'felix_iptables_chains{ip_version="6",table="filter"}': 3,
        "felix_iptables_rules": 0,
        "felix_exec_time_micros_sum": 2500,
        "felix_exec_time_micros_count": 2,
        "felix_label_index_num_endpoints": 9,
        'felix_label_index_num_active_selectors{optimized="true"}': 4,
        'felix_label_index_num_active_selectors{optimized="false"}': 1,
        'felix_label_index_selector_evals{result="true"}': 5,
        'felix_label_index_selector_evals{result="false"}': 6,
        'felix_label_index_strategy_evals{strategy="test"}': 11,
        'felix_label_index_strategy_evals{strategy="algebra"}': 7,
        "felix_logs_dropped": 2,
        "felix_log_errors": 3,
    }
    assert {name: found[name] for name in expected} == expected
    assert "felix_iptables_chains" not in found


def log_counts(*, dropped: int, errors: int) -> LogCounts:
    counts = LogCounts()
    counts.dropped, counts.errors = dropped, errors
    return counts


def test_batches_are_counted_by_kind() -> None:
    counters = AgentCounters()
    key = WorkloadEndpointKey("h", "o", "w", "e")
    counters.note_changes(HostChanges(sets=(SetChange(id=SetId("a"), is_new=True), SetChange(id=SetId("b")))))
    counters.note_changes(HostChanges(removed_sets=(SetId("a"),), removed_workloads=(key,)))
    counters.note_events(links=2, addresses=0)
    counters.note_events(links=0, addresses=0)
    counters.note_events(links=1, addresses=4)
    found = figures(render(collect("h", 0.0, AgentFigures(counters, SyncStatus.WAIT, Counter(), Counter()), None)))
    messages = {
        name: value for name, value in found.items() if name.startswith("felix_int_dataplane_messages") and value
    }
    assert messages == {
        'felix_int_dataplane_messages{type="IPSetUpdate"}': 1,
        'felix_int_dataplane_messages{type="IPSetDeltaUpdate"}': 1,
        'felix_int_dataplane_messages{type="IPSetRemove"}': 1,
        'felix_int_dataplane_messages{type="WorkloadEndpointRemove"}': 1,
    }
    sizes = [
        (found[f"felix_int_dataplane_{kind}_batch_size_sum"], found[f"felix_int_dataplane_{kind}_batch_size_count"])
        for kind in ("msg", "iface_msg", "addr_msg")
    ]
    assert sizes == [(4, 2), (3, 2), (4, 1)]


def test_names_that_dashboards_know() -> None:
    counters = AgentCounters()
    policy, profile, selector = RulesId("policy/t/p"), RulesId("profile/q"), SetId("sel-1")
    counters.note_changes(
        HostChanges(
            is_complete=True,
            rules=(HostRules(id=policy), HostRules(id=profile)),
            sets=(SetChange(id=selector, is_new=True),),
        )
    )
    counters.note_apply(0.5, is_first=True)
    counters.note_apply(0.25, is_first=False)
    counters.note_report(ApplyReport(failures=(Failure("x", "why"),), healed=("chain y",)))
    counters.updates, counters.failing = 7, 2
    agent = AgentFigures(
        counters,
        SyncStatus.RESYNC,
        Counter[type]({WorkloadEndpointKey: 9, PolicyKey: 4}),
        Counter({"up": 2, "error": 1}),
    )
    peers = (PeerStatus(ip=IPAddress("192.0.2.1"), origin="mesh", state="Established"),)
    found = figures(render(collect("h", 0.0, agent, RoutingStatus(driver="bird", is_running=True, peers=peers))))
    expected = {
        "felix_active_local_endpoints": 3,
        'calico_local_endpoints{status="up"}': 2,
        "felix_active_local_policies": 1,
        "felix_active_local_selectors": 1,
        "felix_calc_graph_updates_processed": 7,
        "felix_calc_graph_output_events": 3,
        "felix_resync_state": 2,
        "felix_cluster_num_workload_endpoints": 9,
        "felix_cluster_num_policies": 4,
        "felix_cluster_num_tiers": 0,
        "felix_int_dataplane_apply_time_seconds_sum": 0.75,
        "felix_int_dataplane_apply_time_seconds_count": 2,
        "felix_int_dataplane_failures": 1,
        "felix_int_dataplane_initial_resync_time_seconds": 0.5,
        "calico_dataplane_healed": 1,
        "calico_dataplane_failing": 2,
        'bgp_peers{status="Established",ip_version="4"}': 1,
    }
    assert {name: found[name] for name in expected} == expected
    counters.note_changes(HostChanges(removed_rules=(policy,), removed_sets=(selector,)))
    assert (counters.policies, counters.sets) == (0, 0)


def test_rules_that_denied_something_and_a_freeze() -> None:
    policy = RulesId("policy/t/p")
    counted = (
        CountedRule(policy, "inbound", 0, "allow", 9, 900),
        CountedRule(policy, "inbound", 1, "deny", 3, 300),
        CountedRule(policy, "outbound", 0, "reject", 4, 400),
        CountedRule(policy, "outbound", 1, "deny", 0, 0),
    )
    agent = AgentFigures(
        AgentCounters(), SyncStatus.IN_SYNC, Counter(), Counter(), is_frozen=True, waiting=7, rules=counted
    )
    found = figures(render(collect("rack-a", 5.0, agent, None)))
    denied = {name: value for name, value in found.items() if name.startswith("calico_denied_packets")}
    assert denied == {
        'calico_denied_packets{rules="policy/t/p",direction="inbound",rule="1"}': 3,
        'calico_denied_packets{rules="policy/t/p",direction="outbound",rule="0"}': 4,
    }
    assert (found["calico_removals_frozen"], found["calico_removals_waiting"]) == (1, 7)
