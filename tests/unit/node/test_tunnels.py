"""The tunnel thread on a real memory store and real IPAM; only the kernel is a recorder."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.linux.tunnels import TunnelReport, Tunnels, Uplink
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import NoPools
from calico_core.interfaces.dataplane import Failure
from calico_core.interfaces.datastore import DatastoreOptions, Delete, Put
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.keys import BgpHostAddressKey, HostConfigKey, PoolKey
from calico_core.model.pools import Pool, Use
from calico_core.model.tunnels import HostTunnels, TunnelId
from calico_core.model.workloads import AddressRequest
from calico_core.node.tunnels import TunnelKeeper
from tests.waiting import eventually

OWN = IPAddress("192.0.2.1")
FIRST, SECOND = IPNetwork("10.65.0.0/24"), IPNetwork("10.66.0.0/24")
VXLAN = TunnelId(kind="vxlan", version=4)
HANDLE, ADDRESS_KEY = VXLAN.handle("own"), HostConfigKey("own", "IPv4VXLANTunnelAddr")


class _Kernel(Tunnels):
    """Remembers what it was told; refuses while ``failure`` is set."""

    def __init__(self) -> None:
        self.states: list[HostTunnels] = []
        self.failure: Failure | None = None
        self.found: dict[str, int] = {}

    def uplinks(self, addresses: Iterable[IPAddress]) -> dict[IPAddress, Uplink]:
        subnet = IPNetwork("192.0.2.0/24")
        return {each: Uplink(index=2, name="eth0", mtu_bytes=1500, subnet=subnet) for each in addresses}

    def mtus(self, pattern: str) -> dict[str, int]:
        return {name: mtu_bytes for name, mtu_bytes in self.found.items() if re.match(pattern, name)}

    def sync(self, desired: HostTunnels, known: HostTunnels | None = None) -> TunnelReport:
        self.states.append(desired)
        return TunnelReport(failures=(self.failure,) if self.failure else ())


class _Node:
    def __init__(self, mtu_interfaces: str = "") -> None:
        self.records = TypedRecords(MemoryDatastore.open("memory://", DatastoreOptions()))
        self.ipam = BlockIpam(self.records, "own")
        self.kernel = _Kernel()
        self.records.put(BgpHostAddressKey("own", 4), str(OWN))
        self.mtus: list[int | None] = []
        self.is_trusted = True
        self.asked = threading.Semaphore(0)
        self.keeper = TunnelKeeper(
            records=self.records,
            ipam=self.ipam,
            host="own",
            addresses=[OWN],
            refresh_interval_s=0,
            mtu_interfaces=mtu_interfaces,
            on_mtu=self.mtus.append,
            kernel=self.kernel,
            trusts_store=self._trusts_store,
        )

    def _trusts_store(self) -> bool:
        """The agent's word."""
        self.asked.release()
        return self.is_trusted

    def is_asked(self, times: int) -> None:
        for _ in range(times):
            assert self.asked.acquire(timeout=20)

    def put_pool(
        self, cidr: IPNetwork, *, is_vxlan: bool = True, is_disabled: bool = False, uses: tuple[Use, ...] = ()
    ) -> None:
        pool = Pool(cidr=cidr, vxlan_mode="always" if is_vxlan else "", disabled=is_disabled, allowed_uses=uses)
        self.records.put(PoolKey(cidr), pool)

    @property
    def published(self) -> str:
        found = self.records.get(ADDRESS_KEY)
        return found.record if found else ""

    @property
    def device_address(self) -> IPAddress | None:
        state = self.kernel.states[-1] if self.kernel.states else HostTunnels()
        return state.devices[0].address if state.devices else None

    def close(self) -> None:
        self.keeper.stop()
        self.ipam.close()
        self.records.store.close()


@pytest.fixture
def node() -> Iterator[_Node]:
    made = _Node()
    yield made
    made.close()


def test_an_address_is_taken_published_and_put_on_the_device(node: _Node) -> None:
    node.put_pool(FIRST)
    node.keeper.start()
    eventually(lambda: node.device_address is not None)
    assert node.ipam.by_handle(HANDLE) == (node.device_address,)
    assert node.published == str(node.device_address)
    mac = node.records.get(HostConfigKey("own", "VXLANTunnelMACAddr"))
    assert mac is not None
    assert mac.record == str(VXLAN.mac("own"))
    held = node.ipam.allocation(IPAddress(node.published))
    assert held is not None
    assert held.attributes["node"] == "own"
    assert node.keeper.workload_mtu_bytes == 1450


