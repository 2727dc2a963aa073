"""From pools, hosts and blocks to one host's tunnels."""

from __future__ import annotations

import random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from calico_core.model.blocks import AllocationAttributes, Block
from calico_core.model.keys import BgpHostAddressKey, BlockKey, Key, PoolKey
from calico_core.model.pools import Pool
from calico_core.model.tunnels import TUNNELS, TunnelId, TunnelRoute, tunnel_of_handle
from calico_core.policy.tunnel_routes import TunnelTable, encapsulation

POOL = IPNetwork("10.65.0.0/16")
OWN_BLOCK, REMOTE_BLOCK = IPNetwork("10.65.1.0/26"), IPNetwork("10.65.2.0/26")
OWN, REMOTE, STRANGER = IPAddress("192.0.2.1"), IPAddress("192.0.2.2"), IPAddress("198.51.100.3")
VXLAN, IPIP = TunnelId(kind="vxlan", version=4), TunnelId(kind="ipip", version=4)

Update = tuple[Key, object | None]


def _block(cidr: IPNetwork, owner: str | None, held: dict[int, tuple[str, str]] | None = None) -> Update:
    """``held`` maps ordinal to handle and host."""
    taken = held or {}
    indexes = {ordinal: index for index, ordinal in enumerate(taken)}
    block = Block(
        cidr=cidr,
        affinity=f"host:{owner}" if owner else None,
        allocations=tuple(indexes.get(ordinal) for ordinal in range(cidr.size)),
        attributes=tuple(
            AllocationAttributes(handle_id=handle, secondary={"node": host}) for handle, host in taken.values()
        ),
    )
    return BlockKey(cidr), block


def _pool(kind: Literal["vxlan", "ipip", ""] = "vxlan", mode: Literal["always", "cross-subnet"] = "always") -> Update:
    vxlan, ipip = (mode if kind == name else "" for name in ("vxlan", "ipip"))
    return PoolKey(POOL), Pool(cidr=POOL, vxlan_mode=vxlan, ipip_mode=ipip)


def _host(name: str, address: IPAddress | None) -> Update:
    return BgpHostAddressKey(name, 4), str(address) if address else None


def _cluster(pool: Update) -> list[Update]:
    return [
        pool,
        _host("own", OWN),
        _host("remote", REMOTE),
        _block(OWN_BLOCK, "own", {0: (VXLAN.handle("own"), "own"), 1: (IPIP.handle("own"), "own")}),
        _block(REMOTE_BLOCK, "remote", {0: (VXLAN.handle("remote"), "remote"), 5: ("pod", "remote")}),
    ]


def _table(*updates: Update) -> TunnelTable:
    table = TunnelTable("own", [OWN])
    table.apply(updates)
    return table


def _routes(table: TunnelTable, *subnets: str) -> dict[str, tuple[str, str]]:
    state = table.state(map(IPNetwork, subnets))
    return {str(route.destination): (route.device, str(route.gateway or "")) for route in state.routes}


def test_vxlan_goes_to_the_tunnel_address_of_the_other_host() -> None:
    table = _table(*_cluster(_pool("vxlan")))
    assert _routes(table, "192.0.2.0/24") == {
        "10.65.1.0/26": ("", ""),
        "10.65.2.0/26": ("vxlan.calico", "10.65.2.0"),
    }
    (device,), (peer,) = table.state().devices, table.state().peers
    assert (device.local, device.address, device.mac) == (OWN, IPAddress("10.65.1.0"), VXLAN.mac("own"))
    assert (peer.address, peer.mac, peer.host_address) == (IPAddress("10.65.2.0"), VXLAN.mac("remote"), REMOTE)


def test_ipip_goes_to_the_other_hosts_own_address_and_needs_no_peers() -> None:
    table = _table(*_cluster(_pool("ipip")))
    assert _routes(table)["10.65.2.0/26"] == ("tunl0", str(REMOTE))
    assert table.state().peers == ()
    (device,) = table.state().devices
    assert (device.name, device.address, device.mac) == ("tunl0", IPAddress("10.65.1.1"), None)


