"""What an interface of the host does with a packet that no policy closes it to."""

from __future__ import annotations

import pytest
from netaddr import IPAddress

from calico_core.model.hoststate import HostInterface, HostState, PolicyList, TierPolicies
from calico_core.model.keys import HostEndpointKey
from calico_core.policy.explain import Direction, Packet
from calico_core.policy.explain_host import explain_interface

CLOSED = PolicyList(tiers=(TierPolicies(tier="t", policies=()),))
UPLINK = HostInterface(
    key=HostEndpointKey("h", "e"), interface="eth0", untracked_inbound=CLOSED, pre_dnat=CLOSED,
    forward_inbound=CLOSED, forward_outbound=CLOSED,
)  # fmt: skip
BOTH: tuple[Direction, ...] = ("inbound", "outbound")


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize(("kind", "is_open"), [(133, True), (134, True), (135, True), (136, True), (137, False)])
def test_neighbour_discovery_is_open_on_the_link_and_nowhere_beyond(
    direction: Direction, kind: int, is_open: bool
) -> None:
    """Felix specification 6.11. No router forwards it, so whoever would have it forwarded asks policy."""
    packet = Packet(src=IPAddress("fd00::1"), dst=IPAddress("fd00::2"), protocol=58, icmp=(kind, 0))
    here = explain_interface(HostState(), UPLINK, direction, packet, is_forwarded=False)
    assert here[-1].steps[-1].outcome == ("allow" if is_open else "deny")
    assert here[-1].steps[-1].reason.startswith("neighbour discovery") is is_open
    beyond = explain_interface(HostState(), UPLINK, direction, packet, is_forwarded=True)
    assert beyond[-1].steps[-1].outcome == "deny"


@pytest.mark.parametrize("direction", BOTH)
def test_without_policy_of_a_family_forwarding_is_closed_only_where_it_is_under_policy(direction: Direction) -> None:
    packet = Packet(src=IPAddress("fd00::1"), dst=IPAddress("fd00::2"), protocol=6, src_port=9, dst_port=22)
    failsafe = ((6, 22, None),)

    def ask(interface: HostInterface, *, is_forwarded: bool) -> list[tuple[str, str, str]]:
        found = explain_interface(
            HostState(), interface, direction, packet, is_forwarded=is_forwarded, failsafe=failsafe, why_closed="off"
        )
        return [(step.hook, step.outcome, step.reason.partition(":")[0]) for each in found for step in each.steps]

    assert ask(UPLINK, is_forwarded=False) == [("normal", "allow", "a fail-safe port")]
    assert ask(UPLINK, is_forwarded=True) == [("forward", "deny", "off")]
    unfiltered = HostInterface(key=UPLINK.key, interface="eth0", untracked_inbound=CLOSED, pre_dnat=CLOSED)
    assert ask(unfiltered, is_forwarded=True) == []
