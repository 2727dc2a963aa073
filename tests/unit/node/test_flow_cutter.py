"""Which connections are judged again after a change, and which of them end."""

from __future__ import annotations

import errno
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.memory import MemoryDataplane
from calico_core.errors import KernelRefused
from calico_core.interfaces.dataplane import Connection, DataplaneOptions
from calico_core.model.hoststate import (
    AddressSet,
    HostChanges,
    HostRule,
    HostRules,
    HostState,
    HostWorkload,
    PolicyList,
    RulesId,
    SetChange,
    SetId,
)
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.node.flow_cutter import FlowCutter, Known, LookFailed, Touched, denied_now, rest_s
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from calico_core.policy.explain import Direction

RULES = RulesId("profile/web")
FRIENDS = SetId("sel-0123456789abcdef")
ONE, TWO, FRIEND, STRANGER = (IPAddress(f"10.65.0.{number}") for number in (1, 2, 9, 77))
HOST = IPAddress("192.0.2.1")
LIMIT = 3
"""Members of a set."""


def workload(name: str, address: IPAddress, rules: RulesId = RULES) -> HostWorkload:
    listed = PolicyList(profiles=(rules,))
    return HostWorkload(
        key=WorkloadEndpointKey("h", "cni", name, "eth0"),
        interface=f"cali{name}",
        is_active=True,
        nets=(IPNetwork(address),),
        inbound=listed,
        outbound=listed,
    )


def tcp(src: IPAddress, dst: IPAddress, port: int = 80, *, translated: IPAddress | None = None) -> Connection:
    return Connection(6, src, dst, 40000, port, translated or dst, src, port, 40000)


def rules(*inbound: HostRule, outbound: tuple[HostRule, ...] = (HostRule(action="allow"),)) -> HostRules:
    return HostRules(id=RULES, inbound=inbound, outbound=outbound)


WEB = HostRule(action="allow", protocol=6, dst_ports=((80, 80),))
START = HostChanges(
    is_complete=True,
    sets=(SetChange(id=FRIENDS, is_new=True, added=AddressSet.of([FRIEND, ONE])),),
    rules=(rules(WEB),),
    workloads=(workload("one", ONE), workload("two", TWO)),
)


@pytest.fixture
def dataplane() -> MemoryDataplane:
    made = MemoryDataplane(DataplaneOptions(host="h"))
    made.apply(START)
    return made


def judge(state: HostState, touched: Touched, *connections: Connection) -> list[Connection]:
    return denied_now(state, list(touched.concerns(state)), connections, frozenset({HOST}))


def after(dataplane: MemoryDataplane, **fields: Any) -> tuple[HostState, Touched]:
    changes = HostChanges(**fields)
    known, touched = Known(), Touched()
    known.note(dataplane_as_changes(dataplane))
    dataplane.apply(changes)
    touched.note(changes, known)
    return dataplane.wanted(), touched


def dataplane_as_changes(dataplane: MemoryDataplane) -> HostChanges:
    state = dataplane.wanted()
    return HostChanges(is_complete=True, workloads=tuple(state.workloads.values()), rules=tuple(state.rules.values()))


def test_what_is_permitted_goes_on_and_what_is_not_ends(dataplane: MemoryDataplane) -> None:
    state, touched = after(dataplane, rules=(rules(HostRule(action="allow", protocol=6, dst_ports=((443, 443),))),))
    denied = tcp(STRANGER, TWO)
    assert judge(state, touched, denied, tcp(STRANGER, TWO, 443)) == [denied]


def test_a_sender_is_judged_as_a_receiver_is(dataplane: MemoryDataplane) -> None:
    state, touched = after(dataplane, rules=(rules(WEB, outbound=()),))
    assert judge(state, touched, tcp(ONE, STRANGER)) == [tcp(ONE, STRANGER)]


