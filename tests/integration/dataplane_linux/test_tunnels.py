"""Tunnel devices, peers and routes in a kernel: made once, left alone after, healed when somebody changed them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.address_messages import add_address
from calico_core.dataplane.linux.link_messages import add_bridge, set_link
from calico_core.dataplane.linux.netlink import parse_attributes
from calico_core.dataplane.linux.prefix import parse_prefix
from calico_core.dataplane.linux.route_messages import Route, add_route
from calico_core.dataplane.linux.tunnels import TunnelReport, Tunnels, link_attributes
from calico_core.model.tunnels import HostTunnels, TunnelDevice, TunnelId, TunnelPeer, TunnelRoute
from tests.integration.dataplane_linux.conftest import Namespace

VXLAN = TunnelId(kind="vxlan", version=4)
VXLAN_V6 = TunnelId(kind="vxlan", version=6)
IPIP = TunnelId(kind="ipip", version=4)
OWN, OWN_V6 = IPAddress("192.0.2.1"), IPAddress("2001:db8::1")
TUNNEL = IPAddress("10.65.0.0")

_HEADER_FIELDS = {"family", "ifi_type", "index", "flags", "change", "ext_mask"}

needs_root = pytest.mark.needs_root


def _state(tunnel: TunnelId = VXLAN, remote: int = 2) -> HostTunnels:
    """One remote host of that number, behind a tunnel and, with another block, beside it."""
    is_v4 = tunnel.version == 4
    own, base = (OWN, "10.65") if is_v4 else (OWN_V6, "fd65")
    address = IPAddress(f"{base}.{remote}.0" if is_v4 else f"{base}:{remote}::")
    host_address = own + remote
    host = f"host-{remote}"
    block, near = (
        (f"{base}.{remote}.0/26", f"{base}.9.0/26") if is_v4 else (f"{base}:{remote}::/122", f"{base}:9::/122")
    )
    black = f"{base}.0.0/26" if is_v4 else f"{base}::/122"
    mac = tunnel.mac(host)
    assert mac is not None
    return HostTunnels(
        locals=(own,),
        devices=(TunnelDevice(tunnel=tunnel, local=own, address=IPNetwork(black).ip, mac=tunnel.mac("own")),),
        peers=(TunnelPeer(device=tunnel.device, address=address, mac=mac, host_address=host_address),),
        routes=(
            TunnelRoute(destination=IPNetwork(black)),
            TunnelRoute(destination=IPNetwork(block), device=tunnel.device, gateway=address),
            TunnelRoute(destination=IPNetwork(near), gateway=host_address),
        ),
    )


@pytest.fixture
def uplinked(host: Namespace) -> Namespace:
    """A host whose uplink is a bridge of 1500 bytes."""
    inside = host.route_socket
    inside.execute(set_link("lo", is_up=True), add_bridge("eth0"), set_link("eth0", is_up=True))
    uplink = inside.find_link("eth0")
    assert uplink is not None
    inside.execute(
        add_address(uplink.index, parse_prefix(f"{OWN}/24")), add_address(uplink.index, parse_prefix(f"{OWN_V6}/64"))
    )
    return host


def _sync(namespace: Namespace, state: HostTunnels) -> TunnelReport:
    return netns.run_in(namespace.fd, lambda: Tunnels().sync(state))


def _ip(namespace: Namespace, *arguments: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", namespace.name, *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout


def _json(namespace: Namespace, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_ip(namespace, *arguments) or "[]")
    return found


@needs_root
def test_uplinks_are_found_by_the_hosts_addresses(uplinked: Namespace) -> None:
    found = netns.run_in(uplinked.fd, lambda: Tunnels().uplinks([OWN, OWN_V6, IPAddress("192.0.2.99")]))
    assert {(each.name, each.mtu_bytes, str(each.subnet)) for each in found.values()} == {
        ("eth0", 1500, "192.0.2.0/24"),
        ("eth0", 1500, "2001:db8::/64"),
    }


@needs_root
def test_mtus_of_interfaces_that_are_up_are_found_by_their_names(uplinked: Namespace) -> None:
    _ip(uplinked, "ip", "link", "add", "eth7", "mtu", "1300", "up", "type", "bridge")
    _ip(uplinked, "ip", "link", "add", "eth8", "mtu", "1200", "type", "bridge")
    _ip(uplinked, "ip", "link", "add", "docker0", "mtu", "500", "up", "type", "bridge")
    assert netns.run_in(uplinked.fd, lambda: Tunnels().mtus("(eth|wlan)")) == {"eth0": 1500, "eth7": 1300}


@needs_root
def test_an_address_on_the_loopback_goes_out_by_the_default_route(uplinked: Namespace) -> None:
    routed = IPAddress("203.0.113.7")
    _ip(uplinked, "ip", "address", "add", f"{routed}/32", "dev", "lo")
    assert netns.run_in(uplinked.fd, lambda: Tunnels().uplinks([routed])) == {}
    _ip(uplinked, "ip", "route", "add", "default", "via", "192.0.2.254")
    (found,) = netns.run_in(uplinked.fd, lambda: Tunnels().uplinks([routed])).values()
    assert (found.name, found.mtu_bytes, str(found.subnet)) == ("eth0", 1500, "203.0.113.7/32")


@needs_root
@pytest.mark.parametrize("tunnel", [VXLAN, VXLAN_V6], ids=["v4", "v6"])
def test_made_as_wanted_and_then_left_alone(uplinked: Namespace, tunnel: TunnelId) -> None:
    state = _state(tunnel)
    first = _sync(uplinked, state)
    assert (first.failures, bool(first.changed)) == ((), True)
    assert _sync(uplinked, state) == TunnelReport()

    (link,) = _json(uplinked, "ip", "-j", "-d", "link", "show", tunnel.device)
    data = link["linkinfo"]["info_data"]
    assert (link["mtu"], link["address"]) == (1500 - tunnel.overhead_bytes, str(tunnel.mac("own")))
    assert (data["id"], data["port"], data["learning"]) == (4096, 4789, False)
    assert data["local" if tunnel.version == 4 else "local6"] == str(state.locals[0])
    (forwarding,) = _json(uplinked, "bridge", "-j", "fdb", "show", "dev", tunnel.device)
    assert (forwarding["mac"], forwarding["dst"]) == (str(state.peers[0].mac), str(state.peers[0].host_address))
    (neighbour,) = _json(uplinked, "ip", "-j", "neighbour", "show", "dev", tunnel.device, "nud", "permanent")
    assert (neighbour["dst"], neighbour["lladdr"]) == (str(state.peers[0].address), str(state.peers[0].mac))
    routes = _json(uplinked, "ip", "-j", f"-{tunnel.version}", "route", "show", "proto", "80")
    assert {(route["dst"], route.get("type", "unicast"), route.get("gateway")) for route in routes} == {
        (
            str(route.destination),
            "unicast" if route.gateway else "blackhole",
            str(route.gateway) if route.gateway else None,
        )
        for route in state.routes
    }


@needs_root
@pytest.mark.parametrize(
    "damage",
    [
        ["ip", "link", "delete", "vxlan.calico"],
        ["ip", "link", "set", "vxlan.calico", "down"],
        ["ip", "link", "set", "vxlan.calico", "mtu", "1300"],
        ["ip", "link", "set", "vxlan.calico", "address", "02:00:00:00:00:09"],
        ["ip", "address", "add", "10.99.0.1/32", "dev", "vxlan.calico"],
        ["ip", "address", "flush", "dev", "vxlan.calico"],
        ["ip", "neighbour", "flush", "dev", "vxlan.calico", "nud", "permanent"],
        ["bridge", "fdb", "append", "02:00:00:00:00:09", "dev", "vxlan.calico", "dst", "192.0.2.77"],
        ["ip", "route", "delete", "10.65.2.0/26"],
        ["ip", "route", "replace", "10.65.2.0/26", "via", "192.0.2.66", "dev", "eth0"],
        ["ip", "route", "add", "10.65.200.0/26", "via", "192.0.2.66", "dev", "eth0", "proto", "80"],
        ["ip", "route", "delete", "blackhole", "10.65.0.0/26"],
    ],
    ids=" ".join,
)
def test_foreign_changes_are_healed(uplinked: Namespace, damage: list[str]) -> None:
    state = _state()
    _sync(uplinked, state)
    before = _everything(uplinked)
    _ip(uplinked, *damage)
    assert _everything(uplinked) != before
    healed = _sync(uplinked, state)
    assert (healed.failures, bool(healed.changed)) == ((), True)
    assert _everything(uplinked) == before
    assert _sync(uplinked, state) == TunnelReport()


@needs_root
@pytest.mark.parametrize("tunnel", [VXLAN, IPIP], ids=["vxlan", "ipip"])
def test_the_address_of_a_device_is_set_changed_and_cleared(uplinked: Namespace, tunnel: TunnelId) -> None:
    for address in (TUNNEL, TUNNEL + 64, None):
        device = TunnelDevice(tunnel=tunnel, local=OWN, address=address, mac=tunnel.mac("own"))
        state = HostTunnels(locals=(OWN,), devices=(device,))
        report = _sync(uplinked, state)
        if any("lacks the module" in failure.reason for failure in report.failures):
            pytest.skip(report.failures[0].reason)
        assert report.failures == ()
        (link,) = _json(uplinked, "ip", "-j", "address", "show", "dev", tunnel.device)
        assert link["mtu"] == 1500 - tunnel.overhead_bytes
        held = [each["local"] for each in link["addr_info"] if each["family"] == "inet"]
        assert held == ([str(address)] if address else [])
        assert _sync(uplinked, state) == TunnelReport()


@needs_root
def test_without_pools_the_kernels_own_device_loses_its_addresses_and_stays(uplinked: Namespace) -> None:
    """It is found by its name, so a device of any kind shows it where the kernel has no IPIP."""
    inside = uplinked.route_socket
    if inside.find_link("tunl0") is None:
        inside.execute(add_bridge("tunl0"))
    link = inside.find_link("tunl0")
    assert link is not None
    inside.execute(
        set_link("tunl0", is_up=True), *(add_address(link.index, parse_prefix(f"{TUNNEL + n}/32")) for n in (0, 1))
    )
    report = _sync(uplinked, HostTunnels(locals=(OWN,)))
    assert (report.failures, len(report.changed)) == ((), 2)
    assert inside.find_link("tunl0") is not None
    assert "inet " not in _ip(uplinked, "ip", "address", "show", "dev", "tunl0")
    assert _sync(uplinked, HostTunnels(locals=(OWN,))) == TunnelReport()


@needs_root
def test_a_device_for_another_address_is_made_anew(uplinked: Namespace) -> None:
    _ip(
        uplinked,
        "ip",
        "link",
        "add",
        "vxlan.calico",
        "type",
        "vxlan",
        "id",
        "4096",
        "dstport",
        "4789",
        "local",
        "192.0.2.9",
    )
    assert _sync(uplinked, _state()).failures == ()
    (link,) = _json(uplinked, "ip", "-j", "-d", "link", "show", "vxlan.calico")
    assert link["linkinfo"]["info_data"]["local"] == str(OWN)


@needs_root
def test_a_host_that_went_and_one_that_moved(uplinked: Namespace) -> None:
    _sync(uplinked, _state(remote=2))
    _sync(uplinked, _state(remote=3))
    assert [entry["dst"] for entry in _json(uplinked, "bridge", "-j", "fdb", "show", "dev", "vxlan.calico")] == [
        "192.0.2.4"
    ]
    moved = _state(remote=3)
    peer = msgspec.structs.replace(moved.peers[0], host_address=IPAddress("192.0.2.44"))
    moved = msgspec.structs.replace(moved, peers=(peer,))
    assert _sync(uplinked, moved).failures == ()
    assert [entry["dst"] for entry in _json(uplinked, "bridge", "-j", "fdb", "show", "dev", "vxlan.calico")] == [
        "192.0.2.44"
    ]


@needs_root
def test_from_a_known_state_only_the_difference_is_made(uplinked: Namespace) -> None:
    known = _state(remote=2)
    _sync(uplinked, known)
    added = TunnelRoute(destination=IPNetwork("10.65.77.0/26"), device="vxlan.calico", gateway=known.peers[0].address)
    desired = msgspec.structs.replace(known, routes=(*known.routes[1:], added))
    _ip(uplinked, "ip", "route", "delete", str(known.routes[1].destination))
    report = netns.run_in(uplinked.fd, lambda: Tunnels().sync(desired, known))
    assert report.failures == ()
    assert set(report.changed) == {"removed route 10.65.0.0/26", "set route 10.65.77.0/26"}
    assert _sync(uplinked, desired).changed == (f"set route {known.routes[1].destination}",)
    other = netns.run_in(uplinked.fd, lambda: Tunnels().sync(_state(remote=3), desired))
    assert other.failures == ()
    assert _sync(uplinked, _state(remote=3)) == TunnelReport()


@needs_root
def test_without_pools_all_of_ours_goes_and_nothing_else(uplinked: Namespace) -> None:
    inside = uplinked.route_socket
    uplink = inside.find_link("eth0")
    inside.execute(add_bridge("cali1"), set_link("cali1", is_up=True))
    workload = inside.find_link("cali1")
    assert uplink is not None
    assert workload is not None
    kept = (
        Route(destination=parse_prefix("10.65.0.7/32"), index=workload.index, scope=253),
        Route(
            destination=parse_prefix("10.1.0.0/16"),
            index=uplink.index,
            gateway=socket.inet_aton("192.0.2.5"),
            protocol=4,
        ),
    )
    inside.execute(*map(add_route, kept))
    before = _everything(uplinked)
    _sync(uplinked, _state())
    assert set(kept) <= set(inside.routes())
    assert _sync(uplinked, HostTunnels(locals=(OWN, OWN_V6))).failures == ()
    assert _everything(uplinked) == before


@needs_root
def test_a_kernel_without_ipip_is_named(uplinked: Namespace) -> None:
    device = TunnelDevice(tunnel=IPIP, local=OWN, address=TUNNEL)
    route = TunnelRoute(destination=IPNetwork("10.66.0.0/26"), device="tunl0", gateway=IPAddress("192.0.2.2"))
    plain = TunnelRoute(destination=IPNetwork("10.67.0.0/26"), gateway=IPAddress("192.0.2.2"))
    state = HostTunnels(locals=(OWN,), devices=(device,), routes=(route, plain))
    report = _sync(uplinked, state)
    if uplinked.route_socket.find_link("tunl0") is not None:
        assert report.failures == ()
        assert _sync(uplinked, state) == TunnelReport()
        return
    assert [failure.subject for failure in report.failures] == ["device tunl0", "1 routes"]
    assert "lacks the module 'ipip'" in report.failures[0].reason
    assert report.changed == ("set route 10.67.0.0/26",)


def test_the_ipip_message_is_what_the_kernel_reads() -> None:
    """This machine's kernel may have no IPIP: this is what it would be asked (linux/if_link.h, linux/if_tunnel.h)."""
    device = TunnelDevice(tunnel=IPIP, local=OWN, address=TUNNEL)
    assert _attributes(_pyroute2_link_body(link_attributes(device, 1480))) == {
        3: b"tunl0",  # IFLA_IFNAME
        4: (1480).to_bytes(4, sys.byteorder),  # IFLA_MTU
        18: (b"ipip", {4: b"\0", 10: b"\1"}),  # IFLA_LINKINFO: IFLA_IPTUN_TTL 0, IFLA_IPTUN_PMTUDISC
    }


