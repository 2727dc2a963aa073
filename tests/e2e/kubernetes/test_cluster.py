"""Nodes and pods."""

from __future__ import annotations

import pytest

from calico_core.lab.probes import probe_until
from tests.e2e.kubernetes.cluster import Cluster, a_namespace, a_pod

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]


def test_nodes_get_ready_and_pods_on_both_reach_each_other(cluster: Cluster) -> None:
    cluster.await_(lambda: cluster.ready_nodes() == {"host1", "host2"}, "nodes are ready", within_s=90)
    cluster.apply(a_namespace("first"))
    cluster.await_(lambda: cluster.get("serviceaccounts", "-n", "first")["items"], "the default service account")
    cluster.apply(a_pod("first", "a", "host1"), a_pod("first", "b", "host2"), a_pod("first", "c", "host2"))
    a, b, c = (cluster.station("first", name) for name in "abc")
    for target in (b, c):
        assert probe_until(a, target, "tcp", 80, is_reachable=True, within_s=20).is_reachable
    assert cluster.exec("first", "a", "ping", "-c", "1", "-W", "10", str(b.addresses[0]))
    assert cluster.exec("first", "c", "ping", "-c", "1", "-W", "10", str(a.addresses[0]))
