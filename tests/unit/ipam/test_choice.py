"""From where an automatic address may come: labels, reservations, cool-down, idle blocks of other hosts.

Source: ipam specification 4 (reclaiming), 6 and 9.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import InvalidRecord, InvalidRequest, NoPools, PoolExhausted
from calico_core.ipam.allocator import BlockIpam
from calico_core.model import codec
from calico_core.model.blocks import Reservation
from calico_core.model.keys import AffinityKey, BlockKey, HostConfigKey, PoolKey, ReservationKey
from tests.doubles.ipam_store import a_request, add_pool, check_laws, configure, contents, cost
from tests.unit.ipam.conftest import Clock

IpamOf = Callable[[str], BlockIpam]


def reserve(store: MemoryDatastore, name: str, *cidrs: str) -> None:
    record = Reservation(cidrs=tuple(IPNetwork(cidr) for cidr in cidrs))
    TypedRecords(store).put(ReservationKey(name), record)


def label(store: MemoryDatastore, host: str, text: str) -> None:
    store.put(HostConfigKey(host, "Labels").path, text.encode())


def one(ipam: BlockIpam, handle: str, **fields: object) -> str:
    (address,) = ipam.auto_assign(a_request(handle, 1, **fields))
    return str(address)


# --- idle blocks of other hosts --------------------------------------------------------------------


@pytest.fixture
def full(store: MemoryDatastore, ipam_of: IpamOf) -> tuple[BlockIpam, BlockIpam]:
    """Two blocks of four: hostA owns both, one of them empty again."""
    add_pool(store, "10.0.0.0/29", block_size=30)
    owner = ipam_of("hostA")
    owner.auto_assign(a_request("a", 4))
    owner.auto_assign(a_request("b", 4))
    owner.release_by_handle(["b"])
    return owner, ipam_of("hostB")


@pytest.mark.parametrize("strict", [True, False])
def test_an_idle_block_changes_hands_after_a_minute(
    store: MemoryDatastore, full: tuple[BlockIpam, BlockIpam], clock: Clock, strict: bool
) -> None:
    configure(store, strict_affinity=strict)
    owner, other = full
    if strict:
        with pytest.raises(PoolExhausted, match="strict affinity"):
            one(other, "early")
    clock.advance(61)
    given = one(other, "late")
    found = check_laws(store)
    assert sorted(found.affinities.values()) == ["hostA", "hostB"]
    assert found.affinities[IPNetwork(f"{given}/30").cidr] == "hostB"
    with pytest.raises(PoolExhausted):
        owner.auto_assign(a_request("c", 5 if not strict else 1))


def test_borrowing_comes_before_a_block_is_taken_too_early(
    store: MemoryDatastore, full: tuple[BlockIpam, BlockIpam]
) -> None:
    one(full[1], "early")
    assert set(check_laws(store).affinities.values()) == {"hostA"}


def test_a_block_that_fills_up_meanwhile_stays(
    store: MemoryDatastore, full: tuple[BlockIpam, BlockIpam], clock: Clock
) -> None:
    configure(store, strict_affinity=True)
    owner, other = full
    clock.advance(61)
    with pytest.raises(NoPools):
        other.auto_assign(a_request("warm", 0, 1))
    store.faults.before(4, lambda: owner.auto_assign(a_request("quick", 1)))  # after the listing
    with pytest.raises(PoolExhausted):
        other.auto_assign(a_request("slow", 1))
    assert set(check_laws(store).affinities.values()) == {"hostA"}


def test_a_block_that_was_lost_and_won_back_has_its_affinity(
    store: MemoryDatastore, full: tuple[BlockIpam, BlockIpam], clock: Clock
) -> None:
    """The first owner still remembers the affinity record it had: the second one deleted it."""
    owner, other = full
    clock.advance(61)
    one(other, "x")
    other.release_by_handle(["x"])
    clock.advance(61)
    owner.auto_assign(a_request("back", 4))
    assert set(check_laws(store).affinities.values()) == {"hostA"}


def test_a_host_at_its_limit_takes_no_idle_block(
    store: MemoryDatastore, full: tuple[BlockIpam, BlockIpam], ipam_of: IpamOf, clock: Clock
) -> None:
    add_pool(store, "10.7.0.0/30", block_size=30)
    configure(store, strict_affinity=True, max_blocks_per_host=1)
    other = full[1]
    other.auto_assign(a_request("mine", 4, pools_v4=(IPNetwork("10.7.0.0/30"),)))
    clock.advance(61)
    with pytest.raises(PoolExhausted, match="limit of 1"):
        one(other, "more")


def test_an_old_block_without_a_time_of_claim_may_be_taken(
    store: MemoryDatastore, full: tuple[BlockIpam, BlockIpam]
) -> None:
    configure(store, strict_affinity=True)
    for cidr in contents(store).blocks:
        path = BlockKey(cidr).path
        without = store.get(path).value.replace(b'"affinityClaimTime":"', b'"was":"')
        store.put(path, without)
    one(full[1], "x")
    assert "hostB" in check_laws(store).affinities.values()


# --- labels ----------------------------------------------------------------------------------------


def test_pools_choose_hosts_by_their_labels(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.1.0.0/24", node_selector="rack == 'r1'")
    second = add_pool(store, "10.2.0.0/24", node_selector="rack == 'r2'")
    label(store, "hostA", '{"rack": "r1"}')
    label(store, "hostB", '{"rack": "r2"}')
    first = ipam_of("hostA")
    assert one(first, "a").startswith("10.1.")
    assert one(ipam_of("hostB"), "b").startswith("10.2.")
    with pytest.raises(NoPools, match="rack == 'r1'"):
        one(ipam_of("hostC"), "c")
    assert one(first, "asked", pools_v4=(second,)).startswith("10.2.")
    assert first.auto_assign(a_request("exact", 0, 0, "10.2.0.9")) == (IPAddress("10.2.0.9"),)


def test_a_label_that_changes_counts_from_the_next_address(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.1.0.0/24", node_selector="rack == 'r1'")
    add_pool(store, "10.2.0.0/24", node_selector="rack == 'r2'")
    label(store, "hostA", '{"rack": "r1"}')
    ipam = ipam_of("hostA")
    assert one(ipam, "a").startswith("10.1.")
    assert cost(ipam, lambda: one(ipam, "warm")) == (1, 0)
    label(store, "hostA", '{"rack": "r2"}')
    assert one(ipam, "b").startswith("10.2.")
    label(store, "hostA", "nonsense")
    with pytest.raises(InvalidRecord):
        one(ipam, "c")


def test_a_selector_must_parse() -> None:
    with pytest.raises(InvalidRecord, match="nodeSelector"):
        codec.decode(PoolKey(IPNetwork("10.0.0.0/24")), b'{"cidr": "10.0.0.0/24", "nodeSelector": "rack =="}')
    with pytest.raises(InvalidRequest):
        codec.from_builtins(Reservation, {"cidrs": ["10.0.0.0/40"]})


# --- reservations ----------------------------------------------------------------------------------


def test_reserved_addresses_are_only_for_who_names_them(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.0.0.0/29", block_size=30)
    reserve(store, "gateways", "10.0.0.0/31", "10.0.0.4/32")
    ipam = ipam_of("hostA")
    given = ipam.auto_assign(a_request("a", 5))
    assert {str(address) for address in given} == {f"10.0.0.{n}" for n in (2, 3, 5, 6, 7)}
    with pytest.raises(PoolExhausted):
        one(ipam, "b")
    assert ipam.auto_assign(a_request("b", 0, 0, "10.0.0.1")) == (IPAddress("10.0.0.1"),)
    ipam.release_by_handle(["b"])
    store.delete(ReservationKey("gateways").path)
    assert ipam.auto_assign(a_request("c", 3))


def test_a_reservation_counts_at_once(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.0.0.0/26")
    ipam = ipam_of("hostA")
    assert one(ipam, "a") == "10.0.0.0"
    reserve(store, "late", "10.0.0.0/29")
    assert cost(ipam, lambda: one(ipam, "b")) == (2, 1), "refused once, then they are known"
    assert contents(store).of_handle("b") == {IPAddress("10.0.0.8")}
    assert cost(ipam, lambda: one(ipam, "c")) == (1, 0)
    assert contents(store).of_handle("a") == {IPAddress("10.0.0.0")}, "what is in use stays"


def test_wholly_reserved_blocks_are_never_claimed(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    """Nor walked one by one: this pool has 2^58 blocks."""
    add_pool(store, "fd00::/64")
    reserve(store, "nearly all", "fd00::/65", "fd00:0:0:0:8000::/66")
    reserve(store, "broken")
    store.put(ReservationKey("worse").path, b"nonsense")
    (address,) = ipam_of("hostA").auto_assign(a_request("a", 0, 1))
    assert address in IPNetwork("fd00:0:0:0:c000::/66")
    reserve(store, "rest", "fd00::/64")
    with pytest.raises(PoolExhausted):
        ipam_of("hostB").auto_assign(a_request("b", 0, 1))
    store.delete(ReservationKey("worse").path)
    assert len(contents(store).blocks) == 1


# --- cool-down -------------------------------------------------------------------------------------


def test_an_address_cools_down_before_it_is_given_again(store: MemoryDatastore, ipam_of: IpamOf, clock: Clock) -> None:
    add_pool(store, "10.0.0.0/30", block_size=30)
    configure(store, cooldown_s=30)
    ipam = ipam_of("hostA")
    first, *rest = ipam.auto_assign(a_request("a", 4))
    ipam.release([first])
    assert ipam.allocation(first) is None
    assert ipam.release([first]) == (first,)
    clock.advance(29)
    with pytest.raises(PoolExhausted, match="30 s ago"):
        one(ipam, "b")
    clock.advance(2)
    assert one(ipam, "b") == str(first)
    ipam.release(rest, handle="a")
    assert ipam.auto_assign(a_request("named", 0, 0, str(rest[0]))) == (rest[0],), "who names it may have it at once"
    configure(store, cooldown_s=0)
    assert len(ipam.auto_assign(a_request("c", 2))) == 2, "the rule of now counts"


def test_cooled_addresses_come_after_those_that_were_free_longer(
    store: MemoryDatastore, ipam_of: IpamOf, clock: Clock
) -> None:
    add_pool(store, "10.0.0.0/29", block_size=29)
    configure(store, cooldown_s=5)
    ipam = ipam_of("hostA")
    for handle in "abc":
        one(ipam, handle)
    for handle in "cab":
        ipam.release_by_handle([handle])
        clock.advance(1)
    clock.advance(60)
    given = ipam.auto_assign(a_request("all", 8))
    assert [int(address) & 7 for address in given] == [3, 4, 5, 6, 7, 2, 0, 1]


def test_idle_blocks_are_swept(store: MemoryDatastore, ipam_of: IpamOf, clock: Clock) -> None:
    add_pool(store, "10.0.0.0/26")
    configure(store, cooldown_s=30)
    ipam = ipam_of("hostA")
    one(ipam, "a")
    ipam.release_affinity(IPNetwork("10.0.0.0/26"), "hostA")
    ipam.release_by_handle(["a"])
    sweeper = ipam_of("hostB")
    sweeper.sweep()
    assert len(contents(store).blocks) == 1, "it cools down still"
    clock.advance(31)
    assert cost(sweeper, sweeper.sweep) == (1, 2)
    assert check_laws(store).blocks == {}
    assert cost(sweeper, sweeper.sweep) == (0, 1)


def test_a_cold_release_with_cooldown_costs_no_more(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.0.0.0/26")
    configure(store, cooldown_s=30)
    ipam = ipam_of("hostA")
    one(ipam, "a")
    one(ipam, "b")
    tool = ipam_of("hostB")
    assert cost(tool, lambda: tool.release_by_handle(["a"])) == (1, 2)
    assert cost(ipam, lambda: ipam.release_by_handle(["b"])) == (2, 0), "the tool was quicker with the block"


def test_a_stamp_of_a_wrong_clock_does_not_hold_an_address_for_ever(
    store: MemoryDatastore, ipam_of: IpamOf, clock: Clock
) -> None:
    add_pool(store, "10.0.0.0/30", block_size=30)
    configure(store, cooldown_s=30)
    ipam = ipam_of("hostA")
    ipam.auto_assign(a_request("a", 4))
    clock.advance(10_000)
    ipam.release_by_handle(["a"])
    clock.advance(-10_000)
    assert len(ipam.auto_assign(a_request("b", 4))) == 4


# --- pools that change while in use ----------------------------------------------------------------


def test_a_disabled_pool_gives_nothing_not_even_from_own_blocks(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    pool = add_pool(store, "10.0.0.0/26")
    ipam = ipam_of("hostA")
    one(ipam, "a")
    add_pool(store, "10.0.0.0/26", disabled=True)
    for request in (a_request("b", 1), a_request("b", 1, pools_v4=(pool,))):
        with pytest.raises(NoPools):
            ipam.auto_assign(request)
    assert contents(store).of_handle("b") == set()
    assert ipam.auto_assign(a_request("a", 1)), "what it holds, it keeps"
    add_pool(store, "10.0.0.0/26")
    assert one(ipam, "b") == "10.0.0.1"


def test_a_pool_gives_addresses_for_its_uses_alone(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    for_tunnels = add_pool(store, "10.0.0.0/26", allowed_uses=("Tunnel",))
    ipam = ipam_of("hostA")
    for request in (a_request("a", 1), a_request("a", 1, pools_v4=(for_tunnels,))):
        with pytest.raises(NoPools, match=r"10\.0\.0\.0/26 \(not for workloads\)"):
            ipam.auto_assign(request)
    (tunnel,) = ipam.auto_assign(a_request("t", 1, use="Tunnel"))
    for_workloads = add_pool(store, "10.0.1.0/26", allowed_uses=("Workload", "LoadBalancer"))
    assert one(ipam, "a") == "10.0.1.0", "not from the block that the host has of the other"
    with pytest.raises(NoPools, match="none of the requested pools"):
        ipam.auto_assign(a_request("u", 1, use="Tunnel", pools_v4=(for_workloads,)))
    add_pool(store, "10.0.0.0/26", allowed_uses=())
    assert one(ipam, "b", pools_v4=(for_tunnels,)) == str(tunnel + 1), "none named: both"
    add_pool(store, "10.0.0.0/26", allowed_uses=("LoadBalancer",))
    assert ipam.auto_assign(a_request("t", 1, use="Tunnel")) == (tunnel,), "what it holds, it keeps"


@pytest.mark.parametrize("uses", ['["Workload","Tunnel","L2Workload"]', "[]", "null"])
def test_uses_that_we_do_not_know_take_no_pool_away(store: MemoryDatastore, ipam_of: IpamOf, uses: str) -> None:
    """As other versions write them."""
    store.put(PoolKey(IPNetwork("10.0.0.0/26")).path, f'{{"cidr":"10.0.0.0/26","allowed_uses":{uses}}}'.encode())
    assert one(ipam_of("hostA"), "a") == "10.0.0.0"
    assert one(ipam_of("hostA"), "t", use="Tunnel") == "10.0.0.1"


def test_addresses_of_a_deleted_pool_live_on_until_released(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    pool = add_pool(store, "10.0.0.0/25")
    first, second = ipam_of("hostA"), ipam_of("hostB")
    one(first, "a")
    second.auto_assign(a_request("b", 1))
    second.release_by_handle(["b"])
    add_pool(store, "10.0.0.0/25", disabled=True)
    for host in ("hostA", "hostB"):
        first.release_affinity(pool, host)
    store.delete(PoolKey(pool).path)
    found = check_laws(store)
    assert (found.affinities, len(found.blocks), set(found.handles)) == ({}, 1, {"a"})
    assert first.auto_assign(a_request("a", 1)) == first.by_handle("a")
    assert ipam_of("tool").release_by_handle(["a"])
    assert check_laws(store).blocks == {}


def test_a_claim_in_flight_does_not_survive_its_pool(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    pool = add_pool(store, "10.0.0.0/26")
    store.faults.before(2, lambda: store.delete(PoolKey(pool).path))
    with pytest.raises(NoPools):
        one(ipam_of("hostA"), "a")
    assert check_laws(store).blocks == {}


@pytest.mark.parametrize(("before", "after"), [(26, 28), (28, 26), (28, 32)])
def test_blocks_are_not_cut_anew(store: MemoryDatastore, ipam_of: IpamOf, before: int, after: int) -> None:
    """The size of a pool's blocks cannot change; if somebody writes it all the same, no two blocks overlap."""
    add_pool(store, "10.0.0.0/23", block_size=before)
    first, second = ipam_of("hostA"), ipam_of("hostB")
    held = {first.auto_assign(a_request(f"a{n}", 1))[0] for n in range(20)}
    add_pool(store, "10.0.0.0/23", block_size=after)
    for ipam in (first, second, ipam_of("hostC")):
        held |= set(ipam.auto_assign(a_request(f"on {ipam.host}", 5)))
    near = str(min(held) + 1)
    if IPAddress(near) not in held:
        held |= set(ipam_of("hostD").auto_assign(a_request("exact", 0, 0, near)))
    assert set(check_laws(store).holders()) == held
    assert first.release_by_handle([f"a{n}" for n in range(20)])
    check_laws(store)


def test_an_unconfirmed_affinity_of_another_host_is_no_obstacle(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.0.0.0/26")
    left_over = AffinityKey("hostB", IPNetwork("10.0.0.0/26")).path
    store.put(left_over, b'{"state": "pending"}')
    assert one(ipam_of("hostA"), "a") == "10.0.0.0"
    store.delete(left_over)