def _pyroute2_link_body(arguments: dict[str, Any]) -> bytes:
    from pyroute2.iproute.linux import get_arguments_processor
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg()
    asked = get_arguments_processor("link", "add", arguments)
    message["attrs"] = [(ifinfmsg.name2nla(name), value) for name, value in asked.items() if name not in _HEADER_FIELDS]
    message.encode()
    return bytes(message.data[16:])


def _attributes(body: bytes) -> dict[int, object]:
    """The top level of ifinfomsg, with IFLA_LINKINFO and its data as maps."""
    found: dict[int, object] = {}
    for kind, value in parse_attributes(body, 16).items():
        if kind == 18:
            inner = parse_attributes(value)
            found[kind] = (inner[1].rstrip(b"\0"), parse_attributes(inner[2]))
        else:
            found[kind] = value.rstrip(b"\0") if kind == 3 else value
    return found


def _everything(namespace: Namespace) -> object:
    """What a sync may touch, without what differs by birth (indexes, timers)."""
    inside = namespace.route_socket
    names = {link.index: link.name for link in inside.links()}
    return (
        {(link.name, link.mtu_bytes, link.is_up, link.mac) for link in inside.links() if link.name != "eth0"},
        {(entry.prefix, names[entry.index]) for entry in inside.addresses() if entry.prefix.address[:2] != b"\xfe\x80"},
        {
            msgspec.structs.replace(route, index=0)
            for route in inside.routes()
            if route.destination.address[:2] not in (b"\xfe\x80", b"\xff\x00")
        },
        frozenset((entry.address, entry.mac) for entry in inside.neighbours() if entry.state & 0x80),
        _ip(namespace, "bridge", "fdb", "show", "dev", "vxlan.calico") if _has_vxlan(names.values()) else "",
    )


def _has_vxlan(names: Any) -> bool:
    return "vxlan.calico" in names
