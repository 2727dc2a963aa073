"""A late call frees nothing of the next owner's: each assignment has a number. Source: ipam specification 8, 9, 12."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from netaddr import IPAddress

from calico_core.datastore.memory import MemoryDatastore
from calico_core.errors import StaleRelease
from calico_core.ipam.allocator import BlockIpam
from tests.doubles.ipam_store import a_request, add_pool, check_laws, contents

IpamOf = Callable[[str], BlockIpam]
ADDRESS = "10.0.0.5"


def number_of(ipam: BlockIpam, address: IPAddress) -> int | None:
    found = ipam.allocation(address)
    assert found is not None
    return found.sequence


def test_an_assignment_has_a_number_that_never_comes_back(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.0.0.0/26")
    ipam = ipam_of("hostA")
    numbers = []
    for _ in range(3):
        (address,) = ipam.auto_assign(a_request("a", 0, 0, ADDRESS))
        numbers.append(number_of(ipam, address))
        ipam.release_by_handle(["a"])
        ipam.release_affinity(next(iter(contents(store).blocks)), "hostA")  # the block is made anew
    assert contents(store).blocks == {}
    assert None not in numbers
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("host", ["hostA", "hostB"], ids=["warm", "cold"])
@pytest.mark.parametrize("handle", ["a", None])
def test_a_late_release_leaves_the_next_owner_alone(
    store: MemoryDatastore, ipam_of: IpamOf, host: str, handle: str | None
) -> None:
    """Even when the next owner has the same name."""
    add_pool(store, "10.0.0.0/26")
    ipam = ipam_of("hostA")
    (address,) = ipam.auto_assign(a_request("a", 0, 0, ADDRESS))
    old = number_of(ipam, address)
    ipam.release_by_handle(["a"])
    ipam.auto_assign(a_request("a", 0, 0, ADDRESS))
    caller = ipam if host == "hostA" else ipam_of(host)
    with pytest.raises(StaleRelease):
        caller.release([address], handle=handle, sequences={address: old})
    assert caller.release_by_handle(["a"], sequences={address: old}) == ()
    assert check_laws(store).of_handle("a") == {address}
    current = {address: number_of(ipam, address)}
    assert caller.release([address], handle=handle, sequences=current) == ()
    assert caller.release([address], handle=handle, sequences=current) == (address,)
    assert check_laws(store).holders() == {}


def test_one_stale_number_stops_the_whole_release(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.0.0.0/26")
    ipam = ipam_of("hostA")
    first, second = ipam.auto_assign(a_request("a", 2))
    with pytest.raises(StaleRelease):
        ipam.release([first, second], sequences={first: number_of(ipam, first), second: 7})
    assert contents(store).of_handle("a") == {first, second}
    assert ipam.release_by_handle(["a"], sequences={second: 7}) == (first,)
    assert check_laws(store).of_handle("a") == {second}


def test_a_number_the_cache_does_not_know_yet_is_believed(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    add_pool(store, "10.0.0.0/26")
    stale, other = ipam_of("hostA"), ipam_of("hostB")
    (address,) = stale.auto_assign(a_request("a", 0, 0, ADDRESS))
    other.release_by_handle(["a"])
    other.auto_assign(a_request("a", 0, 0, ADDRESS))
    current = {address: number_of(other, address)}
    assert stale.release_by_handle(["a"], sequences=current) == (address,)


def test_removing_a_host_leaves_what_was_assigned_again_meanwhile(store: MemoryDatastore, ipam_of: IpamOf) -> None:
    """The listing is old by the time of the release: the address is another's by then."""
    add_pool(store, "10.0.0.0/26")
    gone, other, tool = ipam_of("hostA"), ipam_of("hostB"), ipam_of("tool")
    gone.auto_assign(a_request("first", 0, 0, ADDRESS))
    gone.auto_assign(a_request("second", 1))

    def reassign() -> None:
        other.release_by_handle(["first"])
        other.auto_assign(a_request("third", 0, 0, ADDRESS))

    trips = tool.round_trips
    listings = trips.list

    def listing(prefix: str) -> object:
        found = listings(prefix)
        if prefix.endswith("assignment/"):
            reassign()
        return found

    trips.list = listing  # type: ignore[method-assign,assignment]
    tool.release_host("hostA")
    assert check_laws(store).holders() == {IPAddress(ADDRESS): "third"}
