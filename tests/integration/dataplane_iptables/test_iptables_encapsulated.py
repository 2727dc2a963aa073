"""Who may send encapsulated packets: what nftables keeps, iptables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_encapsulated import (
    test_hosts_that_are_none_of_ours_may_encapsulate_if_they_are_named,
    test_no_service_leads_a_workload_into_the_tunnels,
    test_workloads_may_encapsulate_as_options_say,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "test_hosts_that_are_none_of_ours_may_encapsulate_if_they_are_named",
    "test_no_service_leads_a_workload_into_the_tunnels",
    "test_workloads_may_encapsulate_as_options_say",
]
