"""Floating addresses, metadata and tunnels as packets see them. Both drivers pass all of it."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.model.hoststate import HostNat, HostPeers, HostPools, HostWorkload, PolicyList
from tests.integration.dataplane_nftables.conftest import ALLOWED_S, DENIED_S, patience_s
from tests.integration.dataplane_nftables.test_nftables_traffic import P, _peer, allow, inbound, only

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

HOST, NEIGHBOUR, NEIGHBOUR6 = "192.0.2.1", "192.0.2.2", "2001:db8::2"
FLOATING, SECOND, FLOATING6 = "198.51.100.9", "198.51.100.8", "2001:db8:1::9"
NETS = (IPNetwork("10.65.0.0/16"), IPNetwork("fd65::/64"))
POOLS = HostPools(all=NETS, masquerade=NETS)
SEEN_FIRST = """
table ip seen {
  counter came { }
  chain first { type filter hook prerouting priority -400; ip daddr 127.0.0.1 counter name came; }
}
"""


def floating(workload: Any, *externals: str, **more: Any) -> HostWorkload:
    """The workload's endpoint, known by these too."""
    nats = tuple(
        HostNat(
            internal=IPAddress(workload.v4 if IPAddress(each).version == 4 else workload.v6), external=IPAddress(each)
        )
        for each in externals
    )
    return msgspec.structs.replace(workload.endpoint(**more), nats=nats)


@pytest.fixture
def host(make_lab: Callable[..., Any]) -> Any:
    return _with_neighbour(make_lab())


def _with_neighbour(lab: Any) -> Any:
    """The neighbour knows the way to floating addresses, not to the workloads' own."""
    lab.neighbour = lab.outside()
    lab.neighbour.run("ip", "route", "add", "198.51.100.0/24", "via", HOST)
    lab.neighbour.run("ip", "route", "add", "2001:db8:1::/64", "via", "2001:db8::1")
    return lab


@contextlib.contextmanager
def connected(client: Any, server: Any, own: str, address: str, port: int = 8080) -> Any:
    """A connection to the server's own address by way of ``address``: both ends of it."""
    family = socket.AF_INET if IPAddress(own).version == 4 else socket.AF_INET6
    with server.socket(family, socket.SOCK_STREAM) as listening, client.socket(family, socket.SOCK_STREAM) as one:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((own, 8080))
        listening.listen()
        listening.settimeout(4)
        one.settimeout(4)
        one.connect((address, port))
        other, peer = listening.accept()
        with other:
            other.settimeout(ALLOWED_S)
            yield one, other, peer[0]


def test_floating_address_leads_to_the_workload(host: Any) -> None:
    a = host.workload()
    # policy sees the workload's own address
    rule = allow(dst_nets=a.nets)
    report = host.start(floating(a, FLOATING, FLOATING6, inbound=only(P)), **inbound(rule))
    assert report.is_clean
    with connected(host.neighbour, a, a.v4, FLOATING) as (_, _, peer):
        assert peer == NEIGHBOUR
    with connected(host.neighbour, a, a.v6, FLOATING6) as (_, _, peer):
        assert peer == NEIGHBOUR6
    assert {str(each.cidr) for each in host.dataplane.wiring().routes(a.interface)} >= {
        f"{FLOATING}/32", f"{FLOATING6}/128",
    }  # fmt: skip
    with connected(host.host, a, a.v4, FLOATING):
        pass  # from the host itself, too


def test_workloads_own_floating_address(host: Any) -> None:
    a, b = host.workload(), host.workload()
    host.start(floating(a, FLOATING, SECOND), b.endpoint())
    with connected(a, a, a.v4, FLOATING) as (_, _, peer):
        assert peer == SECOND, "as from the first of them"
    with connected(b, a, a.v4, FLOATING) as (_, _, peer):
        assert peer == b.v4


