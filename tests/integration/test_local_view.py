"""What the kernel of a host says of addresses, read from a namespace made for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.address_messages import add_address
from calico_core.dataplane.linux.link_messages import add_veth, set_link
from calico_core.dataplane.linux.prefix import Prefix, host_prefix, parse_prefix
from calico_core.dataplane.linux.route_messages import RTN_BLACKHOLE, Route, add_route, workload_route
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.ipam.local_view import LocalView
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.node.local_view import lost_sandboxes, read_local_view

pytestmark = pytest.mark.needs_root


@pytest.fixture
def namespace_fd() -> Iterator[int]:
    """A host with an uplink 192.0.2.1/24 (default route through .254), a workload, a block and a route elsewhere."""
    name = f"lcv-{os.getpid()}"
    descriptor = netns.open_namespace(str(netns.create_namespace(name)))
    try:
        with RouteSocket(descriptor) as host:
            for link, peer in (("eth0", "far0"), ("cali1", "tmp1")):
                host.execute(add_veth(link, peer))
                host.execute(set_link(link, is_up=True), set_link(peer, is_up=True))
            indexes = {link.name: link.index for link in host.links()}
            host.execute(add_address(indexes["eth0"], Prefix(2, IPAddress("192.0.2.1").packed, 24)))
            host.execute(add_address(indexes["eth0"], Prefix(10, IPAddress("2001:db8::1").packed, 64)))
            gateway = IPAddress("192.0.2.254").packed
            for text in ("0.0.0.0/0", "10.65.1.0/26"):
                host.execute(add_route(Route(destination=parse_prefix(text), index=indexes["eth0"], gateway=gateway)))
            host.execute(add_route(Route(destination=parse_prefix("10.65.0.0/26"), type=RTN_BLACKHOLE)))
            for text in ("10.65.0.7", "fd00::7"):
                host.execute(add_route(workload_route(host_prefix(IPAddress(text)), indexes["cali1"])))
        yield descriptor
    finally:
        os.close(descriptor)
        netns.delete_namespace(name)


@pytest.fixture
def view(namespace_fd: int) -> LocalView:
    return read_local_view("a", "cali", namespace_fd=namespace_fd)


def test_what_the_kernel_has_is_carried(view: LocalView) -> None:
    for text in ("192.0.2.1", "192.0.2.77", "10.65.0.7", "fd00::7", "2001:db8::1"):
        assert view.carries(IPAddress(text)), text
    assert view.host_routes == {IPAddress("10.65.0.7"): "cali1", IPAddress("fd00::7"): "cali1"}
    assert set(view.subnets) == {IPNetwork("192.0.2.0/24"), IPNetwork("2001:db8::/64")}
    assert {"eth0", "cali1"} <= view.interfaces


def test_blackholes_gateways_and_the_default_route_are_no_sign(view: LocalView) -> None:
    for text in ("10.65.0.8", "10.65.1.5", "198.51.100.1", "fd00::8", "fe80::1"):
        assert not view.carries(IPAddress(text)), text


def test_a_sandbox_is_lost_only_where_it_would_be_seen(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    paths = (
        str(there),
        str(tmp_path / "gone"),
        "/no/such/directory/ns",
        "/proc/1/ns/net",
        "/proc/99999999/ns/net",
        "x",
    )
    endpoints = [WorkloadEndpoint(state="active", name="cali1", netns=path) for path in paths]
    assert lost_sandboxes(endpoints) == {str(tmp_path / "gone"), "/proc/99999999/ns/net"}
