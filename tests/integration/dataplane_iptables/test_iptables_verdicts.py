"""What rules do besides to allow and to drop: what nftables keeps, iptables keeps."""

from __future__ import annotations

import pytest

from tests.integration.dataplane_nftables.test_nftables_verdicts import (
    test_drop_override,
    test_every_denial_answers_when_it_is_asked_to,
    test_log_with_a_limit_decides_nothing,
    test_many_rules_with_ports_decide_at_the_ends_of_their_span_and_nothing_beyond,
    test_named_ports,
    test_named_ports_of_a_protocol_and_of_the_source,
    test_other_mark_bits,
    test_ports_that_are_not_of_a_name,
    test_reject_answers,
    test_set_of_named_ports_goes_with_its_rule,
)

pytestmark = pytest.mark.needs_root

__all__ = [
    "test_drop_override",
    "test_every_denial_answers_when_it_is_asked_to",
    "test_log_with_a_limit_decides_nothing",
    "test_many_rules_with_ports_decide_at_the_ends_of_their_span_and_nothing_beyond",
    "test_named_ports",
    "test_named_ports_of_a_protocol_and_of_the_source",
    "test_other_mark_bits",
    "test_ports_that_are_not_of_a_name",
    "test_reject_answers",
    "test_set_of_named_ports_goes_with_its_rule",
]
