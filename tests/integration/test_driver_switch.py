"""A node that is started again with the other kind of dataplane: traffic goes on, and one kind is left."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe_until
from calico_core.lab.stream import Stream
from calico_core.lab.tcp_stream import TcpStream
from calico_core.lab.topology import Laboratory
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    with Laboratory.create(f"w{uuid.uuid4().hex[:8]}", 1, datastore="sqlite", routing="none") as made:
        yield made


def start(host: LabHost, driver: str) -> None:
    host.start_node(environment={"CALICO_DATAPLANE_DRIVER": driver})
    assert json.loads(host.calicoctl("status", "-o", "json").stdout)["dataplane"] == driver.replace("auto", "nftables")


def kinds(host: LabHost) -> tuple[bool, bool]:
    tables = host.run(("nft", "list", "tables")).stdout
    return "inet calico" in tables, ":calico-" in host.run(("iptables-save",)).stdout


def test_a_running_node_takes_the_driver_that_the_datastore_names(lab: Laboratory) -> None:
    (host,) = lab.hosts
    host.start_node()
    host.install_cni()
    first, second = lab.add_workload(host), lab.add_workload(host)
    for workload in (first, second):
        workload.attach(network="net")
    assert probe_until(first, second, "udp", is_reachable=True, within_s=10).is_reachable
    assert kinds(host) == (True, False)
    node = host.node_pid
    with Stream(first, second, "udp", 0.005) as permitted:
        host.calicoctl("config", "set", "NFTablesMode", "Disabled")
        eventually(lambda: kinds(host) == (False, True), within_s=60, every_s=0.5)
        host.calicoctl("config", "remove", "NFTablesMode")
        eventually(lambda: kinds(host) == (True, False), within_s=60, every_s=0.5)
        report = permitted.stop()
    assert host.node_pid == node, "it started anew in place"
    assert report.sent > 100
    assert (report.lost, report.duplicates) == (0, 0)


def test_a_restart_with_the_other_driver_loses_nothing(lab: Laboratory) -> None:
    (host,) = lab.hosts
    start(host, "auto")
    host.install_cni()
    first, second, stranger = (lab.add_workload(host) for _ in range(3))
    for workload, network in ((first, "net"), (second, "net"), (stranger, "other")):
        workload.attach(network=network)
    assert probe_until(first, second, "udp", is_reachable=True, within_s=10).is_reachable
    assert probe_until(first, stranger, "udp", is_reachable=False, within_s=10).is_reachable is False
    assert kinds(host) == (True, False)
    with Stream(first, second, "udp", 0.005) as permitted, TcpStream(first, second) as connection:
        with Stream(first, stranger, "udp", 0.005) as denied:
            for driver, left in (("iptables", (False, True)), ("auto", (True, False))):
                host.stop_node()
                start(host, driver)
                assert kinds(host) == left
            kept_out = denied.stop()
        report, survived = permitted.stop(), connection.stop()
    assert report.sent > 100
    assert (report.lost, report.duplicates) == (0, 0)
    assert survived.is_established
    assert kept_out.sent > 100
    assert kept_out.lost == kept_out.sent
