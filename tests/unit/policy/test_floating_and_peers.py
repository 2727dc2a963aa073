"""Floating addresses of workloads, and the hosts that may send encapsulated packets. Source: felix spec 6.7, 6.10."""

from __future__ import annotations

from typing import Any

from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import Nat, WorkloadEndpoint
from calico_core.model.hoststate import HostNat, HostPeers, HostState
from calico_core.model.keys import BgpHostAddressKey, HostIpKey, PoolKey, WorkloadEndpointKey
from calico_core.model.pools import Pool
from calico_core.policy.resolver import PolicyResolver

ONE, TWO = (WorkloadEndpointKey("here", "k8s", name, "eth0") for name in ("one", "two"))
POOL = PoolKey(IPNetwork("10.0.0.0/16"))


class World:
    def __init__(self, *updates: Any) -> None:
        self.resolver = PolicyResolver("here")
        self.state = HostState()
        self.resolver.in_sync()
        self.put(*updates)

    def put(self, *updates: Any) -> Any:
        self.resolver.apply(updates)
        changes = self.resolver.flush()
        self.state.update(changes)
        return changes

    def nats(self, key: WorkloadEndpointKey) -> list[tuple[str, str]]:
        return [(str(nat.external), str(nat.internal)) for nat in self.state.workloads[key].nats]


def floating(address: str, *external: str, state: Any = "active") -> WorkloadEndpoint:
    nats = tuple(Nat(int_ip=IPAddress(address), ext_ip=IPAddress(each)) for each in external)
    return WorkloadEndpoint(state=state, name="cali0", ipv4_nets=(IPNetwork(address),), ipv4_nat=nats)


def test_floating_addresses_are_sorted_and_stated_once() -> None:
    world = World((ONE, floating("10.0.0.1", "192.0.2.2", "192.0.2.1", "192.0.2.2")))
    assert world.nats(ONE) == [("192.0.2.1", "10.0.0.1"), ("192.0.2.2", "10.0.0.1")]
    assert world.state.workloads[ONE].nats[0] == HostNat(
        internal=IPAddress("10.0.0.1"), external=IPAddress("192.0.2.1")
    )


def test_where_there_are_none_they_lead_nowhere() -> None:
    world = World()
    world.resolver = PolicyResolver("here", has_floating=False)
    world.resolver.in_sync()
    world.put((ONE, floating("10.0.0.1", "192.0.2.1")))
    assert world.nats(ONE) == []


def test_of_two_workloads_the_first_has_the_address_and_the_other_inherits_it() -> None:
    world = World((TWO, floating("10.0.0.2", "192.0.2.1")))
    assert world.nats(TWO) == [("192.0.2.1", "10.0.0.2")]
    world.put((ONE, floating("10.0.0.1", "192.0.2.1")))
    assert (world.nats(ONE), world.nats(TWO)) == ([("192.0.2.1", "10.0.0.1")], [])
    world.put((ONE, floating("10.0.0.1", "192.0.2.1", state="inactive")))
    assert (world.nats(ONE), world.nats(TWO)) == ([], [("192.0.2.1", "10.0.0.2")])
    world.put((ONE, floating("10.0.0.1", "192.0.2.1")), (TWO, None))
    world.put((ONE, None), (TWO, floating("10.0.0.2", "192.0.2.1")))
    assert world.nats(TWO) == [("192.0.2.1", "10.0.0.2")]


def test_peers_are_told_while_a_pool_is_encapsulated() -> None:
    world = World(
        (HostIpKey("here"), "192.0.2.1"),
        (HostIpKey("there"), "192.0.2.2"),
        (BgpHostAddressKey("there", 4), "192.0.2.2"),
        (BgpHostAddressKey("there", 6), "fd00::2"),
        (BgpHostAddressKey("far", 6), ""),
    )
    assert world.state.peers == HostPeers()
    addresses = tuple(IPAddress(each) for each in ("192.0.2.1", "192.0.2.2", "fd00::2"))
    world.put((POOL, Pool(cidr=POOL.cidr, ipip="tunl0")))
    assert world.state.peers == HostPeers(addresses=addresses, is_ipip=True)
    world.put((POOL, Pool(cidr=POOL.cidr, vxlan_mode="cross-subnet")), (BgpHostAddressKey("there", 6), None))
    assert world.state.peers == HostPeers(addresses=addresses[:2], is_vxlan=True)
    assert world.put((POOL, Pool(cidr=POOL.cidr, vxlan_mode="always"))).peers is None
    world.put((HostIpKey("here"), "nonsense"))
    assert world.state.peers.addresses == addresses[1:2], "what is no address is nobody's"
    assert world.put((POOL, None)).peers == HostPeers()


def test_addresses_of_hosts_are_told_while_a_pool_masquerades() -> None:
    here, there = (HostIpKey("here"), "192.0.2.1"), (BgpHostAddressKey("there", 6), "fd00::2")
    world = World(here, (POOL, Pool(cidr=POOL.cidr)))
    assert world.state.pools.hosts == ()
    # one batch brings both: the pools name the host that came with them
    world.put(there, (POOL, Pool(cidr=POOL.cidr, masquerade=True)))
    assert world.state.pools.hosts == (IPAddress("192.0.2.1"), IPAddress("fd00::2"))
    assert world.put(here).pools is None
    world.put((HostIpKey("here"), "192.0.2.9"))
    assert world.state.pools.hosts == (IPAddress("192.0.2.9"), IPAddress("fd00::2"))
    world.put((POOL, Pool(cidr=POOL.cidr)))
    assert world.state.pools.hosts == ()
