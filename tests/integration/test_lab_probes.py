"""Probes and streams between two namespaces joined by a pair, with and without a firewall in the way."""

from __future__ import annotations

import contextlib
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest
from netaddr import IPAddress

from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.address_messages import add_address
from calico_core.dataplane.linux.link_messages import add_veth, set_link
from calico_core.dataplane.linux.prefix import parse_prefix
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.errors import InvalidRequest, KernelRefused
from calico_core.lab import fabric
from calico_core.lab.flood import Flood
from calico_core.lab.probes import listener, probe, probe_until
from calico_core.lab.reachability import matrix
from calico_core.lab.station import PlainStation
from calico_core.lab.stream import Stream
from calico_core.lab.tcp_stream import TcpStream
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root

KINDS = ("tcp", "udp", "icmp")


@pytest.fixture
def pair() -> Iterator[tuple[PlainStation, PlainStation]]:
    """Two namespaces, 10.99.0.1 and 10.99.0.2, joined by a veth pair."""
    prefix = f"p{uuid.uuid4().hex[:8]}"
    with contextlib.ExitStack() as stack:
        stations = []
        for number in (1, 2):
            name = f"{prefix}-{number}"
            stack.callback(netns.delete_namespace, name)
            addresses = (IPAddress(f"10.99.0.{number}"), IPAddress(f"fd99::{number}"))
            stations.append(PlainStation(name=f"s{number}", namespace=fabric.create_stub(name), addresses=addresses))
        fds = [stack.enter_context(fabric.opened(station.namespace)) for station in stations]
        sockets = [stack.enter_context(RouteSocket(fd)) for fd in fds]
        sockets[0].execute(add_veth("eth0", "eth0", peer_namespace_fd=fds[1]))
        for route_socket, station in zip(sockets, stations, strict=True):
            link = route_socket.find_link("eth0")
            assert link is not None
            route_socket.execute(
                set_link(index=link.index, is_up=True),
                *(
                    add_address(link.index, parse_prefix(f"{each}/{24 if each.version == 4 else 64}"))
                    for each in station.addresses
                ),
            )
        for descriptor, route_socket, station in zip(fds, sockets, stations, strict=True):
            fabric.await_operational(descriptor, route_socket, station.addresses)
        yield stations[0], stations[1]


def nft(station: PlainStation, text: str) -> None:
    subprocess.run(["nsenter", f"--net={station.namespace}", "nft", "-f", "-"], input=text, text=True, check=True)


def drop(station: PlainStation, match: str, verdict: str = "drop", hook: str = "input") -> None:
    nft(station, f"table inet t {{\n chain c {{\n type filter hook {hook} priority 0;\n {match} {verdict}\n }}\n}}\n")


def allow(station: PlainStation) -> None:
    nft(station, "delete table inet t\n")


