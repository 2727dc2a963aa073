"""Scenarios of felix specification 13, with the iptables driver on either backend."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_scenarios import (
    test_another_mac_in_the_record_is_the_one_that_may_send,
    test_spoofed_sources_are_dropped_with_a_loose_reverse_path_filter_too,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "test_another_mac_in_the_record_is_the_one_that_may_send",
    "test_spoofed_sources_are_dropped_with_a_loose_reverse_path_filter_too",
]
