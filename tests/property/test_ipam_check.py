"""Whatever the allocators do, with faults and rivals, the check has nothing to say against it; and what it says of a
damaged store is gone after its repairs. Source: ipam specification 12."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPNetwork

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import CalicoError
from calico_core.ipam.allocator import BlockIpam
from calico_core.ipam.check import check
from calico_core.ipam.repair import repairs
from calico_core.ipam.store_view import StoreView, store_view
from calico_core.model import codec
from calico_core.model.blocks import Affinity, Handle
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import AFFINITIES, HANDLES, AffinityKey, HandleKey, WorkloadEndpointKey
from calico_core.model.workloads import AddressRequest
from tests.doubles.ipam_store import a_request, add_pool, check_laws, configure

HOSTS = ("a", "b", "c")
NAMES = st.sampled_from(["w1", "w2", "w3", "w4"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("attach"), st.sampled_from(HOSTS), NAMES, st.integers(1, 3)),
        st.tuples(st.just("detach"), st.sampled_from(HOSTS), NAMES, st.just(0)),
        st.tuples(st.just("remove"), st.sampled_from(HOSTS), st.just(""), st.just(0)),
        st.tuples(st.just("cooldown"), st.just("a"), st.just(""), st.integers(0, 60)),
        st.tuples(st.just("lost answer"), st.just("a"), st.just(""), st.integers(1, 3)),
    ),
    max_size=20,
)


def read(store: MemoryDatastore) -> StoreView:
    store.faults._unanswered.clear()
    listing = store.list("/calico/")
    return store_view(listing.entries, listing.revision)


def play(store: MemoryDatastore, steps: list[tuple[str, str, str, int]]) -> None:
    """Workloads come and go, record and addresses together; hosts are removed when nothing lives on them."""
    records = TypedRecords(store)
    add_pool(store, "10.0.0.0/28", block_size=30)
    add_pool(store, "fd00::/124", block_size=126)
    clients = {host: BlockIpam(records, host) for host in HOSTS}
    for what, host, name, number in steps:
        try:
            match what:
                case "attach":
                    # a workload always asks for the same: one that asks for less gives nothing back
                    attach(clients[host], store, host, f"{host}.{name}", 1 + ord(name[-1]) % 2)
                case "detach":
                    key = WorkloadEndpointKey(host, "cni", f"{host}.{name}", "e")
                    records.delete(key)
                    clients[host].release_by_handle([f"{host}.{name}"])
                case "remove":
                    store.delete_prefix(f"/calico/v1/host/{host}/")
                    clients[host].release_host(host)
                case "cooldown":
                    configure(store, cooldown_s=number)
                case "lost answer":
                    store.faults.apply_unanswered(number)
        except CalicoError:
            continue


def attach(client: BlockIpam, store: MemoryDatastore, host: str, name: str, number: int) -> None:
    records = TypedRecords(store)
    key = WorkloadEndpointKey(host, "cni", name, "e")
    request: AddressRequest = a_request(
        name, number, 1, attributes={"node": host, "orchestrator": "cni", "interface": "cali1"}
    )
    addresses = client.auto_assign(request)
    record = WorkloadEndpoint(
        state="active",
        name="cali1",
        ipv4_nets=tuple(IPNetwork(f"{each}/32") for each in addresses if each.version == 4),
        ipv6_nets=tuple(IPNetwork(f"{each}/128") for each in addresses if each.version == 6),
    )
    records.put(key, record)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS)
def test_real_operations_leave_nothing_to_find(steps: list[tuple[str, str, str, int]]) -> None:
    store = MemoryDatastore()
    play(store, steps)
    problems = [finding for finding in check(read(store)) if finding.severity != "info"]
    if any(what == "lost answer" for what, *_ in steps):
        # an attach whose answer was lost, or a detach cut in two, may leave addresses behind, and nothing worse
        problems = [finding for finding in problems if finding.code != "address-without-endpoint"]
    assert problems == []


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, seed=st.randoms(use_true_random=False), damages=st.integers(1, 4))
def test_repairs_heal_every_index_and_touch_no_address(
    steps: list[tuple[str, str, str, int]], seed: object, damages: int
) -> None:
    store = MemoryDatastore()
    play(store, steps)
    before = {(each.address, each.handle) for each in read(store).held()}
    for _ in range(damages):
        damage(store, seed)
    for repair in repairs(read(store)):
        assert store.transact(repair.preconditions, repair.operations).committed
    check_laws(store)
    assert repairs(read(store)) == ()
    assert {(each.address, each.handle) for each in read(store).held()} == before


def damage(store: MemoryDatastore, seed: object) -> None:
    """Of handles and affinities, as crashes of two-step writers left them."""
    indexes = [*store.list(HANDLES).entries, *store.list(AFFINITIES).entries]
    match seed.choice(["lose", "ghost", "stranger", "count"]):  # type: ignore[attr-defined]
        case "lose" if indexes:
            store.delete(seed.choice(indexes).key)  # type: ignore[attr-defined]
        case "ghost":
            store.put(HandleKey("ghost").path, codec.encode(Handle(block={"10.0.0.0/30": 2}, id="ghost")))
        case "stranger":
            store.put(AffinityKey("d", IPNetwork("10.0.0.4/30")).path, codec.encode(Affinity()))
        case "count" if store.list(HANDLES).entries:
            entry = seed.choice(store.list(HANDLES).entries)  # type: ignore[attr-defined]
            store.put(entry.key, codec.encode(Handle(block={"10.0.0.0/30": 9})))
