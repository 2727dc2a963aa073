"""Policy before connection tracking and before translation: what iptables keeps in detail, nftables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_iptables.test_iptables_early import (
    test_forward_policy_that_passes_on_leaves_the_rest_open,
    test_policy_before_translation,
    test_profiles_come_after_tiers,
    test_untracked_policy,
    test_what_came_through_early_is_not_asked_again_where_it_came_in,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "test_forward_policy_that_passes_on_leaves_the_rest_open",
    "test_policy_before_translation",
    "test_profiles_come_after_tiers",
    "test_untracked_policy",
    "test_what_came_through_early_is_not_asked_again_where_it_came_in",
]
