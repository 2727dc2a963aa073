"""Host endpoints as packets see them, beyond what both drivers are asked: policy before connection tracking and
before translation in detail, and what stands in the kernel for it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPNetwork

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
from tests.integration.dataplane_nftables.conftest import patience_s

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


def test_profiles_come_after_tiers(lab: Any) -> None:
    far = lab.outside()
    lists = PolicyList(profiles=(RulesId("profile/any"),))
    lab.start(interfaces=(host_endpoint(inbound=lists, outbound=lists),))
    assert far.reaches(HOST4, 80)
    assert lab.host.reaches(FAR4, 80)


def test_an_emptied_list_of_fail_safes_cuts_what_they_let_pass(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(**FAILSAFES)
    far = lab.outside()
    lab.start(interfaces=(host_endpoint(),))
    assert far.reaches(HOST4, 22)
    assert lab.host.reaches(FAR4, 2379)
    lab.options = msgspec.structs.replace(lab.options, failsafe_inbound=(), failsafe_outbound=())
    lab.restart()
    assert lab.start(interfaces=(host_endpoint(),)).is_clean
    for address in (HOST4, HOST6):
        assert far.is_blocked_from(address, 22)
    for address in (FAR4, FAR6):
        assert lab.host.is_blocked_from(address, 2379)


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


def test_what_came_through_early_is_not_asked_again_where_it_came_in(lab: Any) -> None:
    far, workload = lab.outside(), lab.workload()
    far.run("ip", "route", "add", "10.65.0.0/16", "via", HOST4)
    datagrams = HostRule(action="allow", protocol=17, dst_ports=((82, 82),))
    pre, early = policy("pre", (to_ports("allow", 81),)), policy("early", (datagrams,))
    closed = policy("closed", (to_ports("allow", 80),))
    lists = {"forward_inbound": tier("closed"), "pre_dnat": tier("pre"), "untracked_inbound": tier("early")}
    lab.start(workload.endpoint(), rules=(pre, early, closed), interfaces=(host_endpoint(**lists),))
    assert opened(far, workload.v4, 80, 81, 83) == {80, 81}
    assert opened(far, HOST4, 80, 81) == {81}
    # what is not tracked has no way back of its own, but it arrives
    assert hears(workload, far, 82)
    assert not hears(workload, far, 83, is_expected=False)
    # the workload's own policy is asked all the same
    assert lab.apply(workloads=(workload.endpoint(PolicyList(), PolicyList()),)).is_clean
    assert opened(far, workload.v4, 80, 81) == set()
    assert not hears(workload, far, 82, is_expected=False)


def hears(workload: Any, sender: Any, port: int, *, is_expected: bool = True) -> bool:
    with (
        workload.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending,
    ):
        listener.bind((workload.v4, port))
        listener.settimeout(patience_s(is_allowed=is_expected))
        sending.sendto(b"datagram", (workload.v4, port))
        try:
            return listener.recv(64) == b"datagram"
        except TimeoutError:
            return False


def test_forward_policy_that_passes_on_leaves_the_rest_open(lab: Any) -> None:
    far, workload = lab.outside(), lab.workload()
    far.run("ip", "route", "add", "10.65.0.0/16", "via", HOST4)
    rules = policy("forward", (to_ports("deny", 81), to_ports("pass", 82)))
    ids = (RulesId("policy/default/forward"),)
    loose = PolicyList(tiers=(TierPolicies(tier="default", policies=ids, default_action="pass"),))
    lab.start(workload.endpoint(), rules=(rules,), interfaces=(host_endpoint(forward_inbound=loose),))
    assert opened(far, workload.v4, 80, 81, 82) == {80, 82}


def test_nothing_of_host_endpoints_stands_when_there_are_none(lab: Any) -> None:
    lab.outside()
    lab.start(rules=(policy("all", (to_ports("allow", 80),)),))
    before = [_standing(lab, family) for family in (4, 6)]
    lists = {
        field: tier("all") for field in HostInterface.__struct_fields__ if field not in ("key", "interface", "spares")
    }
    assert lab.apply(interfaces=(host_endpoint(**lists), host_endpoint(ANY_INTERFACE, **lists))).is_clean
    assert "calico-OUTPUT" in lab.save("-t", "filter")
    assert "calico-PREROUTING" in lab.save("-t", "mangle")
    assert lab.dataplane.differences() == []
    assert lab.apply(removed_interfaces=("up0", ANY_INTERFACE)).is_clean
    assert [_standing(lab, family) for family in (4, 6)] == before


def _standing(lab: Any, family: int) -> list[str]:
    """Our chains and what leads to them, by table."""
    found = []
    for table in ("filter", "mangle", "raw", "nat"):
        lines = lab.save("-t", table, family=family).splitlines()
        found += sorted(f"{table} {line.partition(' [')[0]}" for line in lines if "calico-" in line)
    return found
