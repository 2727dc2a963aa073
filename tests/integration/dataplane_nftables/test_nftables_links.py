"""Sysctls and neighbours of workloads' interfaces: as the specification says, and put back. Both drivers pass it."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.dataplane.linux.netlink import Outcome
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.errors import KernelRefused
from calico_core.model.workloads import InterfaceEvent
from tests.integration.dataplane_nftables.test_nftables_traffic import _heard, _listener
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from calico_core.dataplane.linux.link_messages import Link
    from calico_core.dataplane.linux.netlink import Request

pytestmark = pytest.mark.needs_root


def sysctl(lab: Any, name: str) -> str:
    return lab.host.run("sysctl", "-n", f"net.{name}").strip()


def neighbours(lab: Any, interface: str) -> dict[str, str]:
    """Permanent IPv4 entries."""
    lines = lab.host.run("ip", "-4", "neighbour", "show", "dev", interface, "nud", "permanent").splitlines()
    return {line.split()[0]: line.split()[2] for line in lines}


def test_interface_is_set_up_and_kept_so(lab: Any) -> None:
    a = lab.workload()
    lab.start(a.endpoint())
    wanted = {
        "ipv4.conf.cali1.rp_filter": "1",
        "ipv4.conf.cali1.route_localnet": "0",
        "ipv4.conf.cali1.proxy_arp": "1",
        "ipv4.conf.cali1.forwarding": "1",
        "ipv4.neigh.cali1.proxy_delay": "0",
        "ipv6.conf.cali1.proxy_ndp": "1",
        "ipv6.conf.cali1.forwarding": "1",
        "ipv6.conf.cali1.accept_ra": "0",
        "ipv4.ip_forward": "1",
        "ipv6.conf.all.forwarding": "1",
    }
    assert {name: sysctl(lab, name) for name in wanted} == wanted
    assert lab.dataplane.resync().healed == ()
    lab.host.run("sysctl", "-qw", "net.ipv4.conf.cali1.proxy_arp=0", "net.ipv4.conf.cali1.rp_filter=2")
    healed = lab.dataplane.resync().healed
    assert set(healed) == {"sysctl ipv4/conf/cali1/proxy_arp", "sysctl ipv4/conf/cali1/rp_filter"}
    assert {name: sysctl(lab, name) for name in wanted} == wanted


def mac_text(workload: Any) -> str:
    return str(workload.mac).lower().replace("-", ":")


@pytest.mark.parametrize("is_answered", [True, False])
def test_what_the_kernel_refuses_a_link_is_tried_again(
    lab: Any, monkeypatch: pytest.MonkeyPatch, *, is_answered: bool
) -> None:
    """Refused, or not answered in time: with thousands of interfaces the kernel's one lock over them is held long."""
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint())
    attempt = RouteSocket.attempt

    def refuse(self: RouteSocket, requests: Sequence[Request]) -> list[Outcome]:
        if not any("neighbour" in each.operation for each in requests):
            return attempt(self, requests)
        error = KernelRefused("set neighbour", errno.ENOBUFS if is_answered else errno.ETIMEDOUT)
        if not is_answered:
            raise error
        return [Outcome(error=error, replies=()) for _ in requests]

    with monkeypatch.context() as patched:
        patched.setattr(RouteSocket, "attempt", refuse)
        report = lab.apply(workloads=(b.endpoint(),))
        assert report.failures
        assert lab.apply().failures, "and said again as long as it is so"
    assert b.v4 not in neighbours(lab, b.interface)
    assert lab.apply().failures == ()
    assert neighbours(lab, b.interface) == {b.v4: mac_text(b)}
    assert set(lab.dataplane.wiring().routes(b.interface)) >= set(b.nets)


