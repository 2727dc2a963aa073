"""Attach and detach on a memory store: what is committed together, what an error takes back, who may do what."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.errors import (
    AddressInUse,
    Conflict,
    InvalidRequest,
    KernelRefused,
    KeyExists,
    NoPools,
    NotReady,
    RouteTaken,
    StoreNotReady,
    Unavailable,
)
from calico_core.interfaces.datastore import Batch
from calico_core.model.addresses import parse_mac
from calico_core.model.endpoints import Nat
from calico_core.model.keys import (
    HandleKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
    ReadyKey,
    WorkloadEndpointKey,
)
from calico_core.model.workloads import AddressRequest, NewProfile, PairRequest
from calico_core.workload.gate import NoAgent
from calico_core.workload.service import WorkloadService
from tests.doubles.ipam_store import check_laws
from tests.waiting import eventually

if TYPE_CHECKING:
    from calico_core.interfaces.dataplane import WorkloadWiring
    from calico_core.model.endpoints import WorkloadEndpoint
    from calico_core.model.workloads import WiredInterface, WiringRequest
    from tests.unit.workload.conftest import Bench

KEY = WorkloadEndpointKey("rack-a", "cni", "pod-1", "e1")
REFUSED = KernelRefused("make a pair", 17)


def _record(bench: Bench, key: WorkloadEndpointKey = KEY) -> WorkloadEndpoint | None:
    found = bench.records.get(key)
    return found.record if found is not None else None


def _warm(bench: Bench) -> None:
    """Let the address management know its block, so that an attach is one transaction."""
    bench.service.attach(bench.attach_request("warm", key=WorkloadEndpointKey("rack-a", "cni", "warm", "e1")))


# --- attach ------------------------------------------------------------------------------------------


def test_an_interface_without_a_wanted_mtu_gets_the_nodes(bench: Bench) -> None:
    node_mtu_bytes = 1450
    service = WorkloadService(
        records=bench.records,
        ipam=bench.ipam,
        wiring=bench.wiring,
        gate=bench.gate,
        host="rack-a",
        default_mtu_bytes=lambda: node_mtu_bytes,
    )
    try:
        other = WorkloadEndpointKey("rack-a", "cni", "c2", "e1")
        assert service.attach(bench.attach_request()).mtu_bytes == 1450
        assert service.attach(bench.attach_request("c2", key=other, mtu_bytes=1300)).mtu_bytes == 1300
        pair = service.make_pair(KEY, PairRequest(interface="calidocker", peer="tmpdocker"))
        assert pair.mtu_bytes == 1450
    finally:
        service.close()


def test_an_mtu_that_is_required_is_missed_before_anything_happens(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="mtu_bytes is 0") as caught:
        bench.service.attach(bench.attach_request(requires_mtu=True))
    assert caught.value.field == "mtu"
    assert _record(bench) is None
    assert bench.service.attach(bench.attach_request(requires_mtu=True, mtu_bytes=1400)).mtu_bytes == 1400


@pytest.mark.parametrize("is_the_nodes", [False, True])
@pytest.mark.parametrize(
    ("wanted", "is_refused"),
    [
        (AddressRequest(handle="net.c1", num_v4=1), False),
        (AddressRequest(handle="net.c1", num_v4=1, num_v6=1), True),
        (AddressRequest(handle="net.c1", requested=(IPAddress("fd00::1"),)), True),
        ((IPAddress("10.1.1.1"),), False),
        ((IPAddress("10.1.1.1"), IPAddress("fd00::1")), True),
    ],
)
def test_an_mtu_too_small_for_ipv6(
    bench: Bench, wanted: AddressRequest | tuple[IPAddress, ...], is_refused: bool, is_the_nodes: bool
) -> None:
    bench.service.close()
    bench.service = WorkloadService(
        records=bench.records,
        ipam=bench.ipam,
        wiring=bench.wiring,
        gate=bench.gate,
        host="rack-a",
        default_mtu_bytes=lambda: 1279 if is_the_nodes else 1500,
    )
    request = bench.attach_request(addresses=wanted, mtu_bytes=None if is_the_nodes else 1279)
    if not is_refused:
        assert bench.service.attach(request).mtu_bytes == 1279
        return
    before = bench.revision
    with pytest.raises(InvalidRequest, match=r"1279.*1280") as caught:
        bench.service.attach(request)
    assert caught.value.field == "mtu"
    assert bench.revision == before
    borrowed = msgspec.structs.replace(request, addresses=(IPAddress("fd00::1"),), is_borrowed=True, namespace_fd=None)
    bench.service.attach(borrowed)


def test_orphans_go_unless_a_record_names_them_or_one_cannot_be_read(bench: Bench) -> None:
    other = WorkloadEndpointKey("rack-a", "cni", "c2", "e1")
    bench.service.attach(bench.attach_request())
    bench.service.attach(bench.attach_request("c2", key=other))
    assert bench.service.remove_orphans() == ()
    for interface in ("calic1", "calic2"):
        bench.wiring.abandon(interface)
    assert bench.service.remove_orphans() == ()
    bench.records.delete(other)
    damaged = WorkloadEndpointKey("rack-a", "cni", "c3", "e1").path
    bench.store.put(damaged, b"{")
    assert bench.service.remove_orphans() == ()
    bench.store.delete(damaged)
    assert bench.service.remove_orphans() == ("calic2",)
    assert (bench.wiring.exists("calic1"), bench.wiring.exists("calic2")) == (True, False)
    assert bench.service.remove_orphans() == ()


def _profile(text: str) -> NewProfile:
    return NewProfile(name=f"own-{text}", tags=(text,), is_own=True)


def test_a_profile_of_its_own_comes_and_goes_with_the_endpoint(bench: Bench) -> None:
    before = bench.contents()
    bench.service.attach(bench.attach_request(profiles=("own-a",), new_profiles=(_profile("a"),)))
    assert bench.records.get(ProfileTagsKey("own-a")).record == ("a",)
    changed = NewProfile(name="own-a", tags=("changed",), is_own=True)
    again = bench.attach_request("c2", profiles=("own-a",), new_profiles=(changed,), replaces=True)
    bench.service.attach(again)
    assert bench.records.get(ProfileTagsKey("own-a")).record == ("changed",)
    bench.service.detach(bench.detach_request())
    assert bench.records.get(ProfileTagsKey("own-a")) is not None, "a late call of the container before"
    other = bench.attach_request("c3", profiles=("own-b",), new_profiles=(_profile("b"),), replaces=True)
    bench.service.attach(other)
    assert bench.records.get(ProfileTagsKey("own-a")) is None
    for container in ("c2", "c3"):
        bench.service.detach(bench.detach_request(container))
    assert bench.contents() == before
    check_laws(bench.store)


def test_a_failed_attach_brings_back_the_profile_of_before(bench: Bench) -> None:
    request = bench.attach_request(profiles=("own-a",), new_profiles=(_profile("a"),))
    bench.wiring.fail_next(REFUSED)
    before = bench.contents()
    with pytest.raises(KernelRefused):
        bench.service.attach(request)
    assert bench.contents() == before
    bench.service.attach(request)
    before = bench.contents()
    changed = NewProfile(name="own-a", tags=("changed",), is_own=True)
    for new in (changed, _profile("b")):
        bench.wiring.fail_next(REFUSED)
        with pytest.raises(KernelRefused):
            bench.service.attach(bench.attach_request("c2", profiles=(new.name,), new_profiles=(new,), replaces=True))
        assert bench.contents() == before
    check_laws(bench.store)


def test_attach_gives_address_record_profile_and_interface(bench: Bench) -> None:
    attached = bench.service.attach(bench.attach_request(labels={"app": "web"}, network="net", mtu_bytes=1400))

    (net,) = attached.addresses
    assert net.prefixlen == 32
    assert net.ip in bench.pool
    assert bench.ipam.by_handle("net.c1") == (net.ip,)
    record = _record(bench)
    assert record == attached.endpoint
    assert record is not None
    assert (record.state, record.name, record.profile_ids, record.nets) == ("active", "calic1", ("web",), (net,))
    assert (record.labels, record.container_id, record.network) == ({"app": "web"}, "c1", "net")
    assert bench.wiring.routes("calic1") == (net,)
    assert attached.mac == record.mac
    assert attached.mtu_bytes == 1400
    assert attached.is_policy_programmed
    names = [name for name, _ in attached.steps]
    assert names == ["before_ms", "lock_ms", "record_ms", "interface_ms", "policy_ms"]
    assert bench.records.get(ProfileTagsKey("web")).record == ("web",)
    assert bench.records.get(ProfileLabelsKey("web")).record == {}
    check_laws(bench.store)


@pytest.mark.parametrize("mac", [None, parse_mac("02:00:00:00:00:99")])
def test_a_mac_that_others_may_change_is_recorded_only_if_it_was_asked_for(bench: Bench, mac: EUI | None) -> None:
    attached = bench.service.attach(bench.attach_request(mac=mac, may_change_mac=True))
    assert _record(bench).mac == attached.endpoint.mac == mac
    assert attached.mac is not None
    assert mac in {None, attached.mac}


def test_everything_is_committed_at_one_revision(bench: Bench) -> None:
    before = bench.revision
    watch = bench.store.watch("/calico/", before)
    bench.service.attach(bench.attach_request())
    message = watch.next(30)
    assert isinstance(message, Batch)
    written = {event.key for event in message.events}
    assert written >= {KEY.path, HandleKey("net.c1").path, ProfileRulesKey("web").path, ProfileTagsKey("web").path}
    assert any("/block/" in key for key in written)
    assert bench.revision == before + 1


def test_the_gate_is_asked_for_the_revision_of_the_record(bench: Bench) -> None:
    bench.service.attach(bench.attach_request())
    assert bench.gate.asked == [(KEY, bench.records.get(KEY).mod_revision)]


def test_policy_that_is_not_programmed_is_said(bench: Bench) -> None:
    bench.gate.answer = False
    attached = bench.service.attach(bench.attach_request())
    assert not attached.is_policy_programmed
    assert _record(bench) is not None


def test_without_an_agent_nobody_can_say() -> None:
    assert not NoAgent().wait_programmed(KEY, 1, 60.0)


def test_repeating_returns_what_stands(bench: Bench) -> None:
    first = bench.service.attach(bench.attach_request())
    revision = bench.revision
    second = bench.service.attach(bench.attach_request())
    assert second.addresses == first.addresses
    assert second.endpoint == first.endpoint
    assert second.mac == first.mac
    assert bench.revision == revision


def test_another_container_is_refused(bench: Bench) -> None:
    first = bench.service.attach(bench.attach_request("c1"))
    before = bench.contents(without="/nothing/")
    with pytest.raises(KeyExists) as caught:
        bench.service.attach(bench.attach_request("c2"))
    assert caught.value.key == KEY.path
    assert bench.contents(without="/nothing/") == before
    assert _record(bench) == first.endpoint
    assert not bench.wiring.exists("calic2")


@pytest.mark.parametrize("shared_handle", [None, "net.c1"])
@pytest.mark.parametrize("container", ["c1", "c2"])
def test_a_record_that_does_not_decode_is_replaced(bench: Bench, container: str, shared_handle: str | None) -> None:
    bench.service.attach(bench.attach_request())
    bench.store.put(KEY.path, b"{")
    attached = bench.service.attach(bench.attach_request(container, shared_handle=shared_handle))
    assert _record(bench) == attached.endpoint
    assert bench.ipam.by_handle(f"net.{container}") == tuple(net.ip for net in attached.addresses)
    bench.service.detach(bench.detach_request(container))
    assert _record(bench) is None


def test_another_container_replaces_when_it_may(bench: Bench) -> None:
    first = bench.service.attach(bench.attach_request("c1"))
    second = bench.service.attach(bench.attach_request("c2", replaces=True))
    assert second.addresses != first.addresses
    assert _record(bench) == second.endpoint
    assert second.endpoint.container_id == "c2"
    check_laws(bench.store)


def test_a_failed_replacement_puts_the_earlier_record_back(bench: Bench) -> None:
    first = bench.service.attach(bench.attach_request("c1"))
    bench.wiring.fail_next(REFUSED)
    with pytest.raises(KernelRefused):
        bench.service.attach(bench.attach_request("c2", replaces=True))
    assert _record(bench) == first.endpoint
    assert bench.ipam.by_handle("net.c1") == tuple(net.ip for net in first.addresses)
    assert bench.ipam.by_handle("net.c2") == ()
    assert bench.wiring.exists("calic1")


def test_addresses_the_caller_holds_are_recorded_and_left_alone(bench: Bench) -> None:
    held = bench.ipam.auto_assign(AddressRequest(handle="docker", num_v4=1))
    attached = bench.service.attach(bench.attach_request(addresses=held))
    assert tuple(net.ip for net in attached.addresses) == held
    bench.service.detach(bench.detach_request(handles=()))
    assert _record(bench) is None
    assert bench.ipam.by_handle("docker") == held


def test_without_a_namespace_no_interface_is_made(bench: Bench) -> None:
    attached = bench.service.attach(bench.attach_request(namespace_fd=None))
    assert attached.host_mac is None
    assert attached.mac == attached.endpoint.mac
    assert not bench.wiring.exists("calic1")
    assert _record(bench) is not None


def test_a_handle_that_lost_its_record_gets_its_addresses_again(bench: Bench) -> None:
    first = bench.service.attach(bench.attach_request())
    bench.records.delete(KEY)
    bench.wiring.detach("calic1")
    again = bench.service.attach(bench.attach_request())
    assert again.addresses == first.addresses
    assert _record(bench) == again.endpoint
    assert bench.gate.asked[-1] == (KEY, bench.records.get(KEY).mod_revision)
    check_laws(bench.store)


def test_both_families(bench: Bench) -> None:
    from tests.doubles.ipam_store import add_pool

    add_pool(bench.store, "fd80:65::/112")
    attached = bench.service.attach(bench.attach_request(addresses=AddressRequest(handle="net.c1", num_v4=1, num_v6=1)))
    assert [net.version for net in attached.addresses] == [4, 6]
    assert attached.endpoint.ipv6_nets[0].prefixlen == 128


# --- what an error takes back --------------------------------------------------------------------------


def test_a_failing_interface_undoes_record_and_addresses(bench: Bench) -> None:
    bench.wiring.fail_next(REFUSED)
    with pytest.raises(KernelRefused):
        bench.service.attach(bench.attach_request())
    assert _record(bench) is None
    assert bench.ipam.by_handle("net.c1") == ()
    assert bench.records.get(HandleKey("net.c1")) is None
    assert bench.records.get(ProfileRulesKey("web")) is not None  # others may use it by now
    check_laws(bench.store)
    assert bench.service.attach(bench.attach_request()).is_policy_programmed


def test_a_failing_interface_leaves_addresses_of_the_caller(bench: Bench) -> None:
    held = bench.ipam.auto_assign(AddressRequest(handle="docker", num_v4=1))
    bench.wiring.fail_next(REFUSED)
    with pytest.raises(KernelRefused):
        bench.service.attach(bench.attach_request(addresses=held))
    assert _record(bench) is None
    assert bench.ipam.by_handle("docker") == held


def test_a_failing_repeat_leaves_the_earlier_attach_alone(bench: Bench) -> None:
    first = bench.service.attach(bench.attach_request())
    bench.wiring.fail_next(REFUSED)
    with pytest.raises(KernelRefused):
        bench.service.attach(bench.attach_request())
    assert _record(bench) == first.endpoint
    assert bench.ipam.by_handle("net.c1") == tuple(net.ip for net in first.addresses)
    assert bench.wiring.exists("calic1")


def test_undo_leaves_a_record_that_somebody_changed_meanwhile(bench: Bench) -> None:
    """A person, say: profiles may be changed between commit and failure."""
    _warm(bench)

    def change() -> None:
        found = bench.records.get(KEY)
        bench.records.swap(found, msgspec.structs.replace(found.record, profile_ids=("other",)))

    bench.store.faults.before(2, change)  # the second transaction is the undo's
    bench.wiring.fail_next(REFUSED)
    with pytest.raises(KernelRefused):
        bench.service.attach(bench.attach_request())
    record = _record(bench)
    assert record is not None
    assert record.profile_ids == ("other",)
    assert bench.ipam.by_handle("net.c1") != ()
    bench.service.detach(bench.detach_request())
    assert _record(bench) is None
    assert bench.ipam.by_handle("net.c1") == ()


@pytest.mark.parametrize(
    ("fields", "error", "names"),
    [
        ({"addresses": AddressRequest(handle="h", num_v6=1)}, NoPools, "IPv6"),
        ({"addresses": AddressRequest(handle="", num_v4=1)}, InvalidRequest, "handle"),
        ({"interface": "a/b"}, InvalidRequest, "a/b"),
        ({"interface": "a-name-that-is-too-long"}, InvalidRequest, "too-long"),
        ({"profiles": ("no spaces",)}, InvalidRequest, "no spaces"),
        ({"new_profiles": (NewProfile(name="../x"),)}, InvalidRequest, "../x"),
        ({"labels": {"a b": "c"}}, InvalidRequest, "a b"),
    ],
)
def test_bad_requests_change_nothing(bench: Bench, fields: dict[str, object], error: type, names: str) -> None:
    before = bench.revision
    with pytest.raises(error, match=names.replace("/", r"\/")):
        bench.service.attach(bench.attach_request(**fields))
    assert bench.revision == before
    assert not bench.wiring.exists("calic1")


def test_an_address_in_use_is_refused_and_named(bench: Bench) -> None:
    taken = bench.service.attach(bench.attach_request()).addresses[0].ip
    wanted = AddressRequest(handle="net.c2", requested=(taken,))
    other = WorkloadEndpointKey("rack-a", "cni", "pod-2", "e1")
    before = bench.revision
    with pytest.raises(AddressInUse, match=str(taken)):
        bench.service.attach(bench.attach_request("c2", key=other, addresses=wanted))
    assert bench.revision == before
    assert _record(bench, other) is None


@pytest.mark.parametrize("value", [None, "false", ""])
def test_a_store_that_is_not_ready_is_refused(bench: Bench, value: str | None) -> None:
    if value is None:
        bench.records.delete(ReadyKey())
    else:
        bench.records.put(ReadyKey(), value)
    before = bench.revision
    with pytest.raises(NotReady, match="Ready"):
        bench.service.attach(bench.attach_request())
    assert bench.revision == before


# --- profiles ------------------------------------------------------------------------------------------


def test_an_existing_profile_is_never_touched(bench: Bench) -> None:
    bench.records.put(ProfileTagsKey("web"), ("mine",))
    bench.service.attach(bench.attach_request())
    assert bench.records.get(ProfileTagsKey("web")).record == ("mine",)
    assert bench.records.get(ProfileRulesKey("web")) is None


def test_a_profile_that_appears_meanwhile_is_kept(bench: Bench) -> None:
    bench.store.faults.before(1, lambda: bench.records.put(ProfileTagsKey("web"), ("theirs",)))
    attached = bench.service.attach(bench.attach_request())
    assert bench.records.get(ProfileTagsKey("web")).record == ("theirs",)
    assert _record(bench) == attached.endpoint


# --- the store fails -------------------------------------------------------------------------------------


def test_a_refused_write_leaves_nothing(bench: Bench) -> None:
    before = bench.contents(without="/nothing/")
    bench.store.faults.refuse(1)
    with pytest.raises(Unavailable):
        bench.service.attach(bench.attach_request())
    assert bench.contents(without="/nothing/") == before
    assert not bench.wiring.exists("calic1")
    assert bench.service.attach(bench.attach_request()).is_policy_programmed


def test_a_write_whose_answer_was_lost_still_succeeds(bench: Bench) -> None:
    bench.store.faults.apply_unanswered(1)
    attached = bench.service.attach(bench.attach_request())
    assert _record(bench) == attached.endpoint
    assert bench.ipam.by_handle("net.c1") == tuple(net.ip for net in attached.addresses)
    check_laws(bench.store)


def test_a_store_away_at_the_undo_is_healed_by_a_repeat(bench: Bench) -> None:
    _warm(bench)
    bench.store.faults.refuse(2)  # the undo
    bench.wiring.fail_next(REFUSED)
    with pytest.raises(KernelRefused):
        bench.service.attach(bench.attach_request())
    again = bench.service.attach(bench.attach_request())
    assert _record(bench) == again.endpoint
    assert bench.ipam.by_handle("net.c1") == tuple(net.ip for net in again.addresses)
    bench.service.detach(bench.detach_request())
    assert bench.ipam.by_handle("net.c1") == ()


def test_a_store_that_is_down(bench: Bench) -> None:
    bench.store.faults.down = True
    with pytest.raises(Unavailable):
        bench.service.attach(bench.attach_request())
    bench.store.faults.down = False
    assert _record(bench) is None


def test_detach_removes_the_interface_though_the_store_is_down(bench: Bench) -> None:
    bench.service.attach(bench.attach_request())
    bench.store.faults.down = True
    with pytest.raises(Unavailable):
        bench.service.detach(bench.detach_request())
    assert not bench.wiring.exists("calic1")
    bench.store.faults.down = False
    assert _record(bench) is not None
    bench.service.detach(bench.detach_request())
    assert _record(bench) is None


@pytest.mark.parametrize("container", ["c1", "c2"])
@pytest.mark.parametrize("has_namespace", [True, False])
def test_the_store_being_down_only_the_namespace_tells_whose_interface_it_is(
    bench: Bench, container: str, has_namespace: bool
) -> None:
    """Both containers of a pod call it the same. The second one has it now."""
    with open("/proc/self/ns/net") as other:
        descriptors = {"c1": other.fileno(), "c2": bench.namespace_fd}
        for each, descriptor in descriptors.items():
            bench.service.attach(
                bench.attach_request(each, replaces=True, interface="calipod", namespace_fd=descriptor)
            )
        bench.store.faults.down = True
        with pytest.raises(Unavailable):
            bench.service.detach(
                bench.detach_request(
                    container,
                    interface="calipod",
                    is_replaceable=True,
                    namespace_fd=descriptors[container] if has_namespace else None,
                )
            )
    assert bench.wiring.exists("calipod") is not (container == "c2" and has_namespace)


@pytest.mark.parametrize("is_shared", [False, True])
def test_detach_from_a_store_that_is_not_ready(bench: Bench, is_shared: bool) -> None:
    """Only who can do the rest later asks for that. What others may share stays."""
    bench.service.attach(bench.attach_request())
    bench.records.put(ReadyKey(), "false")
    before = bench.revision
    with pytest.raises(StoreNotReady, match="Ready"):
        bench.service.detach(bench.detach_request(needs_ready=True, is_shared=is_shared))
    assert bench.wiring.exists("calic1") == is_shared
    assert bench.revision == before
    bench.service.detach(bench.detach_request())
    assert _record(bench) is None
    assert not bench.wiring.exists("calic1")


def test_detach_whose_write_is_refused_keeps_record_and_addresses_together(bench: Bench) -> None:
    attached = bench.service.attach(bench.attach_request())
    bench.store.faults.refuse(1)
    with pytest.raises(Unavailable):
        bench.service.detach(bench.detach_request())
    assert not bench.wiring.exists("calic1")
    assert _record(bench) == attached.endpoint
    assert bench.ipam.by_handle("net.c1") == tuple(net.ip for net in attached.addresses)
    bench.service.detach(bench.detach_request())
    assert _record(bench) is None
    assert bench.ipam.by_handle("net.c1") == ()


def test_floating_addresses_lead_to_the_workloads_own(bench: Bench) -> None:
    floating = (IPAddress("192.0.2.7"), IPAddress("192.0.2.8"))
    attached = bench.service.attach(bench.attach_request(floating=floating))
    own = attached.addresses[0].ip
    record = _record(bench)
    assert record is not None
    assert record.ipv4_nat == tuple(Nat(int_ip=own, ext_ip=each) for each in floating)


def test_source_prefixes_go_into_the_record(bench: Bench) -> None:
    prefixes = (IPNetwork("198.51.100.0/24"), IPNetwork("2001:db8::/64"))
    attached = bench.service.attach(bench.attach_request(allowed_source_prefixes=prefixes))
    assert attached.endpoint.allowed_source_prefixes == prefixes


def test_a_floating_address_of_a_family_that_the_workload_lacks(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="no IPv6 address"):
        bench.service.attach(bench.attach_request(floating=(IPAddress("2001:db8::7"),)))
    assert _record(bench) is None
    check_laws(bench.store)


@pytest.mark.parametrize("fails", [False, True])
def test_an_address_is_taken_over_with_the_record_and_never_nobodys_while_a_record_names_it(
    bench: Bench, *, fails: bool
) -> None:
    before = bench.contents()
    wanted = AddressRequest(handle="net.c1", num_v4=1, requested=(IPAddress("10.65.0.7"),))
    bench.service.attach(bench.attach_request(addresses=wanted))
    taking = msgspec.structs.replace(wanted, handle="net.c2", takes_over=("net.c1",))
    request = bench.attach_request("c2", addresses=taking, replaces=True)
    if fails:
        bench.wiring.fail_next(REFUSED)
        with pytest.raises(KernelRefused):
            bench.service.attach(request)
        assert _record(bench) is None
    else:
        bench.service.attach(request)
        record = _record(bench)
        assert record is not None
        assert (record.container_id, [str(net) for net in record.nets]) == ("c2", ["10.65.0.7/32"])
    check_laws(bench.store)
    for container in ("c1", "c2"):
        bench.service.detach(bench.detach_request(container))
    assert {key for key in bench.contents() if "/profile/" not in key} == set(before)


# --- detach ------------------------------------------------------------------------------------------


def test_detach_removes_all_three_at_one_revision(bench: Bench) -> None:
    bench.service.attach(bench.attach_request())
    before = bench.revision
    bench.service.detach(bench.detach_request())
    assert _record(bench) is None
    assert bench.ipam.by_handle("net.c1") == ()
    assert not bench.wiring.exists("calic1")
    assert bench.revision == before + 1
    check_laws(bench.store)


def test_detach_says_whether_there_was_something_to_take(bench: Bench) -> None:
    bench.service.attach(bench.attach_request())
    assert not bench.service.detach(bench.detach_request("c2"))
    assert bench.service.detach(bench.detach_request())
    assert not bench.service.detach(bench.detach_request())


def test_detach_of_nothing_is_fine(bench: Bench) -> None:
    bench.service.detach(bench.detach_request())
    bench.service.attach(bench.attach_request())
    bench.service.detach(bench.detach_request())
    before = bench.revision
    bench.service.detach(bench.detach_request())
    assert bench.revision == before


@pytest.mark.parametrize("interface", ["calic1", "calic2"])
def test_a_late_detach_leaves_the_next_owner_alone(bench: Bench, interface: str) -> None:
    """Its record and, when both containers call it the same, its interface."""
    bench.service.attach(bench.attach_request("c1"))
    bench.wiring.detach("calic1")  # as the kernel does when the namespace ends
    second = bench.service.attach(bench.attach_request("c2", replaces=True, interface=interface))
    bench.service.detach(bench.detach_request("c1"))
    assert _record(bench) == second.endpoint
    assert bench.wiring.exists(interface)
    assert bench.ipam.by_handle("net.c1") == ()
    assert bench.ipam.by_handle("net.c2") == tuple(net.ip for net in second.addresses)


@pytest.mark.parametrize(
    ("attached", "detached", "goes"),
    [("net", "net", True), ("net", None, True), (None, "net", True), ("net", "other", False)],
)
def test_a_detach_from_another_network_leaves_the_endpoint_alone(
    bench: Bench, attached: str | None, detached: str | None, goes: bool
) -> None:
    bench.service.attach(bench.attach_request(network=attached))
    bench.service.detach(bench.detach_request(network=detached, handles=(f"{detached}.c1",)))
    assert (_record(bench) is None) is goes
    assert bench.wiring.exists("calic1") is not goes


def test_a_detach_that_names_no_container_removes_any(bench: Bench) -> None:
    bench.service.attach(bench.attach_request())
    bench.service.detach(msgspec.structs.replace(bench.detach_request(), container_id=None))
    assert _record(bench) is None


def test_a_record_without_a_container_is_removed_by_any(bench: Bench) -> None:
    bench.service.attach(msgspec.structs.replace(bench.attach_request(), container_id=None))
    bench.service.detach(bench.detach_request("c1"))
    assert _record(bench) is None


def test_a_record_that_does_not_decode_is_removed(bench: Bench) -> None:
    bench.service.attach(bench.attach_request())
    bench.store.put(KEY.path, b"{")
    bench.service.detach(bench.detach_request())
    assert bench.store.get(KEY.path) is None
    assert bench.ipam.by_handle("net.c1") == ()
    assert not bench.wiring.exists("calic1")


def test_a_record_that_changes_during_a_detach_goes_all_the_same(bench: Bench) -> None:
    bench.service.attach(bench.attach_request())
    found = bench.records.get(KEY)
    bench.store.faults.before(1, lambda: bench.records.put(KEY, found.record))
    bench.service.detach(bench.detach_request())
    assert _record(bench) is None


def test_a_record_that_always_changes_is_a_conflict(bench: Bench) -> None:
    bench.service.attach(bench.attach_request())
    found = bench.records.get(KEY)

    def change() -> None:
        bench.store.faults.before(2, change)
        bench.records.put(KEY, found.record)

    bench.store.faults.before(1, change)
    with pytest.raises(Conflict, match="e1"):
        bench.service.detach(bench.detach_request())
    assert _record(bench) is not None


# --- several at once -----------------------------------------------------------------------------------


def test_parallel_attaches_of_one_endpoint_agree(bench: Bench) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: bench.service.attach(bench.attach_request()), range(8)))
    assert len({result.addresses for result in results}) == 1
    assert len(bench.ipam.by_handle("net.c1")) == 1
    check_laws(bench.store)


def test_parallel_attaches_of_two_containers_have_one_winner(bench: Bench) -> None:
    start = threading.Barrier(2, timeout=10)

    def attach(container_id: str) -> object:
        start.wait()
        try:
            return bench.service.attach(bench.attach_request(container_id)).endpoint.container_id
        except KeyExists:
            return None

    with ThreadPoolExecutor(2) as pool:
        winners = [winner for winner in pool.map(attach, ["c1", "c2"]) if winner is not None]
    assert len(winners) == 1
    record = _record(bench)
    assert record is not None
    assert record.container_id == winners[0]
    assert set(check_laws(bench.store).handles) == {f"net.{winners[0]}"}


def test_parallel_attaches_of_many_endpoints_share_nothing(bench: Bench) -> None:
    def attach(number: int) -> IPAddress:
        key = WorkloadEndpointKey("rack-a", "cni", f"pod-{number}", "eth0")
        return bench.service.attach(bench.attach_request(f"m{number}", key=key)).addresses[0].ip

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(attach, range(64)))
    assert len(set(found)) == 64
    check_laws(bench.store)


# --- pairs ---------------------------------------------------------------------------------------------


class SlowKernel:
    """The memory wiring with the kernel's way: a route is taken while the interface that it leads to is leaving."""

    def __init__(self, wiring: WorkloadWiring, stays: str) -> None:
        self._wiring = wiring
        self._stays = stays
        self.may_go = threading.Event()
        self.met = threading.Event()
        self.has_gone = False

    def attach(self, request: WiringRequest) -> WiredInterface:
        if request.interface != self._stays and not self.has_gone:
            self.met.set()
            raise RouteTaken(str(request.addresses[0]), self._stays)
        return self._wiring.attach(request)

    def detach(self, interface: str) -> None:
        if interface == self._stays:
            assert self.may_go.wait(10)
            self.has_gone = True
        self._wiring.detach(interface)