def test_what_comes_from_a_prefix_is_judged_as_its_workloads(dataplane: MemoryDataplane) -> None:
    inside, beside = (IPAddress(f"198.51.{number}.7") for number in (100, 101))
    of_router = RulesId("profile/router")
    prefixes = (IPNetwork("198.51.100.0/24"), IPNetwork(TWO))
    router = msgspec.structs.replace(workload("router", FRIEND, of_router), allowed_source_prefixes=prefixes)
    dataplane.apply(HostChanges(workloads=(router,), rules=(HostRules(id=of_router, outbound=(WEB,)),)))
    less = HostRule(action="allow", dst_nets=(IPNetwork("192.0.2.0/24"),))
    state, touched = after(dataplane, rules=(HostRules(id=of_router, outbound=(less,)),))
    denied = tcp(inside, STRANGER)
    others = (tcp(inside, IPAddress("192.0.2.9")), tcp(beside, STRANGER), tcp(TWO, STRANGER))
    assert judge(state, touched, denied, *others) == [denied]


@pytest.mark.parametrize("is_active", [True, False])
def test_what_another_record_says_of_an_address_ends_no_connection(dataplane: MemoryDataplane, is_active: bool) -> None:
    """As while a workload moves: who has the address is judged, and the other one is closed by the address."""
    other = msgspec.structs.replace(workload("zzz", ONE), is_active=True)
    dataplane.apply(HostChanges(workloads=(other,)))
    closed = msgspec.structs.replace(other, is_active=is_active, inbound=PolicyList(), outbound=PolicyList())
    state, touched = after(dataplane, workloads=(closed,))
    assert judge(state, touched, tcp(STRANGER, ONE)) == []
    state, touched = after(dataplane, removed_workloads=(workload("one", ONE).key,), workloads=(closed, other))
    state, touched = after(dataplane, workloads=(closed,))
    assert judge(state, touched, tcp(STRANGER, ONE)) == [tcp(STRANGER, ONE)]


def test_an_address_is_judged_as_that_of_who_has_it_while_the_first_is_down(dataplane: MemoryDataplane) -> None:
    """A record of a workload that is gone shuts nobody off, and does not keep anybody's connections alive."""
    stale, living = workload("one", ONE), workload("zzz", ONE)
    closed: dict[str, Any] = {"inbound": PolicyList(), "outbound": PolicyList()}
    dataplane.apply(HostChanges(workloads=(living,)))
    for denies, cut in ((stale, []), (living, [tcp(STRANGER, ONE)])):
        state, touched = after(dataplane, workloads=(msgspec.structs.replace(denies, **closed),))
        concerned = list(touched.concerns(state))
        assert denied_now(state, concerned, [tcp(STRANGER, ONE)], frozenset(), down=frozenset({"calione"})) == cut
        dataplane.apply(HostChanges(workloads=(denies,)))


def test_where_workloads_have_no_ipv6_all_of_theirs_is_denied(dataplane: MemoryDataplane) -> None:
    """Whatever policy says of it; what is between others, or the host's own, is not looked at."""
    own, other, host = (IPAddress(f"fd65::{last}") for last in ("1", "9", "77"))
    state, _ = after(dataplane, rules=(rules(HostRule(action="allow")),), workloads=(workload("six", own),))
    both: list[tuple[HostWorkload, Direction]] = []
    for each in state.workloads.values():
        both += [(each, "inbound"), (each, "outbound")]
    flows = [tcp(own, other), tcp(other, own), tcp(other, other), tcp(host, own), tcp(ONE, TWO)]
    assert denied_now(state, both, flows, frozenset({host})) == []
    assert denied_now(state, both, flows, frozenset({host}), has_ipv6=False) == flows[:2]


def test_the_host_is_never_cut_off(dataplane: MemoryDataplane) -> None:
    state, touched = after(dataplane, rules=(rules(outbound=()),))
    assert judge(state, touched, tcp(HOST, TWO), tcp(TWO, HOST)) == []


def test_translation_is_seen_through(dataplane: MemoryDataplane) -> None:
    floating = IPAddress("203.0.113.9")
    state, touched = after(dataplane, rules=(rules(HostRule(action="allow", src_sets=(FRIENDS,))),))
    cut, kept = tcp(STRANGER, floating, translated=TWO), tcp(FRIEND, floating, translated=TWO)
    assert judge(state, touched, cut, kept) == [cut]


