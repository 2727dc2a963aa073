from __future__ import annotations

import errno
import socket

import pytest

from calico_core.dataplane.linux.address_messages import (
    NUD_PERMANENT,
    add_address,
    delete_address,
    delete_neighbour,
    set_neighbour,
)
from calico_core.dataplane.linux.link_messages import (
    add_bridge,
    add_veth,
    delete_link,
    get_link,
    set_link,
)
from calico_core.dataplane.linux.prefix import AF_INET, AF_INET6, parse_prefix
from calico_core.dataplane.linux.route_messages import (
    RTN_BLACKHOLE,
    Route,
    add_route,
    delete_route,
    replace_route,
    workload_route,
)
from calico_core.dataplane.linux.rtnetlink import link_of
from calico_core.errors import KernelRefused

pytestmark = pytest.mark.needs_root

MAC = bytes.fromhex("020000000001")


@pytest.fixture
def pair(host, container):
    """Host end up, container end up; gives the host end."""
    outcomes = host.route_socket.execute(
        add_veth(
            "cali1",
            "eth0",
            mac=b"\xee" * 6,
            peer_mac=MAC,
            peer_namespace_fd=container.fd,
            mtu_bytes=1440,
            is_up=True,
        ),
        get_link("cali1"),
    )
    container.route_socket.execute(set_link("eth0", is_up=True))
    return link_of(outcomes[1])


def test_one_request_makes_the_pair_with_everything_in_it(host, container, pair):
    inner = container.route_socket.find_link("eth0")
    assert (pair.name, pair.mac, pair.mtu_bytes, pair.kind) == ("cali1", b"\xee" * 6, 1440, "veth")
    assert (inner.name, inner.mac, inner.mtu_bytes, inner.is_up) == ("eth0", MAC, 1440, True)
    assert (pair.peer_index, inner.peer_index) == (inner.index, pair.index)
    assert pair.peer_namespace_id == host.route_socket.namespace_id(container.fd)


def test_links_are_listed_and_found(host, pair):
    assert {link.name for link in host.route_socket.links()} == {"lo", "cali1"}
    assert host.route_socket.find_link(index=pair.index).name == "cali1"
    assert host.route_socket.find_link("nobody") is None


def test_a_link_is_changed_renamed_moved_and_deleted(host, container, pair):
    rs = host.route_socket
    rs.execute(set_link("cali1", mtu_bytes=1300, mac=MAC, group=7))
    changed = rs.find_link("cali1")
    assert (changed.mtu_bytes, changed.mac, changed.group) == (1300, MAC, 7)
    rs.execute(set_link("cali1", is_up=False), set_link(index=pair.index, rename="cali2"))
    assert rs.find_link("cali1") is None
    assert not rs.find_link("cali2").is_up
    rs.execute(set_link("cali2", namespace_fd=container.fd))
    assert rs.find_link("cali2") is None
    assert container.route_socket.find_link("cali2") is not None
    container.route_socket.execute(delete_link("cali2"))
    assert container.route_socket.find_link("eth0") is None


@pytest.mark.parametrize("text", ["10.1.2.3/32", "10.1.2.3/24", "fd00::7/128"])
def test_addresses_come_and_go(container, pair, text):
    prefix, rs = parse_prefix(text), container.route_socket
    rs.execute(add_address(pair.peer_index, prefix), add_address(pair.peer_index, prefix))
    assert prefix in [each.prefix for each in rs.addresses(pair.peer_index)]
    rs.execute(delete_address(pair.peer_index, prefix))
    assert prefix not in [each.prefix for each in rs.addresses(pair.peer_index)]


