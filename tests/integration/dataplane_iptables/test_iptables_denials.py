"""What becomes of a packet that is denied, by whatever denies it; other bits of the mark; counters."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress

from calico_core.errors import InvalidRequest
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
