"""Pairs of the kind netkit where the kernel has it, and veth in their place where it has not."""

from __future__ import annotations

import socket

import pytest

from calico_core.dataplane.linux.link_messages import add_bridge, add_netkit, add_veth, delete_link
from calico_core.dataplane.linux.wiring import VethWiring
from calico_core.errors import InterfaceTaken, KernelRefused
from tests.integration.dataplane_linux.test_wiring import V4, V6, a_request, echoes, give_host_an_address, is_untouched

pytestmark = pytest.mark.needs_root


@pytest.fixture
def has_netkit(host) -> bool:
    (made,) = host.route_socket.attempt([add_netkit("probe0", "probe1")])
    if made.error is None:
        host.route_socket.execute(delete_link("probe0"))
    return made.error is None


@pytest.fixture
def wiring(host):
    made = VethWiring(host.fd)
    yield made
    made.close()


def told(caplog: pytest.LogCaptureFixture) -> int:
    return sum(each.getMessage() == "interface.netkit_missing" for each in caplog.records)


def test_without_it_a_veth_is_made_and_the_log_says_so_once(
    wiring, host, container, make_namespace, has_netkit, caplog
):
    if has_netkit:
        pytest.skip("the kernel has netkit")
    give_host_an_address(host)
    wired = wiring.attach(a_request(container, addresses=(V4, V6), device="netkit", mtu_bytes=1440))
    assert (wired.is_new, wired.mtu_bytes) == (True, 1440)
    assert host.route_socket.find_link("cali1").kind == "veth"
    assert echoes(host, container, V4, family=socket.AF_INET)
    assert echoes(host, container, V6, family=socket.AF_INET6)
    assert wiring.check(a_request(container, addresses=(V4, V6), device="netkit")) == ()
    assert not wiring.attach(a_request(container, addresses=(V4, V6), device="netkit")).is_new
    other = make_namespace()
    wiring.attach(a_request(other, interface="cali2", addresses=("10.65.0.3",), device="netkit"))
    assert told(caplog) == 1
    wiring.detach("cali1")
    wiring.detach("cali2")
    assert is_untouched(host, container, other)


def test_without_it_a_leftover_goes_as_ever(wiring, host, container, has_netkit):
    """The kernel says that the name is taken before it says that it does not know the kind."""
    if has_netkit:
        pytest.skip("the kernel has netkit")
    host.route_socket.execute(add_veth("cali1", "old"))
    wiring.attach(a_request(container, device="netkit"))
    assert host.route_socket.find_link("cali1").peer_index == container.route_socket.find_link("eth0").index


def test_what_is_no_pair_is_not_ours(wiring, host, container):
    host.route_socket.execute(add_bridge("cali1"))
    with pytest.raises(InterfaceTaken, match="bridge"):
        wiring.attach(a_request(container, device="netkit"))
    assert is_untouched(container)


def test_another_refusal_is_no_reason_for_a_veth(wiring, host, container, has_netkit):
    if not has_netkit:
        pytest.skip("the kernel has no netkit (CONFIG_NETKIT): it refuses every one for that reason")
    with pytest.raises(KernelRefused):
        wiring.attach(a_request(container, device="netkit", mtu_bytes=1 << 24))
    assert is_untouched(host, container)


def test_a_netkit_pair_is_wired_checked_repaired_and_detached(wiring, host, container, has_netkit):
    if not has_netkit:
        pytest.skip("the kernel has no netkit (CONFIG_NETKIT)")
    give_host_an_address(host)
    request = a_request(container, addresses=(V4, V6), device="netkit", mtu_bytes=1440, queues=2)
    wired = wiring.attach(request)
    link, inner = host.route_socket.find_link("cali1"), container.route_socket.find_link("eth0")
    assert (link.kind, inner.kind) == ("netkit", "netkit")
    assert (link.mac, inner.mac, link.mtu_bytes, inner.mtu_bytes) == (b"\xee" * 6, wired.mac.packed, 1440, 1440)
    assert echoes(host, container, V4, family=socket.AF_INET)
    assert echoes(host, container, V6, family=socket.AF_INET6)
    assert wiring.check(request) == ()
    assert wiring.host_end(container.fd, "eth0") == "cali1"
    assert set(wiring.orphans()) == {"cali1"}
    assert not wiring.attach(request).is_new
    host.route_socket.execute(delete_link("cali1"))
    assert wiring.attach(request).is_new
    assert echoes(host, container, V4, family=socket.AF_INET)
    wiring.detach("cali1")
    assert is_untouched(host, container)
