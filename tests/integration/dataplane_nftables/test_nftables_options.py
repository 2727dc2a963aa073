"""Options of connection tracking and of routes as packets see them. Both drivers pass all of it."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPAddress

from calico_core.model.hoststate import PolicyList
from tests.integration.dataplane_nftables.conftest import patience_s
from tests.integration.dataplane_nftables.test_nftables_hosts import HOST, endpoint, policy, tcp, the_list

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

#: From port 4000 to 80: the answer to a connection that nobody opened, which tracking calls invalid.
ANSWER = struct.pack("!HHIIBBHHH", 4000, 80, 7, 7, 5 << 4, 0x12, 1024, 0, 0)


@pytest.mark.parametrize("drops", [True, False], ids=["dropped", "judged"])
def test_what_belongs_to_no_connection_is_dropped_or_judged(make_lab: Callable[..., Any], *, drops: bool) -> None:
    lab = make_lab(drops_invalid=drops)
    far = lab.outside()
    a, b = lab.workload(), lab.workload()
    lists = {"inbound": the_list(), "outbound": the_list()}
    rules = policy(tcp(80), outbound=(tcp(80),))
    assert lab.start(a.endpoint(), b.endpoint(), rules=rules, interfaces=(endpoint(**lists),)).is_clean
    for sender, receiver, address in ((b, a, a.v4), (far, lab.host, HOST)):
        assert sender.reaches(address, 80)
        assert _hears(receiver, sender, address, is_expected=not drops) is not drops
    # policy is asked all the same
    report = lab.apply(
        workloads=(a.endpoint(inbound=PolicyList()),), interfaces=(endpoint(inbound=PolicyList(), outbound=the_list()),)
    )
    assert report.is_clean
    assert not _hears(a, b, a.v4, is_expected=False)
    assert not _hears(lab.host, far, HOST, is_expected=False)


def _hears(receiver: Any, sender: Any, address: str, *, is_expected: bool) -> bool:
    with (
        receiver.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as listener,
        sender.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as probe,
    ):
        listener.settimeout(patience_s(is_allowed=is_expected))
        probe.sendto(ANSWER, (address, 0))
        with contextlib.suppress(TimeoutError):
            while not listener.recv(256).endswith(ANSWER):
                pass
            return True
        return False


def test_the_host_talks_to_workloads_from_the_address_that_is_given(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(route_sources=(IPAddress("203.0.113.7"), IPAddress("2001:db8:7::7")))
    for address in ("203.0.113.7/32", "203.0.113.8/32", "2001:db8:7::7/128", "2001:db8:7::8/128"):
        lab.host.run("ip", "address", "add", address, "dev", "lo")
    a = lab.workload()
    assert lab.start(a.endpoint()).is_clean
    assert (_source(lab, a.v4), _source(lab, a.v6)) == ("203.0.113.7", "2001:db8:7::7")
    assert lab.apply(workloads=(a.endpoint(),)).changes == 0
    assert lab.dataplane.resync().changes == 0
    lab.wire(a)
    assert _source(lab, a.v4) == "203.0.113.7", "a repeated attach leaves it"
    # what somebody else made of it is put right
    lab.host.run(
        "ip", "route", "replace", a.v4, "dev", a.interface, "scope", "link", "proto", "80", "src", "203.0.113.8"
    )
    assert _source(lab, a.v4) == "203.0.113.8"
    assert lab.dataplane.resync().changes == 1
    assert _source(lab, a.v4) == "203.0.113.7"
    # a restart with another address, and with none
    for sources, first in (((IPAddress("203.0.113.8"),), "203.0.113.8"), ((), None)):
        lab.options = msgspec.structs.replace(lab.options, route_sources=sources)
        lab.restart()
        assert lab.start(a.endpoint()).is_clean
        assert (_route_source(lab, a.v4), _route_source(lab, a.v6)) == (first, None)


def test_an_address_the_host_has_not_is_named(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(route_sources=(IPAddress("203.0.113.7"),))
    a = lab.workload()
    assert [each.subject for each in lab.start(a.endpoint()).failures] == [f"route {a.v4}/32"]
    lab.host.run("ip", "address", "add", "203.0.113.7/32", "dev", "lo")
    assert lab.dataplane.resync().is_clean
    assert _source(lab, a.v4) == "203.0.113.7"


def _source(lab: Any, address: str) -> str:
    """From where the host would send."""
    words = lab.host.run("ip", "-o", "route", "get", address).split()
    return str(words[words.index("src") + 1])


def _route_source(lab: Any, address: str) -> str | None:
    words = lab.host.run("ip", "-6" if ":" in address else "-4", "route", "show", address).split()
    assert words, "there is a route"
    return words[words.index("src") + 1] if "src" in words else None
