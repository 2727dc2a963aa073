"""From records to one host's routing state."""

from __future__ import annotations

import logging
import random

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.routing import Peer, RoutingState
from calico_core.model import keys
from calico_core.model.bgp import BgpPeer, NodeMesh
from calico_core.model.blocks import Affinity
from calico_core.model.pools import Pool
from calico_core.routing.peerings import PeeringTable

Update = tuple[keys.Key, object | None]


def address(host: str, ip: str, version: int = 4) -> Update:
    return keys.BgpHostAddressKey(host, version), ip


def peer(ip: str, as_num: str = "65000", host: str | None = None) -> Update:
    ip_ = IPAddress(ip)
    key = keys.BgpGlobalPeerKey(ip_) if host is None else keys.BgpHostPeerKey(host, ip_)
    return key, BgpPeer(ip=ip_, as_num=as_num)


def pool(cidr: str, **fields: object) -> Update:
    network = IPNetwork(cidr)
    return keys.PoolKey(network), Pool(cidr=network, **fields)  # type: ignore[arg-type]


def affinity(host: str, cidr: str, **fields: object) -> Update:
    return keys.AffinityKey(host, IPNetwork(cidr)), Affinity(**fields)  # type: ignore[arg-type]


def state_of(*updates: Update, host: str = "b") -> RoutingState:
    table = PeeringTable(host)
    table.apply(updates)
    state = table.state()
    assert state is not None
    return state


def rows(state: RoutingState) -> list[tuple[str, int, str]]:
    return [(str(each.ip), each.as_number, each.origin) for each in state.peers]


CLUSTER: list[Update] = [
    address("a", "10.0.0.9"),
    address("b", "10.0.0.10"),
    address("c", "10.0.0.100"),
    address("a", "fd00::9", 6),
    address("b", "", 6),
    address("c", "", 6),
]


def test_nothing_before_the_own_address_is_known() -> None:
    table = PeeringTable("b")
    table.apply([address("a", "10.0.0.9"), address("b", ""), pool("192.168.0.0/16")])
    assert table.state() is None
    table.apply([address("b", "10.0.0.10")])
    assert table.state() is not None
    table.apply([(keys.BgpHostAddressKey("b", 4), None)])
    assert table.state() is None


def test_mesh_is_everybody_else_and_the_greater_number_dials() -> None:
    state = state_of(*CLUSTER)
    assert state.peers == (
        Peer(ip=IPAddress("10.0.0.9"), as_number=64511, origin="mesh", description="a", is_passive=False),
        Peer(ip=IPAddress("10.0.0.100"), as_number=64511, origin="mesh", description="c", is_passive=True),
    )


@pytest.mark.parametrize("left", ["a", "b", "c"])
def test_of_every_two_ends_one_is_passive(left: str) -> None:
    states = {host: state_of(*CLUSTER, host=host) for host in ("a", "b", "c")}
    own = states[left]
    for each in own.peers:
        (back,) = [other for other in states[each.description].peers if other.ip == own.ipv4]
        assert back.is_passive is not each.is_passive


def test_mesh_off_leaves_the_given_peers() -> None:
    off: Update = (keys.BgpMeshKey(), NodeMesh(enabled=False))
    assert rows(state_of(*CLUSTER, off, peer("10.0.0.254"))) == [("10.0.0.254", 65000, "global")]
    on_again: Update = (keys.BgpMeshKey(), None)
    assert len(state_of(*CLUSTER, off, on_again).peers) == 2


def test_as_numbers_are_inherited() -> None:
    given: list[Update] = [(keys.BgpGlobalAsKey(), "64600"), (keys.BgpHostAsKey("c"), "1.10")]
    state = state_of(*CLUSTER, *given)
    assert state.as_number == 64600
    assert rows(state) == [("10.0.0.9", 64600, "mesh"), ("10.0.0.100", 65546, "mesh")]
    assert state_of(*CLUSTER, *given, (keys.BgpHostAsKey("b"), "64700")).as_number == 64700
    assert state_of(*CLUSTER, *given, (keys.BgpGlobalAsKey(), None)).as_number == 64511


def test_the_most_specific_reason_wins() -> None:
    given = [*CLUSTER, peer("10.0.0.9", "1"), peer("10.0.0.9", "2", host="b"), peer("10.0.0.100", "3")]
    assert rows(state_of(*given)) == [("10.0.0.9", 2, "node"), ("10.0.0.100", 3, "global")]


def test_peers_of_other_hosts_and_of_a_family_we_lack_are_not_ours() -> None:
    assert rows(state_of(address("b", "10.0.0.10"), peer("10.0.0.254", host="a"), peer("fd00::fe"))) == []


def test_our_own_address_as_a_global_peer_stays_listed_for_status() -> None:
    assert rows(state_of(address("b", "10.0.0.10"), peer("10.0.0.10"))) == [("10.0.0.10", 65000, "global")]