def test_removed_floating_address_cuts_its_connections(host: Any) -> None:
    a = host.workload()
    host.start(floating(a, FLOATING, SECOND))
    with connected(host.neighbour, a, a.v4, FLOATING) as (one, other, _):
        one.send(b"x")
        assert other.recv(1) == b"x"
        assert host.apply(workloads=(floating(a, SECOND),)).is_clean
        one.send(b"y")
        other.settimeout(DENIED_S)
        with pytest.raises(TimeoutError):
            other.recv(1)
    assert host.neighbour.reaches(SECOND, 80)
    assert host.neighbour.is_blocked_from(FLOATING, 80)
    host.apply(workloads=(a.endpoint(),))
    assert host.neighbour.is_blocked_from(SECOND, 80)
    assert not [each for each in host.dataplane.wiring().routes(a.interface) if str(each.ip).startswith("198.51")]


def test_spoofing_stays_forbidden(host: Any) -> None:
    a, b = host.workload(), host.workload()
    host.start(floating(a, FLOATING), b.endpoint())
    a.run("ip", "address", "add", f"{FLOATING}/32", "dev", "eth0")
    assert not a.reaches(b.v4, 80, source=(FLOATING, 0), within_s=0.4), "it sends from its own address only"


def test_floating_address_of_two_goes_to_the_first(host: Any) -> None:
    a, b = host.workload(), host.workload()
    host.start(floating(b, FLOATING), floating(a, FLOATING))
    with connected(host.neighbour, a, a.v4, FLOATING):
        pass
    assert host.apply(removed_workloads=(a.key,)).is_clean
    with connected(host.neighbour, b, b.v4, FLOATING):
        pass
    assert host.apply(workloads=(floating(a, FLOATING),)).is_clean
    with connected(host.neighbour, a, a.v4, FLOATING):
        pass


def test_floating_address_for_an_address_it_has_not_is_named(host: Any) -> None:
    a = host.workload()
    wrong = HostNat(internal=IPAddress("10.65.0.99"), external=IPAddress(FLOATING))
    report = host.start(msgspec.structs.replace(a.endpoint(), nats=(wrong,)))
    assert [failure.subject for failure in report.failures] == [a.key.path]
    assert host.host.reaches(a.v4, 80), "the rest of it works"


def test_repeated_floating_addresses_change_nothing(host: Any) -> None:
    a = host.workload()
    state = floating(a, FLOATING, SECOND, FLOATING6)
    host.start(state)
    assert host.apply(workloads=(state,)).changes == 0
    assert host.dataplane.resync().healed == ()
    host.restart()
    assert host.start(state).changes == 0


def test_metadata(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(metadata=(IPAddress("127.0.0.1"), 8775), endpoint_to_host="DROP")
    a = lab.workload()
    lab.start(a.endpoint(PolicyList(), PolicyList()))
    with (
        lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        a.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.bind(("127.0.0.1", 8775))
        server.listen()
        server.settimeout(4)
        client.settimeout(4)
        client.connect(("169.254.169.254", 80))
        accepted, peer = server.accept()
        accepted.close()
        assert peer[0] == a.v4
    assert a.is_blocked_from("169.254.169.254", 81)


@pytest.mark.parametrize("metadata", [(IPAddress("127.0.0.1"), 8775), None], ids=["metadata", "port mapper"])
def test_no_workload_reaches_the_loopback_of_its_host(make_lab: Callable[..., Any], metadata: Any) -> None:
    lab = make_lab(metadata=metadata, endpoint_to_host="RETURN")
    a = lab.workload()
    assert lab.start(a.endpoint()).is_clean
    if metadata is None:
        lab.host.run("sysctl", "-qw", f"net.ipv4.conf.{a.interface}.route_localnet=1")
    lab.host.run("nft", "-f", "-", stdin=SEEN_FIRST)
    a.run("ip", "link", "set", "lo", "down")
    a.run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
    a.run("ip", "route", "add", "127.0.0.1", "via", "169.254.1.1", "dev", "eth0", "onlink", "src", a.v4)
    with lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 6666))
        server.listen()
        assert a.is_blocked_from("127.0.0.1", 6666)
    assert "packets 0 " not in lab.nft("list", "counter", "ip", "seen", "came"), "it never came to the host"
    assert lab.dataplane.resync().healed == ()


