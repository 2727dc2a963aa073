"""Calls that arrive together share a transaction, and nobody pays for a neighbour. Source: ipam specification 10.3."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.datastore.memory import MemoryDatastore
from calico_core.errors import CalicoError, Conflict, PoolExhausted, Unavailable
from calico_core.interfaces.datastore import MAX_TRANSACTION_OPERATIONS, Put, absent
from calico_core.interfaces.ipam import Companion
from calico_core.ipam.allocator import BlockIpam
from tests.doubles.ipam_store import a_request, add_pool, check_laws, configure, contents
from tests.waiting import eventually

IpamOf = Callable[[str], BlockIpam]
WAIT_S = 10


class Crowd:
    """Calls that all arrive while a first one's transaction is under way."""

    def __init__(self, store: MemoryDatastore, ipam: BlockIpam) -> None:
        self._store = store
        self._ipam = ipam

    def run(self, calls: list[Callable[[], object]]) -> tuple[list[object], int]:
        """What each gave or raised, in order, and the transactions of all of them."""
        release, held = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            assert release.wait(WAIT_S)

        self._store.faults.before(1, hold)
        with ThreadPoolExecutor(len(calls) + 1) as pool:
            first = pool.submit(self._ipam.auto_assign, a_request("opens", 1))
            assert held.wait(WAIT_S)
            before = self._ipam.round_trips.transactions
            futures: list[Future[object]] = []
            for number, call in enumerate(calls, 1):
                futures.append(pool.submit(call))
                eventually(lambda number=number: len(self._ipam._turns._waiting) == number + 1, every_s=0.001)
            release.set()
            first.result(WAIT_S)
            results = [_outcome(future) for future in futures]
        return results, self._ipam.round_trips.transactions - before


@pytest.fixture
def ipam(store: MemoryDatastore, ipam_of: IpamOf) -> BlockIpam:
    add_pool(store, "10.0.0.0/24")
    ipam = ipam_of("hostA")
    ipam.auto_assign(a_request("warm", 1))
    return ipam


@pytest.fixture
def crowd(store: MemoryDatastore, ipam: BlockIpam) -> Crowd:
    return Crowd(store, ipam)


def _outcome(future: Future[object]) -> object:
    try:
        return future.result(WAIT_S)
    except CalicoError as error:
        return error


def _raised_by(call: Callable[[], object]) -> Exception:
    with pytest.raises(LookupError) as raised:
        call()
    return raised.value


def endpoint(name: str) -> str:
    return f"/calico/v1/host/hostA/workload/test/{name}/endpoint/e"


def attach(ipam: BlockIpam, name: str, *extra: Put) -> Callable[[], object]:
    checks = (absent(endpoint(name)), *(absent(put.key) for put in extra))
    return lambda: ipam.auto_assign(
        a_request(name, 1), lambda given: Companion(checks, (Put(endpoint(name), str(given[0]).encode()), *extra))
    )


def test_thirty_two_calls_cost_two_transactions(store: MemoryDatastore, ipam: BlockIpam, crowd: Crowd) -> None:
    """A transaction holds so many blocks, handles and companions; each call brings two of them."""
    results, transactions = crowd.run([attach(ipam, f"w{number}") for number in range(32)])
    assert transactions == 2
    assert len({result[0] for result in results}) == 32
    found = check_laws(store)
    for number, (address,) in enumerate(results):
        assert found.of_handle(f"w{number}") == {address}
        assert store.get(endpoint(f"w{number}")).value == str(address).encode()
    _, transactions = crowd.run([lambda n=n: ipam.release_by_handle([f"w{n}"]) for n in range(32)])
    assert transactions == 1
    assert set(check_laws(store).handles) == {"warm", "opens"}


def test_no_transaction_is_too_large(store: MemoryDatastore, ipam: BlockIpam, crowd: Crowd) -> None:
    sizes: list[int] = []
    transact = store.transact

    def measured(preconditions, operations, otherwise=()):  # type: ignore[no-untyped-def]
        sizes.append(max(len(preconditions), len(operations)))
        return transact(preconditions, operations, otherwise)

    store.transact = measured  # type: ignore[method-assign]
    results, _ = crowd.run([lambda n=n: ipam.auto_assign(a_request(f"w{n}", 1 + n % 3)) for n in range(60)])
    assert all(isinstance(result, tuple) for result in results)
    assert max(sizes) <= MAX_TRANSACTION_OPERATIONS
    assert max(sizes) > 40, "they did share"


