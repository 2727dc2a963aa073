from __future__ import annotations

import time

import pytest

from calico_core.dataplane.linux import netns, sysctl
from calico_core.dataplane.linux.address_messages import add_address
from calico_core.dataplane.linux.interfaces import LinkMonitor
from calico_core.dataplane.linux.link_messages import add_bridge, add_veth, delete_link, set_link
from calico_core.dataplane.linux.link_table import LinkTable
from calico_core.dataplane.linux.prefix import parse_prefix
from calico_core.dataplane.linux.route_messages import add_route, delete_route, workload_route
from calico_core.dataplane.linux.workload_sysctls import host_end, of_the_link
from calico_core.model.workloads import InterfaceEvent
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root


@pytest.fixture
def events(host):
    """Events of the host's links, as they come."""
    seen: list[InterfaceEvent] = []
    monitor = LinkMonitor(seen.append, namespace_fd=host.fd)
    monitor.start()
    yield seen
    monitor.stop()


def test_a_links_life_is_told(host, container, events):
    host.route_socket.execute(add_veth("cali1", "eth0", peer_namespace_fd=container.fd))
    index = host.route_socket.find_link("cali1").index
    eventually(lambda: InterfaceEvent(kind="down", name="cali1", index=index) in events)
    host.route_socket.execute(set_link("cali1", is_up=True))
    container.route_socket.execute(set_link("eth0", is_up=True))
    up = InterfaceEvent(kind="up", name="cali1", index=index)
    eventually(lambda: up in events)
    events.clear()
    container.route_socket.execute(set_link("eth0", is_up=False))
    eventually(lambda: InterfaceEvent(kind="down", name="cali1", index=index) in events)
    events.clear()
    container.route_socket.execute(set_link("eth0", is_up=True))
    eventually(lambda: up in events)
    host.route_socket.execute(delete_link("cali1"))
    eventually(lambda: InterfaceEvent(kind="deleted", name="cali1", index=index) in events)


def test_a_rename_is_a_deletion_and_a_new_link(host, events):
    host.route_socket.execute(add_veth("old0", "peer0"))
    index = host.route_socket.find_link("old0").index
    eventually(lambda: any(event.name == "old0" for event in events))
    host.route_socket.execute(set_link(index=index, rename="new0"))
    eventually(lambda: InterfaceEvent(kind="down", name="new0", index=index) in events)
    names = [(event.kind, event.name) for event in events if event.index == index]
    assert names[-2:] == [("deleted", "old0"), ("down", "new0")]


def test_what_changes_nothing_for_us_is_not_told(host, events):
    host.route_socket.execute(add_veth("a0", "b0"))
    eventually(lambda: any(event.name == "a0" for event in events))
    host.route_socket.execute(set_link("a0", group=5), add_veth("c0", "d0"))
    eventually(lambda: any(event.name == "c0" for event in events))
    assert [event.name for event in events].count("a0") == 1


def test_leaving_a_bridge_is_no_deletion(host, events):
    """The kernel tells of a lost bridge port with RTM_DELLINK, too."""
    host.route_socket.execute(add_bridge("br0"), add_veth("a0", "b0"))
    bridge = host.route_socket.find_link("br0").index
    host.route_socket.execute(set_link("a0", bridge_index=bridge), set_link("a0", bridge_index=0))
    host.route_socket.execute(add_veth("last0", "last1"))
    eventually(lambda: any(event.name == "last0" for event in events))
    assert "deleted" not in [event.kind for event in events]


def test_addresses_and_routes_when_asked(host):
    links, addresses, routes = [], [], []
    monitor = LinkMonitor(
        links.append,
        namespace_fd=host.fd,
        on_address=lambda address, is_there: addresses.append((str(address.prefix), is_there)),
        on_route=lambda route, is_there: routes.append((route, is_there)),
    )
    monitor.start()
    host.route_socket.execute(add_veth("a0", "b0"), set_link("a0", is_up=True), set_link("b0", is_up=True))
    index = host.route_socket.find_link("a0").index
    route = workload_route(parse_prefix("10.3.3.3"), index)
    host.route_socket.execute(add_address(index, parse_prefix("10.3.0.1/32")), add_route(route), delete_route(route))
    eventually(lambda: ("10.3.0.1/32", True) in addresses)
    eventually(lambda: (route, True) in routes and (route, False) in routes)
    monitor.stop()


def test_lost_events_ask_for_a_resync(host):
    seen: list[InterfaceEvent] = []
    waiting = True

    def slow(event: InterfaceEvent) -> None:
        seen.append(event)
        while waiting and time.monotonic() < deadline:
            time.sleep(0.005)

    deadline = time.monotonic() + 20
    monitor = LinkMonitor(slow, namespace_fd=host.fd, receive_buffer_bytes=4096)
    monitor.start()
    host.route_socket.execute(add_veth("a0", "b0"))
    for number in range(64):
        host.route_socket.execute(set_link("a0", mtu_bytes=1300 + number))
    waiting = False
    eventually(lambda: InterfaceEvent(kind="resync") in seen)
    monitor.stop()


def test_stop_is_prompt_and_may_be_repeated(host):
    monitor = LinkMonitor(lambda event: None, namespace_fd=host.fd)
    monitor.start()
    begin = time.monotonic()
    monitor.stop()
    monitor.stop()
    assert time.monotonic() - begin < 5


def test_a_monitor_never_started_can_be_stopped(host):
    LinkMonitor(lambda event: None, namespace_fd=host.fd).stop()


def test_the_callback_may_stop_the_monitor(host):
    monitors: list[LinkMonitor] = []
    calls: list[InterfaceEvent] = []

    def stop(event: InterfaceEvent) -> None:
        calls.append(event)
        monitors[0].stop()

    monitors.append(LinkMonitor(stop, namespace_fd=host.fd))
    monitors[0].start()
    host.route_socket.execute(add_veth("a0", "b0"))
    eventually(lambda: bool(calls))
    eventually(lambda: not monitors[0].is_running)
    monitors[0].stop()


def test_a_table_follows_the_links_ahead_of_the_callback(host):
    table = LinkTable()
    seen = []
    monitor = LinkMonitor(
        lambda event: seen.append((event.kind, event.name, event.name in table.find([event.name]))),
        namespace_fd=host.fd,
        table=table,
    )
    monitor.start()
    table.fill(host.route_socket.links())
    host.route_socket.execute(add_veth("cali1", "peer1"), set_link("cali1", is_up=True), delete_link("cali1"))
    eventually(lambda: ("deleted", "cali1", False) in seen)
    assert ("down", "cali1", True) in seen
    assert table.find(["lo", "cali1", "peer1"]).keys() == {"lo"}
    monitor.stop()


def test_ipv4_settings_of_a_link_arrive(host):
    settings = host_end("cali1", has_v4=True, has_v6=False, opens_loopback=True)
    carried, files = of_the_link(settings)
    assert {setting.path.rpartition("/")[2] for setting in files} == {"proxy_delay", "accept_ra"}
    host.route_socket.execute(add_veth("cali1", "peer1"), set_link("cali1", ipv4_settings=carried))
    rest = set(settings) - set(files)
    assert len(rest) == 4
    assert netns.run_in(host.fd, lambda: [each.path for each in rest if sysctl.read(each.path) != each.value]) == []