def test_a_member_that_leaves_a_set_is_cut_and_others_are_not_asked(dataplane: MemoryDataplane) -> None:
    other = RulesId("profile/other")
    after(
        dataplane,
        rules=(rules(HostRule(action="allow", src_sets=(FRIENDS,))), HostRules(id=other)),
        workloads=(workload("three", STRANGER, other),),
    )
    gone = SetChange(id=FRIENDS, removed=AddressSet.of([FRIEND]))
    state, touched = after(dataplane, sets=(gone,))
    assert {each.key.workload for each, _ in touched.concerns(state)} == {"one", "two"}
    assert judge(state, touched, tcp(FRIEND, TWO), tcp(ONE, TWO)) == [tcp(FRIEND, TWO)]


@pytest.mark.parametrize(
    ("rule", "gain", "loss"),
    [
        (HostRule(action="allow", src_sets=(FRIENDS,)), False, True),
        (HostRule(action="allow", not_dst_sets=(FRIENDS,)), True, False),
        (HostRule(action="deny", dst_sets=(FRIENDS,)), True, False),
        (HostRule(action="reject", not_src_sets=(FRIENDS,)), False, True),
        (HostRule(action="pass", src_sets=(FRIENDS,)), True, True),
        (HostRule(action="log", src_sets=(FRIENDS,)), False, False),
    ],
)
def test_only_a_set_that_permits_less_or_denies_more_is_a_reason(
    dataplane: MemoryDataplane, rule: HostRule, gain: bool, loss: bool
) -> None:
    after(dataplane, rules=(rules(rule, outbound=()),))
    gained = SetChange(id=FRIENDS, added=AddressSet.of([STRANGER]))
    lost = SetChange(id=FRIENDS, removed=AddressSet.of([STRANGER]))
    for change, is_reason in ((gained, gain), (lost, loss)):
        state, touched = after(dataplane, sets=(change,))
        assert bool(list(touched.concerns(state))) is is_reason


def test_echoes_are_judged_by_type_and_code(dataplane: MemoryDataplane) -> None:
    state, touched = after(dataplane, rules=(rules(HostRule(action="allow", protocol=1, icmp=(8, 0))),))
    ping, other = (Connection(1, STRANGER, TWO, kind, 0, TWO, STRANGER, 0, 0) for kind in (8, 13))
    assert judge(state, touched, ping, other) == [other]


def test_what_changes_nothing_for_policy_is_no_reason_to_look() -> None:
    known, touched = Known(), Touched()
    assert not touched.note(HostChanges(removed_workloads=(workload("one", ONE).key,)), known)
    assert not touched.note(HostChanges(sets=(SetChange(id=FRIENDS, is_new=True),)), known)
    assert touched.note(START, known)


def test_a_new_workload_has_no_connections_to_judge_and_a_changed_one_has() -> None:
    new = HostChanges(rules=(rules(),), workloads=(workload("one", ONE),))
    known, touched = Known(), Touched()
    assert not touched.note(new, known)
    known.note(new)
    assert touched.note(new, known)
    known.note(HostChanges(removed_workloads=(workload("one", ONE).key,), removed_rules=(rules().id,)))
    assert not Touched().note(new, known)


class Busy(MemoryDataplane):
    """Its connection table cannot be read, or not written, at the first attempt."""

    def __init__(self, refuses: str) -> None:
        super().__init__(DataplaneOptions(host="h"))
        self.refuses, self.refusals = refuses, 1

    def connections(self) -> tuple[Connection, ...]:
        self._maybe_refuse("read")
        return super().connections()

    def cut(self, connections: Iterable[Connection]) -> int:
        self._maybe_refuse("write")
        return super().cut(connections)

    def _maybe_refuse(self, what: str) -> None:
        if what == self.refuses and self.refusals:
            self.refusals -= 1
            raise KernelRefused(f"{what} conntrack", errno.ENOBUFS)


