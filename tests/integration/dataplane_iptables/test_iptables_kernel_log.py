"""The line in the kernel's log: what nftables says, iptables says."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_kernel_log import (
    kernel_log,
    test_denials_are_logged_where_that_is_asked_for,
    test_rules_log_under_the_prefix_of_the_host_and_under_their_own,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "kernel_log",
    "test_denials_are_logged_where_that_is_asked_for",
    "test_rules_log_under_the_prefix_of_the_host_and_under_their_own",
]
