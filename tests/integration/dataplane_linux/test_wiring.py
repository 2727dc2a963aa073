from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import socket
import struct
import subprocess
import threading

import msgspec
import pytest
from netaddr import EUI

from calico_core.dataplane.linux import netns, sysctl
from calico_core.dataplane.linux.address_messages import add_address, delete_address
from calico_core.dataplane.linux.link_messages import add_bridge, add_veth, delete_link, set_link
from calico_core.dataplane.linux.orphans import find_orphans
from calico_core.dataplane.linux.prefix import AF_INET, AF_INET6, parse_prefix
from calico_core.dataplane.linux.route_messages import (
    RTN_BLACKHOLE,
    RTPROT_BIRD,
    Route,
    add_route,
    delete_route,
    workload_route,
)
from calico_core.dataplane.linux.wiring import VethWiring
from calico_core.errors import InterfaceTaken, InvalidRequest, KernelRefused, NamespaceGone, RouteTaken
from calico_core.model.addresses import parse_mac, parse_network
from calico_core.model.workloads import PairRequest, WiringRequest

pytestmark = pytest.mark.needs_root

V4, V6 = "10.65.0.2", "fd00:10:65::2"
HOST_MAC = EUI("ee:ee:ee:ee:ee:ee")


@pytest.fixture
def wiring(host):
    made = VethWiring(host.fd)
    yield made
    made.close()


def a_request(container, **fields) -> WiringRequest:
    texts = fields.pop("addresses", (V4,))
    defaults = {
        "interface": "cali1",
        "container_interface": "eth0",
        "namespace_fd": container.fd,
        "namespace": container.name,
        "addresses": tuple(parse_network(text) for text in texts),
    }
    return WiringRequest(**(defaults | fields))


def is_untouched(*namespaces) -> bool:
    return all([link.name for link in each.route_socket.links()] == ["lo"] for each in namespaces)


def echoes(host, container, address: str, *, family: int) -> bool:
    """Whether a datagram from the host reaches the workload's address and its answer comes back."""
    with (
        netns.socket_in(container.fd, family, socket.SOCK_DGRAM) as server,
        netns.socket_in(host.fd, family, socket.SOCK_DGRAM) as client,
    ):
        server.settimeout(3)
        client.settimeout(3)
        server.bind((address, 0))
        client.sendto(b"ping", (address, server.getsockname()[1]))
        _, sender = server.recvfrom(16)
        server.sendto(b"pong", sender)
        return client.recv(16) == b"pong"


def channels(namespace_fd: int, interface: str) -> tuple[int, int]:
    """Receive and transmit queues in use. Source: linux/ethtool.h, ETHTOOL_GCHANNELS."""
    answer = ctypes.create_string_buffer(struct.pack("=9I", 0x3C, *[0] * 8), 36)
    request = struct.pack("16sQ8x", interface.encode(), ctypes.addressof(answer))
    with netns.socket_in(namespace_fd, socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8946, request)  # SIOCETHTOOL
    _command, _mrx, _mtx, _mother, _mcombined, rx, tx, _other, _combined = struct.unpack("=9I", answer.raw)
    return rx, tx


def give_host_an_address(host) -> None:
    """On loopback, as a machine has one somewhere."""
    host.route_socket.execute(
        set_link("lo", is_up=True),
        add_address(1, parse_prefix("192.0.2.10/32")),
        add_address(1, parse_prefix("2001:db8::10/128")),
    )


def test_an_attached_workload_is_reached_in_both_families(wiring, host, container):
    give_host_an_address(host)
    wired = wiring.attach(a_request(container, addresses=(V4, V6), mtu_bytes=1440))
    assert (wired.interface, wired.host_mac, wired.mtu_bytes, wired.is_new) == ("cali1", HOST_MAC, 1440, True)
    assert container.route_socket.find_link("eth0").mac == wired.mac.packed
    assert container.route_socket.find_link("eth0").mtu_bytes == 1440
    assert echoes(host, container, V4, family=socket.AF_INET)
    assert echoes(host, container, V6, family=socket.AF_INET6)
    assert wiring.exists("cali1")
    assert {str(network) for network in wiring.routes("cali1")} == {V4 + "/32", V6 + "/128"}


