"""The allocator over the memory store: what it answers, what it writes, what it costs."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import (
    AddressInUse,
    AffinityHeld,
    Conflict,
    Contended,
    InvalidRecord,
    InvalidRequest,
    NoPools,
    OutsidePools,
    PoolExhausted,
    StaleRelease,
    Unavailable,
)
from calico_core.interfaces.datastore import Compare, Delete, NoneNewer, Put, absent
from calico_core.interfaces.ipam import Companion
from calico_core.ipam import candidates
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.keys import AffinityKey, BlockKey, HandleKey, IpamConfigKey, PoolKey
from calico_core.model.pools import Pool
from tests.doubles.ipam_store import a_request, add_pool, check_laws, configure, contents, cost

ENDPOINT = "/calico/v1/host/hostA/workload/test/w1/endpoint/e1"


@pytest.fixture
def store() -> Iterator[MemoryDatastore]:
    store = MemoryDatastore()
    yield store
    check_laws(store)


@pytest.fixture
def ipam(store: MemoryDatastore) -> BlockIpam:
    return an_ipam(store)


def an_ipam(store: MemoryDatastore, host: str = "hostA") -> BlockIpam:
    return BlockIpam.open(TypedRecords(store), host)


def texts(addresses: tuple[IPAddress, ...]) -> list[str]:
    return [str(address) for address in addresses]


# --- assigning -------------------------------------------------------------------------------------


def test_addresses_come_from_one_block_in_order(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/26")
    assert texts(ipam.auto_assign(a_request("a", 2))) == ["10.0.0.0", "10.0.0.1"]
    assert texts(ipam.auto_assign(a_request("b", 1))) == ["10.0.0.2"]
    found = check_laws(store)
    assert found.affinities == {IPNetwork("10.0.0.0/26"): "hostA"}
    assert found.handles == {"a": {"10.0.0.0/26": 2}, "b": {"10.0.0.0/26": 1}}


def test_both_families_in_one_transaction(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/26")
    add_pool(store, "fd00::/122")
    assert texts(ipam.auto_assign(a_request("a", 1, 1))) == ["10.0.0.0", "fd00::"]
    assert ipam.round_trips.transactions == 1


def test_half_an_answer_is_none(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/26")
    with pytest.raises(NoPools) as refusal:
        ipam.auto_assign(a_request("a", 1, 1))
    assert refusal.value.version == 6
    assert contents(store).blocks == {}


def test_a_handle_gets_what_it_holds(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    first = ipam.auto_assign(a_request("a", 1))
    for instance in (ipam, an_ipam(store), an_ipam(store, "hostB")):
        assert instance.auto_assign(a_request("a", 1)) == first
    more = ipam.auto_assign(a_request("a", 3))
    assert more[:1] == first
    assert len(more) == 3
    assert contents(store).of_handle("a") == set(more)
    assert ipam.auto_assign(a_request("a", 1)) == first


def test_attributes_are_kept_with_the_node(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/26")
    (address,) = ipam.auto_assign(a_request("a", 1, attributes={"workload": "w1"}))
    found = ipam.allocation(address)
    assert found is not None
    assert found[:3] == (address, "a", {"node": "hostA", "workload": "w1"})
    assert ipam.allocation(IPAddress("10.0.0.9")) is None
    assert ipam.allocation(IPAddress("192.0.2.1")) is None
    assert ipam.by_handle("a") == (address,)
    assert ipam.by_handle("nobody") == ()


def test_many_addresses_span_blocks(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    assert len(set(ipam.auto_assign(a_request("a", 200)))) == 200
    assert ipam.round_trips.transactions == 1
    assert len(check_laws(store).blocks) == 4


@pytest.mark.parametrize(
    ("request_", "field"),
    [(a_request("", 1), "handle"), (a_request("a", -1), "num_v4"), (a_request("a", 0, -2), "num_v6")],
)
def test_bad_requests_name_the_field(ipam: BlockIpam, request_: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        ipam.auto_assign(request_)
    assert refusal.value.field == field


# --- pools -----------------------------------------------------------------------------------------


def test_no_pool(ipam: BlockIpam) -> None:
    with pytest.raises(NoPools):
        ipam.auto_assign(a_request("a", 1))


def test_requested_pools_are_the_only_ones(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/26")
    second = add_pool(store, "10.1.0.0/26")
    assert texts(ipam.auto_assign(a_request("a", 1, pools_v4=(second,)))) == ["10.1.0.0"]
    with pytest.raises(PoolExhausted):
        ipam.auto_assign(a_request("b", 64, pools_v4=(second,)))
    with pytest.raises(NoPools) as refusal:
        ipam.auto_assign(a_request("b", 1, pools_v4=(IPNetwork("10.9.0.0/26"),)))
    assert refusal.value.available == ("10.0.0.0/26", "10.1.0.0/26")


@pytest.mark.parametrize("fields", [{"disabled": True}, {"ipam": False}])
def test_a_pool_taken_out_of_use_is_left_at_once(
    store: MemoryDatastore, ipam: BlockIpam, fields: dict[str, object]
) -> None:
    add_pool(store, "10.0.0.0/26")
    add_pool(store, "10.1.0.0/26")
    first = ipam.auto_assign(a_request("a", 1))
    add_pool(store, "10.0.0.0/26", **fields)
    assert texts(ipam.auto_assign(a_request("b", 1))) == ["10.1.0.0"]
    assert ipam.release_by_handle(["a"]) == first


def test_a_pool_added_later_is_found_when_the_known_ones_do_not_do(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/26")
    ipam.auto_assign(a_request("a", 64))
    added = add_pool(store, "10.1.0.0/26")
    assert texts(ipam.auto_assign(a_request("b", 1))) == ["10.1.0.0"]
    assert texts(ipam.auto_assign(a_request("c", 1, pools_v4=(added,)))) == ["10.1.0.1"]


def test_a_deleted_pool_still_gives_its_addresses_back(store: MemoryDatastore, ipam: BlockIpam) -> None:
    pool = add_pool(store, "10.0.0.0/26")
    held = ipam.auto_assign(a_request("a", 2))
    store.delete(PoolKey(pool).path)
    with pytest.raises(NoPools):
        ipam.auto_assign(a_request("b", 1))
    assert an_ipam(store, "hostB").release(held) == ()
    assert contents(store).holders() == {}


def test_a_small_block_size_is_kept(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/29", block_size=30)
    assert len(ipam.auto_assign(a_request("a", 8))) == 8
    assert {cidr.prefixlen for cidr in contents(store).blocks} == {30}
    with pytest.raises(PoolExhausted):
        ipam.auto_assign(a_request("b", 1))


# --- affinity, borrowing, limits -------------------------------------------------------------------


def test_hosts_take_blocks_of_their_own_while_there_are_some(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/25")
    for host in ("hostA", "hostB"):
        an_ipam(store, host).auto_assign(a_request(f"on-{host}", 1))
    assert set(contents(store).affinities.values()) == {"hostA", "hostB"}


def test_borrowing_comes_last(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/26")
    an_ipam(store, "hostA").auto_assign(a_request("a", 1))
    other = an_ipam(store, "hostB")
    assert texts(other.auto_assign(a_request("b", 1))) == ["10.0.0.1"]
    assert check_laws(store).affinities == {IPNetwork("10.0.0.0/26"): "hostA"}


def test_strict_affinity_never_borrows(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/26")
    an_ipam(store, "hostA").auto_assign(a_request("a", 1))
    other = an_ipam(store, "hostB")
    other.auto_assign(a_request("b", 1))
    configure(store, strict_affinity=True)
    with pytest.raises(PoolExhausted, match="strict affinity"):
        other.auto_assign(a_request("c", 1))
    with pytest.raises(AffinityHeld):
        other.auto_assign(a_request("c", 0, 0, "10.0.0.9"))
    assert contents(store).of_handle("c") == set()


def test_automatic_allocation_of_blocks_can_be_off(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    configure(store, strict_affinity=True, auto_allocate_blocks=False)
    with pytest.raises(PoolExhausted, match="automatic allocation of blocks is off"):
        ipam.auto_assign(a_request("a", 1))
    ipam.claim_affinity(IPNetwork("10.0.0.64/26"), "hostA")
    assert texts(ipam.auto_assign(a_request("a", 1))) == ["10.0.0.64"]


def test_a_host_stops_at_its_limit_of_blocks(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24", block_size=30)
    configure(store, strict_affinity=True, max_blocks_per_host=2)
    ipam.auto_assign(a_request("a", 8))
    with pytest.raises(PoolExhausted, match="limit of 2 blocks"):
        ipam.auto_assign(a_request("b", 1))
    assert len(contents(store).affinities) == 2


def test_exhaustion_says_how_much_there_was(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/26")
    ipam.auto_assign(a_request("a", 60))
    with pytest.raises(PoolExhausted) as refusal:
        ipam.auto_assign(a_request("b", 5))
    assert (refusal.value.wanted, refusal.value.found) == (5, 4)
    assert contents(store).of_handle("b") == set()


def test_claimed_and_released_affinities(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/25")
    ipam.claim_affinity(IPNetwork("10.0.0.0/25"), "hostB")
    ipam.claim_affinity(IPNetwork("10.0.0.0/25"), "hostB")
    with pytest.raises(AffinityHeld) as refusal:
        ipam.claim_affinity(IPNetwork("10.0.0.64/26"), "hostA")
    assert refusal.value.owner == "hostB"
    ipam.release_affinity(IPNetwork("10.0.0.64/26"), "hostA")
    assert len(check_laws(store).affinities) == 2
    ipam.release_affinity(IPNetwork("10.0.0.64/26"), "hostB")
    ipam.release_affinity(IPNetwork("10.0.0.64/26"), "hostB")
    assert check_laws(store).affinities == {IPNetwork("10.0.0.0/26"): "hostB"}


@pytest.mark.parametrize(
    ("cidr", "error"), [("10.9.0.0/26", OutsidePools), ("10.0.0.0/28", InvalidRequest), ("fd00::/122", OutsidePools)]
)
def test_only_blocks_of_pools_can_be_claimed(
    store: MemoryDatastore, ipam: BlockIpam, cidr: str, error: type[Exception]
) -> None:
    add_pool(store, "10.0.0.0/24")
    with pytest.raises(error):
        ipam.claim_affinity(IPNetwork(cidr), "hostA")


def test_a_removed_host_takes_its_addresses_along_wherever_they_are(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/25")
    gone, other = an_ipam(store, "hostA"), an_ipam(store, "hostB")
    gone.claim_affinity(IPNetwork("10.0.0.0/26"), "hostA")
    other.claim_affinity(IPNetwork("10.0.0.64/26"), "hostB")
    gone.auto_assign(a_request("a", 64 + 20))
    stays = other.auto_assign(a_request("b", 1))
    other.release_host("hostA")
    other.release_host("hostA")
    found = check_laws(store)
    assert found.holders() == dict.fromkeys(stays, "b")
    assert found.affinities == {IPNetwork("10.0.0.64/26"): "hostB"}
    assert len(gone.auto_assign(a_request("c", 1))) == 1  # with what it knew of its blocks all stale


def test_an_address_of_another_host_in_the_removed_ones_block_stays(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/26")
    an_ipam(store, "hostA").auto_assign(a_request("a", 1))
    other = an_ipam(store, "hostB")
    held = other.auto_assign(a_request("b", 1))
    other.release_host("hostA")
    found = check_laws(store)
    assert (found.affinities, found.holders()) == ({}, dict.fromkeys(held, "b"))
    assert other.release_by_handle(["b"]) == held
    assert check_laws(store).blocks == {}


def test_two_processes_of_one_host_share_a_block(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/24")
    left, right = an_ipam(store), an_ipam(store)
    left.auto_assign(a_request("l1", 1))
    right.auto_assign(a_request("r1", 1))
    left.auto_assign(a_request("l2", 63))
    right.auto_assign(a_request("r2", 1))
    assert len(check_laws(store).blocks) == 2


def test_a_claim_that_meets_a_newer_one_of_the_same_host_uses_it(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/24")
    left, right = an_ipam(store), an_ipam(store)
    store.faults.before(2, lambda: right.auto_assign(a_request("r", 1)))  # the first is the reading of the blocks
    left.auto_assign(a_request("l", 1))
    assert len(check_laws(store).blocks) == 1


def test_a_newer_claim_of_the_same_host_elsewhere_is_used_instead(store: MemoryDatastore) -> None:
    pool = Pool(cidr=add_pool(store, "10.0.0.0/24"))
    left, right = an_ipam(store), an_ipam(store)
    elsewhere = list(candidates.blocks_in_order("hostA", pool))[2]
    store.faults.before(2, lambda: right.claim_affinity(elsewhere, "hostA"))
    (address,) = left.auto_assign(a_request("l", 1))
    assert address == elsewhere.ip
    assert check_laws(store).affinities == {elsewhere: "hostA"}


def test_blocks_of_a_single_address(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/29", block_size=32)
    held = {ipam.auto_assign(a_request(f"h{number}", 1)) for number in range(8)}
    assert len(held) == 8
    with pytest.raises(PoolExhausted):
        ipam.auto_assign(a_request("more", 1))
    ipam.release_by_handle(["h3"])
    assert an_ipam(store, "hostB").auto_assign(a_request("more", 1)) in held


def test_borrowing_is_told_once_a_pool(store: MemoryDatastore, caplog: pytest.LogCaptureFixture) -> None:
    add_pool(store, "10.0.0.0/26")
    an_ipam(store, "hostA").auto_assign(a_request("a", 1))
    other = an_ipam(store, "hostB")
    for number in range(3):
        other.auto_assign(a_request(f"b{number}", 1))
    assert [record.message for record in caplog.records] == ["ipam.borrowing"]


# --- exact addresses -------------------------------------------------------------------------------


def test_exact_addresses_count_towards_the_number(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    assert texts(ipam.auto_assign(a_request("a", 2, 0, "10.0.0.70"))) == ["10.0.0.70", "10.0.0.64"]
    assert texts(ipam.auto_assign(a_request("b", 0, 0, "10.0.0.71"))) == ["10.0.0.71"]
    assert texts(ipam.auto_assign(a_request("a", 1, 0, "10.0.0.70"))) == ["10.0.0.70"]


def test_an_exact_address_claims_its_block_or_borrows(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/24")
    an_ipam(store, "hostA").auto_assign(a_request("a", 0, 0, "10.0.0.200"))
    an_ipam(store, "hostB").auto_assign(a_request("b", 0, 0, "10.0.0.201"))
    assert contents(store).affinities == {IPNetwork("10.0.0.192/26"): "hostA"}


def test_an_exact_address_of_another_is_refused_with_its_holder(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    ipam.auto_assign(a_request("a", 0, 0, "10.0.0.5"))
    for instance in (ipam, an_ipam(store, "hostB")):
        with pytest.raises(AddressInUse) as refusal:
            instance.auto_assign(a_request("b", 2, 0, "10.0.0.5"))
        assert refusal.value.holder == "a"
    assert contents(store).of_handle("b") == set()


@pytest.mark.parametrize("by", ["hostA", "hostB"])
def test_an_exact_address_is_taken_over_of_the_handle_that_is_named(store: MemoryDatastore, by: str) -> None:
    add_pool(store, "10.0.0.0/24")
    an_ipam(store, "hostA").auto_assign(a_request("old", 2, 0, "10.0.0.5"))
    taking = an_ipam(store, by)
    request = msgspec.structs.replace(a_request("new", 1, 0, "10.0.0.5"), takes_over=("older",))
    with pytest.raises(AddressInUse):
        taking.auto_assign(request)
    request = msgspec.structs.replace(request, takes_over=("older", "old"))
    for _again in range(2):
        assert texts(taking.auto_assign(request)) == ["10.0.0.5"]
    assert contents(store).of_handle("new") == {IPAddress("10.0.0.5")}
    assert len(contents(store).of_handle("old")) == 1
    check_laws(store)


def test_an_exact_address_released_elsewhere_is_free_in_spite_of_the_cache(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/24")
    mine, other = an_ipam(store), an_ipam(store, "hostB")
    mine.auto_assign(a_request("a", 0, 0, "10.0.0.5"))
    other.release_by_handle(["a"])
    assert texts(mine.auto_assign(a_request("b", 0, 0, "10.0.0.5"))) == ["10.0.0.5"]


def test_exact_addresses_need_a_pool(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    disabled = add_pool(store, "10.1.0.0/24", disabled=True)
    for address in ("192.0.2.1", str(disabled.ip)):
        with pytest.raises(OutsidePools):
            ipam.auto_assign(a_request("a", 0, 0, address))


# --- releasing -------------------------------------------------------------------------------------


def test_release_reports_what_was_free_and_is_repeatable(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    held = ipam.auto_assign(a_request("a", 2))
    strange = IPAddress("192.0.2.9")
    assert ipam.release([*held, held[0], strange]) == (strange,)
    assert set(ipam.release(held)) == set(held)
    found = check_laws(store)
    assert (found.handles, found.holders()) == ({}, {})
    assert len(found.affinities) == 1  # the host keeps its block


def test_a_release_with_another_handle_frees_nothing(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    mine, theirs = ipam.auto_assign(a_request("a", 1)), ipam.auto_assign(a_request("b", 1))
    for instance in (ipam, an_ipam(store, "hostB")):
        with pytest.raises(StaleRelease):
            instance.release([*mine, *theirs], handle="a")
    assert contents(store).of_handle("a") == set(mine)
    assert ipam.release(mine, handle="a") == ()


def test_a_release_of_more_than_one_transaction_holds(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    held = [ipam.auto_assign(a_request(f"h{n}", 1))[0] for n in range(150)]
    strange = IPAddress("192.0.2.9")
    for instance in (ipam, an_ipam(store, "hostB")):
        part, held = held[:100], held[100:]
        assert instance.release([*part, strange]) == (strange,)
        assert set(check_laws(store).holders()) == set(held)


def test_many_handles_in_one_release(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    held = {ipam.auto_assign(a_request(f"h{n}", 1))[0] for n in range(150)}
    companion = Companion((absent(ENDPOINT),), (Put(ENDPOINT, b"x"),))
    assert set(ipam.release_by_handle([f"h{n}" for n in range(150)], companion)) == held
    assert contents(store).handles == {}
    assert store.get(ENDPOINT) is not None


def test_a_handle_over_many_blocks_is_released_whole(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/23", block_size=30)
    configure(store, max_blocks_per_host=70)
    held = {address for number in (100, 200, 250) for address in ipam.auto_assign(a_request("h", number))}
    with pytest.raises(InvalidRequest, match="too many"):
        an_ipam(store, "hostB").auto_assign(a_request("more than fits", 200))
    companion = Companion((absent(ENDPOINT),), (Put(ENDPOINT, b"x"),))
    assert set(an_ipam(store, "hostB").release_by_handle(["h"], companion)) == held
    assert check_laws(store).holders() == {}


# --- companions ------------------------------------------------------------------------------------


def test_the_companion_is_committed_with_the_addresses(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    seen: list[tuple[IPAddress, ...]] = []

    def companion(addresses: tuple[IPAddress, ...]) -> Companion:
        seen.append(addresses)
        return Companion((absent(ENDPOINT),), (Put(ENDPOINT, str(addresses[0]).encode()),))

    addresses = ipam.auto_assign(a_request("a", 1), companion)
    endpoint = store.get(ENDPOINT)
    assert endpoint is not None
    assert seen == [addresses]
    assert endpoint.value == str(addresses[0]).encode()
    assert endpoint.mod_revision == store.get(HandleKey("a").path).mod_revision

    gone = Companion((Compare(ENDPOINT, endpoint.mod_revision),), (Delete(ENDPOINT),))
    assert ipam.release_by_handle(["a"], gone) == addresses
    assert store.get(ENDPOINT) is None


def test_a_companion_that_fails_takes_the_addresses_with_it(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    store.put(ENDPOINT, b"taken")
    with pytest.raises(Conflict) as refusal:
        ipam.auto_assign(a_request("a", 1), lambda _: Companion((absent(ENDPOINT),), (Put(ENDPOINT, b"mine"),)))
    assert refusal.value.key == ENDPOINT
    assert refusal.value.current.value == b"taken"
    assert contents(store).blocks == {}


def test_a_companion_about_a_prefix_can_fail_too(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    revision = store.put(ENDPOINT, b"newer")
    check = NoneNewer("/calico/v1/host/hostA/workload/", revision - 1)
    with pytest.raises(Conflict) as refusal:
        ipam.auto_assign(a_request("a", 1), lambda _: Companion((check,), ()))
    assert refusal.value.key == ENDPOINT


def test_a_retry_commits_the_companion_that_was_missing(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    held = ipam.auto_assign(a_request("a", 1))
    again = ipam.auto_assign(a_request("a", 1), lambda _: Companion((absent(ENDPOINT),), (Put(ENDPOINT, b"x"),)))
    assert again == held
    assert store.get(ENDPOINT) is not None


def test_the_companion_is_committed_though_the_handle_is_unknown(store: MemoryDatastore, ipam: BlockIpam) -> None:
    revision = store.put(ENDPOINT, b"x")
    assert ipam.release_by_handle(["nobody"], Companion((Compare(ENDPOINT, revision),), (Delete(ENDPOINT),))) == ()
    assert store.get(ENDPOINT) is None
    with pytest.raises(Conflict):
        ipam.release_by_handle(["nobody"], Companion((Compare(ENDPOINT, revision),), (Delete(ENDPOINT),)))


# --- trouble ---------------------------------------------------------------------------------------


def test_a_timeout_that_landed_is_recognised(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    ipam.auto_assign(a_request("warm", 1))
    store.faults.apply_unanswered(1)
    made: list[bytes] = []

    def companion(addresses: tuple[IPAddress, ...]) -> Companion:
        made.append(f"{addresses[0]} {len(made)}".encode())
        return Companion((absent(ENDPOINT),), (Put(ENDPOINT, made[-1]),))

    held = ipam.auto_assign(a_request("a", 1), companion)
    assert contents(store).of_handle("a") == set(held)
    assert len(made) == 1
    assert store.get(ENDPOINT).value == made[0]

    store.faults.apply_unanswered(1)
    revision = store.get(ENDPOINT).mod_revision
    assert ipam.release_by_handle(["a"], Companion((Compare(ENDPOINT, revision),), (Delete(ENDPOINT),))) == held
    assert contents(store).of_handle("a") == set()


def test_a_timed_out_claim_that_landed_is_recognised(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    store.faults.apply_unanswered(2)
    held = ipam.auto_assign(a_request("a", 1))
    assert contents(store).of_handle("a") == set(held)
    ipam.auto_assign(a_request("b", 63))
    assert len(check_laws(store).blocks) == 1
    ipam.auto_assign(a_request("c", 1))
    assert len(check_laws(store).blocks) == 2


def test_a_refused_connection_is_reported_and_nothing_is_done(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    ipam.auto_assign(a_request("warm", 1))
    store.faults.refuse(1)
    with pytest.raises(Unavailable) as refusal:
        ipam.auto_assign(a_request("a", 1))
    assert not refusal.value.maybe_applied
    assert contents(store).of_handle("a") == set()
    assert len(ipam.auto_assign(a_request("a", 1))) == 1


def test_a_store_that_stays_away_after_a_timeout_leaves_it_open(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    ipam.auto_assign(a_request("warm", 1))
    store.faults.apply_unanswered(1)
    store.faults.before(2, lambda: setattr(store.faults, "down", True))
    with pytest.raises(Unavailable) as refusal:
        ipam.auto_assign(a_request("a", 1), deadline_s=0.5)
    assert refusal.value.maybe_applied
    store.faults.down = False
    landed = ipam.by_handle("a")
    assert ipam.auto_assign(a_request("a", 1)) == landed


class SlowStore(MemoryDatastore):
    """The next ``held_back`` writes time out; with ``lands_late`` each is applied just ahead of the write after it."""

    def __init__(self, *, lands_late: bool) -> None:
        super().__init__()
        self.held_back = 0
        self._lands_late = lands_late
        self._waiting: list[tuple[object, ...]] = []

    def transact(self, preconditions, operations, otherwise=()):  # type: ignore[no-untyped-def]
        if not operations:
            return super().transact(preconditions, operations, otherwise)
        for waiting in self._waiting:
            super().transact(*waiting)
        self._waiting.clear()
        if not self.held_back:
            return super().transact(preconditions, operations, otherwise)
        self.held_back -= 1
        if self._lands_late:
            self._waiting.append((preconditions, operations))
        raise Unavailable("slow", "timed out", maybe_applied=True)


@pytest.mark.parametrize("lands_late", [True, False])
@pytest.mark.parametrize("held_back", [1, 2])
def test_a_timed_out_write_that_lands_late_or_never_assigns_once(held_back: int, lands_late: bool) -> None:
    store = SlowStore(lands_late=lands_late)
    add_pool(store, "10.0.0.0/24")
    ipam = an_ipam(store)
    ipam.auto_assign(a_request("warm", 1))
    store.held_back = held_back
    held = ipam.auto_assign(a_request("a", 1))
    assert len(held) == 1
    store.held_back = held_back
    assert ipam.release_by_handle(["a"]) == held
    assert ipam.auto_assign(a_request("b", 1)) != held
    found = check_laws(store)
    assert (len(found.of_handle("a")), len(found.of_handle("b"))) == (0, 1)


def test_writes_that_never_answer_end_at_the_deadline() -> None:
    store = SlowStore(lands_late=False)
    add_pool(store, "10.0.0.0/24")
    store.held_back = 10_000
    with pytest.raises(Unavailable) as refusal:
        an_ipam(store).auto_assign(a_request("a", 1), deadline_s=0.5)
    assert refusal.value.maybe_applied


def test_races_end_at_the_deadline(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/26")
    ipam.auto_assign(a_request("warm", 1))
    other = an_ipam(store, "hostB")

    def spoil() -> None:
        other.release(other.auto_assign(a_request("spoil", 1)))
        store.faults.before(1, spoil)

    store.faults.before(1, spoil)
    with pytest.raises(Contended):
        ipam.auto_assign(a_request("a", 1), deadline_s=0.2)
    store.faults.before(1, lambda: None)
    assert contents(store).of_handle("a") == set()


def test_a_malformed_block_is_skipped_and_never_written(store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/25")
    (first,) = an_ipam(store).auto_assign(a_request("a", 1))
    bad = BlockKey(IPNetwork(f"{first}/26")).path
    store.put(bad, b'{"cidr": "10.0.0.0/26", "allocations": [7]}')
    fresh = an_ipam(store)
    (second,) = fresh.auto_assign(a_request("b", 1))
    assert second not in IPNetwork(f"{first}/26")
    with pytest.raises(InvalidRecord):
        fresh.auto_assign(a_request("c", 0, 0, str(first + 1)))
    with pytest.raises(InvalidRecord):
        fresh.release([first])
    assert fresh.release_by_handle(["a"]) == ()
    with pytest.raises(PoolExhausted):
        fresh.auto_assign(a_request("c", 64))
    assert store.get(bad).value == b'{"cidr": "10.0.0.0/26", "allocations": [7]}'
    for key in (bad, AffinityKey("hostA", IPNetwork(f"{first}/26")).path, HandleKey("a").path):
        store.delete(key)


def test_a_malformed_configuration_stops_assigning(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    store.put(IpamConfigKey().path, b'{"strict_affinity": "perhaps"}')
    with pytest.raises(InvalidRecord):
        ipam.auto_assign(a_request("a", 1))
    store.delete(IpamConfigKey().path)


def test_a_store_rebuilt_from_nothing_is_noticed(ipam: BlockIpam, store: MemoryDatastore) -> None:
    add_pool(store, "10.0.0.0/26")
    ipam.auto_assign(a_request("a", 1))
    store.delete_prefix("/calico/")
    add_pool(store, "10.7.0.0/26")
    assert texts(ipam.auto_assign(a_request("b", 1))) == ["10.7.0.0"]


# --- cost ------------------------------------------------------------------------------------------


def test_a_store_restored_from_a_backup_is_noticed(
    store: MemoryDatastore, ipam: BlockIpam, caplog: pytest.LogCaptureFixture
) -> None:
    add_pool(store, "10.0.0.0/26")
    for number in range(5):
        ipam.auto_assign(a_request(f"h{number}", 1))
    restored = MemoryDatastore()
    add_pool(restored, "10.0.0.0/26")
    an_ipam(restored, "hostB").auto_assign(a_request("kept", 1))
    store._store = restored._store
    (address,) = ipam.auto_assign(a_request("new", 1))
    assert check_laws(store).holders() == {IPAddress("10.0.0.0"): "kept", address: "new"}
    assert "ipam.store_rewound" in [record.message for record in caplog.records]


def test_a_bad_block_of_ours_is_not_read_for_each_call(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    (first,) = ipam.auto_assign(a_request("a", 1))
    ipam.release_by_handle(["a"])
    key = BlockKey(IPNetwork(f"{first}/26")).path
    store.put(key, b"nonsense")
    ipam.auto_assign(a_request("b", 1))
    assert cost(ipam, lambda: ipam.auto_assign(a_request("c", 1))) == (1, 0)
    ipam.release_affinity(IPNetwork(f"{first}/26"), "hostA")
    store.delete(key)


def test_an_address_of_ours_whose_handle_record_was_lost_is_taken_back(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    ipam.auto_assign(a_request("a", 0, 0, "10.0.0.5"))
    store.delete(HandleKey("a").path)
    assert texts(an_ipam(store, "hostB").auto_assign(a_request("a", 0, 0, "10.0.0.5"))) == ["10.0.0.5"]
    assert contents(store).handles == {"a": {"10.0.0.0/26": 1}}


def test_what_calls_cost_a_warm_agent(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    add_pool(store, "fd00::/116")
    assert cost(ipam, lambda: ipam.auto_assign(a_request("first", 1, 1))) == (1, 5)
    assert cost(ipam, lambda: ipam.auto_assign(a_request("a", 1))) == (1, 0)
    assert cost(ipam, lambda: ipam.auto_assign(a_request("b", 1, 1))) == (1, 0)
    assert cost(ipam, lambda: ipam.auto_assign(a_request("more", 64))) == (1, 0), "with a new block"
    assert cost(ipam, lambda: ipam.release_by_handle(["a", "cni.a"])) == (1, 0)
    assert cost(ipam, lambda: ipam.release_by_handle(["b"])) == (1, 0)
    assert cost(ipam, lambda: ipam.release_by_handle(["b"])) == (0, 1)
    held = ipam.auto_assign(a_request("c", 1))
    assert cost(ipam, lambda: ipam.release(held, handle="c")) == (1, 0)


def test_a_lost_race_costs_one_more(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/26")
    other = an_ipam(store, "hostB")
    ipam.auto_assign(a_request("warm", 1))
    other.auto_assign(a_request("borrowed", 1))
    assert cost(ipam, lambda: ipam.auto_assign(a_request("a", 1))) == (2, 0)


def test_what_calls_cost_a_cold_tool(store: MemoryDatastore, ipam: BlockIpam) -> None:
    add_pool(store, "10.0.0.0/24")
    ipam.auto_assign(a_request("a", 1))
    tool = an_ipam(store)
    assert cost(tool, lambda: tool.auto_assign(a_request("b", 1))) == (1, 3)
    tool = an_ipam(store)
    assert cost(tool, lambda: tool.release_by_handle(["b"])) == (1, 2)


def test_what_a_first_block_costs(store: MemoryDatastore) -> None:
    """Pools, own affinities, the rest at one revision; then the claim, the address and the handle together."""
    add_pool(store, "10.0.0.0/24")
    newcomer = an_ipam(store, "hostB")
    assert cost(newcomer, lambda: newcomer.auto_assign(a_request("a", 1))) == (1, 3)
    assert cost(newcomer, lambda: newcomer.auto_assign(a_request("b", 64))) == (1, 0), "warm, with another block"