def test_without_metadata_there_is_none(lab: Any) -> None:
    a = lab.workload()
    lab.start(a.endpoint())
    with lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 8775))
        server.listen()
        assert a.is_blocked_from("169.254.169.254", 80)


def test_encapsulated_packets_come_from_hosts_only(host: Any) -> None:
    def check(*allowed: bool) -> None:
        assert _receives_ipip(host, is_allowed=allowed[0]) is allowed[0]
        assert _receives_udp(host, 4789, is_allowed=allowed[1]) is allowed[1]

    host.start()
    check(True, True)  # nobody encapsulates: no business of ours
    host.apply(peers=HostPeers(addresses=(IPAddress("192.0.2.77"),), is_ipip=True, is_vxlan=True))
    check(False, False)
    assert _receives_udp(host, 4790, is_allowed=True)
    host.apply(peers=HostPeers(addresses=(IPAddress("192.0.2.77"), IPAddress(NEIGHBOUR)), is_ipip=True, is_vxlan=True))
    check(True, True)
    host.apply(peers=HostPeers(addresses=(IPAddress("192.0.2.77"),), is_ipip=True))
    check(False, True)
    host.apply(peers=HostPeers())
    check(True, True)


def _receives_ipip(host: Any, *, is_allowed: bool) -> bool:
    inner = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20, 0, 0, 64, 17, 0, bytes(4), bytes(4))
    with (
        host.host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as listener,
        host.neighbour.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as sender,
    ):
        listener.settimeout(patience_s(is_allowed=is_allowed))
        sender.sendto(inner, (HOST, 0))
        with contextlib.suppress(TimeoutError):
            return bool(listener.recv(256))
        return False


def _receives_udp(host: Any, port: int, *, is_allowed: bool) -> bool:
    with (
        host.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        host.neighbour.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        listener.bind((HOST, port))
        listener.settimeout(patience_s(is_allowed=is_allowed))
        sender.sendto(b"frame", (HOST, port))
        with contextlib.suppress(TimeoutError):
            return listener.recv(64) == b"frame"
        return False


def test_host_masks_its_other_addresses_in_a_tunnel(host: Any) -> None:
    _tunnel(host)
    host.host.run("ip", "address", "add", "203.0.113.1/32", "dev", "lo")
    host.start(peers=HostPeers(addresses=(IPAddress(NEIGHBOUR),), is_vxlan=True))
    with connected_from(host.host, host.neighbour, "10.77.0.2", "203.0.113.1") as peer:
        assert peer == "10.77.0.1"
    with connected_from(host.host, host.neighbour, "10.77.0.2", "10.77.0.1") as peer:
        assert peer == "10.77.0.1"


def _tunnel(host: Any) -> None:
    """A VXLAN device under our name at the host, and its other end at the neighbour."""
    for each, last, (own, other) in (
        (host.host, 1, (HOST, NEIGHBOUR)),
        (host.neighbour, 2, (NEIGHBOUR, HOST)),
    ):
        kind = ("type", "vxlan", "id", "4096", "dstport", "4789", "local", own, "remote", other)
        each.run("ip", "link", "add", "vxlan.calico", *kind)
        each.run("ip", "address", "add", f"10.77.0.{last}/24", "dev", "vxlan.calico")
        each.run("ip", "link", "set", "vxlan.calico", "up")


@contextlib.contextmanager
def connected_from(client: Any, server: Any, address: str, source: str) -> Any:
    with (
        server.socket(socket.AF_INET, socket.SOCK_STREAM) as listening,
        client.socket(socket.AF_INET, socket.SOCK_STREAM) as one,
    ):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, 8080))
        listening.listen()
        listening.settimeout(4)
        one.settimeout(4)
        one.bind((source, 0))
        one.connect((address, 8080))
        other, peer = listening.accept()
        other.close()
        yield peer[0]


def test_masquerade_and_floating_address_together(host: Any) -> None:
    a = host.workload()
    pool = IPNetwork("10.65.0.0/16")
    host.start(floating(a, FLOATING), pools=HostPools(all=(pool,), masquerade=(pool,)))
    assert _peer(a, host.neighbour, NEIGHBOUR) == HOST
    with connected(host.neighbour, a, a.v4, FLOATING):
        pass