def test_two_hosts_with_one_address_are_one_session_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    table = PeeringTable("b")
    table.apply(
        [address("b", "10.0.0.10"), address("c", "10.0.0.9"), address("a", "10.0.0.9"), address("d", "10.0.0.10")]
    )
    with caplog.at_level(logging.WARNING):
        states = [table.state(), table.state()]
    assert [each.description for each in states[1].peers] == ["a"]  # type: ignore[union-attr]
    fields = [record.calico_fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [(each["wins"], each["loses"]) for each in fields] == [("b", "d"), ("a", "c")]


def test_own_confirmed_blocks_of_more_than_one_address() -> None:
    state = state_of(
        address("b", "10.0.0.10"),
        affinity("b", "192.168.1.0/26"),
        affinity("b", "192.168.0.64/26"),
        affinity("b", "192.168.2.0/26", state="pending"),
        affinity("b", "192.168.3.0/26", state="pendingDeletion"),
        affinity("b", "192.168.4.0/26", deleted=True),
        affinity("b", "192.168.5.1/32"),
        affinity("b", "fd80::1/128"),
        affinity("a", "192.168.6.0/26"),
    )
    assert state.blocks == (IPNetwork("192.168.0.64/26"), IPNetwork("192.168.1.0/26"))


def test_a_block_leaves_when_its_affinity_is_no_longer_confirmed() -> None:
    kept, lost = affinity("b", "192.168.1.0/26"), affinity("b", "192.168.1.0/26", state="pendingDeletion")
    assert state_of(address("b", "10.0.0.10"), kept, lost).blocks == ()
    assert state_of(address("b", "10.0.0.10"), kept, (kept[0], None)).blocks == ()


def test_pools_by_what_may_happen_with_them() -> None:
    state = state_of(
        address("b", "10.0.0.10"),
        pool("192.168.0.0/16"),
        pool("10.20.0.0/16", disabled=True),
        pool("172.30.0.0/16", vxlan_mode="always"),
        pool("172.31.0.0/16", ipip="tunl0"),
        pool("10.99.0.0/16", disable_bgp_export=True),
        pool("fd80::/64"),
    )
    assert [str(each) for each in state.pools] == [
        "10.20.0.0/16", "172.30.0.0/16", "172.31.0.0/16", "192.168.0.0/16", "fd80::/64",
    ]  # fmt: skip
    assert [str(each) for each in state.encapsulated] == ["172.30.0.0/16", "172.31.0.0/16"]
    assert [str(each) for each in state.unexported] == ["10.99.0.0/16"]


def test_log_level_of_the_host_wins_and_nonsense_is_ignored() -> None:
    own: Update = (keys.BgpHostLogLevelKey("b"), "none")
    general: Update = (keys.BgpGlobalLogLevelKey(), "debug")
    assert state_of(*CLUSTER).log_level == "info"
    assert state_of(*CLUSTER, general).log_level == "debug"
    assert state_of(*CLUSTER, general, own).log_level == "none"
    assert state_of(*CLUSTER, general, (own[0], "loud")).log_level == "debug"
    assert state_of(*CLUSTER, general, (keys.BgpHostLogLevelKey("a"), "none")).log_level == "debug"


def test_a_bad_record_counts_as_absent() -> None:
    bad: list[Update] = [
        (keys.BgpGlobalAsKey(), "many"),
        address("a", "10.0.0"),
        address("c", "fd00::1"),
        (keys.BgpHostAsKey("b"), "0"),
    ]
    state = state_of(*CLUSTER, *bad)
    assert (state.as_number, state.peers) == (64511, ())


UNREACHABLE = ("0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "::1", "fe80::5", "ff02::1")


@pytest.mark.parametrize("ip", UNREACHABLE)
def test_an_address_that_nobody_is_reached_by_counts_as_absent(ip: str, caplog: pytest.LogCaptureFixture) -> None:
    """BIRD would refuse the sessions of all others with it."""
    good = [*CLUSTER, address("b", "fd00::b", 6)]
    bad = [address("z", ip, IPAddress(ip).version), peer(ip), peer(ip, host="b")]
    assert state_of(*good, *bad) == state_of(*good)
    fields = [record.calico_fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [each["key"] for each in fields] == [key.path for key, _ in bad]
    assert all(f"{ip} is " in each["reason"] for each in fields)
    own = [address("b", ip, IPAddress(ip).version), address("b", "10.0.0.10"), address("b", "fd00::b", 6)]
    assert state_of(*own) == state_of(*own[1:])


def test_routers_may_be_peers_by_an_ipv4_address_of_the_link() -> None:
    assert rows(state_of(address("b", "10.0.0.10"), peer("169.254.7.1"))) == [("169.254.7.1", 65000, "global")]


def test_router_id_is_the_ipv4_address_or_stable() -> None:
    assert state_of(*CLUSTER).router_id == IPAddress("10.0.0.10")
    lone = state_of(address("b", "fd00::b", 6))
    assert lone.router_id == state_of(address("b", "fd00::c", 6)).router_id
    assert lone.router_id != state_of(address("z", "fd00::b", 6), host="z").router_id
    assert lone.router_id is not None
    assert lone.router_id.version == 4


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_updates_gives_the_same_state(seed: int) -> None:
    updates = [
        *CLUSTER,
        peer("10.0.0.9", "2", host="b"),
        peer("10.0.0.9", "1"),
        pool("192.168.0.0/16"),
        pool("10.99.0.0/16", disable_bgp_export=True),
        affinity("b", "192.168.1.0/26"),
        (keys.BgpHostAsKey("c"), "64999"),
        (keys.BgpGlobalAsKey(), "64600"),
    ]
    assert state_of(*random.Random(seed).sample(updates, len(updates))) == state_of(*updates)
