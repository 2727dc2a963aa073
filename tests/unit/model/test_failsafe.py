"""Fail-safe ports as settings write them."""

from __future__ import annotations

import pytest
from netaddr import IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.model.failsafe import DEFAULT_INBOUND, DEFAULT_OUTBOUND, parse_failsafe_ports


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("", ()),
        ("none", ()),
        ("22", ((6, 22, None),)),
        (" 22 , udp:53,", ((6, 22, None), (17, 53, None))),
        ("tcp:192.0.2.0/24:80", ((6, 80, IPNetwork("192.0.2.0/24")),)),
        ("tcp:192.0.2.1:80", ((6, 80, IPNetwork("192.0.2.1/32")),)),
        ("udp:[fd00::/8]:53,udp:fd00::/8:53", ((17, 53, IPNetwork("fd00::/8")),) * 2),
    ],
)
def test_forms(text: str, ports: object) -> None:
    assert parse_failsafe_ports(text, field="F") == ports


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ssh", "port from 1"),
        ("tcp:0", "port from 1"),
        ("icmp:8", "no ports"),
        ("ftp:8", "tcp"),
        ("tcp:x:8", "address"),
    ],
)
def test_refusals_name_the_field_and_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        parse_failsafe_ports(text, field="FailsafeInboundHostPorts")
    assert caught.value.field == "FailsafeInboundHostPorts"


def test_defaults() -> None:
    assert (6, 22, None) in parse_failsafe_ports(DEFAULT_INBOUND, field="")
    assert (17, 53, None) in parse_failsafe_ports(DEFAULT_OUTBOUND, field="")
