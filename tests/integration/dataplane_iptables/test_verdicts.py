"""What becomes of a packet that a rule decides: answers, overrides, ports by name, floating addresses, counters.

Written for any driver: ``lab`` is the fixture of the folder that collects the cases.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPAddress

from calico_core.errors import InvalidRequest
from calico_core.model.hoststate import (
    HostNat,
    HostRule,
    HostRules,
    PolicyList,
    PortMember,
    PortSetChange,
    RulesId,
    SetId,
    TierPolicies,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

P, FIRST = RulesId("profile/p"), RulesId("policy/default/first")
WEB = SetId("npt-00000000000000aa")
ALLOW = HostRule(action="allow")
ONLY_P = PolicyList(profiles=(P,))
TCP, UDP = 6, 17


def inbound(*rules: HostRule) -> dict[str, Any]:
    """Keyword arguments for a profile with these rules towards the workload."""
    return {"rules": (HostRules(id=P, inbound=rules, outbound=(ALLOW,)),)}


def port(number: int, action: str = "allow", **more: Any) -> HostRule:
    return HostRule(action=action, protocol=TCP, dst_ports=((number, number),), **more)  # type: ignore[arg-type]


def refusal(client: Any, address: str, number: int) -> int | None:
    """The error a connection meets before its time is up."""
    family = socket.AF_INET if IPAddress(address).version == 4 else socket.AF_INET6
    with client.socket(family, socket.SOCK_STREAM) as connecting:
        connecting.settimeout(2)
        try:
            connecting.connect((address, number))
        except OSError as error:
            return error.errno
    return None


def named(*members: tuple[str, int, int]) -> frozenset[PortMember]:
    found = ((IPAddress(address), protocol, number) for address, protocol, number in members)
    return frozenset(PortMember(address.version, int(address), protocol, number) for address, protocol, number in found)


def test_a_rejection_is_an_answer(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(ONLY_P), b.endpoint(), **inbound(port(81, "reject"), port(82, "deny"), port(80)))
    for address, answer in ((a.v4, errno.EHOSTUNREACH), (a.v6, errno.EACCES)):
        assert refusal(b, address, 80) == errno.ECONNREFUSED, "by the workload"
        assert refusal(b, address, 81) == answer
        assert b.is_blocked_from(address, 82)
        assert refusal(b, address, 82) is None or refusal(b, address, 82) != answer


@pytest.mark.parametrize(
    ("options", "is_open", "is_answered"),
    [
        ({"deny_action": "DROP"}, False, False),
        ({"deny_action": "REJECT"}, False, True),
        ({"drop_override": "LOG-and-DROP"}, False, False),
        ({"drop_override": "ACCEPT"}, True, True),
        ({"drop_override": "LOG-and-ACCEPT"}, True, True),
        ({"drop_override": "ACCEPT", "deny_action": "REJECT"}, True, True),
        ({"drop_override": "LOG-and-DROP", "deny_action": "REJECT", "log_rate": 5}, False, True),
    ],
    ids=str,
)
def test_what_every_denial_does(
    make_lab: Callable[..., Any], options: dict[str, Any], is_open: bool, is_answered: bool
) -> None:
    lab = make_lab(**options)
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    tiers = PolicyList(tiers=(TierPolicies(tier="default", policies=(FIRST,)),))
    rules = (HostRules(id=P, inbound=(port(80, "deny"), port(81))), HostRules(id=FIRST, inbound=(port(81),)))
    report = lab.start(a.endpoint(ONLY_P), b.endpoint(), c.endpoint(tiers), rules=rules)
    assert report.is_clean
    assert b.reaches(a.v4, 81)
    assert b.reaches(c.v4, 81)
    # by a rule, by the end of the profiles, by the end of a tier
    for address, number in ((a.v4, 80), (a.v4, 82), (a.v6, 82), (c.v4, 82)):
        got = refusal(b, address, number)
        assert (got == errno.ECONNREFUSED) is is_open, (address, number)
        assert (got in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES)) is is_answered, (address, number)


def test_other_bits_of_the_mark(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(mark_mask=0x00300000)
    a, b = lab.workload(), lab.workload()
    lab.host.run("iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-xmark", "0x3000000/0xf000000")
    tiers = PolicyList(tiers=(TierPolicies(tier="default", policies=(FIRST,)),), profiles=(P,))
    first = HostRules(id=FIRST, inbound=(port(80, "pass"), port(81)))
    lab.start(a.endpoint(tiers), b.endpoint(), rules=(first, HostRules(id=P, inbound=(port(80),))))
    assert b.reaches(a.v4, 80)
    assert b.reaches(a.v4, 81)
    assert b.is_blocked_from(a.v4, 82)
    with pytest.raises(InvalidRequest, match="mark_mask"):
        make_lab(mark_mask=0x10)


def test_ports_by_name(lab: Any) -> None:
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    web = PortSetChange(id=WEB, is_new=True, added=named((a.v4, TCP, 8080), (a.v6, TCP, 8080), (c.v4, TCP, 9090)))
    everybody = (a.endpoint(ONLY_P), b.endpoint(), c.endpoint(ONLY_P))
    report = lab.start(*everybody, port_sets=(web,), **inbound(HostRule(action="allow", dst_port_sets=(WEB,))))
    assert report.is_clean
    assert b.reaches(a.v4, 8080)
    assert b.reaches(a.v6, 8080)
    assert b.reaches(c.v4, 9090)
    assert b.is_blocked_from(a.v4, 9090), "another's port of the name"
    assert b.is_blocked_from(c.v4, 8080)
    assert b.is_blocked_from(c.v6, 9090)
    # one more member, and one less
    change = PortSetChange(id=WEB, added=named((c.v6, TCP, 9090)), removed=named((a.v4, TCP, 8080)))
    report = lab.apply(port_sets=(change,))
    assert (report.changes, report.failures) == (2, ())
    assert b.reaches(c.v6, 9090)
    assert b.is_blocked_from(a.v4, 8080)
    # a range beside the name: either is enough
    lab.apply(**inbound(HostRule(action="allow", protocol=TCP, dst_ports=((80, 81),), dst_port_sets=(WEB,))))
    assert b.reaches(c.v4, 9090)
    assert b.reaches(c.v4, 81)
    assert b.is_blocked_from(c.v4, 82)
    # negated: none of either
    lab.apply(**inbound(HostRule(action="allow", protocol=TCP, not_dst_ports=((80, 81),), not_dst_port_sets=(WEB,))))
    assert b.reaches(c.v4, 82)
    assert b.is_blocked_from(c.v4, 9090)
    assert b.is_blocked_from(c.v4, 81)
    # by where it comes from
    lab.apply(
        port_sets=(PortSetChange(id=WEB, added=named((b.v4, TCP, 5000))),),
        **inbound(HostRule(action="allow", src_port_sets=(WEB,))),
    )
    assert b.reaches(c.v4, 80, source=(b.v4, 5000))
    assert b.is_blocked_from(c.v4, 80)
    assert lab.apply(**inbound(ALLOW)).is_clean
    assert lab.apply(removed_port_sets=(WEB,)).is_clean
    assert lab.dataplane.resync().healed == ()


def test_floating_addresses(lab: Any) -> None:
    far = lab.outside()
    a, b = lab.workload(), lab.workload()
    for network in ("10.65.0.0/16", "198.51.100.0/24"):
        far.run("ip", "route", "add", network, "via", "192.0.2.1")
    lab.host.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2")
    floating = (
        HostNat(IPAddress(a.v4), IPAddress("198.51.100.7")),
        HostNat(IPAddress(a.v4), IPAddress("198.51.100.5")),
    )
    moving = msgspec.structs.replace(a.endpoint(), nats=floating)
    assert lab.start(moving, b.endpoint()).is_clean
    with a.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((a.v4, 8080))
        server.listen()
        server.settimeout(2)
        # from outside, from a neighbour, from the host, and from itself, who sees it come from there
        for client, seen in ((far, "192.0.2.2"), (b, b.v4), (lab.host, "192.0.2.1"), (a, "198.51.100.5")):
            for external in ("198.51.100.5", "198.51.100.7"):
                assert _seen(client, server, external) == seen, external
    assert lab.apply(workloads=(msgspec.structs.replace(moving, nats=floating[:1]),)).is_clean
    assert far.is_blocked_from("198.51.100.5", 8080)
    assert far.reaches("198.51.100.7", 8080)
    # policy is asked with the address it knows
    assert lab.apply(workloads=(msgspec.structs.replace(moving, inbound=PolicyList()),)).is_clean
    assert far.is_blocked_from("198.51.100.7", 8080)
    assert lab.apply(workloads=(a.endpoint(),)).is_clean
    assert far.is_blocked_from("198.51.100.7", 8080)
    assert lab.dataplane.resync().healed == ()


def test_a_floating_address_that_two_want_is_the_first_ones(lab: Any) -> None:
    far = lab.outside()
    a, b = lab.workload(), lab.workload()
    for network in ("10.65.0.0/16", "198.51.100.0/24"):
        far.run("ip", "route", "add", network, "via", "192.0.2.1")
    external = IPAddress("198.51.100.5")
    both = [msgspec.structs.replace(each.endpoint(), nats=(HostNat(IPAddress(each.v4), external),)) for each in (a, b)]
    lab.start(*reversed(both))
    with a.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((a.v4, 8080))
        server.listen()
        server.settimeout(2)
        assert _seen(far, server, str(external)) == "192.0.2.2"
    assert lab.apply(removed_workloads=(a.key,)).is_clean
    with b.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((b.v4, 8080))
        server.listen()
        server.settimeout(2)
        assert _seen(far, server, str(external)) == "192.0.2.2"


def test_the_metadata_address(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(metadata=(IPAddress("192.0.2.1"), 8775), endpoint_to_host="DROP")
    lab.outside()
    a = lab.workload()
    lab.start(a.endpoint())
    with lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("192.0.2.1", 8775))
        server.listen()
        server.settimeout(2)
        assert _seen(a, server, "169.254.169.254", 80) == a.v4
    assert a.is_blocked_from("192.0.2.1", 80), "nothing else of the host"
    with pytest.raises(InvalidRequest, match="metadata"):
        make_lab(metadata=(IPAddress("fd00::1"), 8775))


def test_rules_count_what_they_match(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    web = PortSetChange(id=WEB, is_new=True, added=named((a.v4, TCP, 80), (a.v6, TCP, 80)))
    rules = (
        HostRule(action="log", protocol=TCP, dst_ports=((82, 82),), log_prefix="seen"),
        HostRule(action="deny", protocol=TCP, dst_ports=((82, 82),)),
        # by range and by name at once
        HostRule(action="allow", protocol=TCP, dst_ports=((80, 81),), dst_port_sets=(WEB,)),
    )
    lab.start(a.endpoint(ONLY_P), b.endpoint(), port_sets=(web,), **inbound(*rules))
    assert counts(lab) == {0: 0, 1: 0, 2: 0}
    for address, number in ((a.v4, 80), (a.v4, 81), (a.v6, 80)):
        assert b.reaches(address, number)
    assert b.is_blocked_from(a.v4, 82)
    got = counts(lab)
    assert got[2] == 3, "one for each connection, of either family"
    assert got[1] == got[0] >= 1
    outbound = [each for each in lab.dataplane.rule_counts() if (each.rules, each.direction) == (P, "outbound")]
    assert [each.packets for each in outbound] == [0]
    assert all(each.bytes >= 40 * each.packets for each in lab.dataplane.rule_counts())


def counts(lab: Any) -> dict[int, int]:
    found = lab.dataplane.rule_counts()
    return {each.rule: each.packets for each in found if (each.rules, each.direction) == (P, "inbound")}


def _seen(client: Any, server: socket.socket, address: str, number: int = 8080) -> str:
    """From where the server sees the client come."""
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as connecting:
        connecting.settimeout(2)
        connecting.connect((address, number))
        accepted, peer = server.accept()
        accepted.close()
        return str(peer[0])
