"""What a rule does besides to allow and to drop, and named ports, as packets see it. Both drivers pass all of it."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress

from calico_core.model.hoststate import (
    HostRule,
    HostRules,
    PolicyList,
    PortMember,
    PortSetChange,
    RulesId,
    SetId,
    TierPolicies,
)
from tests.integration.dataplane_nftables.conftest import ALLOWED_S, DENIED_S
from tests.integration.dataplane_nftables.test_nftables_traffic import P, allow, inbound, only

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

WEB = SetId("npt-00000000000000aa")
#: What a TCP client makes of "administratively prohibited", and of no listener behind an open way.
PROHIBITED = {errno.EHOSTUNREACH, errno.EACCES, errno.ECONNREFUSED, errno.ENETUNREACH}


def answer(client: Any, address: str, port: int, kind: int = socket.SOCK_STREAM) -> int:
    """The error a connection or datagram is answered with; 0: none in the time."""
    family = socket.AF_INET if IPAddress(address).version == 4 else socket.AF_INET6
    with client.socket(family, kind) as probe:
        probe.settimeout(ALLOWED_S)
        try:
            probe.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                probe.send(b"probe")
                probe.recv(64)
        except TimeoutError:
            return 0
        except OSError as error:
            return error.errno or 0
    raise AssertionError("somebody answered")


def port_of(workload: Any, port: int, protocol: int = 6) -> frozenset[PortMember]:
    return frozenset(
        PortMember(each.version, int(each), protocol, port) for each in (IPAddress(workload.v4), IPAddress(workload.v6))
    )


def test_reject_answers(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(HostRule(action="reject")))
    for address in (a.v4, a.v6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            assert answer(b, address, 80, kind) in PROHIBITED - ({errno.ECONNREFUSED} if kind == 1 else set())


def test_every_denial_answers_when_it_is_asked_to(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(deny_action="REJECT")
    a, b = lab.workload(), lab.workload()
    deny = HostRule(action="deny", protocol=6, dst_ports=((81, 81),))
    lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(deny))
    assert answer(b, a.v4, 81) in PROHIBITED - {errno.ECONNREFUSED}, "by a rule"
    assert answer(b, a.v4, 80) in PROHIBITED - {errno.ECONNREFUSED}, "by the end of the list"
    assert answer(b, a.v6, 80) in PROHIBITED - {errno.ECONNREFUSED}


@pytest.mark.parametrize(
    ("override", "is_open"),
    [("DROP", False), ("LOG-and-DROP", False), ("ACCEPT", True), ("LOG-and-ACCEPT", True)],
)
def test_drop_override(make_lab: Callable[..., Any], override: str, is_open: bool) -> None:
    lab = make_lab(drop_override=override)
    a, b = lab.workload(), lab.workload()
    deny = HostRule(action="deny", protocol=6, dst_ports=((81, 81),))
    report = lab.start(a.endpoint(only(P)), b.endpoint(PolicyList(), PolicyList()), **inbound(deny))
    assert report.is_clean
    for port in (80, 81):
        assert b.is_blocked_from(a.v4, port) is not is_open, port
    assert lab.dataplane.resync().healed == ()
    lab.restart()
    again = lab.start(a.endpoint(only(P)), b.endpoint(PolicyList(), PolicyList()), **inbound(deny))
    assert again.changes == 0, "comments are read back"


@pytest.mark.parametrize("unit", ["second", "minute", "hour", "day"])
def test_log_with_a_limit_decides_nothing(make_lab: Callable[..., Any], unit: str) -> None:
    lab = make_lab(log_rate=1, log_burst=1 if unit == "second" else 9, log_unit=unit)
    a, b = lab.workload(), lab.workload()
    report = lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(HostRule(action="log"), allow(log_prefix="seen")))
    assert report.is_clean
    assert all(b.reaches(a.v4, port) for port in range(80, 85)), "beyond the limit nothing is logged, all is allowed"


def test_other_mark_bits(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(mark_mask=0x00600000)
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(allow(protocol=6, dst_ports=((80, 80),))))
    assert b.reaches(a.v4, 80)
    assert b.is_blocked_from(a.v4, 81)


def test_named_ports(lab: Any) -> None:
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    named = PortSetChange(id=WEB, is_new=True, added=port_of(a, 8080))
    rule = allow(protocol=6, dst_ports=((80, 80),), dst_port_sets=(WEB,))
    report = lab.start(a.endpoint(only(P)), b.endpoint(), c.endpoint(only(P)), port_sets=(named,), **inbound(rule))
    assert report.is_clean
    assert b.reaches(a.v4, 80), "one of the ranges"
    assert b.reaches(a.v4, 8080)
    assert b.reaches(a.v6, 8080)
    assert b.is_blocked_from(a.v4, 81)
    assert b.is_blocked_from(c.v4, 8080), "the name is another port here, or none"
    changes = lab.apply(port_sets=(PortSetChange(id=WEB, added=port_of(c, 9090), removed=port_of(a, 8080)),))
    assert changes.is_clean
    assert b.is_blocked_from(a.v4, 8080)
    assert b.reaches(c.v4, 9090)
    assert b.reaches(c.v6, 9090)


def test_named_ports_of_a_protocol_and_of_the_source(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    members = port_of(a, 53, protocol=17) | port_of(b, 7000)
    named = PortSetChange(id=WEB, is_new=True, added=members)
    lab.start(a.endpoint(only(P)), b.endpoint(), port_sets=(named,), **inbound(allow(dst_port_sets=(WEB,))))
    assert b.is_blocked_from(a.v4, 53), "TCP has no such name"
    assert answer(b, a.v4, 53, socket.SOCK_DGRAM) == errno.ECONNREFUSED, "it came through to where nobody listens"
    lab.apply(**inbound(allow(protocol=6, src_port_sets=(WEB,))))
    assert b.reaches(a.v4, 80, source=(b.v4, 7000))
    assert b.is_blocked_from(a.v4, 80)


def test_ports_that_are_not_of_a_name(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    named = PortSetChange(id=WEB, is_new=True, added=port_of(a, 8080))
    rule = allow(protocol=6, not_dst_ports=((80, 80),), not_dst_port_sets=(WEB,))
    lab.start(a.endpoint(only(P)), b.endpoint(), port_sets=(named,), **inbound(rule))
    assert b.is_blocked_from(a.v4, 80)
    assert b.is_blocked_from(a.v4, 8080)
    assert b.is_blocked_from(a.v6, 8080)
    assert b.reaches(a.v4, 81)
    assert b.reaches(a.v6, 81)


def test_set_of_named_ports_goes_with_its_rule(lab: Any) -> None:
    a = lab.workload()
    named = PortSetChange(id=WEB, is_new=True, added=port_of(a, 8080))
    lab.start(a.endpoint(only(P)), port_sets=(named,), **inbound(allow(dst_port_sets=(WEB,))))
    assert lab.dataplane.resync().healed == ()
    report = lab.apply(removed_port_sets=(WEB,), **inbound(allow()))
    assert report.is_clean
    assert lab.dataplane.resync().healed == ()
    lab.restart()
    report = lab.start(a.endpoint(only(P)), **inbound(allow()))
    assert (report.failures, report.changes) == ((), 0)


def test_many_rules_with_ports_decide_at_the_ends_of_their_span_and_nothing_beyond(lab: Any) -> None:
    """Such rules have a guard before them on nftables, which must not be seen: neither in verdicts nor in counts."""
    a, b = lab.workload(), lab.workload()
    spanned, rest = RulesId("policy/t/spanned"), RulesId("policy/t/rest")
    rules = (
        HostRule(action="log", protocol=6, dst_ports=((84, 84), (70, 72))),
        allow(protocol=6, dst_ports=((71, 72),)),
        HostRule(action="reject", protocol=17, dst_ports=((80, 90), (70, 70))),
        HostRule(action="deny", protocol=6, not_dst_ports=((81, 81),), dst_ports=((80, 84),)),
        HostRule(action="deny", protocol=6, ip_version=6, dst_ports=((95, 95),)),
    )
    tiers = (TierPolicies(tier="t", policies=(spanned, rest)),)
    report = lab.start(
        a.endpoint(PolicyList(tiers=tiers)),
        b.endpoint(),
        rules=(
            HostRules(id=spanned, inbound=rules),
            HostRules(id=rest, inbound=(HostRule(action="deny", protocol=6, dst_ports=((70, 72),)), allow())),
        ),
    )
    assert report.is_clean
    reached = {port: b.reaches(a.v4, port, within_s=DENIED_S) for port in (69, 70, 71, 72, 73, 80, 81, 84, 85, 95, 96)}
    assert reached == {
        69: True, 70: False, 71: True, 72: True, 73: True, 80: False, 81: True, 84: False, 85: True, 95: True, 96: True,
    }  # fmt: skip
    assert b.is_blocked_from(a.v6, 95)
    assert b.reaches(a.v6, 96)
    for port, is_refused in ((69, False), (70, True), (90, True), (91, False)):
        assert (answer(b, a.v4, port, socket.SOCK_DGRAM) != errno.ECONNREFUSED) is is_refused, port
    assert b.pings(a.v4), "what has no ports is none of theirs"
    counts = {each.rule: each.packets for each in lab.dataplane.rule_counts() if each.rules == spanned}
    assert counts[1] == 2, "the connections to 71 and 72"
    assert set(counts) <= set(range(len(rules)))
    assert counts[4] >= 1
    assert lab.dataplane.resync().healed == ()
