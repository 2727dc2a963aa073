"""What untracked or pre-DNAT policy allows inbound is final at that interface: what nftables keeps, iptables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_final import (
    host,
    test_another_interface_is_asked_all_the_same,
    test_connection_let_in_before_translation_lives_on,
    test_mark_that_a_packet_came_with_opens_nothing,
    test_packets_do_what_the_evaluator_says,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "host",
    "test_another_interface_is_asked_all_the_same",
    "test_connection_let_in_before_translation_lives_on",
    "test_mark_that_a_packet_came_with_opens_nothing",
    "test_packets_do_what_the_evaluator_says",
]