def test_without_encapsulated_pools_only_pools_are_followed(node: _Node) -> None:
    node.put_pool(FIRST, is_vxlan=False)
    node.keeper.start()
    assert node.keeper.wait_judged(10)
    eventually(lambda: bool(node.kernel.states))
    assert node.kernel.states[-1] == HostTunnels(locals=(OWN,))
    assert node.keeper.workload_mtu_bytes is None
    assert node.ipam.by_handle(HANDLE) == ()


def test_a_pool_that_comes_and_goes_while_running(node: _Node) -> None:
    node.keeper.start()
    assert node.keeper.wait_judged(10)
    node.put_pool(FIRST)
    eventually(lambda: node.device_address is not None)
    node.put_pool(FIRST, is_vxlan=False)
    eventually(lambda: node.kernel.states[-1].devices == ())
    eventually(lambda: node.ipam.by_handle(HANDLE) == ())
    assert node.published == ""
    assert node.keeper.workload_mtu_bytes is None


def test_who_has_to_know_hears_of_the_mtu(node: _Node) -> None:
    node.put_pool(FIRST)
    node.keeper.start()
    eventually(lambda: node.mtus)
    assert node.mtus[-1] == 1450
    node.put_pool(FIRST, is_vxlan=False)
    eventually(lambda: node.mtus[-1] is None)


def test_the_address_moves_when_its_pool_is_no_longer_encapsulated(node: _Node) -> None:
    node.put_pool(FIRST)
    node.keeper.start()
    eventually(lambda: node.device_address is not None)
    node.put_pool(SECOND)
    node.put_pool(FIRST, is_vxlan=False)
    eventually(lambda: node.device_address is not None and node.device_address in SECOND)
    assert node.published == str(node.device_address)
    assert node.ipam.by_handle(HANDLE) == (node.device_address,)


def test_the_address_goes_with_a_pool_that_is_deleted(node: _Node) -> None:
    node.put_pool(FIRST)
    node.keeper.start()
    eventually(lambda: node.device_address is not None)
    node.records.delete(PoolKey(FIRST))
    eventually(lambda: node.ipam.by_handle(HANDLE) == ())
    assert node.published == ""


def test_a_store_that_the_agent_does_not_trust_takes_nothing_away(node: _Node) -> None:
    """Neither from the kernel nor, as the tunnel's own address, from the store. What is new goes on."""
    node.put_pool(FIRST)
    _other_host(node)
    node.keeper.start()
    eventually(lambda: node.kernel.states and node.kernel.states[-1].routes)
    before, published = node.kernel.states[-1], node.published
    node.is_trusted = False
    kept = node.records.store.list("/calico/").entries
    node.records.store.transact([], [Delete(entry.key) for entry in kept if "/host/own/config/" not in entry.key])
    node.put_pool(SECOND, is_vxlan=False)
    node.asked = threading.Semaphore(0)
    node.is_asked(2)
    assert node.kernel.states[-1] == before
    assert node.published == published
    node.is_trusted = True
    eventually(lambda: node.kernel.states[-1] == HostTunnels(locals=(OWN,)))


def test_records_that_come_back_leave_no_gap(node: _Node) -> None:
    node.put_pool(FIRST)
    _other_host(node)
    node.keeper.start()
    eventually(lambda: node.kernel.states and node.kernel.states[-1].routes)
    node.is_trusted = False
    before, kept = node.kernel.states[-1], node.records.store.list("/calico/").entries
    node.kernel.states = [before]
    node.records.store.transact([], [Delete(entry.key) for entry in kept])
    node.asked = threading.Semaphore(0)
    node.is_asked(2)
    node.records.store.transact([], [Put(entry.key, entry.value) for entry in kept])
    node.is_trusted = True
    node.records.put(BgpHostAddressKey("third", 4), "192.0.2.3")
    node.put_pool(SECOND)
    eventually(lambda: node.keeper._table.pools and len(node.keeper._table.pools) == 2)
    assert all(state.routes == before.routes for state in node.kernel.states)
    assert all(state.devices == before.devices for state in node.kernel.states)


def test_nothing_is_begun_with_before_the_agent_trusts_the_store(node: _Node) -> None:
    """An earlier life of the node may have left tunnels that only a lost record does not name. The MTU is known."""
    node.is_trusted = False
    node.put_pool(FIRST)
    node.keeper.start()
    assert node.keeper.wait_judged(10)
    assert node.keeper.workload_mtu_bytes == 1450
    node.is_asked(3)
    assert node.kernel.states == []
    assert node.ipam.by_handle(HANDLE) == ()
    node.is_trusted = True
    eventually(lambda: node.device_address is not None)


