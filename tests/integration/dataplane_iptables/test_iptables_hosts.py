"""Host endpoints as packets see them: what nftables keeps, iptables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_hosts import (
    host,
    test_an_excluded_interface_is_the_business_of_an_endpoint_of_its_own_alone,
    test_before_destinations_are_translated,
    test_connections_live_and_strangers_packets_do_not,
    test_endpoint_without_its_rules_is_closed_and_named,
    test_endpoint_without_policy_lets_fail_safes_pass_alone,
    test_every_interface_but_those_with_one_of_their_own,
    test_forwarding_as_the_lists_say,
    test_forwarding_between_interfaces_of_the_host,
    test_interface_that_is_a_workloads_is_named,
    test_policy_of_an_endpoint,
    test_refusals_at_every_hook,
    test_restart_finds_all_of_it,
    test_untracked,
    test_what_is_untracked_without_policy_is_not_let_through,
    test_whatever_a_name_holds_that_the_model_takes,
    test_where_ipv6_is_off_the_hosts_own_passes_fail_safes_alone,
    test_workloads_and_their_host_are_not_concerned,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "host",
    "test_an_excluded_interface_is_the_business_of_an_endpoint_of_its_own_alone",
    "test_before_destinations_are_translated",
    "test_connections_live_and_strangers_packets_do_not",
    "test_endpoint_without_its_rules_is_closed_and_named",
    "test_endpoint_without_policy_lets_fail_safes_pass_alone",
    "test_every_interface_but_those_with_one_of_their_own",
    "test_forwarding_as_the_lists_say",
    "test_forwarding_between_interfaces_of_the_host",
    "test_interface_that_is_a_workloads_is_named",
    "test_policy_of_an_endpoint",
    "test_refusals_at_every_hook",
    "test_restart_finds_all_of_it",
    "test_untracked",
    "test_what_is_untracked_without_policy_is_not_let_through",
    "test_whatever_a_name_holds_that_the_model_takes",
    "test_where_ipv6_is_off_the_hosts_own_passes_fail_safes_alone",
    "test_workloads_and_their_host_are_not_concerned",
]