def test_events_that_were_lost_while_links_could_not_be_listed_are_made_good(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = lab.unwired()
    assert lab.start(a.endpoint()).endpoints_without_link == (a.key,)
    lab.wire(a)
    eventually(lambda: " UP " in lab.host.run("ip", "-brief", "link", "show", a.interface))
    lab.host.run("ip", "neighbour", "flush", "all", "nud", "permanent")

    def refuse(self: RouteSocket) -> list[Link]:
        raise KernelRefused("list links", errno.ENOBUFS)

    with monkeypatch.context() as patched:
        patched.setattr(RouteSocket, "links", refuse)
        with pytest.raises(KernelRefused):
            lab.dataplane.interface_changed(InterfaceEvent(kind="resync"))
    assert lab.apply().endpoints_without_link == ()
    assert neighbours(lab, a.interface) == {a.v4: mac_text(a)}


@pytest.mark.parametrize(("server", "value"), [("127.0.0.1", "1"), ("192.0.2.1", "0")])
def test_loopback_is_open_with_metadata_there_only(make_lab: Callable[..., Any], server: str, value: str) -> None:
    lab = make_lab(metadata=(IPAddress(server), 8775))
    a = lab.workload()
    lab.start(a.endpoint())
    assert sysctl(lab, "ipv4.conf.cali1.route_localnet") == value
    assert lab.dataplane.resync().healed == ()


def test_a_link_that_is_no_workloads_is_left_alone(lab: Any) -> None:
    def state() -> list[Any]:
        settings = [sysctl(lab, f"ipv4.conf.up0.{each}") for each in ("proxy_arp", "rp_filter")]
        return [*settings, neighbours(lab, "up0"), lab.host.run("ip", "route", "show", "dev", "up0")]

    lab.outside()
    before = state()
    a = lab.unwired()
    nets = (IPNetwork("198.51.100.7/32"),)
    report = lab.start(msgspec.structs.replace(a.endpoint(), interface="up0", nets=nets))
    assert [failure.subject for failure in report.failures] == [a.key.path]
    lab.dataplane.resync()
    lab.dataplane.interface_changed(InterfaceEvent(kind="up", name="up0"))
    assert state() == before
    lab.apply(removed_workloads=(a.key,))
    assert state() == before


def test_what_a_port_mapper_needs_is_left_to_it(lab: Any) -> None:
    a = lab.workload()
    lab.start(a.endpoint())
    lab.host.run("sysctl", "-qw", "net.ipv4.conf.cali1.route_localnet=1")
    assert lab.dataplane.resync().healed == ()
    assert sysctl(lab, "ipv4.conf.cali1.route_localnet") == "1"


def test_forwarding_of_the_host_is_put_back(lab: Any) -> None:
    lab.start()
    lab.host.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    healed = lab.dataplane.resync().healed
    assert {"sysctl ipv4/ip_forward", "sysctl ipv6/conf/all/forwarding"} <= set(healed)
    assert sysctl(lab, "ipv4.ip_forward") == sysctl(lab, "ipv6.conf.all.forwarding") == "1"


def test_a_new_interface_checks_sources_from_its_first_packet_on(make_lab: Callable[..., Any]) -> None:
    """Felix specification 6.8. The kernel goes by the larger value, of "all" or the interface's own."""
    lab = make_lab(makes_router=False)
    lab.host.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
    lab.dataplane.ensure_closed()
    far = lab.outside()
    assert sysctl(lab, "ipv4.conf.up0.rp_filter") == "1"
    far.run("ip", "address", "add", "198.51.100.9/32", "dev", "up0")
    with _listener(lab.host, "192.0.2.1") as listener:
        assert _heard(far, listener, "192.0.2.1", "192.0.2.2")
        assert not _heard(far, listener, "192.0.2.1", "198.51.100.9", is_expected=False), "no way leads back"
    lab.start()
    lab.host.run("sysctl", "-qw", "net.ipv4.conf.default.rp_filter=2")
    assert lab.dataplane.resync().healed == ("sysctl ipv4/conf/default/rp_filter",)
    assert sysctl(lab, "ipv4.conf.default.rp_filter") == "1"


def test_forwarding_is_left_alone_when_somebody_else_has_it(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(makes_router=False)
    # a new namespace begins as the machine is: with container engines on it, as a router
    lab.host.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    lab.start()
    assert lab.dataplane.resync().healed == ()
    assert sysctl(lab, "ipv4.ip_forward") == sysctl(lab, "ipv6.conf.all.forwarding") == "0"


def test_routes_are_left_alone_when_somebody_else_makes_them(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(makes_routes=False)
    a, gone = lab.workload(), lab.unwired()
    (mine,) = [net for net in a.nets if net.version == 4]
    lab.host.run("ip", "route", "replace", "198.51.100.7", "dev", a.interface, "proto", "80", "scope", "link")
    lab.host.run("ip", "route", "del", str(mine.ip), "dev", a.interface)
    report = lab.start(a.endpoint(), gone.endpoint())
    assert report.endpoints_without_link == (gone.endpoint().key,)
    report = lab.dataplane.resync()
    assert (report.healed, report.endpoints_without_link) == ((), (gone.endpoint().key,))
    shown = lab.host.run("ip", "-4", "route", "show", "dev", a.interface)
    assert "198.51.100.7" in shown
    assert str(mine.ip) not in shown
    lab.apply(removed_workloads=(a.endpoint().key,))
    assert "198.51.100.7" in lab.host.run("ip", "-4", "route", "show", "dev", a.interface)


def test_neighbours_follow_the_record(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    assert neighbours(lab, a.interface) == {a.v4: "02:00:00:00:00:01"}
    other = msgspec.structs.replace(a.endpoint(), mac=EUI("02:00:00:00:00:77"))
    assert lab.apply(workloads=(other,)).is_clean
    assert neighbours(lab, a.interface) == {a.v4: "02:00:00:00:00:77"}
    a.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
    # the kernel forgets neighbours with the address
    a.run("ip", "neighbour", "replace", "169.254.1.1", "lladdr", "ee:ee:ee:ee:ee:ee", "dev", "eth0", "nud", "permanent")
    assert b.reaches(a.v4, 80), "filter and entry are of the new address"
    more = msgspec.structs.replace(other, nets=(IPNetwork("10.65.0.99/32"), *a.nets[1:]))
    lab.apply(workloads=(more,))
    assert neighbours(lab, a.interface) == {"10.65.0.99": "02:00:00:00:00:77"}
    lab.host.run("ip", "neighbour", "del", "10.65.0.99", "dev", a.interface)
    assert lab.dataplane.resync().healed == ("neighbour 10.65.0.99/32",)
    lab.restart()
    lab.start(msgspec.structs.replace(a.endpoint(), mac=None))
    assert neighbours(lab, a.interface) == {}, "what an earlier run left goes"


def test_the_host_answers_for_the_gateway_of_ipv6_that_a_record_names(lab: Any) -> None:
    """Felix specification 6.9. The kernel takes its time, up to 0.8 s, before it answers as a proxy."""
    a, b = lab.workload(), lab.workload()
    gateway, other = "fd65:1::1", "fd65:1::2"

    def proxies() -> list[str]:
        lines = lab.host.run("ip", "-6", "neighbour", "show", "proxy", "dev", a.interface).splitlines()
        return [line.split()[0] for line in lines]

    lab.start(a.endpoint(), b.endpoint())
    assert proxies() == []
    a.run("ip", "-6", "route", "replace", "default", "via", gateway, "dev", "eth0", "onlink")
    named = msgspec.structs.replace(a.endpoint(), ipv6_gateway=IPAddress(gateway))
    assert lab.apply(workloads=(named,)).is_clean
    assert proxies() == [gateway]
    assert a.reaches(b.v6, 80)
    assert lab.dataplane.resync().healed == ()
    lab.host.run("ip", "-6", "neighbour", "del", "proxy", gateway, "dev", a.interface)
    assert lab.dataplane.resync().healed == (f"proxy neighbour {gateway}/128",)
    assert proxies() == [gateway]
    lab.host.run("ip", "link", "set", a.interface, "down")
    lab.host.run("ip", "link", "set", a.interface, "up")
    assert lab.dataplane.interface_changed(InterfaceEvent(kind="up", name=a.interface)).is_clean
    assert proxies() == [gateway], "the kernel had forgotten it with the link"
    assert lab.apply(workloads=(msgspec.structs.replace(named, ipv6_gateway=IPAddress(other)),)).is_clean
    assert proxies() == [other]
    lab.restart()
    lab.start(a.endpoint(), b.endpoint())
    assert proxies() == [], "what an earlier run left goes"


def test_address_of_two_goes_to_the_first_whatever_the_order(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    shared = IPNetwork("10.65.0.50/32")

    def with_shared(workload: Any) -> Any:
        return msgspec.structs.replace(workload.endpoint(), nets=(*workload.nets, shared))

    lab.start(with_shared(b))
    assert shared in lab.dataplane.wiring().routes(b.interface)
    assert lab.apply(workloads=(with_shared(a),)).is_clean
    assert shared in lab.dataplane.wiring().routes(a.interface)
    assert shared not in lab.dataplane.wiring().routes(b.interface)
    assert lab.dataplane.resync().healed == ()
    lab.apply(removed_workloads=(a.key,))
    assert shared in lab.dataplane.wiring().routes(b.interface)


@pytest.mark.parametrize("shared", ["10.65.0.50", "fd65::50"])
def test_an_address_of_two_is_sent_from_by_the_one_that_has_it(lab: Any, shared: str) -> None:
    """Felix specification 6.8: what is sent from an address must lead back there, in both families."""
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    target = c.v4 if "." in shared else c.v6

    def with_shared(workload: Any) -> Any:
        return msgspec.structs.replace(workload.endpoint(), nets=(*workload.nets, IPNetwork(shared)))

    for each in (a, b):
        each.run("ip", "address", "add", shared, "dev", "eth0", *(("nodad",) if ":" in shared else ()))
    lab.start(c.endpoint(), with_shared(a), with_shared(b))
    assert _arrives(a, shared, c, target)
    assert not _arrives(b, shared, c, target, within_s=0.4)
    assert lab.apply(removed_workloads=(a.key,)).is_clean
    assert _arrives(b, shared, c, target)


@pytest.mark.parametrize("is_removed", [False, True])
@pytest.mark.parametrize("shared", ["10.65.0.50", "fd65::50"])
def test_an_address_of_two_is_had_by_the_one_whose_link_is_up(lab: Any, shared: str, *, is_removed: bool) -> None:
    """Felix specification 13, row 38: it comes back to the first with its link; with policy, routes and connections."""
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    net, target = IPNetwork(shared), c.v4 if "." in shared else c.v6

    def with_shared(workload: Any) -> Any:
        return msgspec.structs.replace(workload.endpoint(), nets=(*workload.nets, net))

    def give(workload: Any) -> None:
        workload.run("ip", "address", "add", shared, "dev", "eth0", *(("nodad",) if ":" in shared else ()))

    def has(workload: Any) -> bool:
        return net in lab.dataplane.wiring().routes(workload.interface)

    for each in (a, b):
        give(each)
    events: SimpleQueue[InterfaceEvent] = SimpleQueue()
    stop = lab.dataplane.watch_interfaces(events.put)
    try:
        lab.start(c.endpoint(), with_shared(a), with_shared(b))
        assert (has(a), has(b)) == (True, False)
        if is_removed:
            lab.host.run("ip", "link", "del", a.interface)
        else:
            a.run("ip", "link", "set", "eth0", "down")
        follow(lab, events, lambda: has(b))
        assert not has(a)
        assert c.reaches(shared, 80)
        assert _arrives(b, shared, c, target)
        assert lab.dataplane.resync().healed == ()
        if is_removed:
            lab.wire(a)
            give(a)
        else:
            a.run("ip", "link", "set", "eth0", "up")
        follow(lab, events, lambda: has(a))
        assert not has(b)
        assert lab.dataplane.resync().healed == ()
        assert not _arrives(b, shared, c, target, within_s=0.4)
    finally:
        stop()


def test_an_agent_that_starts_gives_an_address_of_two_to_the_one_that_lives(lab: Any) -> None:
    shared = IPNetwork("10.65.0.50/32")
    a, b = lab.unwired(), lab.workload()
    both = [msgspec.structs.replace(each.endpoint(), nets=(*each.nets, shared)) for each in (a, b)]
    assert lab.start(*both).endpoints_without_link == (a.key,)
    assert shared in lab.dataplane.wiring().routes(b.interface)
    lab.wire(a)
    assert lab.dataplane.interface_changed(InterfaceEvent(kind="up", name=a.interface)).failures == ()
    assert shared in lab.dataplane.wiring().routes(a.interface)
    assert shared not in lab.dataplane.wiring().routes(b.interface)
    lab.host.run("ip", "link", "set", a.interface, "down")
    assert lab.apply().is_clean, "whatever makes it look"
    assert shared in lab.dataplane.wiring().routes(b.interface)


def follow(lab: Any, events: SimpleQueue[InterfaceEvent], is_done: Callable[[], bool]) -> None:
    """Give the dataplane what the kernel tells of links, as the engine does."""
    while not is_done():
        assert lab.dataplane.interface_changed(events.get(timeout=20)).failures == ()


def _arrives(sender: Any, source: str, receiver: Any, target: str, within_s: float = 8.0) -> bool:
    """One way: the answer would go to whoever has the source. Neighbours that were not found are sought again after a
    while."""
    family = socket.AF_INET if "." in target else socket.AF_INET6
    with receiver.socket(family, socket.SOCK_DGRAM) as listener, sender.socket(family, socket.SOCK_DGRAM) as one:
        listener.bind((target, 8080))
        listener.settimeout(0.2)
        one.bind((source, 0))
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # nobody is there, or nothing came
                one.sendto(b"x", (target, 8080))
                return bool(listener.recv(8))
        return False