def _other_host(node: _Node) -> None:
    """With a tunnel address of its own, and so a block."""
    node.records.put(BgpHostAddressKey("other", 4), "192.0.2.2")
    other = BlockIpam(node.records, "other")
    try:
        other.auto_assign(
            AddressRequest(
                handle=VXLAN.handle("other"),
                num_v4=1,
                num_v6=0,
                pools_v4=(FIRST,),
                attributes={"node": "other", "type": "vxlanTunnelAddress"},
            )
        )
    finally:
        other.close()


def test_a_disabled_pool_keeps_the_address_it_gave(node: _Node) -> None:
    node.put_pool(FIRST)
    node.keeper.start()
    eventually(lambda: node.device_address is not None)
    address = node.device_address
    node.put_pool(FIRST, is_disabled=True)
    node.put_pool(SECOND)
    eventually(lambda: not node.keeper.last_error)
    assert node.ipam.by_handle(HANDLE) == (address,)


def test_an_address_freed_by_somebody_else_is_taken_anew(node: _Node) -> None:
    node.put_pool(FIRST)
    node.keeper.start()
    eventually(lambda: node.device_address is not None)
    node.ipam.release_by_handle([HANDLE])
    eventually(lambda: node.ipam.by_handle(HANDLE) != ())
    eventually(lambda: node.ipam.by_handle(HANDLE) == (node.device_address,))
    eventually(lambda: node.published == str(node.device_address))


def test_a_crash_between_two_starts_leaks_nothing(node: _Node) -> None:
    node.put_pool(FIRST)
    node.keeper.start()
    eventually(lambda: node.device_address is not None)
    before = node.published
    node.records.delete(ADDRESS_KEY)
    node.keeper.stop()
    again = TunnelKeeper(
        records=node.records, ipam=node.ipam, host="own", addresses=[OWN], refresh_interval_s=0, kernel=node.kernel
    )
    again.start()
    eventually(lambda: node.published == before)
    again.stop()
    assert [str(address) for address in node.ipam.by_handle(HANDLE)] == [before]


def test_a_pool_without_addresses_is_told(node: _Node) -> None:
    node.put_pool(FIRST, is_disabled=True)
    node.keeper.start()
    eventually(lambda: "tunnel address of vxlan.calico" in node.keeper.last_error)
    assert node.published == ""


def test_a_pool_that_is_for_tunnels_alone_gives_theirs(node: _Node) -> None:
    node.put_pool(FIRST, uses=("Workload",))
    node.keeper.start()
    eventually(lambda: "tunnel address of vxlan.calico" in node.keeper.last_error)
    node.put_pool(FIRST, uses=("Tunnel",))
    eventually(lambda: node.published != "")
    assert IPAddress(node.published) in FIRST
    with pytest.raises(NoPools):
        node.ipam.auto_assign(AddressRequest(handle="w", num_v4=1))


def test_what_the_kernel_refuses_is_told_and_tried_again(node: _Node) -> None:
    node.kernel.failure = Failure("device tunl0", "lacks the module 'ipip'")
    node.put_pool(FIRST)
    node.keeper.start()
    eventually(lambda: "lacks the module 'ipip'" in node.keeper.last_error)
    node.kernel.failure = None
    node.put_pool(SECOND, is_vxlan=False)
    eventually(lambda: node.keeper.last_error == "")


@pytest.mark.parametrize(
    ("interfaces", "is_vxlan", "mtu_bytes"),
    [
        ({"eth0": 9000, "eth1": 1400, "docker0": 500}, False, 1400),
        ({"eth0": 9000, "eth1": 1400, "docker0": 500}, True, 1350),
        ({"docker0": 500}, False, None),
        ({"docker0": 500}, True, 1450),  # nothing matches: as without a pattern
    ],
)
def test_a_pattern_names_the_interfaces_that_show_the_networks_mtu(
    interfaces: dict[str, int], is_vxlan: bool, mtu_bytes: int | None
) -> None:
    node = _Node("(eth|wlan)")
    try:
        node.kernel.found = interfaces
        node.put_pool(FIRST, is_vxlan=is_vxlan)
        node.keeper.start()
        assert node.keeper.wait_judged(10)
        eventually(lambda: node.keeper.workload_mtu_bytes == mtu_bytes)
    finally:
        node.close()
