"""Sysctls, neighbours and addresses: what nftables keeps, iptables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_links import (
    test_a_link_that_is_no_workloads_is_left_alone,
    test_a_new_interface_checks_sources_from_its_first_packet_on,
    test_address_of_two_goes_to_the_first_whatever_the_order,
    test_an_address_of_two_is_had_by_the_one_whose_link_is_up,
    test_an_address_of_two_is_sent_from_by_the_one_that_has_it,
    test_an_agent_that_starts_gives_an_address_of_two_to_the_one_that_lives,
    test_events_that_were_lost_while_links_could_not_be_listed_are_made_good,
    test_forwarding_of_the_host_is_put_back,
    test_interface_is_set_up_and_kept_so,
    test_loopback_is_open_with_metadata_there_only,
    test_neighbours_follow_the_record,
    test_the_host_answers_for_the_gateway_of_ipv6_that_a_record_names,
    test_what_the_kernel_refuses_a_link_is_tried_again,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "test_a_link_that_is_no_workloads_is_left_alone",
    "test_a_new_interface_checks_sources_from_its_first_packet_on",
    "test_address_of_two_goes_to_the_first_whatever_the_order",
    "test_an_address_of_two_is_had_by_the_one_whose_link_is_up",
    "test_an_address_of_two_is_sent_from_by_the_one_that_has_it",
    "test_an_agent_that_starts_gives_an_address_of_two_to_the_one_that_lives",
    "test_events_that_were_lost_while_links_could_not_be_listed_are_made_good",
    "test_forwarding_of_the_host_is_put_back",
    "test_interface_is_set_up_and_kept_so",
    "test_loopback_is_open_with_metadata_there_only",
    "test_neighbours_follow_the_record",
    "test_the_host_answers_for_the_gateway_of_ipv6_that_a_record_names",
    "test_what_the_kernel_refuses_a_link_is_tried_again",
]
