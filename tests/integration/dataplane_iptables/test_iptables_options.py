"""Options of connection tracking and of routes: what nftables keeps, iptables keeps; and what becomes of what policy
allows, which has a meaning here alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.dataplane_iptables.test_iptables_early import host_endpoint, opened, policy, tier, to_ports
from tests.integration.dataplane_nftables.test_nftables_options import (
    test_an_address_the_host_has_not_is_named,
    test_the_host_talks_to_workloads_from_the_address_that_is_given,
    test_what_belongs_to_no_connection_is_dropped_or_judged,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

__all__ = [
    "test_an_address_the_host_has_not_is_named",
    "test_the_host_talks_to_workloads_from_the_address_that_is_given",
    "test_what_belongs_to_no_connection_is_dropped_or_judged",
]

HOST = "192.0.2.1"


@pytest.mark.parametrize("action", ["ACCEPT", "RETURN"])
def test_others_have_a_say_in_what_policy_allows_if_they_are_let(make_lab: Callable[..., Any], action: str) -> None:
    lab = make_lab(filter_allow=action)
    far = lab.outside()
    a, b = lab.workload(), lab.workload()
    rules = policy("h", inbound=(to_ports("allow", 80, 81),), outbound=(to_ports("allow", 80, 81),))
    endpoints = (host_endpoint(inbound=tier("h"), outbound=tier("h")),)
    assert lab.start(a.endpoint(), b.endpoint(), rules=(rules,), interfaces=endpoints).is_clean
    for base in ("FORWARD", "INPUT"):
        lab.iptables("-A", base, "-p", "tcp", "--dport", "81", "-j", "DROP")
    later = {81} if action == "ACCEPT" else set()
    assert opened(b, a.v4, 80, 81) == {80} | later
    assert opened(far, HOST, 80, 81, 82) == {80} | later, "what policy denies stays denied"
    assert lab.dataplane.resync().healed == ()


@pytest.mark.parametrize("action", ["ACCEPT", "RETURN"])
def test_others_have_a_say_in_what_is_allowed_before_translation(make_lab: Callable[..., Any], action: str) -> None:
    lab = make_lab(mangle_allow=action)
    far = lab.outside()
    early = policy("early", inbound=(to_ports("allow", 80, 81), to_ports("deny", 82)))
    assert lab.start(rules=(early,), interfaces=(host_endpoint(pre_dnat=tier("early")),)).is_clean
    lab.iptables("-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "--dport", "81", "-j", "DROP")
    # what it allows is not asked again: the endpoint has no other policy
    assert opened(far, HOST, 80, 81, 82) == ({80, 81} if action == "ACCEPT" else {80})