def test_what_stands_is_what_the_specification_says(wiring, host, container):
    mac = parse_mac("02:00:5e:10:00:01")
    wired = wiring.attach(a_request(container, addresses=(V4, V6), mac=mac))
    assert wired.mac == mac
    link = host.route_socket.find_link("cali1")
    assert set(host.route_socket.routes(protocol=80)) == {
        workload_route(parse_prefix(V4), link.index),
        workload_route(parse_prefix(V6), link.index),
    }
    inside = {
        (str(route.destination), socket.inet_ntop(route.destination.family, route.gateway) if route.gateway else "")
        for route in container.route_socket.routes(index=link.peer_index)
    }
    assert inside >= {
        ("169.254.1.1/32", ""),
        ("0.0.0.0/0", "169.254.1.1"),
        ("::/0", "fe80::ecee:eeff:feee:eeee"),
    }
    expected = {
        "ipv4/conf/cali1/proxy_arp": "1",
        "ipv4/conf/cali1/route_localnet": "0",
        "ipv4/conf/cali1/forwarding": "1",
        "ipv4/conf/cali1/rp_filter": "1",
        "ipv4/neigh/cali1/proxy_delay": "0",
        "ipv6/conf/cali1/accept_ra": "0",
        "ipv6/conf/cali1/accept_dad": "0",
        "ipv6/conf/cali1/proxy_ndp": "1",
        "ipv6/conf/cali1/forwarding": "1",
    }
    assert netns.run_in(host.fd, lambda: {path: sysctl.read(path) for path in expected}) == expected
    inner = {"ipv6/conf/eth0/accept_dad": "0", "ipv6/conf/eth0/accept_ra": "0", "ipv4/ip_forward": "0"}
    assert netns.run_in(container.fd, lambda: {path: sysctl.read(path) for path in inner}) == inner
    neighbours = {each.address: each.mac for each in container.route_socket.neighbours()}
    assert neighbours[parse_prefix("169.254.1.1")] == b"\xee" * 6


def test_without_a_pinned_gateway_proxy_arp_answers(host, container):
    wiring = VethWiring(host.fd, pins_gateway=False)
    give_host_an_address(host)
    host.route_socket.execute(add_veth("up0", "up1"), set_link("up0", is_up=True), set_link("up1", is_up=True))
    up = host.route_socket.find_link("up0").index
    # proxy ARP speaks only for addresses it would route through another interface
    host.route_socket.execute(add_route(Route(destination=parse_prefix("0.0.0.0/0"), index=up, scope=253)))
    wiring.attach(a_request(container))
    assert echoes(host, container, V4, family=socket.AF_INET)
    wiring.close()


def test_attaching_again_changes_nothing(wiring, host, container):
    request = a_request(container, addresses=(V4, V6))
    first = wiring.attach(request)
    index = host.route_socket.find_link("cali1").index
    again = wiring.attach(request)
    assert not again.is_new
    assert (again.mac, again.host_mac, again.mtu_bytes) == (first.mac, first.host_mac, first.mtu_bytes)
    assert host.route_socket.find_link("cali1").index == index


def test_attaching_again_with_other_wishes_changes_the_pair_in_place(wiring, host, container):
    wiring.attach(a_request(container, addresses=(V4,)))
    index = host.route_socket.find_link("cali1").index
    other = a_request(container, addresses=("10.65.0.3", V6), mtu_bytes=1400, mac=parse_mac("02:00:00:00:00:99"))
    assert wiring.attach(other).mtu_bytes == 1400
    assert wiring.check(other) == ()
    assert host.route_socket.find_link("cali1").index == index
    assert {str(network) for network in wiring.routes("cali1")} == {"10.65.0.3/32", V6 + "/128"}


def test_check_names_what_is_missing(wiring, host, container):
    request = a_request(container, addresses=(V4, V6), mtu_bytes=1440)
    assert wiring.check(request) == ("host interface cali1 is missing",)
    wiring.attach(request)
    assert wiring.check(request) == ()
    link = host.route_socket.find_link("cali1")
    host.route_socket.execute(delete_route(workload_route(parse_prefix(V4), link.index)))
    container.route_socket.execute(delete_address(link.peer_index, parse_prefix(V6)), set_link("eth0", mtu_bytes=1300))
    netns.run_in(host.fd, lambda: sysctl.write("ipv4/conf/cali1/proxy_arp", "0"))
    assert wiring.check(request) == (
        "eth0 has MTU 1300, not 1440",
        f"address {V6}/128 is missing on eth0",
        f"host route {V4}/32 through cali1 is missing",
        "sysctl net/ipv4/conf/cali1/proxy_arp is not 1",
    )
    wiring.attach(request)
    assert wiring.check(request) == ()


