"""Sets beyond their limit: what nftables keeps, iptables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_limits import (
    lab,
    test_a_denying_rule_opens_nothing_while_its_set_is_too_large,
    test_a_set_of_named_ports_too,
    test_an_allowing_rule_allows_nobody_until_its_set_has_shrunk,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "lab",
    "test_a_denying_rule_opens_nothing_while_its_set_is_too_large",
    "test_a_set_of_named_ports_too",
    "test_an_allowing_rule_allows_nobody_until_its_set_has_shrunk",
]
