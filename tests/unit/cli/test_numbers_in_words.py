"""Digits that ``int`` takes and a number of the protocol is not, and more of them than it takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from calico_core.cli.endpoint_words import parse_ports
from calico_core.cli.flow_words import parse_flow, parse_icmp, parse_port
from calico_core.cli.rule_words import parse_rule
from calico_core.errors import InvalidRequest


@pytest.mark.parametrize("number", ["²", "٣", "9" * 5000])
@pytest.mark.parametrize(
    "read",
    [
        lambda number: parse_port(number, field="--port"),
        parse_icmp,
        lambda number: parse_icmp(f"8/{number}"),
        lambda number: parse_flow(f"10.0.0.1:{number},10.0.0.2:80,tcp"),
        lambda number: parse_ports([f"http:tcp:{number}"]),
        lambda number: parse_rule(["allow", number]),
        lambda number: parse_rule(["allow", "icmp", "type", number]),
        lambda number: parse_rule(["allow", "tcp", "to", "ports", number]),
    ],
)
def test_what_is_no_number_of_ascii_digits_is_refused_by_name(read: Callable[[str], object], number: str) -> None:
    with pytest.raises(InvalidRequest):
        read(number)