def test_detach_is_idempotent_and_takes_everything(wiring, host, container):
    wiring.attach(a_request(container, addresses=(V4, V6)))
    wiring.detach("cali1")
    assert is_untouched(host, container)
    assert host.route_socket.routes(protocol=80) == []
    wiring.detach("cali1")
    assert not wiring.exists("cali1")


def test_detach_leaves_what_is_no_pair(wiring, host):
    host.route_socket.execute(add_bridge("caliX"))
    with pytest.raises(InterfaceTaken):
        wiring.detach("caliX")
    assert wiring.exists("caliX")


def test_a_leftover_of_the_wanted_name_is_replaced(wiring, host, container, make_namespace):
    old = make_namespace()
    wiring.attach(a_request(old))
    wired = wiring.attach(a_request(container))
    assert wired.is_new
    assert wiring.check(a_request(container)) == ()
    assert is_untouched(old)


def test_the_containers_name_taken_changes_nothing(wiring, host, container):
    container.route_socket.execute(add_veth("eth0", "other"))
    before = [each.links() for each in (host.route_socket, container.route_socket)]
    with pytest.raises(InterfaceTaken) as taken:
        wiring.attach(a_request(container))
    assert (taken.value.interface, taken.value.where) == ("eth0", container.name)
    assert [each.links() for each in (host.route_socket, container.route_socket)] == before


def test_a_host_name_that_is_no_pair_is_left_alone(wiring, host, container):
    host.route_socket.execute(add_bridge("cali1"))
    with pytest.raises(InterfaceTaken):
        wiring.attach(a_request(container))
    assert host.route_socket.find_link("cali1").kind == "bridge"
    assert is_untouched(container)


def a_live_pair(host, name: str) -> int:
    host.route_socket.execute(add_veth(name, name + "p"), set_link(name, is_up=True), set_link(name + "p", is_up=True))
    return host.route_socket.find_link(name).index


@pytest.mark.parametrize("text", [V4, V6])
def test_a_route_on_a_foreign_interface_names_it_and_undoes_everything(wiring, host, container, text):
    foreign = workload_route(parse_prefix(text), a_live_pair(host, "eth9"))
    host.route_socket.execute(add_route(foreign))
    # a state to come back to: without IPv6, forwarding on
    netns.run_in(container.fd, lambda: sysctl.write("ipv6/conf/all/disable_ipv6", "1"))
    netns.run_in(container.fd, lambda: sysctl.write("ipv4/ip_forward", "1"))
    with pytest.raises(RouteTaken) as taken:
        wiring.attach(a_request(container, addresses=(V4, V6)))
    assert taken.value.owner == "eth9"
    assert taken.value.destination.startswith(text)
    assert is_untouched(container)
    assert not wiring.exists("cali1")
    assert host.route_socket.routes(protocol=80) == [foreign]
    for path in ("ipv6/conf/all/disable_ipv6", "ipv4/ip_forward"):
        assert netns.run_in(container.fd, lambda path=path: sysctl.read(path)) == "1"


def test_a_foreign_interface_keeps_its_route_even_without_carrier(wiring, host, container):
    a_live_pair(host, "eth9")
    host.route_socket.execute(
        add_route(workload_route(parse_prefix(V4), host.route_socket.find_link("eth9").index)),
        set_link("eth9p", is_up=False),
    )
    with pytest.raises(RouteTaken):
        wiring.attach(a_request(container))


def test_a_live_workloads_route_is_not_stolen(wiring, host, container, make_namespace):
    first = make_namespace()
    wiring.attach(a_request(first, interface="cali0"))
    with pytest.raises(RouteTaken) as taken:
        wiring.attach(a_request(container))
    assert taken.value.owner == "cali0"
    assert wiring.check(a_request(first, interface="cali0")) == ()


