"""Policy as packets see it."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.conntrack import Conntrack
from calico_core.dataplane.nftables.netfilter import NftSocket
from calico_core.errors import KernelRefused
from calico_core.model.hoststate import (
    AddressSet,
    HostPools,
    HostRule,
    HostRules,
    PolicyList,
    RulesId,
    SetChange,
    SetId,
    TierPolicies,
)
from tests.integration.dataplane_nftables.conftest import ALLOWED_S, DENIED_S, patience_s
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

pytestmark = pytest.mark.needs_root

TAG = SetId("tag-00000000000000aa")
P = RulesId("profile/p")


def allow(**match: Any) -> HostRule:
    return HostRule(action="allow", **match)


def only(*rules_ids: str) -> PolicyList:
    return PolicyList(profiles=tuple(RulesId(each) for each in rules_ids))


def inbound(*rules: HostRule) -> dict[str, Any]:
    """Keyword arguments for a profile with these rules towards the workload."""
    return {"rules": (HostRules(id=P, inbound=rules, outbound=(HostRule(action="allow"),)),)}


def test_workload_without_rules_is_closed_both_ways(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(PolicyList(), PolicyList()), b.endpoint())
    assert b.is_blocked_from(a.v4, 80)
    assert a.is_blocked_from(b.v4, 80)
    assert b.is_blocked_from(a.v6, 80)


def test_profile_opens(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    assert b.reaches(a.v4, 80)
    assert b.reaches(a.v6, 80)


def test_unknown_interface_is_closed_before_and_after_the_first_batch(lab: Any) -> None:
    lab.dataplane.ensure_closed()
    a, b = lab.workload(), lab.workload()
    assert b.is_blocked_from(a.v4, 80)
    lab.start(a.endpoint())
    assert b.is_blocked_from(a.v4, 80), "b was never told of"
    assert a.is_blocked_from(b.v4, 80)


def test_removed_and_inactive_workloads_are_closed(lab: Any) -> None:
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint(), c.endpoint())
    assert c.reaches(a.v4, 80)
    assert c.reaches(b.v4, 80)
    report = lab.apply(workloads=(a.endpoint(is_active=False),), removed_workloads=(b.key,))
    assert report.is_clean
    assert c.is_blocked_from(a.v4, 80)
    assert c.is_blocked_from(b.v4, 80)
    assert lab.dataplane.wiring().routes(a.interface) == ()
    lab.apply(workloads=(a.endpoint(),))
    assert c.reaches(a.v4, 80)


@pytest.mark.parametrize("position", [0, 1, 7, 8, 15, 16, 19])
def test_policy_of_a_long_tier_decides_wherever_it_stands(lab: Any, position: int) -> None:
    """Later ones are not asked, neither after it allows, nor after it passes on to a tier that denies."""
    a, b = lab.workload(), lab.workload()
    names = tuple(RulesId(f"policy/t/p{number}") for number in range(20))
    last = RulesId("policy/u/last")

    def rules(number: int) -> tuple[HostRule, ...]:
        if number < position:
            return (allow(protocol=17),)
        if number > position:
            return (HostRule(action="deny", dst_ports=((80, 80),), protocol=6), allow(protocol=6))
        return (
            allow(protocol=6, dst_ports=((80, 80),)),
            HostRule(action="pass", protocol=6, dst_ports=((81, 81),)),
        )

    tiers = (TierPolicies(tier="t", policies=names), TierPolicies(tier="u", policies=(last,)))
    lab.start(
        a.endpoint(PolicyList(tiers=tiers)),
        b.endpoint(),
        rules=(
            *(HostRules(id=name, inbound=rules(number)) for number, name in enumerate(names)),
            HostRules(id=last, inbound=(allow(protocol=6, dst_ports=((83, 83),)),)),
        ),
    )
    assert b.reaches(a.v4, 80)
    assert b.is_blocked_from(a.v4, 81), "passed on, and the next tier denies"
    assert b.reaches(a.v4, 82) is (position < len(names) - 1), "a later policy allows"


def test_set_members_decide(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(
        a.endpoint(only(P)),
        b.endpoint(),
        sets=(SetChange(id=TAG, is_new=True),),
        **inbound(allow(src_sets=(TAG,))),
    )
    assert b.is_blocked_from(a.v4, 80)
    lab.apply(sets=(SetChange(id=TAG, added=AddressSet.of(b.nets)),))
    assert b.reaches(a.v4, 80)
    assert b.reaches(a.v6, 80)
    # a network makes it another kind of set; the members stay
    lab.apply(sets=(SetChange(id=TAG, added=AddressSet.of([IPNetwork("10.99.0.0/16")])),))
    assert b.reaches(a.v4, 80)
    lab.apply(sets=(SetChange(id=TAG, removed=AddressSet.of(b.nets)),))
    assert b.is_blocked_from(a.v4, 80)
    lab.apply(sets=(SetChange(id=TAG, added=AddressSet.of([IPNetwork("10.65.0.0/24")])),))
    assert b.reaches(a.v4, 80)
    assert b.is_blocked_from(a.v6, 80)


@pytest.mark.parametrize(
    ("match", "opened", "closed"),
    [
        ({"protocol": 6, "dst_ports": ((80, 80), (90, 99))}, [80, 95], [81, 100]),
        ({"protocol": 6, "not_dst_ports": ((80, 80), (90, 99))}, [81, 100], [80, 95]),
        ({"protocol": 17}, [], [80]),
        ({"not_protocol": 17}, [80], []),
        ({"not_protocol": 6}, [], [80]),
        ({"dst_nets": (IPNetwork("10.65.0.1/32"),)}, [80], []),
        ({"not_dst_nets": (IPNetwork("10.65.0.0/24"),)}, [], [80]),
        ({"src_nets": (IPNetwork("10.65.0.8/29"), IPNetwork("10.65.0.2/32"))}, [80], []),
        ({"src_nets": (IPNetwork("fd65::/64"),)}, [], [80]),
        ({"ip_version": 6}, [], [80]),
        ({"ip_version": 4}, [80], []),
        ({"not_src_nets": (IPNetwork("0.0.0.0/0"),)}, [], [80]),
        ({"not_src_sets": (TAG,)}, [], [80]),
        ({"not_dst_sets": (TAG,)}, [80], []),
        ({"src_sets": (TAG,), "not_src_nets": (IPNetwork("10.65.0.9/32"),)}, [80], []),
    ],
    ids=str,
)
def test_matches(lab: Any, match: dict[str, Any], opened: list[int], closed: list[int]) -> None:
    a, b = lab.workload(), lab.workload()
    members = SetChange(id=TAG, is_new=True, added=AddressSet.of(b.nets))
    report = lab.start(a.endpoint(only(P)), b.endpoint(), sets=(members,), **inbound(allow(**match)))
    assert report.failures == ()
    assert [port for port in opened if not b.reaches(a.v4, port)] == []
    assert [port for port in closed if not b.is_blocked_from(a.v4, port)] == []


@pytest.mark.parametrize(
    ("match", "echo", "timestamp"),
    [
        ({"protocol": 1}, True, True),
        ({"protocol": 1, "icmp": (8, None)}, True, False),
        ({"protocol": 1, "icmp": (8, 0)}, True, False),
        ({"protocol": 1, "icmp": (8, 1)}, False, False),
        ({"protocol": 1, "not_icmp": (8, None)}, False, True),
        ({"protocol": 1, "not_icmp": (8, 0)}, False, True),
        ({"protocol": 1, "not_icmp": (8, 3)}, True, True),
    ],
    ids=str,
)
def test_icmp(lab: Any, match: dict[str, Any], echo: bool, timestamp: bool) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(allow(**match)))
    assert a.reaches(b.v4, 80), "neighbours know each other from here on"
    assert b.pings(a.v4, within_s=patience_s(is_allowed=echo)) is echo
    assert b.pings(a.v4, kind=13, within_s=patience_s(is_allowed=timestamp)) is timestamp


def test_long_lists_of_ports(lab: Any) -> None:
    """Ports that no two of make a range, in numbers that iptables takes in pieces."""
    a, b = lab.workload(), lab.workload()
    ports = tuple((port, port) for port in range(1001, 5001, 2))
    report = lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(allow(protocol=6, dst_ports=ports)))
    assert report.is_clean
    assert [port for port in (1001, 3001, 4999) if not b.reaches(a.v4, port)] == []
    assert [port for port in (1000, 3000, 5001) if not b.is_blocked_from(a.v4, port)] == []
    lab.apply(**inbound(allow(protocol=6, not_dst_ports=ports)))
    assert [port for port in (1000, 3000, 5001) if not b.reaches(a.v4, port)] == []
    assert [port for port in (1001, 4999) if not b.is_blocked_from(a.v4, port)] == []


def test_tiers_decide_before_profiles(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    first, second = RulesId("policy/t1/first"), RulesId("policy/t2/second")

    def tiers(*tiers: TierPolicies) -> PolicyList:
        return PolicyList(tiers=tiers, profiles=(P,))

    port = {"protocol": 6}
    rules = (
        HostRules(
            id=first,
            inbound=(
                HostRule(action="deny", dst_ports=((81, 81),), **port),
                HostRule(action="pass", dst_ports=((80, 82),), **port),
                HostRule(action="allow", dst_ports=((83, 83),), **port),
            ),
        ),
        HostRules(id=second, inbound=(HostRule(action="pass", dst_ports=((80, 80),), **port),)),
        HostRules(id=P, inbound=(HostRule(action="allow"),)),
    )
    policies = tiers(TierPolicies(tier="t1", policies=(first,)), TierPolicies(tier="t2", policies=(second,)))
    lab.start(a.endpoint(policies), b.endpoint(), rules=rules)
    assert b.reaches(a.v4, 80)
    got = {port: not b.is_blocked_from(a.v4, port) for port in (80, 81, 82, 83, 84)}
    assert got == {80: True, 81: False, 82: False, 83: True, 84: False}
    # a tier whose default is to pass leaves the rest to what follows
    loose = tiers(TierPolicies(tier="t1", policies=(first,), default_action="pass"))
    lab.apply(workloads=(a.endpoint(loose),))
    got = {port: not b.is_blocked_from(a.v4, port) for port in (80, 81, 82, 83, 84)}
    assert got == {80: True, 81: False, 82: True, 83: True, 84: True}


def test_rule_that_cannot_be_expressed_drops_in_its_place(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    rules = (allow(protocol=6, dst_ports=((80, 80),)), allow(dst_ports=((81, 81),)), allow())
    report = lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(*rules))
    assert [failure.subject for failure in report.failures] == [P]
    assert b.reaches(a.v4, 80)
    assert b.is_blocked_from(a.v4, 81)
    assert b.is_blocked_from(a.v4, 82)


def test_spoofed_sources_are_dropped(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    b.run("ip", "address", "add", "10.65.0.77/32", "dev", "eth0")
    with _listener(a, a.v4) as listener:
        assert _heard(b, listener, a.v4, b.v4)
        assert not _heard(b, listener, a.v4, "10.65.0.77", is_expected=False)
        b.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
        assert not _heard(b, listener, a.v4, b.v4, is_expected=False), "another MAC"


def test_a_workload_cannot_send_into_the_hosts_tunnels(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    for port, is_heard in ((4790, True), (4789, False)):
        with (
            a.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
            b.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            listener.bind((a.v4, port))
            listener.settimeout(patience_s(is_allowed=is_heard))
            sender.sendto(b"frame", (a.v4, port))
            if is_heard:
                assert listener.recv(64) == b"frame"
            else:
                with pytest.raises(TimeoutError):
                    listener.recv(64)


def test_spoofed_ipv6_source_is_dropped(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    b.run("ip", "address", "add", "fd65::77/128", "dev", "eth0", "nodad")
    with a.socket(socket.AF_INET6, socket.SOCK_DGRAM) as listener:
        listener.bind((a.v6, 4000))
        assert _heard(b, listener, a.v6, b.v6)
        assert not _heard(b, listener, a.v6, "fd65::77", is_expected=False)


def test_own_second_address_and_unknown_mac_pass(lab: Any) -> None:
    """Without a MAC in its record a workload is known by its addresses alone."""
    a, b = lab.workload(), lab.workload()
    second = IPNetwork("10.65.0.77/32")
    endpoint = msgspec.structs.replace(b.endpoint(), mac=None, nets=(*b.nets, second))
    lab.start(a.endpoint(), endpoint)
    for each in (str(second), "10.65.0.78/32"):
        b.run("ip", "address", "add", each, "dev", "eth0")
    with _listener(a, a.v4) as listener:
        assert _heard(b, listener, a.v4, "10.65.0.77")
        assert not _heard(b, listener, a.v4, "10.65.0.78", is_expected=False)


def test_names_and_leases_may_be_asked_for_by_a_closed_workload(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(endpoint_to_host="DROP")
    a = lab.workload()
    lab.start(a.endpoint(PolicyList(), PolicyList()))
    lab.host.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    for port, is_heard in ((53, True), (54, False)):
        with lab.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind(("192.0.2.1", port))
            with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.sendto(b"question", ("192.0.2.1", port))
            assert _receives(listener, is_expected=is_heard) is is_heard, port
    for source_port, port, is_heard in ((68, 67, True), (69, 67, False), (68, 69, False)):
        with lab.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind(("", port))
            _broadcast(a, source_port, port)
            assert _receives(listener, is_expected=is_heard) is is_heard, (source_port, port)


@pytest.mark.parametrize("has_ipv6", [True, False])
def test_workloads_have_no_ipv6_where_it_is_off(make_lab: Callable[..., Any], *, has_ipv6: bool) -> None:
    """Whatever policy says: no neighbours, no leases, and nothing comes to them by a way that somebody else made."""
    lab = make_lab(is_ipv6_enabled=has_ipv6)
    a, far = lab.workload(), lab.outside()
    lab.start(a.endpoint())
    lab.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    far.run("ip", "-6", "route", "add", "fd65::/64", "via", "2001:db8::1")
    lab.host.run("ip", "-6", "route", "replace", a.v6, "dev", a.interface, "proto", "static", "metric", "1")
    mac = str(a.mac).replace("-", ":")
    lab.host.run("ip", "-6", "neighbour", "replace", a.v6, "lladdr", mac, "dev", a.interface)
    with _listener(a, a.v6) as listener:
        assert _heard(far, listener, a.v6, "2001:db8::2", is_expected=has_ipv6) is has_ipv6

    scope = socket.AF_INET6, socket.SOCK_DGRAM
    gateway = ("fe80::ecee:eeff:feee:eeee", 547, 0, netns.run_in(a.fd, lambda: socket.if_nametoindex("eth0")))
    with lab.host.socket(*scope) as listener, a.socket(*scope) as client:
        listener.bind(("::", 547))
        client.bind(("::", 546))
        client.sendto(b"lease", gateway)
        assert _receives(listener, is_expected=has_ipv6) is has_ipv6

    lab.host.run("ip", "address", "add", "fe80::99/64", "dev", a.interface, "nodad")
    with a.socket(*scope) as client:
        client.sendto(b"who", ("fe80::99", 9, 0, gateway[3]))
    outcome = "fe80::99 lladdr" if has_ipv6 else "fe80::99 FAILED"
    eventually(lambda: outcome in a.run("ip", "-6", "neighbour", "show", "dev", "eth0"))


def test_workload_to_host(make_lab: Callable[..., Any]) -> None:
    for action, is_open in (("DROP", False), ("RETURN", True), ("ACCEPT", True)):
        lab = make_lab(endpoint_to_host=action)
        a, closed = lab.workload(), lab.workload()
        lab.host.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        lab.start(a.endpoint(), closed.endpoint(PolicyList(), PolicyList()))
        assert a.is_blocked_from("192.0.2.1", 80) is not is_open, action
        assert closed.is_blocked_from("192.0.2.1", 80), action
        # the host reaches what is closed to everybody else
        assert lab.host.reaches(closed.v4, 80, source=("192.0.2.1", 0)), action


def test_masquerade(lab: Any) -> None:
    outside = lab.outside()
    a, b = lab.workload(), lab.workload()
    pool = IPNetwork("10.65.0.0/16")
    lab.start(a.endpoint(), b.endpoint(), pools=HostPools(all=(pool,), masquerade=(pool,)))
    assert _peer(a, outside, "192.0.2.2") == "192.0.2.1"
    assert _peer(a, b, b.v4) == a.v4, "inside the pools nothing is rewritten"
    lab.apply(pools=HostPools(all=(pool,)))
    assert a.is_blocked_from("192.0.2.2", 80), "the neighbour has no way back"
    assert "nat_postrouting" not in lab.nft("list", "table", "inet", "calico")


def test_connection_survives_a_policy_change_but_not_the_loss_of_its_address(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    with a.socket(socket.AF_INET, socket.SOCK_STREAM) as server, b.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        server.bind((a.v4, 80))
        server.listen()
        client.settimeout(ALLOWED_S)
        client.connect((a.v4, 80))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(ALLOWED_S)
            lab.apply(workloads=(a.endpoint(PolicyList(), PolicyList()),))
            assert b.is_blocked_from(a.v4, 80), "new connections are refused"
            client.send(b"x")
            assert accepted.recv(1) == b"x", "the old one goes on"
            lab.apply(removed_workloads=(b.key,))
            client.send(b"y")
            accepted.settimeout(DENIED_S)
            with pytest.raises(TimeoutError):
                accepted.recv(1)


def test_an_address_that_leaves_the_record_takes_its_connections_and_no_others(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    with contextlib.ExitStack() as stack:
        ends = {}
        for family, address in ((socket.AF_INET, a.v4), (socket.AF_INET6, a.v6)):
            server = stack.enter_context(a.socket(family, socket.SOCK_STREAM))
            client = stack.enter_context(b.socket(family, socket.SOCK_STREAM))
            server.bind((address, 80))
            server.listen()
            client.settimeout(ALLOWED_S)
            client.connect((address, 80))
            accepted = stack.enter_context(server.accept()[0])
            accepted.settimeout(patience_s(is_allowed=family == socket.AF_INET6))
            ends[family] = (client, accepted)
        only_v6 = tuple(net for net in b.nets if net.version == 6)
        lab.apply(workloads=(msgspec.structs.replace(b.endpoint(), nets=only_v6),))
        for client, _ in ends.values():
            client.send(b"x")
        assert ends[socket.AF_INET6][1].recv(1) == b"x"
        with pytest.raises(TimeoutError):
            ends[socket.AF_INET][1].recv(1)
        assert not is_connected(lab, b)


@pytest.fixture
def leaving(lab: Any) -> Iterator[Any]:
    """A workload with an open connection."""
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    with a.socket(socket.AF_INET, socket.SOCK_STREAM) as server, b.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        server.bind((a.v4, 80))
        server.listen()
        client.settimeout(ALLOWED_S)
        client.connect((a.v4, 80))
        assert is_connected(lab, b)
        yield b


def is_connected(lab: Any, workload: Any) -> bool:
    """As the kernel's table of connections has it."""
    return IPAddress(workload.v4) in {each.src for each in lab.dataplane.connections()}