def test_an_address_whose_last_interface_is_still_leaving_is_waited_for(
    bench: Bench, second_key: WorkloadEndpointKey
) -> None:
    kernel = SlowKernel(bench.wiring, "calic1")
    service = WorkloadService(
        records=bench.records,
        ipam=bench.ipam,
        wiring=cast("WorkloadWiring", kernel),
        gate=bench.gate,
        host="rack-a",
    )
    service.attach(bench.attach_request())
    with ThreadPoolExecutor(2) as pool:
        detaching = pool.submit(service.detach, bench.detach_request())
        eventually(lambda: bench.records.get(bench.attach_request().key) is None, within_s=10)
        attaching = pool.submit(service.attach, bench.attach_request("c2", key=second_key))
        assert kernel.met.wait(10)
        assert not attaching.done()
        kernel.may_go.set()
        assert attaching.result(10).interface == "calic2"
        assert detaching.result(10)
    service.close()


def test_an_address_that_still_leads_to_the_next_interface_of_that_name_is_waited_for(
    bench: Bench, second_key: WorkloadEndpointKey
) -> None:
    """The agent has not heard yet that the container which is back under its name has another address now."""
    kernel = SlowKernel(bench.wiring, "calic1")
    service = WorkloadService(
        records=bench.records, ipam=bench.ipam, wiring=cast("WorkloadWiring", kernel), gate=bench.gate, host="rack-a"
    )
    service.attach(bench.attach_request())
    kernel.may_go.set()
    assert service.detach(bench.detach_request())
    kernel.has_gone = False  # its route is there again
    service.attach(bench.attach_request())
    with ThreadPoolExecutor(1) as pool:
        attaching = pool.submit(service.attach, bench.attach_request("c2", key=second_key))
        assert kernel.met.wait(10)
        assert not attaching.done()
        kernel.has_gone = True
        assert attaching.result(10).interface == "calic2"
    service.close()


