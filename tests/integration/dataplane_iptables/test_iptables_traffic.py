"""Policy as packets see it: what nftables keeps, iptables keeps, on both of its backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPNetwork

from calico_core.dataplane.iptables.tools import Tools
from calico_core.errors import ToolFailed
from calico_core.model.hoststate import HostPools
from tests.integration.dataplane_nftables.test_nftables_traffic import (
    P,
    _peer,
    allow,
    inbound,
    is_connected,
    leaving,
    only,
    test_a_workload_cannot_send_into_the_hosts_tunnels,
    test_an_address_that_leaves_the_record_takes_its_connections_and_no_others,
    test_connection_survives_a_policy_change_but_not_the_loss_of_its_address,
    test_connections_that_could_not_be_cut_are_cut_by_the_next_attempt,
    test_icmp,
    test_long_lists_of_ports,
    test_matches,
    test_names_and_leases_may_be_asked_for_by_a_closed_workload,
    test_own_second_address_and_unknown_mac_pass,
    test_profile_opens,
    test_removed_and_inactive_workloads_are_closed,
    test_rule_that_cannot_be_expressed_drops_in_its_place,
    test_set_members_decide,
    test_spoofed_ipv6_source_is_dropped,
    test_spoofed_sources_are_dropped,
    test_tiers_decide_before_profiles,
    test_unknown_interface_is_closed_before_and_after_the_first_batch,
    test_workload_to_host,
    test_workload_without_rules_is_closed_both_ways,
    test_workloads_have_no_ipv6_where_it_is_off,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

__all__ = [
    "leaving",
    "test_a_workload_cannot_send_into_the_hosts_tunnels",
    "test_an_address_that_leaves_the_record_takes_its_connections_and_no_others",
    "test_connection_survives_a_policy_change_but_not_the_loss_of_its_address",
    "test_connections_that_could_not_be_cut_are_cut_by_the_next_attempt",
    "test_icmp",
    "test_long_lists_of_ports",
    "test_matches",
    "test_names_and_leases_may_be_asked_for_by_a_closed_workload",
    "test_own_second_address_and_unknown_mac_pass",
    "test_profile_opens",
    "test_removed_and_inactive_workloads_are_closed",
    "test_rule_that_cannot_be_expressed_drops_in_its_place",
    "test_set_members_decide",
    "test_spoofed_ipv6_source_is_dropped",
    "test_spoofed_sources_are_dropped",
    "test_tiers_decide_before_profiles",
    "test_unknown_interface_is_closed_before_and_after_the_first_batch",
    "test_workload_to_host",
    "test_workload_without_rules_is_closed_both_ways",
    "test_workloads_have_no_ipv6_where_it_is_off",
]


def test_connections_are_cut_though_the_other_family_was_refused_meanwhile(
    lab: Any, leaving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One program writes the rules of IPv4, another those of IPv6: when the second fails, the first has done its."""
    restore = Tools.restore

    def refuse(self: Tools, family: int, script: str) -> None:
        if family == 6:
            raise ToolFailed(("ip6tables-restore",), 4, "no memory")
        restore(self, family, script)

    with monkeypatch.context() as patched:
        patched.setattr(Tools, "restore", refuse)
        report = lab.apply(removed_workloads=(leaving.key,))
    assert [each.subject for each in report.failures] == ["table ip6tables"]
    assert lab.apply().failures == ()
    assert not is_connected(lab, leaving)


def test_masquerade(lab: Any) -> None:
    outside = lab.outside()
    a, b = lab.workload(), lab.workload()
    pool = IPNetwork("10.65.0.0/16")
    lab.start(a.endpoint(), b.endpoint(), pools=HostPools(all=(pool,), masquerade=(pool,)))
    assert _peer(a, outside, "192.0.2.2") == "192.0.2.1"
    assert _peer(a, b, b.v4) == a.v4, "inside the pools nothing is rewritten"
    lab.apply(pools=HostPools(all=(pool,)))
    assert a.is_blocked_from("192.0.2.2", 80), "the neighbour has no way back"
    assert "calico-" not in lab.save("-t", "nat")
    assert "calico-" not in lab.ipset("save")


def test_forty_ports_and_forty_that_are_not(lab: Any) -> None:
    """More than one multiport match takes."""
    a, b = lab.workload(), lab.workload()
    ports = tuple((port, port) for port in range(1000, 1080, 2))
    lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(allow(protocol=6, dst_ports=ports)))
    assert [port for port in (1000, 1040, 1078) if not b.reaches(a.v4, port)] == []
    assert [port for port in (999, 1001, 1080) if not b.is_blocked_from(a.v4, port)] == []
    lab.apply(**inbound(allow(protocol=6, not_dst_ports=ports)))
    assert [port for port in (999, 1001, 1080) if not b.reaches(a.v4, port)] == []
    assert [port for port in (1000, 1040, 1078) if not b.is_blocked_from(a.v4, port)] == []


def test_lists_of_networks(lab: Any) -> None:
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    nets = (IPNetwork("10.65.0.2/32"), IPNetwork("10.99.0.0/16"), IPNetwork("fd65::2/128"), IPNetwork("fd99::/16"))
    everybody = (a.endpoint(only(P)), b.endpoint(), c.endpoint())
    lab.start(*everybody, **inbound(allow(src_nets=nets)))
    assert b.reaches(a.v4, 80)
    assert b.reaches(a.v6, 80)
    assert c.is_blocked_from(a.v4, 80)
    assert c.is_blocked_from(a.v6, 80)
    lab.apply(**inbound(allow(not_src_nets=nets)))
    assert b.is_blocked_from(a.v4, 80)
    assert c.reaches(a.v4, 80)
    assert c.reaches(a.v6, 80)
    lab.apply(**inbound(allow()))
    assert "calico-" not in lab.ipset("save"), "the sets of the lists went with them"


def test_without_ipv6_its_traffic_is_closed(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(is_ipv6_enabled=False)
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    lab.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    assert b.reaches(a.v4, 80)
    assert b.is_blocked_from(a.v6, 80)


def test_many_workloads_each_find_their_own(lab: Any) -> None:
    """More names than one chain of the dispatch holds, some the beginning of others."""
    made = [lab.workload() for _ in range(12)]
    lab.start(
        *(each.endpoint(inbound=only() if number % 2 else only("profile/any")) for number, each in enumerate(made))
    )
    prober = made[0]
    open_ones = [each for number, each in enumerate(made) if number and number % 2 == 0]
    closed_ones = [each for number, each in enumerate(made) if number % 2]
    assert [each.v4 for each in open_ones if not prober.reaches(each.v4, 80)] == []
    assert [each.v4 for each in closed_ones[::2] if not prober.is_blocked_from(each.v4, 80)] == []