@pytest.mark.parametrize("text", [V4, V6])
def test_a_stale_workload_interface_loses_its_route(wiring, host, container, make_namespace, text):
    old = make_namespace()
    wiring.attach(a_request(old, interface="cali0", addresses=(text,)))
    old.route_socket.execute(set_link("eth0", is_up=False))
    wiring.attach(a_request(container, addresses=(text,)))
    index = host.route_socket.find_link("cali1").index
    assert host.route_socket.routes(protocol=80) == [workload_route(parse_prefix(text), index)]


def test_a_route_that_bgp_brought_gives_way(wiring, host, container):
    blackhole = Route(destination=parse_prefix(V4), type=RTN_BLACKHOLE, protocol=RTPROT_BIRD)
    host.route_socket.execute(add_route(blackhole))
    wiring.attach(a_request(container))
    assert [str(network) for network in wiring.routes("cali1")] == [V4 + "/32"]
    assert host.route_socket.routes(AF_INET, protocol=RTPROT_BIRD) == []


def test_a_second_interface_leaves_the_first_ones_routes(wiring, host, container):
    wiring.attach(a_request(container))
    second = a_request(
        container, interface="cali2", container_interface="eth1", addresses=("10.65.9.9",), is_default_route=False
    )
    wiring.attach(second)
    assert wiring.check(second) == ()
    assert wiring.check(a_request(container)) == ()
    eth0 = container.route_socket.find_link("eth0").index
    defaults = [r for r in container.route_socket.routes(AF_INET) if r.destination.length == 0]
    assert [route.index for route in defaults] == [eth0]


def test_a_second_interface_outlives_the_first_with_the_routes_it_was_told_of(wiring, host, container):
    wiring.attach(a_request(container, addresses=(V4, V6)))
    second = a_request(
        container,
        interface="cali2",
        container_interface="eth1",
        addresses=("10.65.9.9", "fd00:10:65::99"),
        routes=(parse_network("192.0.2.0/24"),),
    )
    kept = wiring.attach(second).missing_routes
    assert {str(each) for each in kept} == {"0.0.0.0/0", "::/0"}
    told = msgspec.structs.replace(second, is_default_route=False)
    assert wiring.check(told) == ()
    wiring.detach("cali1")
    assert wiring.check(told) == ()
    (route,) = [each for each in container.route_socket.routes(AF_INET) if each.gateway]
    container.route_socket.execute(delete_route(route))
    assert wiring.check(told) == ("container route 192.0.2.0/24 is missing",)


def test_a_second_interface_that_wants_routes_too(wiring, host, container):
    """The default route stays the first one's; destinations of the second go through it, over the same next hop."""
    wiring.attach(a_request(container, addresses=(V4, V6)))
    second = a_request(
        container,
        interface="cali2",
        container_interface="eth1",
        addresses=("10.65.9.9", "fd00:10:65::99"),
        routes=(parse_network("192.0.2.0/24"), parse_network("2001:db8::/64")),
    )
    for _ in range(2):
        kept = wiring.attach(second).missing_routes
        assert {str(each) for each in kept} == {"0.0.0.0/0", "::/0"}
        assert wiring.check(second) == ()
        assert wiring.check(a_request(container, addresses=(V4, V6))) == ()
        assert wiring.attach(a_request(container, addresses=(V4, V6))).missing_routes == ()
    names = {link.index: link.name for link in container.route_socket.links()}
    through = {
        str(route.destination): names[route.index]
        for family in (AF_INET, AF_INET6)
        for route in container.route_socket.routes(family)
        if route.gateway
    }
    assert through == {"0.0.0.0/0": "eth0", "::/0": "eth0", "192.0.2.0/24": "eth1", "2001:db8::/64": "eth1"}
    give_host_an_address(host)
    for source in ("10.65.9.9", "fd00:10:65::99"):
        family = socket.AF_INET if source.count(":") == 0 else socket.AF_INET6
        assert echoes(host, container, source, family=family)


@pytest.mark.parametrize("queues", [1, 3])
def test_both_ends_have_the_queues_that_were_asked_for(wiring, host, container, queues):
    wiring.attach(a_request(container, queues=queues))
    for fd, interface in ((host.fd, "cali1"), (container.fd, "eth0")):
        assert channels(fd, interface) == (queues, queues)


