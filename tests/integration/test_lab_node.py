"""Real nodes in a laboratory: started, stopped, killed; traffic goes on, and nothing stays behind."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator

import pytest

from calico_core.lab import processes
from calico_core.lab.journal import ROOT
from calico_core.lab.probes import probe_until
from calico_core.lab.stream import Stream
from calico_core.lab.tcp_stream import TcpStream
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root


@pytest.fixture(params=["sqlite", "etcd"])
def lab(request: pytest.FixtureRequest) -> Iterator[Laboratory]:
    if request.param == "etcd" and shutil.which("etcd") is None:
        pytest.skip("the etcd binary is not installed")
    name = f"n{uuid.uuid4().hex[:8]}"
    with Laboratory.create(name, 1, datastore=request.param, routing="none") as made:
        yield made
    assert not (ROOT / name).exists()


@pytest.fixture
def pair(lab: Laboratory) -> tuple[LabWorkload, LabWorkload]:
    """Two containers of one network on one host, reaching each other."""
    (host,) = lab.hosts
    host.start_node()
    host.install_cni()
    first, second = lab.add_workload(host), lab.add_workload(host)
    for workload in (first, second):
        workload.attach(network="net")
    for kind in ("tcp", "udp", "icmp"):
        assert probe_until(first, second, kind, is_reachable=True, within_s=10).is_reachable  # type: ignore[arg-type]
    return first, second


def test_traffic_goes_on_while_the_node_is_killed_and_started(
    lab: Laboratory, pair: tuple[LabWorkload, LabWorkload]
) -> None:
    (host,) = lab.hosts
    with Stream(*pair, "udp", 0.002) as stream, TcpStream(*pair) as connection:
        first = host.node_pid
        host.kill_node()
        assert host.node_pid is None
        host.start_node()
        assert host.node_pid not in (None, first)
        host.stop_node()
        host.start_node()
        report, survived = stream.stop(), connection.stop()
    assert report.sent > 100
    assert (report.lost, report.duplicates) == (0, 0)
    assert survived.is_established
    assert survived.bytes_arrived == survived.bytes_sent > 0


def test_a_detached_container_is_cut_off_and_can_come_back(
    lab: Laboratory, pair: tuple[LabWorkload, LabWorkload]
) -> None:
    first, second = pair
    before = second.addresses
    second.detach()
    assert probe_until(first, lab.hosts[0], "icmp", is_reachable=True, within_s=20).is_reachable
    second.attach(network="net")
    assert second.addresses != ()
    assert before != ()
    assert probe_until(first, second, is_reachable=True, within_s=10).is_reachable
    second.delete()
    assert [each.name for each in lab.workloads] == [first.name]


def test_status_and_calicoctl_speak_of_the_same_host(lab: Laboratory, pair: tuple[LabWorkload, LabWorkload]) -> None:
    (host,) = lab.hosts
    status = lab.status()
    assert status.missing == ()
    assert status.hosts[0].node_pid == host.node_pid
    assert status.hosts[0].is_node_ready
    assert [each.network for each in status.workloads] == ["net", "net"]
    shown = host.calicoctl("endpoint", "show", "--detailed").stdout
    for workload in pair:
        assert str(workload.addresses[0]) in shown


@pytest.mark.skipif(shutil.which("bird") is None, reason="BIRD is not installed")
def test_down_ends_the_bird_that_a_killed_node_left_behind() -> None:
    name = f"n{uuid.uuid4().hex[:8]}"
    with Laboratory.create(name, 1) as lab:
        (host,) = lab.hosts
        host.start_node()

        def inside() -> set[str]:
            return {each.what for each in processes.inside([host.namespace])}

        eventually(lambda: "bird" in inside())
        host.kill_node()
        eventually(lambda: inside() == {"bird"})  # programs that it ran just then end by themselves
        birds = processes.inside([host.namespace])
    assert not any(processes.is_running(each) for each in birds)
    assert not (ROOT / name).exists()
