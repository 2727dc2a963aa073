"""Denied packets and counters: what nftables tells, iptables tells."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_denied import (
    lab,
    listener,
    test_a_flood_is_told_in_part,
    test_a_group_that_somebody_else_reads_is_refused,
    test_a_restarted_node_knows_the_rules_it_finds,
    test_a_rule_that_denies_is_named,
    test_connections_are_told_and_cut,
    test_connections_without_ports,
    test_ends_of_tiers_and_profiles_are_named,
    test_host_endpoints_denials_are_named,
    test_rules_are_counted,
    test_several_listen_and_each_stops_for_itself,
    test_what_no_policy_decides_is_named_too,
    test_without_a_group_nothing_is_told,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "lab",
    "listener",
    "test_a_flood_is_told_in_part",
    "test_a_group_that_somebody_else_reads_is_refused",
    "test_a_restarted_node_knows_the_rules_it_finds",
    "test_a_rule_that_denies_is_named",
    "test_connections_are_told_and_cut",
    "test_connections_without_ports",
    "test_ends_of_tiers_and_profiles_are_named",
    "test_host_endpoints_denials_are_named",
    "test_rules_are_counted",
    "test_several_listen_and_each_stops_for_itself",
    "test_what_no_policy_decides_is_named_too",
    "test_without_a_group_nothing_is_told",
]
