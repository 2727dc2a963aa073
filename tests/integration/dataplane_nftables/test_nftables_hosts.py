"""Host endpoints as packets see them. Both drivers pass all of it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.dataplane import FailsafePort
from calico_core.model.hoststate import (
    ANY_INTERFACE,
    HostInterface,
    HostRule,
    HostRules,
    PolicyList,
    RulesId,
    TierPolicies,
)
from calico_core.model.keys import HostEndpointKey
from tests.integration.dataplane_nftables.conftest import ALLOWED_S, DENIED_S
from tests.integration.dataplane_nftables.test_nftables_traffic import allow

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

HOST, HOST6, NEIGHBOUR, NEIGHBOUR6 = "192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"
H = RulesId("policy/default/h")
FAILSAFE = {
    "failsafe_inbound": (FailsafePort(6, 22), FailsafePort(6, 23, IPNetwork("198.51.100.0/24"))),
    "failsafe_outbound": (FailsafePort(6, 179), FailsafePort(6, 23, IPNetwork("192.0.2.2/32"))),
}


def tcp(*ports: int, action: str = "allow") -> HostRule:
    return HostRule(action=action, protocol=6, dst_ports=tuple((port, port) for port in ports))  # type: ignore[arg-type]


def policy(*rules: HostRule, outbound: tuple[HostRule, ...] = ()) -> tuple[HostRules, ...]:
    return (HostRules(id=H, inbound=rules, outbound=outbound),)


def the_list(default_action: Any = "deny") -> PolicyList:
    return PolicyList(tiers=(TierPolicies(tier="default", policies=(H,), default_action=default_action),))


def endpoint(interface: str = "up0", **lists: PolicyList) -> HostInterface:
    key = HostEndpointKey(host="h", endpoint=interface if interface != ANY_INTERFACE else "any")
    return HostInterface(key=key, interface=interface, **lists)


@pytest.fixture
def host(make_lab: Callable[..., Any]) -> Any:
    """A lab with a neighbour that knows the way to the workloads."""
    lab = make_lab(**FAILSAFE)
    lab.neighbour = lab.outside()
    lab.neighbour.run("ip", "route", "add", "10.65.0.0/16", "via", HOST)
    return lab


def tracked(lab: Any) -> int:
    return sum(1 for each in lab.dataplane.connections() if IPAddress(NEIGHBOUR) in (each.src, each.dst))


def test_endpoint_without_policy_lets_fail_safes_pass_alone(host: Any) -> None:
    host.start(interfaces=(endpoint(),))
    there, here = host.neighbour, host.host
    assert there.reaches(HOST, 22)
    assert there.reaches(HOST6, 22), "neighbours are found too"
    assert there.is_blocked_from(HOST, 80)
    assert there.is_blocked_from(HOST6, 80)
    assert there.is_blocked_from(HOST, 23), "for another network only"
    assert not there.pings(HOST, within_s=DENIED_S)
    assert here.reaches(NEIGHBOUR, 179)
    assert here.reaches(NEIGHBOUR6, 179)
    assert here.reaches(NEIGHBOUR, 23)
    assert here.is_blocked_from(NEIGHBOUR6, 23)
    assert here.is_blocked_from(NEIGHBOUR, 80)
    assert here.reaches("127.0.0.1", 80), "the host itself"
    report = host.apply(removed_interfaces=("up0",))
    assert report.is_clean
    assert there.reaches(HOST, 80)
    assert here.reaches(NEIGHBOUR, 80)


def test_where_ipv6_is_off_the_hosts_own_passes_fail_safes_alone(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(is_ipv6_enabled=False, **FAILSAFE)
    there, here = lab.outside(), lab.host
    lists = {
        field: the_list() for field in HostInterface.__struct_fields__ if field not in ("key", "interface", "spares")
    }
    rules = policy(allow(), outbound=(allow(),))
    for held in ({"inbound": the_list(), "outbound": the_list()}, lists):
        state = {"interfaces": (endpoint(**held),), "rules": rules}
        assert lab.start(**state).is_clean
        assert there.reaches(HOST, 80)
        assert there.is_blocked_from(HOST6, 80)
        assert there.reaches(HOST6, 22), "neighbours are found too"
        assert here.reaches(NEIGHBOUR, 80)
        assert here.is_blocked_from(NEIGHBOUR6, 80)
        assert here.reaches(NEIGHBOUR6, 179)
        assert lab.dataplane.resync().healed == ()
        lab.restart()
        assert lab.start(**state).changes == 0
    assert lab.apply(removed_interfaces=("up0",)).is_clean
    assert there.reaches(HOST6, 80)
    assert here.reaches(NEIGHBOUR6, 80)


def test_an_emptied_list_of_fail_safes_cuts_what_they_let_pass(host: Any) -> None:
    host.start(interfaces=(endpoint(),))
    there, here = host.neighbour, host.host
    assert there.reaches(HOST, 22)
    assert here.reaches(NEIGHBOUR, 179)
    host.options = msgspec.structs.replace(host.options, failsafe_inbound=(), failsafe_outbound=())
    host.restart()
    assert host.start(interfaces=(endpoint(),)).is_clean
    for address in (HOST, HOST6):
        assert there.is_blocked_from(address, 22)
    for address in (NEIGHBOUR, NEIGHBOUR6):
        assert here.is_blocked_from(address, 179)


def test_policy_of_an_endpoint(host: Any) -> None:
    rules = policy(tcp(81, action="deny"), tcp(80, 81), outbound=(tcp(90),))
    host.start(interfaces=(endpoint(inbound=the_list(), outbound=the_list()),), rules=rules)
    there, here = host.neighbour, host.host
    for address in (HOST, HOST6):
        assert there.reaches(address, 80)
        assert there.is_blocked_from(address, 81)
        assert there.is_blocked_from(address, 82)
    assert here.reaches(NEIGHBOUR, 90)
    assert here.is_blocked_from(NEIGHBOUR, 91)
    assert there.reaches(HOST, 22)
    host.apply(rules=policy(tcp(82)))
    assert there.reaches(HOST, 82)
    assert there.is_blocked_from(HOST, 80)


def test_every_interface_but_those_with_one_of_their_own(host: Any) -> None:
    other = host.namespace()
    host.host.run("ip", "link", "add", "up1", "type", "veth", "peer", "name", "up1", "netns", other.name)
    for each, last in ((host.host, 1), (other, 2)):
        each.run("ip", "address", "add", f"203.0.113.{last}/24", "dev", "up1")
        each.run("ip", "link", "set", "up1", "up")
    a = host.workload()
    interfaces = (endpoint(ANY_INTERFACE), endpoint("up1", inbound=the_list(), outbound=the_list()))
    host.start(a.endpoint(), interfaces=interfaces, rules=policy(allow(), outbound=(allow(),)))
    assert other.reaches("203.0.113.1", 80)
    assert host.neighbour.is_blocked_from(HOST, 80)
    assert host.neighbour.reaches(HOST, 22)
    assert host.host.reaches("127.0.0.1", 80), "the loopback has no endpoint"
    assert host.host.reaches(a.v4, 80), "nor has a workload's interface"
    assert a.reaches(HOST, 80)
    host.apply(removed_interfaces=("up1",))
    assert other.is_blocked_from("203.0.113.1", 80)
    host.apply(removed_interfaces=(ANY_INTERFACE,))
    assert host.neighbour.reaches(HOST, 80)


def test_whatever_a_name_holds_that_the_model_takes(host: Any) -> None:
    """More of one beginning than are asked for one by one."""
    other = host.namespace()
    names = [f"e.,@=~#^&-{number}" for number in range(10)]
    host.host.run("ip", "link", "add", names[0], "type", "veth", "peer", "name", "up1", "netns", other.name)
    for each, device, last in ((host.host, names[0], 1), (other, "up1", 2)):
        each.run("ip", "address", "add", f"203.0.113.{last}/24", "dev", device)
        each.run("ip", "link", "set", device, "up")
    assert other.reaches("203.0.113.1", 80)
    every = [endpoint(name, inbound=the_list(), outbound=the_list()) for name in (*names, "eth0.100", "-", "a.b")]
    state = {"interfaces": every, "rules": policy(tcp(81))}
    assert host.start(**state).is_clean
    assert other.is_blocked_from("203.0.113.1", 80)
    assert other.reaches("203.0.113.1", 81)
    assert host.host.is_blocked_from("203.0.113.2", 81)
    assert host.dataplane.resync().healed == ()
    host.restart()
    assert host.start(**state).changes == 0
    assert host.apply(removed_interfaces=[each.interface for each in every]).is_clean
    assert other.reaches("203.0.113.1", 80)


def test_an_excluded_interface_is_the_business_of_an_endpoint_of_its_own_alone(host: Any) -> None:
    other = host.namespace()
    host.host.run("ip", "link", "add", "ex-0.7", "type", "veth", "peer", "name", "up1", "netns", other.name)
    for each, device, last in ((host.host, "ex-0.7", 1), (other, "up1", 2)):
        each.run("ip", "address", "add", f"203.0.113.{last}/24", "dev", device)
        each.run("ip", "link", "set", device, "up")
    other.run("ip", "route", "add", "192.0.2.0/24", "via", "203.0.113.1")
    lists = {"inbound": the_list(), "outbound": the_list(), "forward_inbound": the_list(), "pre_dnat": the_list()}
    everything = endpoint(ANY_INTERFACE, **lists)
    spared = msgspec.structs.replace(everything, spares=("ex-0.7", "gone0"))
    rules = policy(tcp(81), HostRule(action="deny", protocol=6, dst_ports=((80, 80),)))
    assert host.start(interfaces=(everything,), rules=rules).is_clean
    assert other.is_blocked_from("203.0.113.1", 80)
    assert host.apply(interfaces=(spared,)).is_clean
    assert other.reaches("203.0.113.1", 80)
    assert host.host.reaches("203.0.113.2", 80)
    assert host.neighbour.is_blocked_from(HOST, 80), "it holds elsewhere as ever"
    assert host.neighbour.reaches(HOST, 81)
    assert host.dataplane.resync().healed == ()
    host.restart()
    assert host.start(interfaces=(spared,), rules=rules).changes == 0
    assert host.apply(interfaces=(everything,)).is_clean
    assert other.is_blocked_from("203.0.113.1", 80)


def test_workloads_and_their_host_are_not_concerned(host: Any) -> None:
    a = host.workload()
    host.start(a.endpoint(), interfaces=(endpoint(),))
    assert host.neighbour.reaches(a.v4, 80), "forwarded"
    assert a.reaches(NEIGHBOUR, 80)
    assert host.host.reaches(a.v4, 80, source=(HOST, 0))
    assert a.reaches(HOST, 80)


def test_forwarding_as_the_lists_say(host: Any) -> None:
    a = host.workload()
    lists = {"forward_inbound": the_list(), "forward_outbound": the_list()}
    rules = policy(tcp(80), outbound=(tcp(90),))
    host.start(a.endpoint(), interfaces=(endpoint(**lists),), rules=rules)
    there = host.neighbour
    assert there.reaches(a.v4, 80)
    assert there.is_blocked_from(a.v4, 81)
    assert there.is_blocked_from(a.v4, 22), "no fail-safe for what is forwarded"
    assert a.reaches(NEIGHBOUR, 90)
    assert a.is_blocked_from(NEIGHBOUR, 80)
    host.apply(interfaces=(endpoint(),))
    assert there.reaches(a.v4, 81)


def test_forwarding_between_interfaces_of_the_host(host: Any) -> None:
    """Nothing of a workload's in it: closed only by a list for what is forwarded."""
    other = host.namespace()
    host.host.run("ip", "link", "add", "up1", "type", "veth", "peer", "name", "up1", "netns", other.name)
    for each, last in ((host.host, 1), (other, 2)):
        each.run("ip", "address", "add", f"203.0.113.{last}/24", "dev", "up1")
        each.run("ip", "link", "set", "up1", "up")
    other.run("ip", "route", "add", "192.0.2.0/24", "via", "203.0.113.1")
    host.neighbour.run("ip", "route", "add", "203.0.113.0/24", "via", HOST)
    host.start(interfaces=(endpoint(),))
    assert host.neighbour.reaches("203.0.113.2", 80)
    host.apply(interfaces=(endpoint(forward_inbound=the_list()),), rules=policy(tcp(80)))
    assert host.neighbour.reaches("203.0.113.2", 80)
    assert host.neighbour.is_blocked_from("203.0.113.2", 81)
    assert other.reaches(NEIGHBOUR, 81), "the other way, and its answers"


