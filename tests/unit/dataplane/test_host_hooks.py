"""What both drivers go by at an interface of the host."""

from __future__ import annotations

from typing import Any

import pytest

from calico_core.dataplane.denials import Denial, Marks, denial, marks
from calico_core.dataplane.host_hooks import Earlier, earlier, is_asked
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.hoststate import HostInterface, PolicyList, RulesId, TierPolicies
from calico_core.model.keys import HostEndpointKey

LIST = PolicyList(tiers=(TierPolicies(tier="t", policies=(RulesId("policy/t/p"),)),))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("untracked_inbound", Earlier()),
        ("pre_dnat", Earlier(is_untracked=True)),
        ("inbound", Earlier(is_untracked=True, is_pre_dnat=True)),
        ("forward_inbound", Earlier(is_untracked=True, is_pre_dnat=True)),
        ("outbound", Earlier(is_untracked=True)),
        ("forward_outbound", Earlier()),
    ],
)
def test_what_was_let_in_is_not_asked_again_by_the_same_interface(place: Any, expected: Earlier) -> None:
    lists = {"untracked_inbound": LIST, "untracked_outbound": LIST, "pre_dnat": LIST}
    key = HostEndpointKey("h", "e")
    assert earlier(place, HostInterface(key=key, interface="eth0", **lists)) == expected
    assert earlier(place, HostInterface(key=key, interface="eth0")) == Earlier()


def test_the_host_itself_is_closed_without_policy_and_nothing_else_is() -> None:
    assert is_asked("inbound", PolicyList())
    assert is_asked("outbound", PolicyList())
    assert not is_asked("forward_inbound", PolicyList(profiles=(RulesId("profile/p"),)))
    assert is_asked("pre_dnat", LIST)


@pytest.mark.parametrize(
    ("options", "is_reject", "expected"),
    [
        ({}, False, Denial(is_logged=False, is_told=False, verdict="drop")),
        ({}, True, Denial(is_logged=False, is_told=False, verdict="reject")),
        ({"deny_action": "REJECT", "denied_group": 7}, False, Denial(is_logged=False, is_told=True, verdict="reject")),
        ({"drop_override": "LOG-and-DROP"}, False, Denial(is_logged=True, is_told=False, verdict="drop")),
        (
            {"drop_override": "LOG-and-ACCEPT", "denied_group": 7},
            True,
            Denial(is_logged=True, is_told=False, verdict="accept"),
        ),
    ],
)
def test_what_a_denial_does(options: dict[str, Any], is_reject: bool, expected: Denial) -> None:
    assert denial(DataplaneOptions(**options), is_reject=is_reject) == expected


def test_marks_are_the_lowest_bits_of_the_host_s_mask() -> None:
    assert marks(0xFF000000) == Marks(0x01000000, 0x02000000)
    assert marks(0b10100) == Marks(0b100, 0b10000)
