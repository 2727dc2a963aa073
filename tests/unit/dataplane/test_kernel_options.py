"""Options no driver can work with are named before anything is touched."""

from __future__ import annotations

from typing import Any

import pytest
from netaddr import IPAddress

from calico_core.dataplane.option_checks import check_options
from calico_core.errors import InvalidRequest
from calico_core.interfaces.dataplane import DataplaneOptions, FailsafePort


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interface_prefixes", ("cali", "a b")),
        ("interface_prefixes", ()),
        ("endpoint_to_host", "drop"),
        ("deny_action", "TARPIT"),
        ("drop_override", "LOG"),
        ("chain_insert", "insert"),
        ("filter_allow", "DROP"),
        ("mangle_allow", "accept"),
        ("route_sources", (IPAddress("192.0.2.1"), IPAddress("192.0.2.2"))),
        ("mark_mask", 0),
        ("mark_mask", 0x10),
        ("mark_mask", 3 << 32),
        ("denied_group", 65536),
        ("log_rate", -1),
        ("log_unit", "week"),
        ("metadata", (IPAddress("fd00::1"), 80)),
    ],
    ids=str,
)
def test_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_options(DataplaneOptions(**{field: value}))
    assert caught.value.field == field


@pytest.mark.parametrize("port", [FailsafePort(1, 22), FailsafePort(6, 0), FailsafePort(6, 65536)], ids=str)
def test_failsafe_ports_are_ports(port: FailsafePort) -> None:
    with pytest.raises(InvalidRequest, match="failsafe"):
        check_options(DataplaneOptions(failsafe_outbound=(port,)))


def test_defaults_are_fine() -> None:
    check_options(DataplaneOptions(metadata=(IPAddress("127.0.0.1"), 8775), mark_mask=0x3))