def test_untracked(host: Any) -> None:
    allow_both = (HostRule(action="allow", protocol=6, src_ports=((80, 80),)), tcp(80))
    deny = tcp(81, 22, action="deny")
    host.start(
        interfaces=(
            endpoint(
                untracked_inbound=the_list(),
                untracked_outbound=the_list(),
            ),
        ),
        rules=policy(deny, *allow_both, outbound=(deny, *allow_both)),
    )
    there, here = host.neighbour, host.host
    assert there.reaches(HOST, 80)
    assert there.reaches(HOST6, 80)
    assert here.reaches(NEIGHBOUR, 80)
    assert tracked(host) == 0
    assert there.is_blocked_from(HOST, 81)
    assert there.reaches(HOST, 22), "the fail-safe comes first"
    assert here.reaches(NEIGHBOUR, 179), "and so does its answer"
    with here.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((HOST, 22))
        server.listen()
        with there.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(ALLOWED_S)
            client.connect((HOST, 22))
            assert tracked(host) == 1, "and is tracked"
    assert there.is_blocked_from(HOST, 82), "undecided: on to the lists of the endpoint, which are empty"
    host.apply(interfaces=(endpoint(),))
    assert there.is_blocked_from(HOST, 80)


def test_what_is_untracked_without_policy_is_not_let_through(host: Any) -> None:
    host.start(interfaces=(endpoint(),))
    host.host.run("iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-j", "NOTRACK")
    assert host.neighbour.is_blocked_from(HOST, 80)


