"""Health and metrics of a real node: readiness comes with the first state in the kernel, and the figures are served."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from tests.e2e.observing import MakeLab
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root
METRICS = {"FELIX_PROMETHEUSMETRICSENABLED": "true", "FELIX_PROMETHEUSMETRICSHOST": "127.0.0.1"}
NAMES = (Path(__file__).parents[1] / "fixtures" / "metric_names.txt").read_text().split()
_ASK = """
import sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=5) as answer:
        print(answer.status, answer.read().decode(), end="")
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode(), end="")
except OSError:
    print(0, end="")
"""


def ask(host: LabHost, page: str, port: int = 9099) -> tuple[int, str]:
    """Status (0: nobody listens) and body, asked inside the host."""
    argv = [sys.executable, "-I", "-S", "-c", _ASK, f"http://127.0.0.1:{port}{page}"]
    done: subprocess.CompletedProcess[str] = host.run(argv)
    status, _, body = done.stdout.partition(" ")
    return int(status), body


def figures(host: LabHost) -> dict[str, float]:
    status, body = ask(host, "/metrics", 9091)
    assert status == 200
    lines = [line for line in body.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def components(host: LabHost) -> dict[str, Any]:
    found = json.loads(ask(host, "/health")[1])
    return {each["name"]: each for each in found["components"]}


def test_readiness_turns_on_and_metrics_are_served(make_lab: MakeLab) -> None:
    lab = make_lab(1, nodes=False)
    host = lab.hosts[0]
    host.start_node(environment=METRICS)
    host.install_cni()
    assert ask(host, "/liveness")[0] == 200
    assert ask(host, "/readiness")[0] == 200
    assert ask(host, "/nowhere")[0] == 404
    found = components(host)
    assert {name: found[name]["state"] for name in ("engine", "datastore", "socket", "routing")} == {
        "engine": "ready",
        "datastore": "ready",
        "socket": "ready",
        "routing": "ready",
    }
    assert found["integration cni"]["state"] == "ready"
    assert figures(host)["felix_active_local_endpoints"] == 0

    workload = lab.add_workload(host)
    workload.attach(network="net1")
    files = Path(host.environment["CALICO_RUN_DIRECTORY"], "endpoint-status")
    eventually(lambda: list(files.glob("[!.]*")))  # not what is being written
    (file,) = files.glob("[!.]*")
    assert json.loads(file.read_text())["ifaceName"].startswith("cali")
    now = figures(host)
    assert now["felix_active_local_endpoints"] == 1
    assert now["felix_cluster_num_workload_endpoints"] == 1
    assert now["felix_cluster_num_profiles"] == 1
    assert now["felix_cluster_num_hosts"] == 1
    assert now["felix_resync_state"] == 3
    assert now["felix_int_dataplane_apply_time_seconds_count"] >= 2
    assert now["felix_int_dataplane_apply_time_seconds_sum"] > 0
    assert now["felix_int_dataplane_failures"] == 0
    assert now[f'felix_host{{host="{host.name}"}}'] == 1


@pytest.mark.parametrize("driver", ["nftables", "iptables"])
def test_the_drivers_figures_follow_what_they_do(make_lab: MakeLab, driver: str) -> None:
    lab = make_lab(1, nodes=False)
    host = lab.hosts[0]
    host.start_node(environment={**METRICS, "CALICO_DATAPLANE_DRIVER": driver})
    host.install_cni()
    before = figures(host)
    known = {name.partition("{")[0].removesuffix("_sum").removesuffix("_count") for name in before}
    assert set(NAMES) <= known
    lab.add_workload(host).attach(network="net1")
    now = figures(host)

    def grew(name: str) -> bool:
        return total(now, name) > total(before, name)

    assert grew("felix_route_table_num_ifaces")
    assert now["felix_route_table_num_routes"] == now["felix_route_table_num_ifaces"] == 1
    assert grew("felix_route_table_partial_resync_seconds_count")
    assert grew('felix_int_dataplane_messages{type="WorkloadEndpointUpdate"}')
    assert grew("felix_int_dataplane_iface_msg_batch_size_sum")
    assert now["felix_label_index_num_endpoints"] == 1
    mine, other = ("nft", "iptables") if driver == "nftables" else ("iptables", "nft")
    for name in ("chains", "rules", "calls" if driver == "nftables" else "restore_calls"):
        assert grew(f"felix_{mine}_{name}"), name
        assert total(now, f"felix_{other}_{name}") == 0
    if driver == "nftables":
        assert now["felix_nft_list_calls"] >= 1
        assert now["felix_nft_maps"] > 0
        assert [now[f"felix_nft_{name}"] for name in ("errors", "list_errors", "set_errors")] == [0, 0, 0]
    else:
        assert grew("felix_iptables_lines_executed")
        assert grew("felix_ipset_calls")
        assert grew("felix_exec_time_micros_count")
        assert now["felix_iptables_restore_errors"] == 0


def total(found: dict[str, float], name: str) -> float:
    """Over all labels."""
    return sum(value for given, value in found.items() if name in (given, given.partition("{")[0]))


def test_a_node_that_waits_for_its_datastore_lives_and_is_not_ready(make_lab: MakeLab) -> None:
    lab = make_lab(1, nodes=False, datastore="etcd3://127.0.0.1:9")
    host = lab.hosts[0]
    with subprocess.Popen(
        ["nsenter", f"--net={host.namespace}", sys.executable, "-m", "calico_core.node.main", "run"],
        env=host.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as node:
        try:
            eventually(lambda: ask(host, "/liveness")[0] == 200, within_s=60, every_s=0.1)
            status, body = ask(host, "/readiness")
            assert status == 503
            assert "engine" in json.loads(body)["because"]
        finally:
            node.kill()


def test_the_log_level_follows_the_datastore(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.hosts[0]
    assert " debug " not in host.node_log.read_text()
    host.calicoctl("config", "set", "LogSeverityScreen", "Debug")
    host.calicoctl("profile", "add", "more")
    eventually(
        lambda: ask(host, "/liveness") and re.search(r"^\S+ debug ", host.node_log.read_text(), re.MULTILINE),
        every_s=0.05,
    )
    shown = json.loads(host.calicoctl("config", "show", "-o", "json").stdout)
    level = next(row for row in shown if row["setting"] == "log_level")
    assert (level["value"], level["origin"]) == ("debug", "datastore global LogSeverityScreen")
    own = next(row for row in shown if row["setting"] == "ip")
    assert (own["value"], own["origin"]) == (str(host.addresses[0]), "environment IP")
    host.calicoctl("config", "remove", "LogSeverityScreen")
