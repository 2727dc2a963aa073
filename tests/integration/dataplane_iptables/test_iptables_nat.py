"""Translation and tunnels as packets see them: what nftables keeps, iptables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_nat import (
    host,
    test_encapsulated_packets_come_from_hosts_only,
    test_floating_address_for_an_address_it_has_not_is_named,
    test_floating_address_leads_to_the_workload,
    test_floating_address_of_two_goes_to_the_first,
    test_host_masks_its_other_addresses_in_a_tunnel,
    test_masquerade_and_floating_address_together,
    test_metadata,
    test_no_workload_reaches_the_loopback_of_its_host,
    test_only_what_leaves_by_the_interface_is_translated,
    test_removed_floating_address_cuts_its_connections,
    test_repeated_floating_addresses_change_nothing,
    test_spoofing_stays_forbidden,
    test_what_goes_to_hosts_is_translated_unless_they_are_excluded,
    test_what_leaves_the_pools_gets_the_address_that_is_given,
    test_what_leaves_the_pools_gets_the_ports_that_are_given,
    test_without_metadata_there_is_none,
    test_workloads_own_floating_address,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "host",
    "test_encapsulated_packets_come_from_hosts_only",
    "test_floating_address_for_an_address_it_has_not_is_named",
    "test_floating_address_leads_to_the_workload",
    "test_floating_address_of_two_goes_to_the_first",
    "test_host_masks_its_other_addresses_in_a_tunnel",
    "test_masquerade_and_floating_address_together",
    "test_metadata",
    "test_no_workload_reaches_the_loopback_of_its_host",
    "test_removed_floating_address_cuts_its_connections",
    "test_repeated_floating_addresses_change_nothing",
    "test_spoofing_stays_forbidden",
    "test_only_what_leaves_by_the_interface_is_translated",
    "test_what_goes_to_hosts_is_translated_unless_they_are_excluded",
    "test_what_leaves_the_pools_gets_the_address_that_is_given",
    "test_what_leaves_the_pools_gets_the_ports_that_are_given",
    "test_without_metadata_there_is_none",
    "test_workloads_own_floating_address",
]
