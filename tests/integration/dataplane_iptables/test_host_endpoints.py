"""Host endpoints as packets see them: fail-safe ports, policy of the host itself, of what is forwarded, of what comes
before connection tracking and before translation.

Written for any driver: ``lab`` is the fixture of the folder that collects the cases.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.dataplane import FailsafePort
from calico_core.model.hoststate import (
    ANY_INTERFACE,
    HostInterface,
    HostPeers,
    HostRule,
    HostRules,
    PolicyList,
    RulesId,
    TierPolicies,
)
from calico_core.model.keys import HostEndpointKey

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

HOST4, HOST6, FAR4, FAR6 = "192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"
TCP = 6
FAILSAFES = {
    "failsafe_inbound": (FailsafePort(TCP, 22), FailsafePort(TCP, 23, IPNetwork("198.51.100.0/24"))),
    "failsafe_outbound": (FailsafePort(TCP, 2379),),
}


def to_ports(action: str, *ports: int) -> HostRule:
    return HostRule(action=action, protocol=TCP, dst_ports=tuple((port, port) for port in ports))  # type: ignore[arg-type]


def from_ports(action: str, *ports: int) -> HostRule:
    return HostRule(action=action, protocol=TCP, src_ports=tuple((port, port) for port in ports))  # type: ignore[arg-type]


def policy(name: str, inbound: tuple[HostRule, ...] = (), outbound: tuple[HostRule, ...] = ()) -> HostRules:
    return HostRules(id=RulesId(f"policy/default/{name}"), inbound=inbound, outbound=outbound)


def tier(*names: str) -> PolicyList:
    ids = tuple(RulesId(f"policy/default/{name}") for name in names)
    return PolicyList(tiers=(TierPolicies(tier="default", policies=ids),))


def host_endpoint(interface: str = "up0", **lists: PolicyList) -> HostInterface:
    key = HostEndpointKey(host="h", endpoint="all" if interface == ANY_INTERFACE else interface)
    return HostInterface(key=key, interface=interface, **lists)


def opened(client: Any, address: str, *ports: int) -> set[int]:
    """Of the ports those that answer."""
    return {port for port in ports if not client.is_blocked_from(address, port)}


def second_neighbour(lab: Any) -> Any:
    """On another link: 203.0.113.2, the host is 203.0.113.1."""
    made = lab.namespace()
    lab.host.run("ip", "link", "add", "up1", "type", "veth", "peer", "name", "up0", "netns", made.name)
    for each, device, last in ((lab.host, "up1", 1), (made, "up0", 2)):
        each.run("ip", "address", "add", f"203.0.113.{last}/24", "dev", device)
        each.run("ip", "link", "set", device, "up")
    return made


def test_without_policy_the_failsafe_ports_are_open_and_nothing_else(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(**FAILSAFES)
    far = lab.outside()
    assert lab.start().is_clean
    assert far.reaches(HOST4, 80)
    assert lab.apply(interfaces=(host_endpoint(),)).is_clean
    # neighbours are asked for again: that is not policy's business
    far.run("ip", "neigh", "flush", "all")
    lab.host.run("ip", "neigh", "flush", "all")
    assert far.reaches(HOST4, 22)
    assert far.reaches(HOST6, 22)
    assert lab.host.reaches(FAR4, 2379)
    assert lab.host.reaches(FAR6, 2379)
    assert opened(far, HOST4, 80, 23, 2379) == set()
    assert opened(far, HOST6, 80) == set()
    assert opened(lab.host, FAR4, 80, 22) == set()
    assert opened(lab.host, FAR6, 80) == set()
    # an interface without an endpoint is not affected, nor is the host's talk with itself
    assert second_neighbour(lab).reaches("203.0.113.1", 80)
    assert lab.host.reaches("127.0.0.1", 80)
    assert lab.apply(removed_interfaces=("up0",)).is_clean
    assert far.reaches(HOST4, 80)
    assert lab.host.reaches(FAR4, 80)


def test_a_failsafe_port_may_be_for_some_networks_only(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(**FAILSAFES)
    far = lab.outside()
    far.run("ip", "address", "add", "198.51.100.9/32", "dev", "lo")
    lab.host.run("ip", "route", "add", "198.51.100.0/24", "via", FAR4)
    lab.start(interfaces=(host_endpoint(),))
    assert far.reaches(HOST4, 23, source=("198.51.100.9", 0))
    assert opened(far, HOST4, 23) == set()


def test_policy_of_the_host_itself(lab: Any) -> None:
    far = lab.outside()
    rules = policy("host", inbound=(to_ports("allow", 80),), outbound=(to_ports("allow", 81),))
    report = lab.start(rules=(rules,), interfaces=(host_endpoint(inbound=tier("host"), outbound=tier("host")),))
    assert report.is_clean
    assert far.reaches(HOST4, 80)
    assert far.reaches(HOST6, 80)
    assert lab.host.reaches(FAR4, 81)
    assert opened(far, HOST4, 81) == set()
    assert opened(lab.host, FAR4, 80) == set()
    # a connection that stands goes on under a policy that would not let it begin
    with lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((HOST4, 80))
        server.listen()
        with far.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(2)
            client.connect((HOST4, 80))
            accepted, _ = server.accept()
            with accepted:
                accepted.settimeout(2)
                assert lab.apply(rules=(policy("host"),)).is_clean
                client.send(b"x")
                assert accepted.recv(1) == b"x"
    assert opened(far, HOST4, 80) == set()


def test_profiles_come_after_tiers(lab: Any) -> None:
    far = lab.outside()
    lists = PolicyList(profiles=(RulesId("profile/any"),))
    lab.start(interfaces=(host_endpoint(inbound=lists, outbound=lists),))
    assert far.reaches(HOST4, 80)
    assert lab.host.reaches(FAR4, 80)


def test_an_endpoint_whose_rules_are_missing_is_closed_but_for_failsafes(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(**FAILSAFES)
    far = lab.outside()
    report = lab.start(interfaces=(host_endpoint(inbound=tier("none"), outbound=tier("none")),))
    assert [failure.subject for failure in report.failures] == [host_endpoint().key.path]
    assert "policy/default/none" in report.failures[0].reason
    assert far.reaches(HOST4, 22)
    assert opened(far, HOST4, 80) == set()
    assert lab.apply(rules=(policy("none", (to_ports("allow", 80),)),)).is_clean
    assert far.reaches(HOST4, 80)


def test_forwarded_traffic_passes_until_forward_policy_says_otherwise(lab: Any) -> None:
    far, workload = lab.outside(), lab.workload()
    far.run("ip", "route", "add", "10.65.0.0/16", "via", HOST4)
    lab.start(workload.endpoint(), interfaces=(host_endpoint(),))
    assert far.reaches(workload.v4, 80)
    assert workload.reaches(FAR4, 80)
    assert lab.host.reaches(workload.v4, 80), "the host's own workloads are open to it"
    rules = policy("forward", inbound=(to_ports("allow", 81),), outbound=(to_ports("allow", 82),))
    lists = {"forward_inbound": tier("forward"), "forward_outbound": tier("forward")}
    assert lab.apply(rules=(rules,), interfaces=(host_endpoint(**lists),)).is_clean
    assert far.reaches(workload.v4, 81)
    assert workload.reaches(FAR4, 82)
    assert opened(far, workload.v4, 80, 82) == set()
    assert opened(workload, FAR4, 80, 81) == set()
    # what the link's policy allows, the workload's may still deny
    assert lab.apply(workloads=(workload.endpoint(PolicyList(), PolicyList()),)).is_clean
    assert opened(far, workload.v4, 81) == set()
    assert opened(workload, FAR4, 82) == set()


def test_forward_policy_between_two_links(lab: Any) -> None:
    """No workload is concerned, and the kernel's own policy is to drop, as Docker sets it."""
    far, other = lab.outside(), second_neighbour(lab)
    far.run("ip", "route", "add", "203.0.113.0/24", "via", HOST4)
    other.run("ip", "route", "add", "192.0.2.0/24", "via", "203.0.113.1")
    rules = policy("forward", inbound=(to_ports("allow", 81),))
    lab.start(rules=(rules,), interfaces=(host_endpoint(forward_inbound=tier("forward")),))
    assert far.reaches("203.0.113.2", 81)
    assert opened(far, "203.0.113.2", 80) == set()
    assert other.reaches(FAR4, 80), "the other direction has no policy"


