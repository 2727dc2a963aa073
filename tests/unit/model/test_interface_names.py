"""Lists of interface names and expressions, and prefixes."""

from __future__ import annotations

import pytest

from calico_core.errors import InvalidRequest
from calico_core.model.interface_names import parse_interface_names, separate_prefixes


@pytest.mark.parametrize(
    ("text", "name", "is_in"),
    [
        ("kube-ipvs0", "kube-ipvs0", True),
        ("kube-ipvs0", "kube-ipvs01", False),
        ("", "eth0", False),
        (" a , /^veth/ ,eth0.100", "veth1234", True),
        (" a , /^veth/ ,eth0.100", "myveth", False),
        (" a , /^veth/ ,eth0.100", "eth0.100", True),
        ("/ipvs/", "kube-ipvs0", True),
    ],
)
def test_names_are_whole_and_expressions_are_searched_for(text: str, name: str, is_in: bool) -> None:
    assert parse_interface_names(text)(name) is is_in


@pytest.mark.parametrize("text", ["/(/", "a b", "sixteen-letters-", "/", "a/b"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="InterfaceExclude"):
        parse_interface_names(text, field="InterfaceExclude")


@pytest.mark.parametrize(
    ("prefixes", "separate"),
    [
        (("cali",), ("cali",)),
        (("tap", "cali"), ("cali", "tap")),
        (("calico", "cali", "tap", "cali", "cal-"), ("cal-", "cali", "tap")),
        (("a", "ab", "abc", "b"), ("a", "b")),
    ],
)
def test_a_name_begins_with_one_prefix_at_most(prefixes: tuple[str, ...], separate: tuple[str, ...]) -> None:
    assert separate_prefixes(prefixes) == separate