def test_orphans_are_our_pairs_with_no_process_behind_them(wiring, host, container, make_namespace):
    lived_in, foreign = make_namespace(), make_namespace()
    wiring.attach(a_request(container))
    wiring.attach(a_request(lived_in, interface="cali2", addresses=("10.65.0.3",)))
    host.route_socket.execute(add_veth("cali3", "eth0", mac=b"\x02" * 6, peer_namespace_fd=foreign.fd))
    wiring.make_pair(PairRequest(interface="cali4", peer="here"))
    with subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{lived_in.name}", "sh", "-c", "echo; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"\n"  # it is inside
        assert set(wiring.orphans()) == {"cali1"}
        wiring.remove_orphans(wiring.orphans().values())
        assert not wiring.exists("cali1")
        assert wiring.orphans() == {}
        process.stdin.close()
    assert set(wiring.orphans()) == {"cali2"}
    wiring.remove_orphans(wiring.orphans().values())
    assert sorted(link.name for link in host.route_socket.links()) == ["cali3", "cali4", "here", "lo"]


def test_nothing_is_an_orphan_while_processes_cannot_be_looked_at(wiring, host, container, tmp_path):
    wiring.attach(a_request(container))
    (tmp_path / "17" / "ns").mkdir(parents=True)
    look = functools.partial(find_orphans, host.route_socket, "cali", HOST_MAC.packed, processes=str(tmp_path))
    assert [link.name for link in look()] == ["cali1"], "a process that has ended says nothing"
    (tmp_path / "17" / "ns" / "net").symlink_to("net")
    assert look() == ()


def test_without_a_default_route_there_is_none(wiring, container):
    wiring.attach(a_request(container, addresses=(V4, V6), is_default_route=False))
    for family in (AF_INET, AF_INET6):
        assert not [r for r in container.route_socket.routes(family) if r.destination.length == 0]


def test_destinations_beside_or_instead_of_the_default_route(wiring, container):
    texts = ("10.0.0.0/8", "192.0.2.0/24", "fd00::/8")
    request = a_request(
        container, is_default_route=False, routes=tuple(parse_network(each) for each in texts), addresses=(V4,)
    )
    wiring.attach(request)
    gateway = parse_prefix("169.254.1.1/32")
    through = [r.destination for r in container.route_socket.routes(AF_INET) if r.gateway == gateway.address]
    assert set(through) == {parse_prefix("10.0.0.0/8"), parse_prefix("192.0.2.0/24")}, "IPv6 is not spoken here"
    assert wiring.check(request) == ()
    (lost,) = [r for r in container.route_socket.routes(AF_INET) if r.destination == parse_prefix("192.0.2.0/24")]
    container.route_socket.execute(delete_route(lost))
    assert wiring.check(request) == ("container route 192.0.2.0/24 is missing",)
    assert wiring.attach(request).is_new, "an attach again repairs it"
    assert wiring.check(request) == ()


def test_forwarding_in_the_container_when_allowed(wiring, container):
    wiring.attach(a_request(container, addresses=(V4, V6), allow_ip_forwarding=True))
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        assert netns.run_in(container.fd, lambda path=path: sysctl.read(path)) == "1"


def test_a_kernel_refusal_midway_leaves_nothing(wiring, host, container):
    with pytest.raises(KernelRefused):
        # below IPv6's smallest MTU the kernel takes the family off the interface
        wiring.attach(a_request(container, addresses=(V4, V6), mtu_bytes=1000))
    assert is_untouched(host, container)


@pytest.fixture
def no_ipv6(monkeypatch, tmp_path):
    """A view of /proc/sys/net as a kernel without IPv6 shows it."""
    (tmp_path / "ipv4").symlink_to("/proc/sys/net/ipv4")
    monkeypatch.setattr(sysctl, "ROOT", f"{tmp_path}/")
    sysctl.has_ipv6.cache_clear()
    yield
    sysctl.has_ipv6.cache_clear()