def test_what_refuses_one_does_not_refuse_the_others(store: MemoryDatastore, ipam: BlockIpam, crowd: Crowd) -> None:
    store.put(endpoint("taken"), b"x")
    add_pool(store, "10.9.0.0/30", block_size=30)
    ipam.auto_assign(a_request("fills", 4, pools_v4=(IPNetwork("10.9.0.0/30"),)))

    def broken(_: tuple[IPAddress, ...]) -> Companion:
        raise LookupError("the caller's own code")

    calls = [
        attach(ipam, "good1"),
        attach(ipam, "taken"),
        lambda: ipam.auto_assign(a_request("more", 1, pools_v4=(IPNetwork("10.9.0.0/30"),))),
        attach(ipam, "good2"),
        lambda: _raised_by(lambda: ipam.auto_assign(a_request("broken", 1), broken)),
        attach(ipam, "good3"),
    ]
    results, _ = crowd.run(calls)
    assert isinstance(results[1], Conflict)
    assert results[1].key == endpoint("taken")
    assert isinstance(results[2], PoolExhausted)
    assert isinstance(results[4], LookupError)
    found = check_laws(store)
    assert {"good1", "good2", "good3"} <= set(found.handles)
    assert {"taken", "more", "broken"}.isdisjoint(found.handles)


def test_the_same_handle_twice_at_once_gets_one_address(store: MemoryDatastore, ipam: BlockIpam, crowd: Crowd) -> None:
    results, _ = crowd.run([lambda: ipam.auto_assign(a_request("twin", 1)) for _ in range(4)])
    assert len(set(results)) == 1
    assert check_laws(store).of_handle("twin") == set(results[0])


def test_neighbours_may_bring_the_same_profile(store: MemoryDatastore, ipam: BlockIpam, crowd: Crowd) -> None:
    profile = Put("/calico/v1/policy/profile/p/rules", b"{}")
    results, transactions = crowd.run([attach(ipam, f"w{number}", profile) for number in range(8)])
    assert all(isinstance(result, tuple) for result in results)
    assert transactions == 1
    other = [attach(ipam, f"v{n}", Put("/calico/v1/policy/profile/q/rules", f"{n}".encode())) for n in range(3)]
    results, _ = crowd.run(other)
    assert sorted(isinstance(result, Conflict) for result in results) == [False, True, True], "one made it"


def test_assigning_and_releasing_go_together(store: MemoryDatastore, crowd: Crowd, ipam: BlockIpam) -> None:
    for number in range(5):
        ipam.auto_assign(a_request(f"old{number}", 1))
    calls: list[Callable[[], object]] = [lambda n=n: ipam.release_by_handle([f"old{n}"]) for n in range(5)]
    calls += [lambda n=n: ipam.auto_assign(a_request(f"new{n}", 1)) for n in range(5)]
    _, transactions = crowd.run(calls)
    assert transactions == 1
    assert set(check_laws(store).handles) == {"warm", "opens", *(f"new{n}" for n in range(5))}


@pytest.mark.parametrize("trouble", ["refuse", "apply_unanswered"])
def test_an_outage_is_everybodys(store: MemoryDatastore, ipam: BlockIpam, crowd: Crowd, trouble: str) -> None:
    calls = [lambda n=n: ipam.auto_assign(a_request(f"w{n}", 1)) for n in range(6)]
    getattr(store.faults, trouble)(2)
    results, _ = crowd.run(calls)
    if trouble == "refuse":
        assert all(isinstance(result, Unavailable) and not result.maybe_applied for result in results)
        assert set(contents(store).handles) == {"warm", "opens"}
    else:
        assert len({result[0] for result in results}) == 6, "it had landed, and is recognised"
        assert len(check_laws(store).holders()) == 8


def test_more_callers_than_addresses(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.1.0.0/28", block_size=28)
    configure(store, strict_affinity=True)
    ipam = ipam_of("hostA")
    results, _ = Crowd(store, ipam).run([lambda n=n: ipam.auto_assign(a_request(f"w{n}", 1)) for n in range(30)])
    refused = [result for result in results if isinstance(result, PoolExhausted)]
    given = [result for result in results if isinstance(result, tuple)]
    assert (len(given), len(refused)) == (15, 15)
    assert len(check_laws(store).holders()) == 16
