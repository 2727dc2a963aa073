"""allocate, reserve, release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

from .conftest import HOST, UID, Setup


def allocate(setup: Setup, num_ipv4: Any = 1, num_ipv6: Any = 0, **more: Any) -> Any:
    return setup.ask("allocate", hostname=HOST, uid=UID, num_ipv4=num_ipv4, num_ipv6=num_ipv6, **more)


def held(setup: Setup) -> set[str]:
    return {str(address) for address in setup.ipam.by_handle(UID)}


@pytest.mark.parametrize("count", [2, "2"])
def test_allocate_replies_what_the_uid_holds(setup: Setup, count: Any) -> None:
    reply = allocate(setup, count, 1, netgroups=["a", "b"])
    assert len(reply["ipv4"]) == 2
    assert len(reply["ipv6"]) == 1
    assert held(setup) == {*reply["ipv4"], *reply["ipv6"]}
    found = setup.ipam.allocation(IPAddress(reply["ipv4"][0]))
    assert found is not None
    assert found.attributes == {"orchestrator": "mesos", "node": HOST, "netgroups": "a,b"}
    assert allocate(setup, count, 1) == reply


def test_allocate_of_nothing_takes_nothing(setup: Setup) -> None:
    assert allocate(setup, 0, 0) == {"ipv4": [], "ipv6": []}
    assert not setup.ipam.held


def test_allocate_after_reserve_gives_others(setup: Setup) -> None:
    """The module adds the two lists, so the reserved address must not be given out a second time."""
    setup.ask("reserve", hostname=HOST, uid=UID, ipv4_addrs=["10.65.0.9"])
    reply = allocate(setup, 2)
    assert len(reply["ipv4"]) == 2
    assert "10.65.0.9" not in reply["ipv4"]
    assert held(setup) == {"10.65.0.9", *reply["ipv4"]}


@pytest.mark.parametrize(
    "labels",
    [
        {"ipv4_addrs": "['10.65.0.7']"},
        {"ipv4_addrs": '["10.65.0.7"]'},
        {"ipv4_addrs": ["10.65.0.7"]},
        [{"key": "rack", "value": "3A"}, {"key": "ipv4_addrs", "value": "['10.65.0.7']"}],
        [{"key": "ipv4_addrs"}, {"key": "ipv4_addrs", "value": '["10.65.0.7"]'}],
    ],
)
def test_static_address_by_label(setup: Setup, labels: Any) -> None:
    assert allocate(setup, labels=labels) == {"ipv4": ["10.65.0.7"], "ipv6": []}
    assert held(setup) == {"10.65.0.7"}


def test_static_addresses_follow_the_automatic_ones(setup: Setup) -> None:
    reply = allocate(setup, 3, labels={"ipv4_addrs": "['10.65.0.7', '10.65.0.1']"})
    assert reply["ipv4"] == ["10.65.0.2", "10.65.0.7", "10.65.0.1"]


def test_code_in_the_label_is_not_run(setup: Setup, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for text in (
        f"[open({str(mark)!r}, 'w').name]",
        f"__import__('pathlib').Path({str(mark)!r}).touch() or ['10.65.0.7']",
        "[" * 3000,
        "('10.65.0.7',)",
        '{"a": 1}',
        "[1]",
        "",
    ):
        refusal = setup.refused("allocate", hostname=HOST, uid=UID, num_ipv4=1, num_ipv6=0, labels={"ipv4_addrs": text})
        assert refusal.startswith("Label ipv4_addrs is malformed"), text
    assert not mark.exists()
    assert not setup.ipam.held


def test_reserve_is_all_or_nothing_and_repeatable(setup: Setup) -> None:
    setup.ask("reserve", hostname=HOST, uid="other", ipv4_addrs=["10.65.0.8"])
    wanted = {"hostname": HOST, "uid": UID, "ipv4_addrs": ["10.65.0.9/32", "10.65.0.8"], "ipv6_addrs": ["fd80:65::9"]}
    assert setup.refused("reserve", **wanted) == "IP '10.65.0.8' already in use."
    assert not held(setup)
    wanted["ipv4_addrs"] = ["10.65.0.9/32", "10.65.0.9"]
    setup.ask("reserve", **wanted)
    setup.ask("reserve", **wanted)
    assert held(setup) == {"10.65.0.9", "fd80:65::9"}


def test_release(setup: Setup) -> None:
    setup.ask("reserve", hostname=HOST, uid=UID, ipv4_addrs=["10.65.0.5", "10.65.0.6", "10.65.0.7"])
    setup.ask("release", ips=[])
    assert len(held(setup)) == 3
    setup.ask("release", ips=["10.65.0.5", "fd80:65::1"])
    assert held(setup) == {"10.65.0.6", "10.65.0.7"}
    setup.ask("release", uid=UID)
    setup.ask("release", uid=UID)
    assert not setup.ipam.held
