"""Who may send encapsulated packets, as options say. Both drivers pass all of it."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.model.hoststate import HostPeers, PolicyList
from tests.integration.dataplane_nftables.conftest import patience_s
from tests.integration.dataplane_nftables.test_nftables_nat import _receives_ipip, _receives_udp, _with_neighbour

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

SERVICES = """
table ip services {
  chain to {
    type nat hook prerouting priority -100;
    ip daddr 10.96.0.1 udp dport 80 dnat to 192.0.2.2:4789
    ip daddr 10.96.0.1 udp dport 81 dnat to 192.0.2.2:4790
  }
  chain from { type nat hook postrouting priority 100; oifname "up0" masquerade; }
}
"""
"""Somebody else's, as kube-proxy has them: the neighbour sees the host's own address."""
INNER = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20, 0, 0, 64, 17, 0, bytes(4), bytes(4))


@pytest.mark.parametrize("allows", [(False, False), (True, False), (False, True)], ids=["none", "IPIP", "VXLAN"])
def test_workloads_may_encapsulate_as_options_say(make_lab: Callable[..., Any], allows: tuple[bool, bool]) -> None:
    lab = make_lab(allows_ipip=allows[0], allows_vxlan=allows[1])
    a, b = lab.workload(), lab.workload()
    assert lab.start(a.endpoint(), b.endpoint()).is_clean
    assert _hear(a, b, allows) == allows
    # policy is asked all the same
    lab.apply(workloads=(a.endpoint(inbound=PolicyList()),))
    assert _hear(a, b, (False, False)) == (False, False)


def test_hosts_that_are_none_of_ours_may_encapsulate_if_they_are_named(make_lab: Callable[..., Any]) -> None:
    ours = HostPeers(addresses=(IPAddress("192.0.2.77"),), is_ipip=True, is_vxlan=True)
    for named, is_heard in (
        (("192.0.2.2/32",), True),
        # an address may be in several, and one of a host too
        (("198.51.100.0/24", "192.0.2.0/24", "192.0.2.0/28", "2001:db8::/64"), True),
        (("198.51.100.0/24",), False),
    ):
        host = _with_neighbour(make_lab(external_peers=tuple(map(IPNetwork, named))))
        assert host.start(peers=ours).is_clean
        assert _receives_ipip(host, is_allowed=is_heard) is is_heard, named
        assert _receives_udp(host, 4789, is_allowed=is_heard) is is_heard, named
        assert host.dataplane.resync().healed == ()
        host.apply(peers=HostPeers())
        assert _receives_udp(host, 4789, is_allowed=True), "nobody encapsulates: no business of ours"


@pytest.mark.parametrize("allows", [False, True])
def test_no_service_leads_a_workload_into_the_tunnels(make_lab: Callable[..., Any], allows: bool) -> None:
    lab = make_lab(allows_vxlan=allows)
    a, neighbour = lab.workload(), lab.outside()
    lab.host.run("nft", "-f", "-", stdin=SERVICES)
    lab.host.run("ip", "route", "add", "10.96.0.0/16", "via", "192.0.2.2")
    peers = HostPeers(addresses=(IPAddress("192.0.2.2"),), is_vxlan=True)
    assert lab.start(a.endpoint(), peers=peers).is_clean
    assert _hears(neighbour, 4790, a, ("10.96.0.1", 81), is_allowed=True)
    assert _hears(neighbour, 4789, a, ("10.96.0.1", 80), is_allowed=allows) is allows
    assert lab.dataplane.resync().healed == ()


def _hear(listening: Any, sending: Any, expected: tuple[bool, bool]) -> tuple[bool, bool]:
    """By IPIP and by VXLAN."""
    return (
        _hears_ipip(listening, sending, is_allowed=expected[0]),
        _hears(listening, 4789, sending, (listening.v4, 4789), is_allowed=expected[1]),
    )


def _hears_ipip(listening: Any, sending: Any, *, is_allowed: bool) -> bool:
    with (
        listening.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as listener,
        sending.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as sender,
    ):
        listener.settimeout(patience_s(is_allowed=is_allowed))
        sender.sendto(INNER, (listening.v4, 0))
        with contextlib.suppress(TimeoutError):
            return listener.recv(256).endswith(INNER)
        return False


def _hears(listening: Any, port: int, sending: Any, to: tuple[str, int], *, is_allowed: bool) -> bool:
    with (
        listening.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        sending.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        listener.bind(("0.0.0.0", port))
        listener.settimeout(patience_s(is_allowed=is_allowed))
        sender.sendto(b"frame", to)
        with contextlib.suppress(TimeoutError):
            return listener.recv(64) == b"frame"
        return False