@pytest.mark.parametrize("ip_version", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_an_open_path_is_reachable_both_ways(
    pair: tuple[PlainStation, PlainStation], kind: str, ip_version: int
) -> None:
    for source, target in (pair, pair[::-1]):
        result = probe(source, target, kind, ip_version=ip_version)  # type: ignore[arg-type]
        assert result.is_reachable, result
        assert result.rtt_ms is not None
        assert 0 < result.rtt_ms < 1000
        assert result.detail == ""


@pytest.mark.parametrize("ip_version", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_path_is_not_and_says_how_long_it_waited(
    pair: tuple[PlainStation, PlainStation], kind: str, ip_version: int
) -> None:
    icmp = "icmp type echo-request" if ip_version == 4 else "icmpv6 type echo-request"
    drop(pair[1], icmp if kind == "icmp" else f"meta l4proto {kind}")
    started = time.monotonic()
    result = probe(*pair, kind, ip_version=ip_version, timeout_s=0.3)  # type: ignore[arg-type]
    assert (result.is_reachable, result.rtt_ms, result.detail) == (False, None, "no answer in 0.3 s")
    assert 0.3 <= time.monotonic() - started < 5
    others = [each for each in KINDS if each != kind]
    assert all(probe(*pair, each, ip_version=ip_version).is_reachable for each in others)  # type: ignore[arg-type]


def test_refusals_are_told_from_silence_and_come_at_once(pair: tuple[PlainStation, PlainStation]) -> None:
    started = time.monotonic()
    closed = probe(*pair, "tcp", 4444, has_server=True, timeout_s=5)
    assert (closed.is_reachable, closed.detail) == (False, "connection refused")
    drop(pair[1], "meta l4proto { tcp, udp, icmp }", "reject with icmpx type admin-prohibited")
    for kind in KINDS:
        refused = probe(*pair, kind, timeout_s=5)  # type: ignore[arg-type]
        assert not refused.is_reachable
        assert "no answer" not in refused.detail, refused
    assert time.monotonic() - started < 5, "the first of them waited its time"


def test_a_path_open_in_one_direction_only_is_told(pair: tuple[PlainStation, PlainStation]) -> None:
    drop(pair[0], "meta l4proto udp")
    result = probe(*pair, "udp", timeout_s=0.3)
    assert (result.is_reachable, result.detail) == (False, "it arrived, but the answer did not")


def test_no_route_is_told(pair: tuple[PlainStation, PlainStation]) -> None:
    far = PlainStation(name="far", namespace=pair[1].namespace, addresses=(IPAddress("10.98.0.1"),))
    with pytest.raises(InvalidRequest, match=r"cannot listen on 10\.98\.0\.1"):
        probe(pair[0], far)
    assert probe(pair[0], far, "icmp").detail == "network is unreachable"
    assert probe(pair[0], far, "udp", 9, has_server=True).detail == "network is unreachable"
    with pytest.raises(InvalidRequest, match="far has no IPv6 address"):
        probe(pair[0], far, ip_version=6)


def test_a_port_of_choice_and_a_server_that_is_there(pair: tuple[PlainStation, PlainStation]) -> None:
    drop(pair[1], "tcp dport != 5432")
    assert probe(*pair, "tcp", 5432).is_reachable
    assert probe(*pair, "tcp", 5432).is_reachable  # the port is free again
    assert not probe(*pair, "tcp", 5433, timeout_s=0.2).is_reachable
    with listener(pair[1], "tcp", 5432):
        assert probe(*pair, "tcp", 5432, has_server=True).is_reachable
        with pytest.raises(InvalidRequest, match="cannot listen"):
            probe(*pair, "tcp", 5432)
    with pytest.raises(InvalidRequest, match="name the port"):
        probe(*pair, has_server=True)
    with pytest.raises(InvalidRequest, match="not tcp, udp or icmp"):
        probe(*pair, "sctp")  # type: ignore[arg-type]


def test_probe_until_sees_a_change_and_gives_up_in_time(pair: tuple[PlainStation, PlainStation]) -> None:
    assert probe_until(*pair, is_reachable=True, within_s=10).is_reachable
    started = time.monotonic()
    assert probe_until(*pair, is_reachable=False, within_s=0.3).is_reachable
    assert 0.3 <= time.monotonic() - started < 5
    drop(pair[1], "meta l4proto tcp")
    assert not probe_until(*pair, is_reachable=False, within_s=20).is_reachable


def test_the_matrix_shows_each_direction(pair: tuple[PlainStation, PlainStation]) -> None:
    drop(pair[1], "tcp flags & (syn | ack) == syn")
    table = matrix(pair, ("tcp", "icmp"), timeout_s=0.2)
    assert table.rows() == (
        ("from \\ to", "s1", "s2"),
        ("s1", "—", "tcp no, icmp yes"),
        ("s2", "tcp yes, icmp yes", "—"),
    )
    allow(pair[1])
    table = matrix(pair, ("tcp", "udp"), port=8080)
    assert all(cell.result.is_reachable for cell in table.cells)
    assert len(table.cells) == 4


@pytest.mark.parametrize("kind", ["udp", "icmp"])
@pytest.mark.parametrize("ip_version", [4, 6])
def test_a_stream_without_trouble_loses_nothing(
    pair: tuple[PlainStation, PlainStation], kind: str, ip_version: int
) -> None:
    with Stream(*pair, kind, 0.002, ip_version=ip_version) as stream:  # type: ignore[arg-type]
        eventually(lambda: stream.report().received >= 50)
        report = stream.stop()
    assert report.sent == report.received >= 50
    assert (report.lost, report.losses, report.reordered, report.duplicates) == (0, (), 0, 0)
    assert report.arrived == (report.sent if kind == "udp" else 0)
    assert 0 < report.longest_gap_s < report.seconds
    assert stream.report() == report


def test_a_stream_counts_what_is_lost_and_when(pair: tuple[PlainStation, PlainStation]) -> None:
    with Stream(*pair, "udp", 0.005, grace_s=0.2) as stream:
        eventually(lambda: stream.report().received >= 10)
        before = stream.report()
        drop(pair[1], "meta l4proto udp")
        eventually(lambda: stream.report().lost >= 20)
        allow(pair[1])
        seen = stream.report().received
        eventually(lambda: stream.report().received >= seen + 10)
        report = stream.stop()
    assert report.lost >= 20
    assert report.lost + report.received == report.sent
    numbers = [loss.number for loss in report.losses]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # one outage
    assert numbers[0] >= before.sent - 1
    assert not any(loss.has_arrived for loss in report.losses)
    outage_s = report.losses[-1].at_s - report.losses[0].at_s
    assert outage_s <= report.longest_gap_s <= outage_s + 2


def test_a_stream_tells_lost_answers_from_lost_requests(pair: tuple[PlainStation, PlainStation]) -> None:
    drop(pair[0], "meta l4proto udp")
    with Stream(*pair, "udp", 0.005, grace_s=0.1) as stream:
        eventually(lambda: stream.report().arrived >= 10)
        report = stream.stop()
    assert report.received == 0
    assert report.lost == report.sent == report.arrived
    assert all(loss.has_arrived for loss in report.losses)


def test_a_stream_refused_by_its_own_host_counts_as_lost(pair: tuple[PlainStation, PlainStation]) -> None:
    drop(pair[0], "meta l4proto udp", hook="output")
    with Stream(*pair, "udp", 0.005, grace_s=0.1) as stream:
        eventually(lambda: stream.report().sent >= 5)
        report = stream.stop()
    assert report.lost == report.sent
    assert report.arrived == 0


def test_a_flood_counts_every_arrival(pair: tuple[PlainStation, PlainStation]) -> None:
    with Flood(*pair, rate_per_s=5000) as flood:
        eventually(lambda: flood.report().sent >= 1000)
        report = flood.stop()
    assert report.arrived == report.sent >= 1000
    assert report.refused == 0
    assert report.sent <= 5000 * report.seconds + 10


def test_a_flood_proves_that_nothing_passes(pair: tuple[PlainStation, PlainStation]) -> None:
    drop(pair[1], "meta l4proto udp")
    with Flood(*pair, rate_per_s=5000) as flood:
        eventually(lambda: flood.report().sent >= 1000)
        assert flood.report().arrived == 0
        allow(pair[1])  # and the counter is not blind
        eventually(lambda: flood.report().arrived >= 100)
        report = flood.stop()
    assert report.first_arrival_s is not None
    assert 0.1 < report.first_arrival_s < report.seconds
    assert report.arrived < report.sent


def test_a_connection_survives_an_outage_and_tells_of_it(pair: tuple[PlainStation, PlainStation]) -> None:
    with TcpStream(*pair, 0.005) as stream:
        eventually(lambda: stream.report().bytes_arrived >= 10_000)
        calm = stream.report()
        assert calm.is_established
        assert calm.retransmits == 0
        drop(pair[1], "meta l4proto tcp")
        eventually(lambda: stream.report().retransmits > 0 and stream.report().longest_stall_s > 0.1)
        allow(pair[1])
        arrived = stream.report().bytes_arrived
        eventually(lambda: stream.report().bytes_arrived > arrived + 10_000)
        report = stream.stop()
    assert report.error == ""
    assert report.bytes_arrived == report.bytes_sent
    assert report.longest_stall_s > calm.longest_stall_s
    assert report.longest_stall_s >= 0.1


def test_a_connection_that_is_reset_says_so(pair: tuple[PlainStation, PlainStation]) -> None:
    with TcpStream(*pair, 0.005) as stream:
        eventually(lambda: stream.report().bytes_arrived > 0)
        drop(pair[1], "meta l4proto tcp", "reject with tcp reset")
        eventually(lambda: stream.report().error != "")
        report = stream.stop()
    assert not report.is_established
    assert "reset" in report.error


def test_a_connection_that_cannot_be_made_is_an_error(pair: tuple[PlainStation, PlainStation]) -> None:
    drop(pair[1], "meta l4proto tcp", "reject with tcp reset")
    stream = TcpStream(*pair)
    with pytest.raises(KernelRefused, match="connect to s2"):
        stream.start()
