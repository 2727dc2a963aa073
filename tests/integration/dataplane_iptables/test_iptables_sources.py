"""What a workload may send from beside its own addresses, with the iptables driver on either backend."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_sources import (
    test_a_filter_of_the_whole_host_drops_ipv4_all_the_same,
    test_a_prefix_passes_and_nothing_beside_it,
    test_a_restart_finds_what_it_left_and_ends_what_it_is_not_told,
    test_an_address_that_another_has_needs_a_prefix_too,
    test_an_interface_that_comes_later_has_it_too,
    test_an_open_connection_ends_with_its_prefix,
    test_everything_may_be_allowed,
    test_prefixes_come_and_go,
    test_the_mac_is_checked_with_it,
    test_who_is_closed_or_gone_is_checked_by_the_kernel_again,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "test_a_filter_of_the_whole_host_drops_ipv4_all_the_same",
    "test_a_prefix_passes_and_nothing_beside_it",
    "test_a_restart_finds_what_it_left_and_ends_what_it_is_not_told",
    "test_an_address_that_another_has_needs_a_prefix_too",
    "test_an_interface_that_comes_later_has_it_too",
    "test_an_open_connection_ends_with_its_prefix",
    "test_everything_may_be_allowed",
    "test_prefixes_come_and_go",
    "test_the_mac_is_checked_with_it",
    "test_who_is_closed_or_gone_is_checked_by_the_kernel_again",
]