@pytest.mark.parametrize("text", ["10.1.2.3/32", "fd00::7/128"])
def test_a_workload_route_reads_back_as_written(host, pair, text):
    route = workload_route(parse_prefix(text), pair.index)
    host.route_socket.execute(add_route(route))
    assert host.route_socket.routes(protocol=80) == [route]
    assert host.route_socket.routes(index=pair.index, protocol=80) == [route]
    with pytest.raises(KernelRefused) as refused:
        host.route_socket.execute(add_route(route))
    assert refused.value.errno == errno.EEXIST
    host.route_socket.execute(replace_route(route), delete_route(route))
    assert host.route_socket.routes(protocol=80) == []


def test_gateway_onlink_metric_and_table(host, pair):
    route = Route(
        destination=parse_prefix("10.9.0.0/16"),
        index=pair.index,
        gateway=socket.inet_aton("192.0.2.1"),
        metric=33,
        table=1000,
        is_onlink=True,
    )
    # the kernel calls every gateway invalid in a namespace that never had an address
    host.route_socket.execute(add_address(pair.index, parse_prefix("10.99.0.1/32")), add_route(route))
    assert host.route_socket.routes(AF_INET, table=1000) == [route]
    assert host.route_socket.routes(AF_INET, protocol=80) == []
    assert host.route_socket.routes(AF_INET, table=1001) == []


@pytest.mark.parametrize(("text", "metric", "index"), [("10.7.0.0/26", 0, 0), ("fd07::/122", 1024, 1)])
def test_blackholes(host, text, metric, index):
    """IPv6 hangs a blackhole on the loopback device."""
    route = Route(destination=parse_prefix(text), type=RTN_BLACKHOLE, metric=metric)
    host.route_socket.execute(add_route(route))
    (found,) = host.route_socket.routes(protocol=80)
    assert (found.type, found.destination, found.index) == (RTN_BLACKHOLE, route.destination, index)


def test_a_permanent_neighbour(container, pair):
    rs, gateway = container.route_socket, parse_prefix("169.254.1.1")
    rs.execute(set_neighbour(pair.peer_index, gateway, MAC))
    entry = next(each for each in rs.neighbours() if each.address == gateway)
    assert (entry.mac, entry.state, entry.index) == (MAC, NUD_PERMANENT, pair.peer_index)
    rs.execute(delete_neighbour(pair.peer_index, gateway))
    assert gateway not in [each.address for each in rs.neighbours()]


def test_a_failure_in_the_middle_is_told_and_the_rest_is_done(host, pair):
    first, third = (workload_route(parse_prefix(text), pair.index) for text in ("10.0.0.1", "10.0.0.3"))
    outcomes = host.route_socket.attempt([add_route(first), delete_link("nobody"), add_route(third)])
    assert [outcome.error.errno if outcome.error else 0 for outcome in outcomes] == [0, errno.ENODEV, 0]
    assert len(host.route_socket.routes(protocol=80)) == 2


def test_errors_carry_the_kernels_words(host, pair):
    with pytest.raises(KernelRefused, match=r"change link cali1: .+\(.+\)") as refused:
        host.route_socket.execute(set_link("cali1", mtu_bytes=1 << 20))
    assert refused.value.errno == errno.EINVAL


def test_a_port_joins_and_leaves_a_bridge(host, pair):
    rs = host.route_socket
    rs.execute(add_bridge("br0"))
    bridge = rs.find_link("br0")
    assert bridge.kind == "bridge"
    rs.execute(set_link("cali1", bridge_index=bridge.index))
    assert rs.find_link("cali1").bridge_index == bridge.index
    rs.execute(set_link("cali1", bridge_index=0))
    assert rs.find_link("cali1").bridge_index == 0


def test_three_thousand_routes_in_a_few_sends(host, pair):
    routes = [
        workload_route(parse_prefix(f"10.{200 + i // 65536}.{i // 256 % 256}.{i % 256}"), pair.index)
        for i in range(3000)
    ]
    host.route_socket.execute(*map(add_route, routes))
    assert set(host.route_socket.routes(AF_INET, protocol=80)) == set(routes)
    assert host.route_socket.routes(AF_INET6, protocol=80) == []
