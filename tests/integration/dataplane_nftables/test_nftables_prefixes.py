"""Workloads' interfaces that begin in several ways, and other ways than before. Both drivers pass it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPAddress

from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.hoststate import ANY_INTERFACE, PolicyList
from tests.integration.dataplane_nftables.test_nftables_hosts import (
    FAILSAFE,
    HOST,
    NEIGHBOUR,
    endpoint,
    policy,
    tcp,
    test_before_destinations_are_translated,
    test_every_interface_but_those_with_one_of_their_own,
    test_forwarding_as_the_lists_say,
    test_forwarding_between_interfaces_of_the_host,
    test_interface_that_is_a_workloads_is_named,
    test_untracked,
    the_list,
)
from tests.integration.dataplane_nftables.test_nftables_traffic import (
    test_spoofed_sources_are_dropped,
    test_unknown_interface_is_closed_before_and_after_the_first_batch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

__all__ = [
    "test_before_destinations_are_translated",
    "test_every_interface_but_those_with_one_of_their_own",
    "test_forwarding_as_the_lists_say",
    "test_forwarding_between_interfaces_of_the_host",
    "test_interface_that_is_a_workloads_is_named",
    "test_spoofed_sources_are_dropped",
    "test_unknown_interface_is_closed_before_and_after_the_first_batch",
    "test_untracked",
]

#: The last says nothing that the second does not say.
PREFIXES = ("tap", "cali", "calico")


@pytest.fixture
def lab(make_lab: Callable[..., Any]) -> Any:
    return make_lab(interface_prefixes=PREFIXES)


@pytest.fixture
def host(make_lab: Callable[..., Any]) -> Any:
    """A lab with a neighbour that knows the way to the workloads."""
    lab = make_lab(interface_prefixes=PREFIXES, **FAILSAFE)
    lab.neighbour = lab.outside()
    lab.neighbour.run("ip", "route", "add", "10.65.0.0/16", "via", HOST)
    return lab


def tapped(lab: Any) -> Any:
    """A workload whose interface begins with the first prefix."""
    made = lab.unwired()
    made.interface = f"tap{made.interface.removeprefix('cali')}"
    lab.wire(made)
    return made


def test_interfaces_of_every_prefix_are_workloads(lab: Any) -> None:
    lab.dataplane.ensure_closed()
    a, b, unknown = tapped(lab), lab.workload(), tapped(lab)
    assert b.is_blocked_from(a.v4, 80)
    assert lab.start(a.endpoint(), b.endpoint()).is_clean
    for one, other in ((a, b), (b, a)):
        assert one.reaches(other.v4, 80)
        assert one.reaches(other.v6, 80)
    assert unknown.is_blocked_from(a.v4, 80)
    assert a.is_blocked_from(unknown.v4, 80)
    lab.apply(workloads=(a.endpoint(PolicyList(), PolicyList()),))
    assert a.is_blocked_from(b.v4, 80)
    assert b.is_blocked_from(a.v4, 80)
    assert lab.dataplane.resync().healed == ()
    stranger = msgspec.structs.replace(b.endpoint(), interface="veth2")
    (failure,) = lab.apply(workloads=(stranger,)).failures
    assert "must start with 'tap' or 'cali' or 'calico'" in failure.reason


def test_each_of_them_may_ask_for_metadata(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(interface_prefixes=PREFIXES, metadata=(IPAddress("192.0.2.1"), 8775), endpoint_to_host="DROP")
    lab.outside()
    a, b = tapped(lab), lab.workload()
    lab.start(a.endpoint(PolicyList(), PolicyList()), b.endpoint(PolicyList(), PolicyList()))
    with lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("192.0.2.1", 8775))
        server.listen()
        for each in (a, b):
            assert each.reaches("169.254.169.254", 80)
            assert each.is_blocked_from("192.0.2.1", 81)


def test_endpoints_of_the_host_are_none_of_the_business_of_any(host: Any) -> None:
    a, b = tapped(host), host.workload()
    lists = {"forward_inbound": the_list(), "forward_outbound": the_list()}
    interfaces = (endpoint(ANY_INTERFACE, inbound=the_list(), outbound=the_list(), **lists),)
    assert host.start(a.endpoint(), b.endpoint(), interfaces=interfaces, rules=policy(tcp(80))).is_clean
    for one, other in ((a, b), (b, a)):
        assert one.reaches(other.v4, 81), "no interface of the host is on the way"
        assert one.reaches(HOST, 81)
        assert host.host.reaches(one.v4, 81)
        assert one.is_blocked_from(NEIGHBOUR, 80), "it leaves by one that is"
        assert host.neighbour.reaches(one.v4, 80)
        assert host.neighbour.is_blocked_from(one.v4, 81)
    assert host.dataplane.resync().healed == ()


def test_another_prefix_takes_the_routes_of_the_one_before(lab: Any) -> None:
    a, b = tapped(lab), lab.workload()
    lab.outside()
    lab.host.run("ip", "route", "add", "198.51.100.7", "dev", "up0", "proto", "80")
    lab.host.run("ip", "route", "add", "198.51.100.8", "dev", b.interface, "proto", "static")
    lab.start(a.endpoint(), b.endpoint())

    def routes() -> set[str]:
        lines = [line for f in ("-4", "-6") for line in lab.host.run("ip", f, "route", "show").splitlines()]
        named = {line.split()[0] for line in lines}
        return named & {a.v4, a.v6, b.v4, b.v6, "198.51.100.7", "198.51.100.8"}

    every = routes()
    assert every == {a.v4, a.v6, b.v4, b.v6, "198.51.100.7", "198.51.100.8"}
    lab.options = DataplaneOptions(interface_prefixes=("tap",))
    lab.restart()
    (failure,) = lab.start(a.endpoint(), b.endpoint()).failures
    assert failure.subject == b.key.path
    assert routes() == every - {b.v4, b.v6}
    assert lab.dataplane.resync().healed == ()
    lab.options = DataplaneOptions(interface_prefixes=PREFIXES)
    lab.restart()
    assert lab.start(a.endpoint(), b.endpoint()).is_clean
    assert routes() == every
    lab.dataplane.close()
    lab.options = DataplaneOptions(interface_prefixes=("veth",))
    lab.restart()
    lab.dataplane.purge()
    assert routes() == {"198.51.100.7", "198.51.100.8"}


def test_orphans_of_every_prefix_are_found(lab: Any) -> None:
    a, b = tapped(lab), lab.workload()
    assert set(lab.dataplane.wiring().orphans()) == {a.interface, b.interface}, "no process runs in either"