def test_a_commit_whose_answer_is_lost_cuts_connections_too(
    lab: Any, leaving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, failures = NftSocket.generation, [errno.ENOBUFS]

    def generation(self: NftSocket) -> int:
        if failures:
            raise KernelRefused("read nftables generation", failures.pop())
        return answer(self)

    monkeypatch.setattr(NftSocket, "generation", generation)
    report = lab.apply(removed_workloads=(leaving.key,))
    assert not failures
    assert report.failures == ()
    assert not is_connected(lab, leaving)


def test_connections_that_could_not_be_cut_are_cut_by_the_next_attempt(
    lab: Any, leaving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush(self: Conntrack, addresses: object) -> None:
        raise KernelRefused("flush connections", errno.EBUSY)

    with monkeypatch.context() as patched:
        patched.setattr(Conntrack, "flush", flush)
        report = lab.apply(removed_workloads=(leaving.key,))
    assert is_connected(lab, leaving)
    assert [each.subject for each in report.failures] == ["conntrack"]
    assert lab.apply().failures == ()
    assert not is_connected(lab, leaving)


@contextlib.contextmanager
def _listener(workload: Any, address: str) -> Any:
    with workload.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((address, 4000))
        yield made


def _receives(listener: socket.socket, *, is_expected: bool) -> bool:
    listener.settimeout(patience_s(is_allowed=is_expected))
    try:
        listener.recv(64)
    except TimeoutError:
        return False
    return True


def _broadcast(workload: Any, source_port: int, port: int) -> None:
    """A UDP packet from 0.0.0.0 to everybody, as a DHCP client sends it; checksums left out where they may be."""
    udp = struct.pack("!HHHH", source_port, port, 8 + 4, 0) + b"seek"
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    total = sum(struct.unpack("!10H", head))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    head = head[:10] + struct.pack("!H", checksum) + head[12:]
    frame = b"\xff" * 6 + int(workload.mac).to_bytes(6, "big") + b"\x08\x00" + head + udp
    with workload.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        raw.send(frame)


def _heard(sender: Any, listener: socket.socket, address: str, source: str, *, is_expected: bool = True) -> bool:
    listener.settimeout(patience_s(is_allowed=is_expected))
    with sender.socket(listener.family, socket.SOCK_DGRAM) as probe:
        probe.bind((source, 0))
        probe.sendto(b"probe", (address, 4000))
    try:
        return listener.recvfrom(64)[1][0] == source
    except TimeoutError:
        return False


def _peer(client: Any, server: Any, address: str) -> str:
    """Whom the server sees."""
    with server.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind((address, 8080))
        listening.listen()
        listening.settimeout(ALLOWED_S)
        with client.socket(socket.AF_INET, socket.SOCK_STREAM) as connecting:
            connecting.settimeout(ALLOWED_S)
            connecting.connect((address, 8080))
            accepted, peer = listening.accept()
            accepted.close()
            return str(peer[0])