def test_untracked_policy(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(**FAILSAFES)
    far = lab.outside()
    rules = policy(
        "early",
        inbound=(to_ports("allow", 80), to_ports("deny", 81)),
        outbound=(from_ports("allow", 80), from_ports("deny", 82)),
    )
    later = policy("later", inbound=(to_ports("allow", 81, 82, 83),))
    lists = {
        "untracked_inbound": tier("early"),
        "untracked_outbound": tier("early"),
        "inbound": tier("later"),
        "outbound": tier("later"),
    }
    assert lab.start(rules=(rules, later), interfaces=(host_endpoint(**lists),)).is_clean
    assert far.reaches(HOST4, 80)
    assert far.reaches(HOST6, 80)
    assert "dport=80 " not in lab.host.run("conntrack", "-L"), "nobody keeps it in mind"
    # 81 is denied before the later policy, 82 has no way back, 84 is nobody's
    assert opened(far, HOST4, 81, 82, 84) == set()
    assert far.reaches(HOST4, 83)
    assert "dport=82 " in lab.host.run("conntrack", "-L"), "what it does not decide is tracked as ever"
    # whatever is denied early, the fail-safe ports and their answers pass
    everything = HostRule(action="deny")
    assert lab.apply(rules=(policy("early", (everything,), (everything,)),)).is_clean
    far.run("ip", "neigh", "flush", "all")
    assert far.reaches(HOST4, 22)
    assert far.reaches(HOST6, 22)
    assert lab.host.reaches(FAR4, 2379)
    assert opened(far, HOST4, 80, 83) == set()


def test_policy_before_translation(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(**FAILSAFES)
    far, workload = lab.outside(), lab.workload()
    # as a service of the host, by somebody else's rules
    lab.host.run("iptables-nft", "-t", "nat", "-N", "SERVICES")
    lab.host.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-j", "SERVICES")
    for port in ("8080", "8081", "22"):
        to = ["-p", "tcp", "--dport", port, "-d", HOST4, "-j", "DNAT", "--to-destination", f"{workload.v4}:80"]
        lab.host.run("iptables-nft", "-t", "nat", "-A", "SERVICES", *to)
    lab.start(workload.endpoint(), interfaces=(host_endpoint(),))
    assert opened(far, HOST4, 8080, 8081) == {8080, 8081}, "it is forwarded: the host's policy does not see it"
    rules = policy("pre", inbound=(to_ports("deny", 8080, 90), to_ports("allow", 91)))
    assert lab.apply(rules=(rules,), interfaces=(host_endpoint(pre_dnat=tier("pre")),)).is_clean
    assert opened(far, HOST4, 8080) == set()
    assert far.reaches(HOST4, 8081), "what it does not decide goes on"
    assert far.reaches(HOST4, 91), "what it allows has passed the host's policy"
    assert opened(far, HOST4, 90, 92) == set()
    assert lab.apply(rules=(policy("pre", (HostRule(action="deny"),)),)).is_clean
    assert far.reaches(HOST4, 22)
    assert opened(far, HOST4, 8081, 91) == set()
    assert workload.reaches(FAR4, 80) is False, "it has no way back from there"
    lab.host.run("ip", "address", "add", "10.65.0.254/32", "dev", "lo")
    assert workload.reaches("10.65.0.254", 80), "a workload's packets do not come in by the endpoint's interface"


def test_the_endpoint_of_all_interfaces(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(**FAILSAFES)
    far, other, workload = lab.outside(), second_neighbour(lab), lab.workload()
    far.run("ip", "route", "add", "10.65.0.0/16", "via", HOST4)
    rules = (policy("all", (to_ports("allow", 80),)), policy("own", (to_ports("allow", 81),)))
    report = lab.start(
        workload.endpoint(),
        rules=rules,
        interfaces=(
            host_endpoint(ANY_INTERFACE, inbound=tier("all"), untracked_inbound=tier("all")),
            host_endpoint("up1", inbound=tier("own")),
        ),
    )
    assert report.is_clean
    assert opened(far, HOST4, 81, 82) == set()
    assert far.reaches(HOST4, 22)
    assert other.reaches("203.0.113.1", 81)
    assert opened(other, "203.0.113.1", 80) == set()
    assert lab.host.reaches("127.0.0.1", 82)
    assert far.reaches(workload.v4, 82)
    lab.host.run("ip", "address", "add", "10.65.0.254/32", "dev", "lo")
    assert workload.reaches("10.65.0.254", 82), "a workload is asked by its own policy alone"
    assert lab.apply(removed_interfaces=("up1",)).is_clean
    assert opened(other, "203.0.113.1", 81) == set()
    assert lab.apply(removed_interfaces=(ANY_INTERFACE,)).is_clean
    assert far.reaches(HOST4, 82)


def test_a_workloads_interface_is_no_host_endpoint(lab: Any) -> None:
    lab.outside()
    workload = lab.workload()
    report = lab.start(workload.endpoint(), interfaces=(host_endpoint(workload.interface),))
    (failure,) = report.failures
    assert "workloads' prefix" in failure.reason
    assert lab.host.reaches(workload.v4, 80)


def test_encapsulated_packets_come_from_hosts_only(lab: Any) -> None:
    far = lab.outside()
    lab.start()
    assert _hears(lab.host, far, 4789)
    for peers, is_heard in (
        (HostPeers((IPAddress("192.0.2.77"),), is_vxlan=True), False),
        (HostPeers((IPAddress("192.0.2.77"), IPAddress(FAR4)), is_vxlan=True), True),
        (HostPeers((IPAddress("192.0.2.77"),), is_ipip=True), True),
    ):
        assert lab.apply(peers=peers).is_clean
        assert _hears(lab.host, far, 4789) is is_heard
        assert _hears(lab.host, far, 4790)


def test_ipip_comes_from_hosts_only(lab: Any) -> None:
    far = lab.outside()
    lab.start()
    for addresses, is_heard in (((), False), ((IPAddress(FAR4),), True)):
        assert lab.apply(peers=HostPeers(addresses, is_ipip=True)).is_clean
        with lab.host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as listener:
            listener.settimeout(2 if is_heard else 0.4)
            with far.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as sender:
                sender.sendto(b"inner packet", (HOST4, 0))
            assert _received(listener) is is_heard


def _hears(host: Any, far: Any, port: int) -> bool:
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((HOST4, port))
        listener.settimeout(0.4)
        with far.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"frame", (HOST4, port))
        return _received(listener)


def _received(listener: socket.socket) -> bool:
    try:
        listener.recv(128)
    except TimeoutError:
        return False
    return True
