"""What a starting host writes, on a memory store: once, for all hosts, and never over somebody else's."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import InvalidRequest, InvalidSettings, Unavailable
from calico_core.model.hosts import AddressClaim, NodeStatus
from calico_core.model.keys import (
    POOLS,
    AddressClaimKey,
    BgpGlobalAsKey,
    BgpHostAddressKey,
    BgpHostAsKey,
    BgpMeshKey,
    GlobalConfigKey,
    HostIpKey,
    NodeStatusKey,
    PoolKey,
    ReadyKey,
)
from calico_core.model.pools import Pool
from calico_core.node import startup
from calico_core.settings import Settings, load_settings

if TYPE_CHECKING:
    from calico_core.interfaces.datastore import Versioned

V4, V6 = IPAddress("192.0.2.1"), IPAddress("2001:db8::1")


@pytest.fixture
def records() -> TypedRecords:
    return TypedRecords(MemoryDatastore())


def register(records: TypedRecords, host: str = "rack-a", ip: IPAddress | None = V4, **environment: str) -> None:
    startup.register_host(records, host=host, ipv4=ip, ipv6=None, settings=load_settings(environment))


def pools(records: TypedRecords) -> dict[str, Pool]:
    found: tuple[Versioned[Pool], ...] = records.list(POOLS)
    return {str(pool.record.cidr): pool.record for pool in found}


def contents(records: TypedRecords) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in records.store.list("/calico/").entries}


def test_the_first_host_makes_the_default_pools(records: TypedRecords) -> None:
    startup.ensure_pools(records, Settings(), has_ipv6=True)
    assert set(pools(records)) == {"192.168.0.0/16", "fd80:24e2:f998:72d6::/64"}
    assert not any(pool.masquerade for pool in pools(records).values())


def test_no_ipv6_pool_without_ipv6(records: TypedRecords) -> None:
    startup.ensure_pools(records, Settings(), has_ipv6=False)
    assert set(pools(records)) == {"192.168.0.0/16"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NO_DEFAULT_POOLS": "true"}, set()),
        ({"CALICO_IPV4POOL_CIDR": "10.1.0.0/16", "CALICO_IPV6POOL_CIDR": "none"}, {"10.1.0.0/16"}),
        ({"CALICO_IPV4POOL_CIDR": "none", "CALICO_IPV6POOL_CIDR": "fd00::/64"}, {"fd00::/64"}),
    ],
)
def test_settings_of_default_pools(records: TypedRecords, environment: dict[str, str], expected: set[str]) -> None:
    startup.ensure_pools(records, load_settings(environment), has_ipv6=True)
    assert set(pools(records)) == expected


def test_nat_outgoing_is_for_ipv4(records: TypedRecords) -> None:
    startup.ensure_pools(records, load_settings({"CALICO_IPV4POOL_NAT_OUTGOING": "yes"}), has_ipv6=True)
    assert {cidr: pool.masquerade for cidr, pool in pools(records).items()} == {
        "192.168.0.0/16": True,
        "fd80:24e2:f998:72d6::/64": False,
    }


def test_a_family_that_has_a_pool_gets_no_other(records: TypedRecords) -> None:
    mine = Pool(cidr=IPNetwork("10.9.0.0/16"), disabled=True)
    records.put(PoolKey(mine.cidr), mine)
    startup.ensure_pools(records, Settings(), has_ipv6=True)
    assert set(pools(records)) == {"10.9.0.0/16", "fd80:24e2:f998:72d6::/64"}
    assert pools(records)["10.9.0.0/16"] == mine


def test_a_pool_that_appears_meanwhile_wins(records: TypedRecords) -> None:
    store = records.store
    assert isinstance(store, MemoryDatastore)
    other = Pool(cidr=IPNetwork("10.9.0.0/16"))
    store.faults.before(1, lambda: records.put(PoolKey(other.cidr), other))
    startup.ensure_pools(records, Settings(), has_ipv6=False)
    assert set(pools(records)) == {"10.9.0.0/16"}


def test_a_registered_host(records: TypedRecords) -> None:
    startup.register_host(records, host="rack-a", ipv4=V4, ipv6=V6, settings=load_settings({"AS": "64.512"}))
    assert records.get(ReadyKey()).record == "true"
    assert records.get(HostIpKey("rack-a")).record == "192.0.2.1"
    assert records.get(BgpHostAddressKey("rack-a", 4)).record == "192.0.2.1"
    assert records.get(BgpHostAddressKey("rack-a", 6)).record == "2001:db8::1"
    assert records.get(BgpHostAsKey("rack-a")).record == str(64 * 65536 + 512)
    assert records.get(BgpMeshKey()).record.enabled
    assert records.get(BgpGlobalAsKey()).record == "64511"
    assert records.get(GlobalConfigKey("InterfacePrefix")).record == "cali"
    for address in (V4, V6):
        assert records.get(AddressClaimKey(address)).record.host == "rack-a"


def test_a_family_without_an_address_is_written_empty(records: TypedRecords) -> None:
    register(records)
    assert records.get(BgpHostAddressKey("rack-a", 6)).record == ""


def test_a_repeat_leaves_an_equal_store(records: TypedRecords) -> None:
    register(records, AS="64512")
    before = contents(records)
    register(records, AS="64512")
    assert contents(records) == before


def test_an_as_number_no_longer_given_is_inherited_again(records: TypedRecords) -> None:
    register(records, AS="64512")
    register(records)
    assert records.get(BgpHostAsKey("rack-a")) is None


def test_a_second_host_changes_nothing_of_the_cluster(records: TypedRecords) -> None:
    register(records)
    records.put(GlobalConfigKey("InterfacePrefix"), "tap")
    records.put(BgpGlobalAsKey(), "65000")
    before = contents(records)
    register(records, "rack-b", IPAddress("192.0.2.2"), CALICO_IPV4POOL_CIDR="10.77.0.0/16")
    after = contents(records)
    assert {key: after[key] for key in before} == before
    assert all("rack-b" in key or "192.0.2.2" in key for key in after.keys() - before.keys())


def test_an_address_of_a_live_host_is_refused_naming_it(records: TypedRecords) -> None:
    register(records)
    records.put(NodeStatusKey("rack-a"), NodeStatus(version="1", started=1.0, state="running"))
    before = contents(records)
    with pytest.raises(InvalidSettings, match="rack-a") as caught:
        register(records, "rack-b")
    assert str(V4) in str(caught.value)
    after = contents(records)
    assert not any("rack-b" in key for key in after)
    assert after == before


@pytest.mark.parametrize("state", [None, "stopped"])
def test_an_address_of_a_host_that_is_gone_is_taken_over(records: TypedRecords, state: str | None) -> None:
    register(records)
    if state is not None:
        records.put(NodeStatusKey("rack-a"), NodeStatus(version="1", started=1.0, state=state))
    register(records, "rack-b")
    assert records.get(AddressClaimKey(V4)).record.host == "rack-b"


def test_a_claim_of_an_earlier_address_is_dropped(records: TypedRecords) -> None:
    register(records)
    records.put(AddressClaimKey(IPAddress("192.0.2.9")), AddressClaim(host="rack-z", token="t"))
    register(records, ip=IPAddress("192.0.2.7"))
    assert records.get(AddressClaimKey(V4)) is None
    assert records.get(AddressClaimKey(IPAddress("192.0.2.7"))).record.host == "rack-a"
    assert records.get(AddressClaimKey(IPAddress("192.0.2.9"))).record.host == "rack-z"
    assert records.get(HostIpKey("rack-a")).record == "192.0.2.7"


def test_two_hosts_racing_for_an_address_have_one_winner(records: TypedRecords) -> None:
    store = records.store
    assert isinstance(store, MemoryDatastore)

    def other() -> None:
        records.put(NodeStatusKey("rack-b"), NodeStatus(version="1", started=1.0, state="starting"))
        startup.claim_host(records, host="rack-b", ipv4=V4, ipv6=None, settings=Settings())

    store.faults.before(1, other)
    with pytest.raises(InvalidSettings, match="rack-b"):
        startup.claim_host(records, host="rack-a", ipv4=V4, ipv6=None, settings=Settings())
    assert records.get(AddressClaimKey(V4)).record.host == "rack-b"
    assert records.get(HostIpKey("rack-a")) is None


def test_a_lost_race_that_does_not_matter_is_repeated(records: TypedRecords) -> None:
    store = records.store
    assert isinstance(store, MemoryDatastore)
    mine = AddressClaim(host="rack-a", token="earlier")
    store.faults.before(1, lambda: records.put(AddressClaimKey(V4), mine))
    startup.claim_host(records, host="rack-a", ipv4=V4, ipv6=None, settings=Settings())
    assert records.get(HostIpKey("rack-a")).record == str(V4)


@pytest.mark.parametrize("host", ["a/b", "", "..", "a b"])
def test_a_host_name_that_cannot_be_a_key_is_refused(records: TypedRecords, host: str) -> None:
    with pytest.raises(InvalidRequest, match="node_name"):
        register(records, host)
    assert contents(records) == {}


@pytest.mark.parametrize("nth", range(1, 12))
def test_a_start_cut_short_is_finished_by_the_next(nth: int) -> None:
    whole = TypedRecords(MemoryDatastore())
    register(whole)
    store = MemoryDatastore()
    records = TypedRecords(store)
    store.faults.refuse(nth)
    with pytest.raises(Unavailable):
        register(records)
    assert records.get(ReadyKey()) is None
    register(records)
    assert contents(records) == contents(whole)


def test_waiting_for_the_store_ends_when_it_answers_or_when_stopped(records: TypedRecords) -> None:
    store = records.store
    assert isinstance(store, MemoryDatastore)
    assert startup.wait_for_store(records, threading.Event())
    store.faults.down = True
    stopped = threading.Event()
    stopped.set()
    assert not startup.wait_for_store(records, stopped)
    threading.Timer(0.05, setattr, (store.faults, "down", False)).start()
    assert startup.wait_for_store(records, threading.Event())


def test_the_wait_for_policy_ends_when_it_is_in_force_or_when_stopped() -> None:
    """The agent of a node that is to start anew never says that it is."""
    applied, stop = threading.Event(), threading.Event()
    asked = threading.Semaphore(0)
    results: list[bool] = []

    def wait_in_sync(timeout_s: float) -> bool:
        asked.release()
        return applied.wait(timeout_s)

    def wait(timeout_s: float) -> None:
        results.append(startup.wait_for_policy(wait_in_sync, stop, timeout_s))

    wait(0.05)
    waiting = threading.Thread(target=wait, args=(600.0,), daemon=True)
    waiting.start()
    for _ in range(3):  # twice while it waits
        assert asked.acquire(timeout=20)
    stop.set()
    waiting.join(20)
    stop.clear()
    applied.set()
    wait(600.0)
    assert results == [False, False, True]
