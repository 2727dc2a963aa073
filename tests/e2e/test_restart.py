"""A crash and a restart of the runtime: what it programmed stays in force and is not made anew."""

from __future__ import annotations

import json
import sys

import pytest

from calico_core.lab.flood import Flood
from calico_core.lab.probes import probe, probe_until
from calico_core.lab.stream import Stream
from calico_core.lab.tcp_stream import TcpStream
from tests.e2e.observing import MakeLab, kernel_handles

pytestmark = pytest.mark.needs_root


def test_kill_and_restart_lose_no_packet_and_keep_every_rule(
    make_lab: MakeLab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = make_lab(1)
    host = lab.hosts[0]
    first, second, stranger = (lab.add_workload(host) for _ in range(3))
    first.attach(network="net1")
    second.attach(network="net1")
    stranger.attach(network="other")
    assert probe_until(first, second, "tcp", is_reachable=True, within_s=20).is_reachable
    before = kernel_handles(host)
    with (
        TcpStream(first, second) as stream,
        Stream(second, first, "udp", interval_s=0.001) as datagrams,
        Flood(stranger, first) as forbidden,
    ):
        host.kill_node()
        assert probe(first, second, "tcp").is_reachable
        host.start_node()
        assert kernel_handles(host) == before
        tcp, udp, flood = stream.stop(), datagrams.stop(), forbidden.stop()
    assert flood.arrived == 0
    assert flood.sent > 100
    assert tcp.retransmits == 0
    assert udp.lost == 0
    assert udp.received > 100
    with capsys.disabled():
        sys.stdout.write(
            f"\nkill -9 and restart: TCP {tcp.bytes_arrived} bytes, {tcp.retransmits} retransmits; "
            f"UDP {udp.received} of {udp.sent} answered; forbidden {flood.arrived} of {flood.sent}\n"
        )
    host.calicoctl("profile", "net1", "rule", "add", "inbound", "allow", "from", "tag", "other")
    assert probe_until(stranger, first, "tcp", is_reachable=True, within_s=20).is_reachable


def test_changes_made_while_it_was_down_arrive_with_the_restart(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.hosts[0]
    first, stranger = lab.add_workload(host), lab.add_workload(host)
    first.attach(network="net1")
    stranger.attach(network="other")
    host.kill_node()
    host.calicoctl("profile", "net1", "rule", "add", "inbound", "allow", "from", "tag", "other")
    assert not probe(stranger, first, "tcp", timeout_s=0.3).is_reachable
    host.start_node()
    assert probe_until(stranger, first, "tcp", is_reachable=True, within_s=20).is_reachable


def test_an_attach_while_it_is_down_is_closed_until_it_is_back(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.hosts[0]
    first = lab.add_workload(host)
    first.attach(network="net1")
    host.kill_node()
    late = lab.add_workload(host)
    late.attach(network="net1")
    assert late.addresses
    assert not probe(first, late, "tcp", timeout_s=0.3).is_reachable
    host.start_node()
    assert probe_until(first, late, "tcp", is_reachable=True, within_s=20).is_reachable
    host.kill_node()
    late.detach()
    assert json.loads(host.calicoctl("ipam", "show", "-o", "json").stdout)[0]["used"] == 1
