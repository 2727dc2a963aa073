"""Workloads' interfaces that begin in several ways: what nftables keeps, iptables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_prefixes import (
    host,
    lab,
    test_another_prefix_takes_the_routes_of_the_one_before,
    test_before_destinations_are_translated,
    test_each_of_them_may_ask_for_metadata,
    test_endpoints_of_the_host_are_none_of_the_business_of_any,
    test_every_interface_but_those_with_one_of_their_own,
    test_forwarding_as_the_lists_say,
    test_forwarding_between_interfaces_of_the_host,
    test_interface_that_is_a_workloads_is_named,
    test_interfaces_of_every_prefix_are_workloads,
    test_orphans_of_every_prefix_are_found,
    test_spoofed_sources_are_dropped,
    test_unknown_interface_is_closed_before_and_after_the_first_batch,
    test_untracked,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "host",
    "lab",
    "test_another_prefix_takes_the_routes_of_the_one_before",
    "test_before_destinations_are_translated",
    "test_each_of_them_may_ask_for_metadata",
    "test_endpoints_of_the_host_are_none_of_the_business_of_any",
    "test_every_interface_but_those_with_one_of_their_own",
    "test_forwarding_as_the_lists_say",
    "test_forwarding_between_interfaces_of_the_host",
    "test_interface_that_is_a_workloads_is_named",
    "test_interfaces_of_every_prefix_are_workloads",
    "test_orphans_of_every_prefix_are_found",
    "test_spoofed_sources_are_dropped",
    "test_unknown_interface_is_closed_before_and_after_the_first_batch",
    "test_untracked",
]