@pytest.mark.parametrize("refuses", ["read", "write"])
def test_what_could_not_be_judged_is_judged_with_the_next_look(refuses: str) -> None:
    dataplane = Busy(refuses)
    dataplane.apply(START)
    dataplane.connect(tcp(STRANGER, ONE))
    failed: SimpleQueue[LookFailed] = SimpleQueue()
    cutter = FlowCutter(dataplane, failed.put, max_set_size=LIMIT)
    cutter.note(HostChanges(rules=START.rules, workloads=START.workloads), 0.0)
    cutter.start()
    try:
        changes = HostChanges(rules=(rules(),))
        dataplane.apply(changes)
        cutter.note(changes, time.monotonic())
        cutter.look(dataplane.wanted(), frozenset())
        left = failed.get(timeout=20)
        now = time.monotonic()
        assert cutter.next_look(now) is None
        cutter.take_back(left, now)
        again = cutter.next_look(now)
        assert again is not None
        assert again > now  # not at once
        assert cutter.wants(again)
        cutter.look(dataplane.wanted(), frozenset())
        eventually(lambda: MemoryDataplane.connections(dataplane) == ())
        assert failed.empty()
    finally:
        cutter.stop()


@pytest.fixture
def cutter(dataplane: MemoryDataplane) -> Iterator[FlowCutter]:
    made = FlowCutter(dataplane, lambda failed: pytest.fail(str(failed)), max_set_size=LIMIT)
    made.note(HostChanges(rules=START.rules, workloads=START.workloads), 0.0)
    made.start()
    yield made
    made.stop()


def test_changes_gather_and_one_look_ends_what_is_denied(dataplane: MemoryDataplane, cutter: FlowCutter) -> None:
    kept, cut = tcp(STRANGER, ONE, 443), tcp(STRANGER, ONE)
    dataplane.connect(kept)
    dataplane.connect(cut)
    assert cutter.next_look(100.0) is None
    changes = HostChanges(rules=(rules(HostRule(action="allow", protocol=6, dst_ports=((443, 443),))),))
    dataplane.apply(changes)
    cutter.note(changes, 100.0)
    assert not cutter.wants(100.0)
    at = cutter.next_look(100.0)
    assert at is not None
    assert cutter.wants(at)
    cutter.look(dataplane.wanted(), frozenset())
    eventually(lambda: cut not in dataplane.connections())
    assert dataplane.connections() == (kept,)
    assert cutter.next_look(200.0) is None


@pytest.mark.parametrize(("took_s", "rests_s"), [(0.0001, 0.0099), (0.011, 1.0), (0.1, 1.0), (0.5, 4.5)])
def test_changes_that_follow_on_each_other_leave_the_connection_table_alone_meanwhile(
    took_s: float, rests_s: float
) -> None:
    assert rest_s(took_s) == pytest.approx(rests_s)


@pytest.mark.parametrize("action", ["log", "allow", "deny"])
def test_a_set_that_grows_beyond_its_limit_ends_what_its_rules_now_deny(
    dataplane: MemoryDataplane, cutter: FlowCutter, action: Any
) -> None:
    named = HostChanges(rules=(rules(HostRule(action=action, dst_sets=(FRIENDS,), protocol=17), WEB),))
    dataplane.apply(named)
    cutter.note(named, 0.0)
    dataplane.connect(tcp(STRANGER, ONE))
    known, touched = Known(), Touched()
    known.note(dataplane_as_changes(dataplane))
    more = HostChanges(sets=(SetChange(id=FRIENDS, added=AddressSet.of([STRANGER, TWO])),))
    dataplane.apply(more)
    touched.note(more, known)
    assert bool(list(touched.concerns(dataplane.wanted()))) is (action == "deny")  # were it for the rule alone
    cutter.note(more, 0.0)
    assert cutter.wants(time.monotonic())
    cutter.look(dataplane.wanted(), frozenset())
    eventually(lambda: dataplane.connections() == ())