def test_a_kernel_without_ipv6_still_wires_ipv4(wiring, host, container, no_ipv6):
    give_host_an_address(host)
    with pytest.raises(KernelRefused, match="no IPv6"):
        wiring.attach(a_request(container, addresses=(V4, V6)))
    assert is_untouched(container)
    assert not wiring.exists("cali1")
    wiring.attach(a_request(container))
    assert wiring.check(a_request(container)) == ()
    assert echoes(host, container, V4, family=socket.AF_INET)


def test_the_hosts_own_namespace_and_a_closed_one_are_refused(wiring, host, container):
    with pytest.raises(InvalidRequest):
        wiring.attach(a_request(container, namespace_fd=host.fd))
    stale = os.dup(container.fd)
    os.close(stale)
    with pytest.raises(NamespaceGone):
        wiring.attach(a_request(container, namespace_fd=stale))
    assert is_untouched(host, container)


def test_ten_threads_attach_and_detach(wiring, host, make_namespace):
    namespaces = [make_namespace() for _ in range(10)]
    failures: list[BaseException] = []

    def live(number: int) -> None:
        request = a_request(
            namespaces[number], interface=f"cali{number}", addresses=(f"10.66.0.{number}", f"fd66::{number}")
        )
        try:
            for _ in range(3):
                wiring.attach(request)
                assert wiring.check(request) == ()
                wiring.detach(request.interface)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert is_untouched(host, *namespaces)


# --- a pair for Docker to move ---------------------------------------------------------------------


def a_pair(**fields) -> PairRequest:
    defaults = {"interface": "cali7", "peer": "tmp7", "addresses": (parse_network(V4), parse_network(V6))}
    return PairRequest(**(defaults | fields))


def test_a_pair_stays_in_the_host_both_ends_up_until_it_is_moved(wiring, host, container):
    give_host_an_address(host)
    mac = parse_mac("02:00:00:00:00:07")
    wired = wiring.make_pair(a_pair(mac=mac, mtu_bytes=1410))
    assert (wired.mac, wired.host_mac, wired.mtu_bytes) == (mac, HOST_MAC, 1410)
    ends = [host.route_socket.find_link(name) for name in ("cali7", "tmp7")]
    assert all(each.is_up and each.mtu_bytes == 1410 for each in ends)
    assert {str(network) for network in wiring.routes("cali7")} == {V4 + "/32", V6 + "/128"}
    assert netns.run_in(host.fd, lambda: sysctl.read("ipv4/conf/cali7/proxy_arp")) == "1"

    # what the engine does next
    host.route_socket.execute(set_link("tmp7", is_up=False), set_link("tmp7", namespace_fd=container.fd))
    inner = container.route_socket.find_link("tmp7").index
    container.route_socket.execute(
        set_link(index=inner, rename="cali0"),
        add_address(inner, parse_prefix(V4)),
        set_link(index=inner, is_up=True),
        add_route(Route(destination=parse_prefix("169.254.1.1"), index=inner, scope=253)),
        add_route(Route(destination=parse_prefix("0.0.0.0/0"), index=inner, gateway=socket.inet_aton("169.254.1.1"))),
    )
    a_live_pair(host, "up0")
    up = host.route_socket.find_link("up0").index
    host.route_socket.execute(add_route(Route(destination=parse_prefix("0.0.0.0/0"), index=up, scope=253)))
    assert echoes(host, container, V4, family=socket.AF_INET)


def test_making_a_pair_again_replaces_it(wiring, host):
    wiring.make_pair(a_pair())
    first = host.route_socket.find_link("cali7").index
    wiring.make_pair(a_pair())
    assert host.route_socket.find_link("cali7").index != first
    wiring.detach("cali7")
    assert is_untouched(host)


def test_a_leftover_peer_alone_is_replaced_too(wiring, host):
    host.route_socket.execute(add_veth("tmp7", "odd"))
    wiring.make_pair(a_pair())
    assert host.route_socket.find_link("odd") is None
    host.route_socket.execute(delete_link("cali7"))


def test_a_pair_that_cannot_have_its_route_is_undone(wiring, host):
    host.route_socket.execute(add_route(workload_route(parse_prefix(V4), a_live_pair(host, "eth9"))))
    with pytest.raises(RouteTaken):
        wiring.make_pair(a_pair())
    assert host.route_socket.find_link("cali7") is None
    assert host.route_socket.find_link("tmp7") is None
