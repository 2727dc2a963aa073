"""Host endpoints, verdicts and translation as packets see them: what nftables keeps, iptables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_hosts import (
    host,
    test_before_destinations_are_translated,
    test_connections_live_and_strangers_packets_do_not,
    test_endpoint_without_its_rules_is_closed_and_named,
    test_endpoint_without_policy_lets_fail_safes_pass_alone,
    test_every_interface_but_those_with_one_of_their_own,
    test_forwarding_as_the_lists_say,
    test_forwarding_between_interfaces_of_the_host,
    test_interface_that_is_a_workloads_is_named,
    test_policy_of_an_endpoint,
    test_restart_finds_all_of_it,
    test_untracked,
    test_what_is_untracked_without_policy_is_not_let_through,
    test_workloads_and_their_host_are_not_concerned,
)
from tests.integration.dataplane_nftables.test_nftables_nat import (
    host,
    test_encapsulated_packets_come_from_hosts_only,
    test_floating_address_for_an_address_it_has_not_is_named,
    test_floating_address_leads_to_the_workload,
    test_floating_address_of_two_goes_to_the_first,
    test_host_masks_its_other_addresses_in_a_tunnel,
    test_masquerade_and_floating_address_together,
    test_metadata,
    test_removed_floating_address_cuts_its_connections,
    test_repeated_floating_addresses_change_nothing,
    test_spoofing_stays_forbidden,
    test_without_metadata_there_is_none,
    test_workloads_own_floating_address,
)
from tests.integration.dataplane_nftables.test_nftables_verdicts import (
    test_drop_override,
    test_every_denial_answers_when_it_is_asked_to,
    test_log_with_a_limit_decides_nothing,
    test_named_ports,
    test_named_ports_of_a_protocol_and_of_the_source,
    test_other_mark_bits,
    test_ports_that_are_not_of_a_name,
    test_reject_answers,
    test_set_of_named_ports_goes_with_its_rule,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "host",
    "test_before_destinations_are_translated",
    "test_connections_live_and_strangers_packets_do_not",
    "test_drop_override",
    "test_encapsulated_packets_come_from_hosts_only",
    "test_endpoint_without_its_rules_is_closed_and_named",
    "test_endpoint_without_policy_lets_fail_safes_pass_alone",
    "test_every_denial_answers_when_it_is_asked_to",
    "test_every_interface_but_those_with_one_of_their_own",
    "test_floating_address_for_an_address_it_has_not_is_named",
    "test_floating_address_leads_to_the_workload",
    "test_floating_address_of_two_goes_to_the_first",
    "test_forwarding_as_the_lists_say",
    "test_forwarding_between_interfaces_of_the_host",
    "test_host_masks_its_other_addresses_in_a_tunnel",
    "test_interface_that_is_a_workloads_is_named",
    "test_log_with_a_limit_decides_nothing",
    "test_masquerade_and_floating_address_together",
    "test_metadata",
    "test_named_ports",
    "test_named_ports_of_a_protocol_and_of_the_source",
    "test_other_mark_bits",
    "test_policy_of_an_endpoint",
    "test_ports_that_are_not_of_a_name",
    "test_reject_answers",
    "test_removed_floating_address_cuts_its_connections",
    "test_repeated_floating_addresses_change_nothing",
    "test_restart_finds_all_of_it",
    "test_set_of_named_ports_goes_with_its_rule",
    "test_spoofing_stays_forbidden",
    "test_untracked",
    "test_what_is_untracked_without_policy_is_not_let_through",
    "test_without_metadata_there_is_none",
    "test_workloads_and_their_host_are_not_concerned",
    "test_workloads_own_floating_address",
]
