"""Many allocators at once over each store: threads that race, answers that get lost, pools that are too small.

Source: ipam specification 8 and 12.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.errors import Contended, PoolExhausted, Unavailable
from calico_core.interfaces.datastore import Datastore, DatastoreOptions
from calico_core.ipam.allocator import BlockIpam
from tests.doubles.ipam_store import a_request, add_pool, check_laws

OpenStore = Callable[[], Datastore]


@pytest.fixture(params=["memory", "sqlite", "etcd3"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens one and the same store, a connection at a time."""
    opened: list[Datastore] = []
    options = DatastoreOptions(timeout_s=10.0)
    openers: dict[str, Callable[[], Datastore]] = {
        "memory": lambda: MemoryDatastore(f"ipam-{tmp_path.name}"),
        "sqlite": lambda: SqliteDatastore.open(f"sqlite://{tmp_path}/calico.db", options),
        "etcd3": lambda: Etcd3Datastore.open(request.getfixturevalue("etcd").url, options),
    }

    def opener() -> Datastore:
        opened.append(openers[request.param]())
        return opened[-1]

    yield opener
    for store in opened:
        store.close()
    MemoryDatastore.forget(f"ipam-{tmp_path.name}")


def an_ipam(open_store: OpenStore, host: str) -> BlockIpam:
    return BlockIpam.open(TypedRecords(open_store()), host)


def in_parallel(calls: list[Callable[[], Any]]) -> list[Any]:
    """The result of each, or the exception it ended with."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        gate.wait(10)
        try:
            return call()
        except (PoolExhausted, Contended) as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_more_demand_than_addresses(open_store: OpenStore) -> None:
    store = open_store()
    add_pool(store, "10.0.0.0/26", block_size=28)  # four blocks of sixteen
    hosts = [an_ipam(open_store, f"host{number % 3}") for number in range(5)]

    def ask(worker: int) -> Callable[[], object]:
        return lambda: [_assign(hosts[worker % 5], f"{worker}-{number}") for number in range(8)]

    results = [item for worker in in_parallel([ask(worker) for worker in range(10)]) for item in worker]
    given = [result[0] for result in results if isinstance(result, tuple)]
    refused = [result for result in results if isinstance(result, PoolExhausted)]
    assert len(given) == len(set(given)) == 64
    assert len(refused) == 80 - 64
    assert all("no free address in 10.0.0.0/26" in str(error) for error in refused)
    assert set(check_laws(store).holders()) == set(given)


def test_a_hundred_calls_at_once_for_sixty_four_addresses(open_store: OpenStore) -> None:
    """Two hosts: everybody is answered, 36 of them with the reason why there is nothing for them."""
    store = open_store()
    add_pool(store, "10.0.0.0/26", block_size=28)
    hosts = [an_ipam(open_store, f"host{number}") for number in range(2)]
    results = in_parallel([lambda n=n: hosts[n % 2].auto_assign(a_request(f"w{n}", 1)) for n in range(100)])
    given = [result[0] for result in results if isinstance(result, tuple)]
    refused = [str(result) for result in results if isinstance(result, PoolExhausted)]
    assert len(given) == len(set(given)) == 64
    assert len(refused) == 36
    assert all("no free address in 10.0.0.0/26" in text for text in refused)
    assert set(check_laws(store).holders()) == set(given)


def test_the_same_handle_from_everywhere_gets_one_address(open_store: OpenStore) -> None:
    store = open_store()
    add_pool(store, "10.0.0.0/24")
    hosts = [an_ipam(open_store, f"host{number}") for number in range(6)]
    results = in_parallel([lambda ipam=ipam: ipam.auto_assign(a_request("one", 1)) for ipam in hosts])
    assert len(set(results)) == 1
    assert check_laws(store).of_handle("one") == set(results[0])


def test_hosts_that_start_together_get_blocks_of_their_own(open_store: OpenStore) -> None:
    store = open_store()
    add_pool(store, "10.0.0.0/20")
    hosts = [an_ipam(open_store, f"host{number}") for number in range(12)]
    in_parallel([lambda ipam=ipam: ipam.auto_assign(a_request(f"on {ipam.host}", 1)) for ipam in hosts])
    found = check_laws(store)
    assert sorted(found.affinities.values()) == sorted(ipam.host for ipam in hosts)
    assert sum(ipam.round_trips.transactions for ipam in hosts) <= 12 * 2


def test_assigning_and_releasing_at_random(open_store: OpenStore) -> None:
    """Each worker owns its handles, so it knows what it holds; blocks are shared and too few."""
    store = open_store()
    add_pool(store, "10.0.0.0/25", block_size=28)
    add_pool(store, "fd00::/121", block_size=124)
    hosts = [an_ipam(open_store, f"host{number % 3}") for number in range(4)]

    def work(worker: int) -> dict[str, set[object]]:
        dice = random.Random(worker)
        held: dict[str, set[object]] = {}
        for number in range(25):
            ipam = dice.choice(hosts)
            if held and dice.random() < 0.45:
                handle = dice.choice(sorted(held))
                freed = ipam.release_by_handle([handle])
                assert set(freed) == held.pop(handle)
            else:
                handle = f"{worker}-{number}"
                held[handle] = set(ipam.auto_assign(a_request(handle, dice.choice([1, 1, 3]), dice.choice([0, 1]))))
        return held

    results = in_parallel([lambda worker=worker: work(worker) for worker in range(6)])
    expected = {address: handle for held in results for handle, mine in held.items() for address in mine}
    assert check_laws(store).holders() == expected


def test_lost_answers_and_refusals_never_assign_twice() -> None:
    """Every third transaction or so fails one way or the other, while four workers race."""
    store = MemoryDatastore()
    add_pool(store, "10.0.0.0/25", block_size=28)
    dice = random.Random(7)
    for number in range(2, 1500):
        if dice.random() < 0.3:
            (store.faults.apply_unanswered if dice.random() < 0.6 else store.faults.refuse)(number)
    hosts = [BlockIpam.open(TypedRecords(store), f"host{number}") for number in range(2)]

    def work(worker: int) -> dict[str, tuple[object, ...]]:
        held = {}
        for number in range(20):
            handle = f"{worker}-{number}"
            held[handle] = _until_answered(lambda handle=handle: hosts[worker % 2].auto_assign(a_request(handle, 1)))
            if number % 3 == 2:
                _until_answered(lambda handle=handle: hosts[(worker + 1) % 2].release_by_handle([handle]))
                del held[handle]
        return held

    results = in_parallel([lambda worker=worker: work(worker) for worker in range(4)])
    store.faults._refused.clear()
    store.faults._unanswered.clear()
    expected = {address: handle for held in results for handle, mine in held.items() for address in mine}
    assert len(expected) == 4 * (20 - 6)
    assert check_laws(store).holders() == expected


def _assign(ipam: BlockIpam, handle: str) -> object:
    try:
        return ipam.auto_assign(a_request(handle, 1))
    except PoolExhausted as error:
        return error


def _until_answered(call: Callable[[], object]) -> object:
    """As a caller does: repeat what could not be answered."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return call()
        except Unavailable:
            assert time.monotonic() < deadline
