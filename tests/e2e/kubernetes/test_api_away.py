"""The API server goes away and comes back: what runs goes on, what starts waits, and everything heals."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import pytest

from calico_core.lab.probes import probe, probe_until
from tests.e2e.kubernetes.cluster import Cluster, a_namespace, a_pod, a_policy

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

AWAY_S = float(os.environ.get("KUBERNETES_AWAY_S", "10"))


def endpoint_of(cluster: Cluster, name: str) -> bool:
    shown = json.loads(cluster.lab.hosts[0].calicoctl("endpoint", "show", "-o", "json").stdout)
    return any(f"/k8s/away.{name}/" in each["endpoint"] or f"away.{name}" in json.dumps(each) for each in shown)


def refused_adds(cluster: Cluster) -> int:
    return cluster.lab.host("host2").node_log.read_text().count("code=11")


def freeze(cluster: Cluster) -> Callable[[], None]:
    cluster.freeze_api()
    return cluster.thaw_api


def kill(cluster: Cluster) -> Callable[[], None]:
    cluster.kill_api()
    return cluster.start_api


@pytest.mark.parametrize("fault", [freeze, kill])
def test_pods_outlive_the_api(cluster: Cluster, fault: Callable[[Cluster], Callable[[], None]]) -> None:
    cluster.await_(lambda: len(cluster.ready_nodes()) == 2, "nodes are ready", within_s=120)
    cluster.apply(a_namespace("away"))
    cluster.await_(lambda: cluster.get("serviceaccounts", "-n", "away")["items"], "the default service account")
    cluster.apply(a_pod("away", "a", "host1"), a_pod("away", "b", "host2"), a_pod("away", "c", "host2"))
    a, b, _ = (cluster.station("away", name) for name in "abc")
    assert probe_until(a, b, is_reachable=True, within_s=20).is_reachable
    asked = refused_adds(cluster)

    restore = fault(cluster)
    away_until = time.monotonic() + AWAY_S
    try:
        cluster.kill_sandbox("host2", "c")
        # DEL goes through without the API; the ADD that follows is told to try again
        cluster.await_(lambda: refused_adds(cluster) > asked, "an ADD that waits for the API", within_s=60)
        assert not endpoint_of(cluster, "c")
        while time.monotonic() < away_until:
            assert probe(a, b).is_reachable
            time.sleep(0.2)
    finally:
        restore()
    c = cluster.station("away", "c", within_s=120)
    assert probe_until(a, c, is_reachable=True, within_s=20).is_reachable
    cluster.apply(a_policy("away", "closed", policyTypes=["Ingress"]))
    assert not probe_until(a, b, is_reachable=False, within_s=90).is_reachable
    cluster.kubectl("delete", "namespace", "away", "--wait=true", timeout_s=120)
    cluster.await_(lambda: not endpoint_of(cluster, "b"), "the endpoint is gone")