@pytest.mark.parametrize("kind", ["vxlan", "ipip"])
def test_cross_subnet_is_plain_within_a_subnet_only(kind: Literal["vxlan", "ipip"]) -> None:
    table = _table(*_cluster(_pool(kind, "cross-subnet")))
    assert _routes(table, "192.0.2.0/24")["10.65.2.0/26"] == ("", str(REMOTE))
    assert _routes(table, "192.0.2.0/31")["10.65.2.0/26"][0] != ""
    assert _routes(table)["10.65.2.0/26"][0] != ""


def test_addresses_in_a_foreign_block_go_to_who_holds_them() -> None:
    cluster = _cluster(_pool())
    cluster[-1] = _block(
        REMOTE_BLOCK,
        "remote",
        {
            0: (VXLAN.handle("remote"), "remote"),
            7: ("ours", "own"),
            8: ("theirs", "third"),
            9: (VXLAN.handle("third"), "third"),
        },
    )
    routes = _routes(_table(*cluster, _host("third", STRANGER)))
    assert routes["10.65.2.8/32"] == ("vxlan.calico", "10.65.2.9")
    assert routes["10.65.2.9/32"] == ("vxlan.calico", "10.65.2.9")
    assert "10.65.2.7/32" not in routes, "it is a workload here"


def test_an_ownerless_block_is_its_addresses() -> None:
    cluster = _cluster(_pool())
    held = {0: (VXLAN.handle("remote"), "remote"), 5: ("pod", "remote")}
    routes = _routes(_table(*cluster[:-1], _block(REMOTE_BLOCK, None, held)))
    assert routes.keys() == {"10.65.1.0/26", "10.65.2.0/32", "10.65.2.5/32"}


@pytest.mark.parametrize(
    "missing",
    [_host("remote", None), (BlockKey(REMOTE_BLOCK), None), _block(REMOTE_BLOCK, "remote"), _pool("")],
    ids=["no host address", "no block", "no tunnel address", "pool not encapsulated"],
)
def test_no_route_without_all_it_needs(missing: Update) -> None:
    table = _table(*_cluster(_pool()), missing)
    assert "10.65.2.0/26" not in _routes(table)


def test_without_an_encapsulated_pool_there_is_nothing() -> None:
    state = _table(*_cluster(_pool(""))).state()
    assert (state.devices, state.peers, state.routes) == ((), (), ())


def test_a_pool_of_the_first_format_means_always() -> None:
    assert encapsulation(Pool(cidr=POOL, ipip="tunl0")) == (IPIP, "always")
    assert encapsulation(Pool(cidr=POOL)) is None


def test_vxlan_over_ipv6_is_a_device_of_its_own() -> None:
    pool = IPNetwork("fd65::/64")
    table = TunnelTable("own", [OWN, IPAddress("2001:db8::1")])
    tunnel = TunnelId(kind="vxlan", version=6)
    block = IPNetwork("fd65::40/122")
    table.apply(
        [
            (PoolKey(pool), Pool(cidr=pool, vxlan_mode="always")),
            (BgpHostAddressKey("remote", 6), "2001:db8::2"),
            _block(block, "remote", {0: (tunnel.handle("remote"), "remote")}),
        ]
    )
    state = table.state()
    assert state.routes == (TunnelRoute(destination=block, device="vxlan-v6.calico", gateway=IPAddress("fd65::40")),)
    assert state.peers[0].host_address == IPAddress("2001:db8::2")


@settings(deadline=None)
@given(order=st.randoms(use_true_random=False), repeats=st.integers(0, 3))
def test_any_order_of_updates_comes_to_the_same(order: random.Random, repeats: int) -> None:
    updates = [*_cluster(_pool()), _host("third", STRANGER)]
    expected = _table(*updates).state()
    mixed = [*updates, *order.choices(updates, k=repeats)]
    order.shuffle(mixed)
    assert _table(*mixed).state() == expected


def test_handles_name_their_tunnel_and_host() -> None:
    for tunnel in TUNNELS:
        assert tunnel_of_handle(tunnel.handle("host-1")) == (tunnel, "host-1")
    assert tunnel_of_handle("pod-7") is None


def test_macs_are_stable_unicast_locally_administered_and_different() -> None:
    macs = {str(VXLAN.mac(f"host-{number}")) for number in range(1000)}
    assert len(macs) == 1000
    assert all(mac.startswith("66:") for mac in macs)
    assert str(VXLAN.mac("host-1")).replace("-", ":").lower() == "66:35:54:e6:28:19"  # of every process