def test_before_destinations_are_translated(host: Any) -> None:
    a = host.workload()
    host.host.run(
        "iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "8000:8022",
        "-j", "DNAT", "--to-destination", f"{a.v4}:80",
    )  # fmt: skip
    there = host.neighbour
    host.start(a.endpoint(), interfaces=(endpoint(pre_dnat=the_list()),), rules=policy(tcp(8001, action="deny")))
    assert there.reaches(HOST, 8000)
    assert there.is_blocked_from(HOST, 8001)
    assert there.reaches(HOST, 22)
    host.apply(rules=policy(tcp(8000), HostRule(action="deny")))
    assert there.reaches(HOST, 8000)
    assert there.is_blocked_from(HOST, 8002)
    assert there.reaches(HOST, 22), "fail-safes first"
    assert there.reaches(HOST6, 22), "neighbours are found"


@pytest.mark.parametrize("field", ["untracked_inbound", "pre_dnat", "inbound", "forward_inbound"])
def test_refusals_at_every_hook(make_lab: Callable[..., Any], field: str) -> None:
    """Each of them may have to answer: with what a rule says, and with what the host does anyway."""
    lab = make_lab(deny_action="REJECT", **FAILSAFE)
    a, neighbour = lab.workload(), lab.outside()
    neighbour.run("ip", "route", "add", "10.65.0.0/16", "via", HOST)
    target = a.v4 if field == "forward_inbound" else HOST
    rules = policy(tcp(81, action="reject"), tcp(82, action="deny"), tcp(80))
    open_list = PolicyList(profiles=(RulesId("profile/any"),))
    lists = {"inbound": open_list, "outbound": open_list, field: the_list()}
    report = lab.start(a.endpoint(), interfaces=(endpoint(**lists),), rules=rules)
    assert report.failures == ()
    assert neighbour.reaches("10.65.0.1" if field == "forward_inbound" else HOST, 22) is (field != "forward_inbound")
    for port in (81, 82):
        assert not neighbour.reaches(target, port), port
    assert lab.dataplane.resync().healed == ()


