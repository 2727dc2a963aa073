"""A change of policy holds for connections that stand: the denied ones end, the permitted ones notice nothing."""

from __future__ import annotations

import pytest

from calico_core.lab.probes import probe_until
from calico_core.lab.tcp_stream import TcpStream
from tests.e2e.observing import MakeLab
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root

_STALLED_S = 0.5


def test_denied_connections_end_and_permitted_ones_notice_nothing(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.hosts[0]
    first, second, stranger = (lab.add_workload(host) for _ in range(3))
    first.attach(network="net1")
    second.attach(network="net1")
    stranger.attach(network="other")
    host.calicoctl("profile", "net1", "rule", "add", "inbound", "allow", "from", "tag", "other")
    assert probe_until(stranger, first, "tcp", is_reachable=True, within_s=20).is_reachable
    with TcpStream(second, first) as permitted, TcpStream(stranger, first) as denied:
        for port in range(1, 16):
            rule = ("inbound", "allow", "tcp", "to", "ports", str(port))
            host.calicoctl("profile", "net1", "rule", "add", *rule)
        assert denied.report().bytes_arrived > 0
        assert denied.report().retransmits == 0
        host.calicoctl("profile", "net1", "rule", "remove", "inbound", "allow", "from", "tag", "other")
        eventually(lambda: "flows.cut" in host.node_log.read_text(), every_s=0.05)
        eventually(lambda: denied.report().longest_stall_s > _STALLED_S, every_s=0.05)
        arrived = permitted.report().bytes_arrived
        eventually(lambda: permitted.report().bytes_arrived > arrived + 4096)
        report = permitted.stop()
    assert report.error == ""
    assert report.retransmits == 0
    assert report.bytes_arrived == report.bytes_sent


def test_the_reference_systems_way_keeps_what_stands(make_lab: MakeLab) -> None:
    lab = make_lab(1, environment={"CALICO_ESTABLISHED_FLOWS": "keep"})
    host = lab.hosts[0]
    first, stranger = lab.add_workload(host), lab.add_workload(host)
    first.attach(network="net1")
    stranger.attach(network="other")
    host.calicoctl("profile", "net1", "rule", "add", "inbound", "allow", "from", "tag", "other")
    assert probe_until(stranger, first, "tcp", is_reachable=True, within_s=20).is_reachable
    with TcpStream(stranger, first) as stream:
        host.calicoctl("profile", "net1", "rule", "remove", "inbound", "allow", "from", "tag", "other")
        assert not probe_until(stranger, first, "tcp", is_reachable=False, within_s=20).is_reachable
        before = stream.report().bytes_arrived
        eventually(lambda: stream.report().bytes_arrived > before + 4096, every_s=0.05)
