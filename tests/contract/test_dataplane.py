"""The contract of a dataplane, kept by the one in memory and by nftables and iptables on a real kernel."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from typing import TYPE_CHECKING

import msgspec
import pytest
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.dataplane.iptables.driver import IptablesDataplane
from calico_core.dataplane.linux import netns
from calico_core.dataplane.memory import MemoryDataplane, MemoryWiring
from calico_core.dataplane.nftables.driver import NftablesDataplane
from calico_core.errors import InvalidRequest
from calico_core.interfaces.dataplane import ApplyReport, Connection, DataplaneOptions, RuleCount, WorkloadWiring
from calico_core.model.hoststate import (
    ANY_INTERFACE,
    AddressSet,
    HostChanges,
    HostInterface,
    HostPeers,
    HostPools,
    HostRule,
    HostRules,
    HostWorkload,
    PolicyList,
    PortMember,
    PortSetChange,
    RulesId,
    SetChange,
    SetId,
)
from calico_core.model.keys import HostEndpointKey, WorkloadEndpointKey
from calico_core.model.workloads import InterfaceEvent, PairRequest, WiringRequest
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from calico_core.interfaces.dataplane import Dataplane

_numbers = itertools.count()
OPTIONS = DataplaneOptions(host="h")
WEB, TAG, NAMED = RulesId("profile/web"), SetId("tag-00000000000000aa"), SetId("npt-00000000000000bb")
NETS = (IPNetwork("10.65.0.1/32"), IPNetwork("fd65::1/128"))


class Bench:
    """A dataplane with a container to wire."""

    def __init__(self, dataplane: Dataplane, namespace_fd: int, host: str = "") -> None:
        self.dataplane, self._host = dataplane, host
        self.request = WiringRequest(
            interface="cali1",
            container_interface="eth0",
            namespace_fd=namespace_fd,
            namespace="a container",
            addresses=NETS,
            mac=EUI("02:00:00:00:00:01"),
        )

    @property
    def wiring(self) -> WorkloadWiring:
        return self.dataplane.wiring()

    def set_addresses(self, interface: str, *addresses: str) -> None:
        """Of an interface of the host, which is made when it is not there."""
        if isinstance(self.dataplane, MemoryDataplane):
            self.dataplane.set_addresses(interface, *map(IPAddress, addresses))
            return
        with contextlib.suppress(subprocess.CalledProcessError):
            self._ip("link", "add", interface, "type", "bridge")
        self._ip("address", "flush", "dev", interface)
        for address in addresses:
            self._ip("address", "add", f"{address}/{32 if '.' in address else 128}", "dev", interface)

    def remove_interface(self, interface: str) -> None:
        if isinstance(self.dataplane, MemoryDataplane):
            self.dataplane.remove_interface(interface)
        else:
            self._ip("link", "del", interface)

    def _ip(self, *argv: str) -> None:
        subprocess.run(["ip", "-n", self._host, *argv], check=True, capture_output=True)


REAL: dict[str, Callable[[int], Dataplane]] = {
    "nftables": lambda descriptor: NftablesDataplane(OPTIONS, descriptor),
    "iptables-nft": lambda descriptor: IptablesDataplane(OPTIONS, descriptor, "nft"),
    "iptables-legacy": lambda descriptor: IptablesDataplane(OPTIONS, descriptor, "legacy"),
}


@pytest.fixture(params=["memory", *(pytest.param(name, marks=pytest.mark.needs_root) for name in REAL)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "memory":
        dataplane = MemoryDataplane.open(OPTIONS)
        yield Bench(dataplane, 0)
        dataplane.close()
        return
    names = [f"dpc-{os.getpid()}-{next(_numbers)}" for _ in range(2)]
    descriptors = [netns.open_namespace(str(netns.create_namespace(name))) for name in names]
    real = REAL[request.param](descriptors[0])
    try:
        yield Bench(real, descriptors[1], names[0])
    finally:
        real.close()
        for name, descriptor in zip(names, descriptors, strict=True):
            os.close(descriptor)
            netns.delete_namespace(name)


def a_workload(number: int = 1, *, is_active: bool = True, port: str = "web") -> HostWorkload:
    policies = PolicyList(profiles=(RulesId(f"profile/{port}"),))
    return HostWorkload(
        key=WorkloadEndpointKey(host="h", orchestrator="test", workload=f"w{number}", endpoint="eth0"),
        interface=f"cali{number}",
        is_active=is_active,
        nets=NETS if number == 1 else (IPNetwork(f"10.65.0.{number}/32"),),
        inbound=policies,
        outbound=policies,
    )


def an_interface(name: str) -> HostInterface:
    key = HostEndpointKey(host="h", endpoint="any" if name == ANY_INTERFACE else name)
    policies = PolicyList(profiles=(WEB,))
    return HostInterface(key=key, interface=name, inbound=policies, outbound=policies)


def a_state(*workloads: HostWorkload) -> HostChanges:
    allow = HostRule(action="allow", src_sets=(TAG,))
    return HostChanges(
        is_complete=True,
        sets=(SetChange(id=TAG, is_new=True, added=AddressSet.of(NETS)),),
        rules=(HostRules(id=WEB, inbound=(allow,), outbound=(HostRule(action="allow"),)),),
        workloads=workloads,
        pools=HostPools(all=(IPNetwork("10.65.0.0/16"),)),
    )


def is_quiet(report: ApplyReport) -> bool:
    return report.changes == 0 and report.is_clean and not report.healed


def test_the_first_batch_is_complete(bench: Bench) -> None:
    with pytest.raises(InvalidRequest) as caught:
        bench.dataplane.apply(HostChanges(workloads=(a_workload(),)))
    assert caught.value.field == "is_complete"


def test_closing_is_safe_to_repeat(bench: Bench) -> None:
    bench.dataplane.ensure_closed()
    bench.dataplane.ensure_closed()
    assert bench.dataplane.apply(a_state()).is_clean


def test_before_the_first_batch_nothing_is_wanted(bench: Bench) -> None:
    assert is_quiet(bench.dataplane.resync())
    assert is_quiet(bench.dataplane.interface_changed(InterfaceEvent(kind="up", name="cali1")))


def test_only_differences_count(bench: Bench) -> None:
    state = a_state(a_workload())
    first = bench.dataplane.apply(state)
    assert first.is_clean
    assert first.changes > 0
    assert is_quiet(bench.dataplane.apply(state))
    assert is_quiet(bench.dataplane.apply(HostChanges(workloads=(a_workload(),))))
    assert is_quiet(bench.dataplane.resync())
    one_more = SetChange(id=TAG, added=AddressSet.of([IPNetwork("10.65.0.9/32")]))
    assert bench.dataplane.apply(HostChanges(sets=(one_more,))).changes == 1
    assert bench.dataplane.apply(HostChanges(workloads=(a_workload(is_active=False),))).changes > 0
    assert bench.dataplane.apply(HostChanges(removed_workloads=(a_workload().key,))).is_clean
    assert is_quiet(bench.dataplane.apply(HostChanges(removed_workloads=(a_workload().key,))))


def test_a_complete_batch_removes_what_it_does_not_name(bench: Bench) -> None:
    bench.dataplane.apply(a_state(a_workload(1), a_workload(2)))
    report = bench.dataplane.apply(a_state(a_workload(2)))
    assert report.changes > 0
    assert [key.workload for key in report.endpoints_without_link] == ["w2"]


def test_endpoints_without_link_are_named(bench: Bench) -> None:
    report = bench.dataplane.apply(a_state(a_workload(1), a_workload(2), a_workload(3, is_active=False)))
    assert [key.workload for key in report.endpoints_without_link] == ["w1", "w2"]
    bench.wiring.attach(bench.request)
    up = InterfaceEvent(kind="up", name="cali1")
    # a kernel tells the state of a link a moment after it is up
    eventually(lambda: bench.dataplane.interface_changed(up).endpoints_without_link == ())
    assert [key.workload for key in bench.dataplane.resync().endpoints_without_link] == ["w2"]
    bench.wiring.detach("cali1")
    report = bench.dataplane.interface_changed(InterfaceEvent(kind="deleted", name="cali1"))
    assert [key.workload for key in report.endpoints_without_link] == ["w1"]


def test_of_two_workloads_with_one_interface_the_loser_is_named(bench: Bench) -> None:
    idle = a_workload(1, is_active=False)
    winner, loser = (msgspec.structs.replace(a_workload(number), interface="cali1") for number in (2, 3))
    report = bench.dataplane.apply(a_state(idle, winner, loser))
    assert [each.subject for each in report.losers] == [loser.key.path]
    assert winner.key.path in report.losers[0].reason
    assert report.is_clean, "no other attempt would change it"
    assert bench.dataplane.resync().losers == report.losers
    report = bench.dataplane.apply(HostChanges(removed_workloads=(winner.key,)))
    assert (report.losers, report.is_clean) == ((), True)


def test_interfaces_are_watched(bench: Bench) -> None:
    events: list[InterfaceEvent] = []
    stop = bench.dataplane.watch_interfaces(events.append)
    bench.wiring.attach(bench.request)
    eventually(lambda: ("up", "cali1") in {(event.kind, event.name) for event in events})
    bench.wiring.detach("cali1")
    eventually(lambda: ("deleted", "cali1") in {(event.kind, event.name) for event in events})
    stop()
    stop()


def test_wiring_makes_and_removes(bench: Bench) -> None:
    wired = bench.wiring.attach(bench.request)
    assert (wired.interface, wired.mac, wired.is_new) == ("cali1", bench.request.mac, True)
    assert bench.wiring.exists("cali1")
    assert bench.wiring.check(bench.request) == ()
    assert set(bench.wiring.routes("cali1")) == set(NETS)
    assert not bench.wiring.attach(bench.request).is_new
    bench.wiring.detach("cali1")
    bench.wiring.detach("cali1")
    assert not bench.wiring.exists("cali1")
    assert bench.wiring.check(bench.request) != ()
    assert bench.wiring.routes("cali1") == ()


def test_removing_an_orphan_by_an_index_of_before_leaves_the_new_pair(bench: Bench) -> None:
    bench.wiring.attach(bench.request)
    if isinstance(bench.wiring, MemoryWiring):
        bench.wiring.abandon("cali1")
    before = bench.wiring.orphans()
    assert set(before) == {"cali1"}
    bench.wiring.detach("cali1")
    assert bench.wiring.orphans() == {}
    bench.wiring.attach(bench.request)
    bench.wiring.remove_orphans(before.values())
    assert bench.wiring.exists("cali1")
    if isinstance(bench.wiring, MemoryWiring):
        bench.wiring.abandon("cali1")
    bench.wiring.remove_orphans(bench.wiring.orphans().values())
    assert not bench.wiring.exists("cali1")
    bench.wiring.remove_orphans([])


def test_wiring_makes_pairs(bench: Bench) -> None:
    pair = PairRequest(interface="cali7", peer="peer7", addresses=NETS)
    assert bench.wiring.make_pair(pair).interface == "cali7"
    assert bench.wiring.make_pair(pair).interface == "cali7", "a leftover is replaced"
    assert bench.wiring.exists("cali7")
    bench.wiring.detach("cali7")


def test_host_endpoints_peers_and_named_ports_count_as_differences(bench: Bench) -> None:
    state = msgspec.structs.replace(
        a_state(a_workload()),
        port_sets=(PortSetChange(id=NAMED, is_new=True, added=frozenset({PortMember(4, 1, 6, 80)})),),
        interfaces=(an_interface("eth0"), an_interface(ANY_INTERFACE)),
        peers=HostPeers(addresses=(IPAddress("192.0.2.7"),), is_ipip=True),
    )
    assert bench.dataplane.apply(state).is_clean
    assert is_quiet(bench.dataplane.apply(state))
    one_more = PortSetChange(id=NAMED, added=frozenset({PortMember(4, 2, 6, 80)}))
    assert bench.dataplane.apply(HostChanges(port_sets=(one_more,))).changes == 1
    assert bench.dataplane.apply(HostChanges(removed_interfaces=("eth0",))).changes > 0
    assert is_quiet(bench.dataplane.apply(HostChanges(removed_interfaces=("eth0",))))
    assert bench.dataplane.apply(HostChanges(peers=HostPeers())).changes > 0
    assert bench.dataplane.apply(HostChanges(removed_port_sets=(NAMED,))).changes > 0
    assert is_quiet(bench.dataplane.resync())


def test_rules_are_counted_by_their_number(bench: Bench) -> None:
    bench.dataplane.apply(a_state(a_workload()))
    counted = {(each.rules, each.direction, each.rule): (each.packets, each.bytes) for each in _counts(bench)}
    assert counted == {(WEB, "inbound", 0): (0, 0), (WEB, "outbound", 0): (0, 0)}


def test_nothing_is_connected_and_nothing_to_cut(bench: Bench) -> None:
    nobody = Connection(6, *[IPAddress("10.65.0.1")] * 2, 1, 2, *[IPAddress("10.65.0.1")] * 2, 2, 1)
    assert nobody not in bench.dataplane.connections()
    assert bench.dataplane.cut([nobody]) == 0
    assert bench.dataplane.cut([]) == 0


def test_watches_may_be_stopped_twice(bench: Bench) -> None:
    for watch in (bench.dataplane.watch_denied, bench.dataplane.watch_addresses):
        stop = watch(lambda *_: None)
        stop()
        stop()


def test_addresses_of_the_host_are_told_at_once_and_when_they_change(bench: Bench) -> None:
    told: list[tuple[str, frozenset[IPAddress] | None]] = []
    bench.set_addresses("up7", "192.0.2.1")
    bench.wiring.attach(bench.request)
    stop = bench.dataplane.watch_addresses(lambda name, addresses: told.append((name, addresses)))
    assert ("up7", frozenset({IPAddress("192.0.2.1")})) in _without_link_local(told)
    bench.set_addresses("up7", "192.0.2.1", "2001:db8::1")
    eventually(
        lambda: ("up7", frozenset({IPAddress("192.0.2.1"), IPAddress("2001:db8::1")})) in _without_link_local(told)
    )
    bench.remove_interface("up7")
    eventually(lambda: ("up7", None) in told)
    stop()
    assert not [name for name, _ in told if name.startswith("cali")]


def test_purge_starts_from_nothing(bench: Bench) -> None:
    bench.dataplane.apply(a_state(a_workload()))
    bench.dataplane.purge()
    bench.dataplane.purge()
    with pytest.raises(InvalidRequest):
        bench.dataplane.apply(HostChanges())
    bench.dataplane.ensure_closed()
    report = bench.dataplane.apply(a_state(a_workload()))
    assert report.is_clean
    assert report.changes > 0


def _counts(bench: Bench) -> tuple[RuleCount, ...]:
    return bench.dataplane.rule_counts()


def _without_link_local(
    told: list[tuple[str, frozenset[IPAddress] | None]],
) -> list[tuple[str, frozenset[IPAddress] | None]]:
    return [
        (name, addresses and frozenset(each for each in addresses if not each.is_link_local()))
        for name, addresses in tuple(told)
    ]