def test_connections_live_and_strangers_packets_do_not(host: Any) -> None:
    host.start(interfaces=(endpoint(inbound=the_list()),), rules=policy(tcp(80)))
    with (
        host.host.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        host.neighbour.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.bind((HOST, 80))
        server.listen()
        client.settimeout(ALLOWED_S)
        client.connect((HOST, 80))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(ALLOWED_S)
            host.apply(rules=policy(HostRule(action="deny")))
            client.send(b"x")
            assert accepted.recv(1) == b"x"
    assert host.neighbour.is_blocked_from(HOST, 80)


def test_endpoint_without_its_rules_is_closed_and_named(host: Any) -> None:
    missing = RulesId("policy/default/missing")
    untracked = PolicyList(tiers=(TierPolicies(tier="default", policies=(missing,)),))
    lists = {"inbound": the_list(), "forward_inbound": the_list(), "untracked_inbound": untracked}
    a = host.workload()
    report = host.start(a.endpoint(), interfaces=(endpoint(**lists),))
    assert [failure.subject for failure in report.failures] == [endpoint().key.path]
    assert host.neighbour.is_blocked_from(HOST, 80)
    assert host.neighbour.is_blocked_from(a.v4, 80)
    assert host.neighbour.reaches(HOST, 22)
    report = host.apply(rules=(*policy(allow()), HostRules(id=missing)))
    assert report.is_clean
    assert host.neighbour.reaches(HOST, 80)
    assert host.neighbour.reaches(a.v4, 80)
    report = host.apply(removed_rules=(H,))
    assert [failure.subject for failure in report.failures] == [endpoint().key.path]
    assert host.neighbour.is_blocked_from(HOST, 80)


def test_interface_that_is_a_workloads_is_named(host: Any) -> None:
    report = host.start(interfaces=(endpoint("cali9"),))
    assert [failure.subject for failure in report.failures] == [endpoint("cali9").key.path]


def test_restart_finds_all_of_it(host: Any) -> None:
    every = {
        field: the_list() for field in HostInterface.__struct_fields__ if field not in ("key", "interface", "spares")
    }
    state = {"interfaces": (endpoint(**every), endpoint(ANY_INTERFACE, **every)), "rules": policy(tcp(80))}
    assert host.start(**state).is_clean
    assert host.dataplane.resync().healed == ()
    host.restart()
    report = host.start(**state)
    assert (report.failures, report.changes) == ((), 0)
    assert host.apply(removed_interfaces=("up0", ANY_INTERFACE)).is_clean
    assert host.dataplane.resync().healed == ()
    host.restart()
    assert host.start(rules=policy(tcp(80))).changes == 0
