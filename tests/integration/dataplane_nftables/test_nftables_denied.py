"""Denied packets, counters and connections, with real packets. Both drivers pass all of it."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.linux.nflog import NflogReader
from calico_core.errors import KernelRefused
from calico_core.interfaces.dataplane import DeniedPacket
from calico_core.model.hoststate import HostRule, HostRules, PolicyList, RulesId, TierPolicies
from tests.integration.dataplane_nftables.conftest import ALLOWED_S, DENIED_S
from tests.integration.dataplane_nftables.test_nftables_hosts import endpoint
from tests.integration.dataplane_nftables.test_nftables_traffic import P, allow, inbound, only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.needs_root

GROUP = 77


class Listener:
    def __init__(self, lab: Any) -> None:
        self.heard: list[DeniedPacket] = []
        self.stop = lab.dataplane.watch_denied(self.heard.append)

    def refused(self, client: Any, address: str, port: int) -> DeniedPacket:
        """The packet of a client that is kept out. Its first one may be lost while neighbours find each other."""
        deadline = time.monotonic() + 30
        while True:
            assert client.is_blocked_from(address, port)
            for packet in tuple(self.heard):
                if packet.dst_port == port:
                    return packet
            assert time.monotonic() < deadline, f"no such packet among {self.heard}"

    def wait_for(self, **wanted: Any) -> DeniedPacket:
        deadline = time.monotonic() + 20
        while True:
            for packet in tuple(self.heard):
                if all(getattr(packet, name) == value for name, value in wanted.items()):
                    return packet
            assert time.monotonic() < deadline, f"no such packet among {self.heard}"
            time.sleep(0.01)


@pytest.fixture
def lab(make_lab: Callable[..., Any]) -> Any:
    return make_lab(denied_group=GROUP)


@pytest.fixture
def listener(lab: Any) -> Iterator[Listener]:
    made = Listener(lab)
    yield made
    made.stop()


def test_a_rule_that_denies_is_named(lab: Any, listener: Listener) -> None:
    a, b = lab.workload(), lab.workload()
    rules = (allow(protocol=6, dst_ports=((80, 80),)), HostRule(action="deny", protocol=6), HostRule(action="reject"))
    lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(*rules))
    packet = listener.refused(b, a.v4, 81)
    assert (packet.origin.rules, packet.origin.rule, packet.origin.direction) == (P, 1, "inbound")
    assert (packet.src, packet.dst, packet.protocol) == (IPAddress(b.v4), IPAddress(a.v4), 6)
    assert (packet.in_interface, packet.out_interface) == (b.interface, a.interface)
    assert packet.src_port is not None
    assert packet.length_bytes == 60, "a SYN with its options"
    assert abs(packet.time - time.time()) < 60
    assert listener.refused(b, a.v6, 82).src == IPAddress(b.v6)
    assert not b.pings(a.v4, within_s=DENIED_S)
    assert (listener.wait_for(protocol=1).icmp, listener.wait_for(protocol=1).origin.rule) == ((8, 0), 2)


def test_ends_of_tiers_and_profiles_are_named(lab: Any, listener: Listener) -> None:
    a, b = lab.workload(), lab.workload()
    first = RulesId("policy/high/first")
    tiers = PolicyList(tiers=(TierPolicies(tier="high", policies=(first,)),))
    lab.start(a.endpoint(tiers), b.endpoint(), rules=(HostRules(id=first),))
    origin = listener.refused(b, a.v4, 80).origin
    assert (origin.tier, origin.rules, origin.direction) == ("high", None, "inbound")
    lab.apply(workloads=(a.endpoint(outbound=PolicyList()),))
    origin = listener.refused(a, b.v4, 81).origin
    assert (origin.tier, origin.rules, origin.direction) == (None, None, "outbound")


def test_what_no_policy_decides_is_named_too(lab: Any, listener: Listener) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint())
    stranger = listener.refused(b, a.v4, 80)
    assert stranger.src == IPAddress(b.v4)
    lab.apply(workloads=(b.endpoint(),))
    b.run("ip", "address", "add", "10.65.0.77/32", "dev", "eth0")
    assert not b.reaches(a.v4, 80, source=("10.65.0.77", 0), within_s=0.4)
    spoofed = listener.wait_for(src=IPAddress("10.65.0.77"))
    assert spoofed.in_interface == b.interface
    assert {stranger.origin.rules, spoofed.origin.rules, spoofed.origin.tier} == {None}
    assert spoofed.origin.reason


def test_host_endpoints_denials_are_named(lab: Any, listener: Listener) -> None:
    neighbour = lab.outside()
    lab.start(interfaces=(endpoint(),))
    packet = listener.refused(neighbour, "192.0.2.1", 80)
    assert (packet.in_interface, packet.out_interface, packet.origin.direction) == ("up0", "", "inbound")
    packet = listener.refused(lab.host, "192.0.2.2", 81)
    assert (packet.in_interface, packet.out_interface, packet.origin.direction) == ("", "up0", "outbound")


def test_several_listen_and_each_stops_for_itself(lab: Any, listener: Listener) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(only()), b.endpoint())
    other = Listener(lab)
    listener.refused(b, a.v4, 80)
    other.wait_for(dst_port=80)
    other.stop()
    other.stop()
    listener.refused(b, a.v4, 81)
    assert not [packet for packet in other.heard if packet.dst_port == 81]
    listener.stop()
    again = Listener(lab)
    again.refused(b, a.v4, 82)
    again.stop()


def test_a_group_that_somebody_else_reads_is_refused(lab: Any) -> None:
    reader = NflogReader(GROUP, lambda _: None, snapshot_bytes=64, namespace_fd=lab.host.fd)
    with pytest.raises(KernelRefused, match="another program"):
        lab.dataplane.watch_denied(lambda _: None)
    reader.stop()
    lab.dataplane.watch_denied(lambda _: None)()


def test_a_restarted_node_knows_the_rules_it_finds(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    state = (a.endpoint(only(P)), b.endpoint())
    rules = inbound(HostRule(action="deny"))
    lab.start(*state, **rules)
    lab.restart()
    assert lab.start(*state, **rules).changes == 0
    listener = Listener(lab)
    assert listener.refused(b, a.v4, 80).origin.rules == P
    listener.stop()


def test_without_a_group_nothing_is_told(make_lab: Callable[..., Any]) -> None:
    lab = make_lab()
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(only()), b.endpoint())
    stop = lab.dataplane.watch_denied(lambda _: None)
    assert b.is_blocked_from(a.v4, 80)
    stop()


def test_a_flood_is_told_in_part(lab: Any, listener: Listener) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(HostRule(action="deny")))
    assert a.reaches(b.v4, 80), "neighbours know each other from here on"
    with b.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(3000):
            sender.sendto(b"x", (a.v4, 80))
    listener.wait_for(dst_port=80)
    (counted,) = [each for each in lab.dataplane.rule_counts() if (each.rules, each.direction) == (P, "inbound")]
    assert counted.packets > 1000
    heard = len(listener.heard)
    assert 1 <= heard < counted.packets / 2


def test_rules_are_counted(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    rules = (
        HostRule(action="log", protocol=17),
        allow(protocol=17, src_nets=(IPNetwork("10.65.0.0/24"), IPNetwork("fd65::/64"))),
        HostRule(action="deny", protocol=6),
    )
    lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(*rules))
    assert a.reaches(b.v4, 80)
    assert a.reaches(b.v6, 80)
    for address, family in ((a.v4, socket.AF_INET), (a.v6, socket.AF_INET6)):
        with b.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"four", (address, 4000))
    assert b.is_blocked_from(a.v4, 80)

    def counts() -> dict[int, tuple[int, int]]:
        return {
            each.rule: (each.packets, each.bytes)
            for each in lab.dataplane.rule_counts()
            if (each.rules, each.direction) == (P, "inbound")
        }

    assert counts()[0] == counts()[1] == (2, 32 + 52), "both families of one rule are one"
    assert counts()[2][0] >= 1
    # a set that changes leaves the rules as they are; a rule written anew begins again
    lab.apply(**inbound(*rules, allow()))
    assert counts()[1] == (0, 0)


def test_connections_are_told_and_cut(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    with a.socket(socket.AF_INET, socket.SOCK_STREAM) as server, b.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        server.bind((a.v4, 80))
        server.listen()
        client.settimeout(ALLOWED_S)
        client.connect((a.v4, 80))
        accepted, (_, client_port) = server.accept()
        with accepted:
            accepted.settimeout(ALLOWED_S)
            (found,) = [each for each in lab.dataplane.connections() if each.dst_port == 80]
            assert found[:5] == (6, IPAddress(b.v4), IPAddress(a.v4), client_port, 80)
            assert found[5:] == (IPAddress(a.v4), IPAddress(b.v4), 80, client_port)
            lab.apply(workloads=(a.endpoint(only()), b.endpoint(only(), only())))
            client.send(b"x")
            assert accepted.recv(1) == b"x", "established"
            assert lab.dataplane.cut([found]) == 1
            assert lab.dataplane.cut([found]) == 0
            client.send(b"y")
            accepted.settimeout(DENIED_S)
            with pytest.raises(TimeoutError):
                accepted.recv(1)


def test_connections_without_ports(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    assert b.reaches(a.v4, 80)
    assert b.reaches(a.v6, 80)
    assert b.pings(a.v4)
    (ping,) = [each for each in lab.dataplane.connections() if each.protocol == 1]
    assert (ping.src_port, ping.dst_port) == (8, 0), "type and code"
    with b.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (a.v6, 4000))
    assert [each.dst for each in lab.dataplane.connections() if each.protocol == 17] == [IPAddress(a.v6)]
    assert lab.dataplane.cut(lab.dataplane.connections()) >= 2
    assert not [each for each in lab.dataplane.connections() if each.protocol in (1, 17)]
