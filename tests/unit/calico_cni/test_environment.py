from __future__ import annotations

import itertools

import pytest

from calico_cni.environment import REQUIRED, parse_arguments, parse_environment
from calico_cni.errors import InvalidEnvironment

WHOLE = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IP=10.0.0.1",
    "CNI_PATH": "/opt/cni/bin",
}


def missing_sets(command: str) -> list[tuple[str, ...]]:
    needed = REQUIRED[command]
    return [chosen for size in range(1, len(needed) + 1) for chosen in itertools.combinations(needed, size)]


@pytest.mark.parametrize(
    ("command", "missing"), [(command, missing) for command in REQUIRED for missing in missing_sets(command)]
)
def test_every_missing_variable_is_named_at_once(command: str, missing: tuple[str, ...]) -> None:
    environment = {"CNI_COMMAND": command, **{name: value for name, value in WHOLE.items() if name not in missing}}
    with pytest.raises(InvalidEnvironment) as raised:
        parse_environment(environment)
    for name in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"):
        assert (name in str(raised.value)) == (name in missing)


@pytest.mark.parametrize("command", REQUIRED)
def test_an_empty_value_counts_as_missing_and_optional_ones_may_be_absent(command: str) -> None:
    needed = {name: WHOLE[name] for name in REQUIRED[command]}
    assert parse_environment({"CNI_COMMAND": command, **needed}).command == command
    for name in needed:
        with pytest.raises(InvalidEnvironment, match=name):
            parse_environment({"CNI_COMMAND": command, **needed, name: ""})


@pytest.mark.parametrize("command", ["add", "UPDATE", " ADD"])
def test_unknown_commands_are_refused(command: str) -> None:
    with pytest.raises(InvalidEnvironment, match="CNI_COMMAND"):
        parse_environment({"CNI_COMMAND": command, **WHOLE})


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
@pytest.mark.parametrize("variable", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"])
def test_what_is_not_text_is_refused_before_it_gets_into_a_record(command: str, variable: str) -> None:
    broken = b"K=\xff".decode(errors="surrogateescape")
    with pytest.raises(InvalidEnvironment, match=variable):
        parse_environment({"CNI_COMMAND": command, **WHOLE, variable: broken})


def test_arguments_that_are_not_text_do_not_keep_a_container() -> None:
    broken = b"K8S_POD_NAMESPACE=shop;K8S_POD_NAME=\xff;\xff=1;IP=10.0.0.1".decode(errors="surrogateescape")
    invocation = parse_environment({"CNI_COMMAND": "DEL", **WHOLE, "CNI_ARGS": broken})
    assert invocation.arguments == {"K8S_POD_NAMESPACE": "shop", "IP": "10.0.0.1"}


def test_a_namespace_that_is_not_text_does_not_keep_a_container() -> None:
    broken = b"/run/\xff".decode(errors="surrogateescape")
    assert parse_environment({"CNI_COMMAND": "DEL", **WHOLE, "CNI_NETNS": broken}).command == "DEL"


@pytest.mark.parametrize("container_id", ["-c", ".c", "_c", "a/b", "a b", "ä", "a\n"])
def test_bad_container_ids(container_id: str) -> None:
    with pytest.raises(InvalidEnvironment, match="CNI_CONTAINERID"):
        parse_environment({"CNI_COMMAND": "DEL", **WHOLE, "CNI_CONTAINERID": container_id})


@pytest.mark.parametrize("interface", [".", "..", "a/b", "a:b", "a b", "a\tb", "sixteencharacter", "äöüäöüäö"])
def test_bad_interface_names(interface: str) -> None:
    with pytest.raises(InvalidEnvironment, match="CNI_IFNAME"):
        parse_environment({"CNI_COMMAND": "DEL", **WHOLE, "CNI_IFNAME": interface})


@pytest.mark.parametrize("interface", ["e", "fifteencharacte", "eth0.100", "..."])
def test_good_interface_names(interface: str) -> None:
    assert parse_environment({"CNI_COMMAND": "DEL", **WHOLE, "CNI_IFNAME": interface}).interface == interface


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("IP=10.0.0.1", {"IP": "10.0.0.1"}),
        ("IgnoreUnknown=1;K8S_POD_NAME=web;", {"IGNOREUNKNOWN": "1", "K8S_POD_NAME": "web"}),
        (" ip = 10.0.0.1 ; ;", {"IP": "10.0.0.1"}),
        ("nothing;=x;IP=fd00::1", {"IP": "fd00::1"}),
        ("A=b=c", {"A": "b=c"}),
        ("A=", {"A": ""}),
    ],
)
def test_arguments(text: str, found: dict[str, str]) -> None:
    assert parse_arguments(text) == found