def test_an_address_that_belongs_to_an_interface_that_stays_is_refused(
    bench: Bench, second_key: WorkloadEndpointKey
) -> None:
    kernel = SlowKernel(bench.wiring, "calic1")
    service = WorkloadService(
        records=bench.records, ipam=bench.ipam, wiring=cast("WorkloadWiring", kernel), gate=bench.gate, host="rack-a"
    )
    with pytest.raises(RouteTaken, match="calic1"):
        service.attach(bench.attach_request("c2", key=second_key))
    service.close()


def test_a_pair_gets_the_addresses_of_the_record(bench: Bench) -> None:
    attached = bench.service.attach(bench.attach_request(namespace_fd=None))
    wired = bench.service.make_pair(KEY, PairRequest(interface="calic1", peer="tmpc1", mac=attached.mac))
    assert wired.mac == attached.mac
    assert bench.wiring.routes("calic1") == attached.addresses
    assert bench.gate.asked[-1] == (KEY, bench.records.get(KEY).mod_revision)
    bench.service.remove_pair("calic1")
    bench.service.remove_pair("calic1")
    assert not bench.wiring.exists("calic1")


def test_a_pair_without_a_record_is_not_made(bench: Bench) -> None:
    with pytest.raises(NotReady, match="no record"):
        bench.service.make_pair(KEY, PairRequest(interface="calic1", peer="tmpc1"))
    assert not bench.wiring.exists("calic1")
