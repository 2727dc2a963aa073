"""Several networks on one endpoint: who joins, what the record says, and what is left when one goes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import pytest
from netaddr import IPAddress

from calico_core.datastore.records import TypedRecords
from calico_core.errors import InterfaceTaken, InvalidRequest, KernelRefused, KeyExists, Unavailable
from calico_core.model.addresses import parse_mac
from calico_core.model.keys import ProfileTagsKey
from calico_core.model.workloads import AddressRequest, Attach, Detach, NewProfile
from calico_core.workload.service import WorkloadService
from tests.doubles.ipam_store import check_laws
from tests.unit.workload.conftest import a_profile, endpoint_key

if TYPE_CHECKING:
    from calico_core.model.endpoints import WorkloadEndpoint
    from tests.unit.workload.conftest import Bench

KEY = endpoint_key()


def joining(bench: Bench, network: str, container_interface: str = "eth0", **fields: object) -> Attach:
    handle = f"{network}.c1"
    values: dict[str, object] = {
        "addresses": AddressRequest(handle=handle, num_v4=1),
        "network": network,
        "container_interface": container_interface,
        "profiles": (network,),
        "new_profiles": (a_profile(network),),
        "shared_handle": handle,
    }
    return bench.attach_request(**{**values, **fields})


def leaving(bench: Bench, network: str, container_interface: str = "eth0", **fields: object) -> Detach:
    values: dict[str, object] = {
        "handles": (f"{network}.c1",),
        "network": network,
        "container_interface": container_interface,
        "is_shared": True,
    }
    return bench.detach_request(**{**values, **fields})


def record_of(bench: Bench) -> WorkloadEndpoint | None:
    found = bench.records.get(KEY)
    return found.record if found is not None else None


def networks(bench: Bench) -> list[tuple[str, str]]:
    found = record_of(bench)
    assert found is not None
    return [(each.network, each.ifname) for each in found.attachments]


def test_the_second_network_adds_its_profile_and_nothing_else(bench: Bench) -> None:
    first = bench.service.attach(joining(bench, "a", mtu_bytes=1400))
    second = bench.service.attach(joining(bench, "b", "eth1", mtu_bytes=9000))
    assert second.addresses == first.addresses
    assert second.interface == first.interface
    assert second.mac == first.mac
    assert second.mtu_bytes is None, "nobody asked the kernel"
    assert first.mtu_bytes == 1400
    found = record_of(bench)
    assert found is not None
    assert (found.network, found.ifname, found.handle) == ("a", "eth0", "a.c1")
    assert found.profile_ids == ("a", "b")
    assert networks(bench) == [("a", "eth0"), ("b", "eth1")]
    assert bench.ipam.by_handle("b.c1") == ()
    assert bench.records.get(ProfileTagsKey("b")).record == ("b",)
    assert bench.gate.asked[-1] == (KEY, bench.records.get(KEY).mod_revision)


def test_repeats_change_nothing(bench: Bench) -> None:
    requests = (joining(bench, "a"), joining(bench, "b", "eth1"))
    first = [bench.service.attach(request) for request in requests]
    before = bench.revision
    again = [bench.service.attach(request) for request in requests]
    assert [each.endpoint for each in again] == [first[1].endpoint] * 2
    assert bench.revision == before


def test_a_network_under_two_names_stays_until_both_are_gone(bench: Bench) -> None:
    for interface in ("eth0", "eth1"):
        bench.service.attach(joining(bench, "a", interface))
    bench.service.detach(leaving(bench, "a", "eth0"))
    found = record_of(bench)
    assert found is not None
    assert found.profile_ids == ("a",)
    bench.service.detach(leaving(bench, "a", "eth1"))
    assert record_of(bench) is None


@pytest.mark.parametrize("order", [("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")])
def test_the_last_one_takes_everything_along(bench: Bench, order: tuple[str, ...]) -> None:
    before = bench.contents()
    for network in ("a", "b", "c"):
        bench.service.attach(joining(bench, network))
    address = record_of(bench).nets[0].ip
    remaining = {"a", "b", "c"}
    for network in order[:2]:
        remaining.remove(network)
        for _ in range(2):  # a runtime repeats itself
            bench.service.detach(leaving(bench, network))
            assert {each for each, _ in networks(bench)} == remaining
            assert set(record_of(bench).profile_ids) == remaining
            assert bench.ipam.by_handle("a.c1") == (address,)
            assert bench.wiring.exists("calic1")
    bench.service.detach(leaving(bench, order[2]))
    assert record_of(bench) is None
    assert not bench.wiring.exists("calic1")
    assert bench.ipam.by_handle("a.c1") == ()
    assert {key for key in bench.contents() if "/profile/" not in key} == set(before)
    check_laws(bench.store)


def test_one_that_went_may_come_back(bench: Bench) -> None:
    first = bench.service.attach(joining(bench, "a"))
    bench.service.attach(joining(bench, "b"))
    bench.service.detach(leaving(bench, "a"))
    again = bench.service.attach(joining(bench, "a"))
    assert again.addresses == first.addresses
    assert networks(bench) == [("b", "eth0"), ("a", "eth0")]
    for network in ("a", "b"):
        bench.service.detach(leaving(bench, network))
    assert record_of(bench) is None
    assert bench.ipam.by_handle("a.c1") == ()


def test_who_joins_needs_no_address_to_be_left(bench: Bench) -> None:
    first = bench.service.attach(joining(bench, "a"))
    none_left = AddressRequest(handle="b.c1", num_v4=1000)
    assert bench.service.attach(joining(bench, "b", addresses=none_left)).addresses == first.addresses


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"addresses": AddressRequest(handle="b.c1", requested=(IPAddress("10.65.0.77"),))}, "addresses"),
        ({"addresses": (IPAddress("10.65.0.77"),)}, "addresses"),
        ({"mac": parse_mac("02:00:00:00:00:99")}, "mac"),
    ],
)
def test_what_the_endpoint_does_not_have_is_refused(bench: Bench, fields: dict[str, object], field: str) -> None:
    bench.service.attach(joining(bench, "a"))
    before = bench.contents()
    with pytest.raises(InvalidRequest, match="network a") as caught:
        bench.service.attach(joining(bench, "b", **fields))
    assert caught.value.field == field
    assert bench.contents() == before


def test_what_it_has_may_be_asked_for(bench: Bench) -> None:
    first = bench.service.attach(joining(bench, "a"))
    wanted = AddressRequest(handle="b.c1", requested=(first.addresses[0].ip,))
    assert bench.service.attach(joining(bench, "b", addresses=wanted, mac=first.mac)).addresses == first.addresses


@pytest.mark.parametrize(("first", "second"), [(None, "b.c1"), ("a.c1", None)])
def test_only_those_that_agree_share(bench: Bench, first: str | None, second: str | None) -> None:
    standing = bench.service.attach(joining(bench, "a", shared_handle=first))
    before = bench.contents()
    with pytest.raises(InterfaceTaken, match="network a"):
        bench.service.attach(joining(bench, "b", shared_handle=second))
    assert bench.contents() == before
    bench.service.detach(leaving(bench, "b"))
    assert record_of(bench) == standing.endpoint
    assert bench.wiring.exists("calic1")


def test_an_endpoint_of_before_counts_for_its_own_network(bench: Bench) -> None:
    """Made when nothing was shared; its network has changed its mode since."""
    standing = bench.service.attach(joining(bench, "a", shared_handle=None))
    assert bench.service.attach(joining(bench, "a", "eth1")).endpoint == standing.endpoint
    bench.service.detach(leaving(bench, "a", "eth1"))
    assert record_of(bench) == standing.endpoint, "it is that of eth0"
    assert bench.ipam.by_handle("a.c1") == tuple(net.ip for net in standing.addresses)
    bench.service.detach(leaving(bench, "a", "eth0"))
    assert record_of(bench) is None


def test_another_container_shares_nothing(bench: Bench) -> None:
    bench.service.attach(joining(bench, "a"))
    with pytest.raises(KeyExists):
        bench.service.attach(joining(bench, "b", container_id="c2"))


def test_a_recreated_pod_begins_anew(bench: Bench) -> None:
    """The new sandbox's networks come one after the other, the old one's go late."""
    for network in ("a", "b"):
        bench.service.attach(joining(bench, network))
    new = {"container_id": "c2", "interface": "calic1", "replaces": True}
    bench.wiring.detach("calic1")  # as the kernel does when the namespace ends
    for network in ("a", "b"):
        handle = f"{network}.c2"
        addresses = AddressRequest(handle=handle, num_v4=1)
        bench.service.attach(joining(bench, network, addresses=addresses, shared_handle=handle, **new))
    standing = record_of(bench)
    assert standing is not None
    assert (standing.container_id, standing.handle) == ("c2", "a.c2")
    for network in ("b", "a"):
        bench.service.detach(leaving(bench, network))
        assert record_of(bench) == standing
        assert bench.wiring.exists("calic1")
    assert bench.ipam.by_handle("a.c1") == ()
    for network in ("a", "b"):
        going = {"container_id": "c2", "interface": "calic1", "handles": (f"{network}.c2",)}
        bench.service.detach(leaving(bench, network, **going))
    assert record_of(bench) is None
    assert bench.ipam.by_handle("a.c2") == ()


def test_a_recreated_pod_leaves_no_address_of_a_network_that_went_before(bench: Bench) -> None:
    for network in ("a", "b"):
        bench.service.attach(joining(bench, network))
    bench.service.detach(leaving(bench, "a"))
    addresses = AddressRequest(handle="a.c2", num_v4=1)
    new = {"container_id": "c2", "replaces": True, "shared_handle": "a.c2", "addresses": addresses}
    bench.wiring.fail_next(KernelRefused("make a pair", 17))
    with pytest.raises(KernelRefused):
        bench.service.attach(joining(bench, "a", **new))
    assert len(bench.ipam.by_handle("a.c1")) == 1, "the endpoint of before is back, and has its address"
    bench.service.attach(joining(bench, "a", **new))
    assert bench.ipam.by_handle("a.c1") == ()
    standing = record_of(bench)
    bench.service.detach(leaving(bench, "b"))
    assert record_of(bench) == standing
    check_laws(bench.store)


def test_profiles_that_two_bring_stay_with_the_second(bench: Bench) -> None:
    own = NewProfile(name="pod", tags=("pod",), is_own=True)
    for interface in ("eth0", "eth1"):
        bench.service.attach(joining(bench, "a", interface, profiles=("pod", "ns"), new_profiles=(own,)))
    bench.service.detach(leaving(bench, "a", "eth0"))
    found = record_of(bench)
    assert found is not None
    assert (found.profile_ids, found.own_profiles) == (("pod", "ns"), ("pod",))
    assert bench.records.get(ProfileTagsKey("pod")) is not None
    bench.service.detach(leaving(bench, "a", "eth1"))
    assert bench.records.get(ProfileTagsKey("pod")) is None


def test_a_profile_that_an_operator_gave_stays_until_the_end(bench: Bench) -> None:
    for network in ("a", "b"):
        bench.service.attach(joining(bench, network))
    found = bench.records.get(KEY)
    assert found is not None
    widened = (*found.record.profile_ids, "audit")
    bench.records.swap(found, msgspec.structs.replace(found.record, profile_ids=widened))
    bench.service.detach(leaving(bench, "b"))
    assert record_of(bench).profile_ids == ("a", "audit")


def test_an_interface_that_is_missing_is_made_under_its_first_name(bench: Bench) -> None:
    """As after a crash between the record and the interface."""
    bench.service.attach(joining(bench, "a", "net0"))
    bench.wiring.detach("calic1")
    bench.service.attach(joining(bench, "b", "net1"))
    assert bench.wiring.host_end(bench.namespace_fd, "net0") == "calic1"


def test_a_failed_join_is_taken_back(bench: Bench) -> None:
    bench.service.attach(joining(bench, "a"))
    before = record_of(bench)
    bench.wiring.detach("calic1")
    bench.wiring.fail_next(KernelRefused("make a pair", 17))
    with pytest.raises(KernelRefused):
        bench.service.attach(joining(bench, "b"))
    assert record_of(bench) == before


def test_the_interface_stays_while_nobody_can_say_whose_it_is(bench: Bench) -> None:
    for network in ("a", "b"):
        bench.service.attach(joining(bench, network))
    bench.store.faults.down = True
    with pytest.raises(Unavailable):
        bench.service.detach(leaving(bench, "a"))
    bench.store.faults.down = False
    assert bench.wiring.exists("calic1")
    for network in ("a", "b"):
        bench.service.detach(leaving(bench, network))
    assert not bench.wiring.exists("calic1")


def test_two_that_come_at_once_share(bench: Bench) -> None:
    names = [f"n{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        found = list(pool.map(lambda name: bench.service.attach(joining(bench, name)), names))
    assert len({each.addresses for each in found}) == 1
    assert {network for network, _ in networks(bench)} == set(names)
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: bench.service.detach(leaving(bench, name)), names))
    assert record_of(bench) is None
    assert not bench.wiring.exists("calic1")
    check_laws(bench.store)


def test_two_processes_share(bench: Bench) -> None:
    """Nothing but the datastore is common to the node and to a process that works instead of it."""
    other = WorkloadService(
        records=TypedRecords(bench.store), ipam=bench.ipam, wiring=bench.wiring, gate=bench.gate, host="rack-a"
    )
    try:
        for _ in range(20):
            start = threading.Barrier(2)

            def attach(service: WorkloadService, network: str, start: threading.Barrier = start) -> None:
                start.wait()
                service.attach(joining(bench, network))

            with ThreadPoolExecutor(2) as pool:
                both = (pool.submit(attach, bench.service, "a"), pool.submit(attach, other, "b"))
                for each in both:
                    each.result()
            assert {network for network, _ in networks(bench)} == {"a", "b"}
            handle = record_of(bench).handle
            assert {each: len(bench.ipam.by_handle(each)) for each in ("a.c1", "b.c1")} == {
                each: int(each == handle) for each in ("a.c1", "b.c1")
            }
            for network in ("a", "b"):
                bench.service.detach(leaving(bench, network))
            assert record_of(bench) is None
            check_laws(bench.store)
    finally:
        other.close()


def test_a_record_that_changes_under_a_join(bench: Bench) -> None:
    """The operator's change is kept."""
    bench.service.attach(joining(bench, "a"))
    found = bench.records.get(KEY)
    assert found is not None
    changed = msgspec.structs.replace(found.record, labels={"role": "web"})
    bench.store.faults.before(1, lambda: bench.records.put(KEY, changed))
    bench.service.attach(joining(bench, "b"))
    standing = record_of(bench)
    assert standing is not None
    assert standing.labels == {"role": "web"}
    assert standing.profile_ids == ("a", "b")