def test_what_leaves_the_pools_gets_the_ports_that_are_given(make_lab: Callable[..., Any]) -> None:
    host = _with_neighbour(make_lab(nat_ports=(50000, 50003)))
    a = host.workload()
    assert host.start(a.endpoint(), pools=POOLS).is_clean
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for server in (NEIGHBOUR, NEIGHBOUR6):
            address, port = _seen(a, host.neighbour, server, kind)
            assert address == {NEIGHBOUR: HOST, NEIGHBOUR6: "2001:db8::1"}[server]
            assert 50000 <= port <= 50003
    assert a.pings(NEIGHBOUR), "what has no ports is translated all the same"


@pytest.mark.parametrize("ports", [None, (50000, 50003)])
def test_what_leaves_the_pools_gets_the_address_that_is_given(
    make_lab: Callable[..., Any], ports: tuple[int, int] | None
) -> None:
    for mine, server in (("198.51.100.77", NEIGHBOUR), ("2001:db8:1::77", NEIGHBOUR6)):
        host = _with_neighbour(make_lab(nat_address=IPAddress(mine), nat_ports=ports))
        a = host.workload()
        assert host.start(a.endpoint(), pools=POOLS).is_clean
        address, port = _seen(a, host.neighbour, server)
        assert address == mine
        assert ports is None or ports[0] <= port <= ports[1]
        other = NEIGHBOUR6 if server == NEIGHBOUR else NEIGHBOUR
        assert _seen(a, host.neighbour, other)[0] in (HOST, "2001:db8::1"), "the other family is masqueraded"
        assert host.dataplane.resync().healed == ()


def test_only_what_leaves_by_the_interface_is_translated(make_lab: Callable[..., Any]) -> None:
    for filtered, is_translated in (("up0", True), ("u+", True), ("up", False), ("eth+", False)):
        host = _with_neighbour(make_lab(nat_interfaces=filtered))
        host.neighbour.run("ip", "route", "add", "10.65.0.0/16", "via", HOST)
        a = host.workload()
        assert host.start(a.endpoint(), pools=POOLS).is_clean
        assert _seen(a, host.neighbour, NEIGHBOUR)[0] == (HOST if is_translated else a.v4), filtered


def test_what_goes_to_hosts_is_translated_unless_they_are_excluded(make_lab: Callable[..., Any]) -> None:
    hosts = (IPAddress(HOST), IPAddress(NEIGHBOUR), IPAddress(NEIGHBOUR6))
    for spares in (False, True):
        host = _with_neighbour(make_lab(nat_spares_hosts=spares))
        host.neighbour.run("ip", "route", "add", "10.65.0.0/16", "via", HOST)
        host.neighbour.run("ip", "route", "add", "fd65::/64", "via", "2001:db8::1")
        a = host.workload()
        assert host.start(a.endpoint(), pools=msgspec.structs.replace(POOLS, hosts=hosts)).is_clean
        assert _seen(a, host.neighbour, NEIGHBOUR)[0] == (a.v4 if spares else HOST)
        assert _seen(a, host.neighbour, NEIGHBOUR6)[0] == (a.v6 if spares else "2001:db8::1")
        host.apply(pools=POOLS)
        assert _seen(a, host.neighbour, NEIGHBOUR)[0] == HOST, "it is no host any more"


def _seen(client: Any, server: Any, address: str, kind: int = socket.SOCK_STREAM) -> tuple[str, int]:
    """As whom, address and port, the server sees the client."""
    family = socket.AF_INET if IPAddress(address).version == 4 else socket.AF_INET6
    with server.socket(family, kind) as listening, client.socket(family, kind) as one:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, 8080))
        for each in (listening, one):
            each.settimeout(4)
        if kind == socket.SOCK_STREAM:
            listening.listen()
            one.connect((address, 8080))
            accepted, peer = listening.accept()
            accepted.close()
        else:
            one.sendto(b"x", (address, 8080))
            _, peer = listening.recvfrom(16)
        return str(peer[0]), int(peer[1])
