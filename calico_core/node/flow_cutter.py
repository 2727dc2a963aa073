"""Connections that policy denies by now: found and forgotten, so that a change holds for them too.

The kernel decides about a connection once, at its first packet; without this, what was permitted then goes on as long
as it likes (so it does in the reference system). After a change the connections of the workloads concerned are judged
again, and those that are denied are deleted from the connection table: their next packet is a first one.

The engine thread notes changes and hands over a copy of the state; a thread of its own reads the table and judges.
While the kernel goes through its table, whoever attaches waits: where changes follow on each other, a hundredth of the
time goes into it, or one look a second, and where a look takes long a tenth. Connections that the host itself is an end
of are left alone.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from netaddr import IPAddress

from calico_core.errors import CalicoError
from calico_core.interfaces.dataplane import Connection, Dataplane
from calico_core.log import get_logger
from calico_core.model.addresses import contains
from calico_core.model.hoststate import (
    HostChanges,
    HostRule,
    HostState,
    HostWorkload,
    PolicyList,
    PortSetChange,
    RulesId,
    SetChange,
    SetId,
)
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.rules import PORT_PROTOCOLS, PROTOCOLS
from calico_core.node.mailbox import LatestSlot
from calico_core.policy.compiled import Evaluator
from calico_core.policy.explain import Direction, Packet
from calico_core.policy.set_limit import close_rules, sets_beyond

_GATHER_S = 0.05
_REST = 9
"""So many times as long as a look took, the next one is not begun at least."""
_SHORT_REST = 99
_SHORT_REST_MAX_S = 1.0
_ICMP = frozenset({PROTOCOLS["icmp"], PROTOCOLS["icmpv6"]})
_RETRY_FIRST_S = 1.0
_RETRY_MAX_S = 60.0
_STOP_WAIT_S = 5.0

log = get_logger(__name__)


class Known:
    """What stood before a change. A workload that was not there has no connections: those of its address ended with
    whoever had it before. Rules that were not there are new to workloads that are new or judged themselves."""

    def __init__(self) -> None:
        self.workloads: set[WorkloadEndpointKey] = set()
        self.rules: set[RulesId] = set()

    def note(self, changes: HostChanges) -> None:
        if changes.is_complete:
            self.workloads.clear()
            self.rules.clear()
        self.workloads.update(workload.key for workload in changes.workloads)
        self.rules.update(rules.id for rules in changes.rules)
        self.workloads.difference_update(changes.removed_workloads)
        self.rules.difference_update(changes.removed_rules)


class Touched:
    """What changed since the last look. ``is_all``: everything may have."""

    def __init__(self) -> None:
        self.is_all = False
        self.workloads: set[WorkloadEndpointKey] = set()
        self.rules: set[RulesId] = set()
        self.gained: set[SetId] = set()
        self.lost: set[SetId] = set()

    def note(self, changes: HostChanges, known: Known) -> bool:
        """Whether any of it may deny what was permitted."""
        self.is_all |= changes.is_complete
        self.workloads.update(known.workloads.intersection(workload.key for workload in changes.workloads))
        self.rules.update(known.rules.intersection(rules.id for rules in changes.rules))
        sets: tuple[SetChange | PortSetChange, ...] = (*changes.sets, *changes.port_sets)
        for change in sets:
            if not change.is_new:
                self.gained.update((change.id,) if change.added else ())
                self.lost.update((change.id,) if change.removed else ())
        return self.is_all or bool(self.workloads or self.rules or self.gained or self.lost)

    def add(self, other: Touched) -> None:
        self.is_all |= other.is_all
        self.workloads |= other.workloads
        self.rules |= other.rules
        self.gained |= other.gained
        self.lost |= other.lost

    def concerns(self, state: HostState, closed: Collection[SetId] = ()) -> Iterator[tuple[HostWorkload, Direction]]:
        """The directions of workloads whose verdicts may be others now, and be denials. ``closed``: sets that have so
        many members that rules which name one deny (ADR 11)."""
        rules = self.rules | {
            rules.id
            for rules in (state.rules.values() if self.gained or self.lost else ())
            if not rules.is_staged
            if any(self._may_deny(rule, closed) for rule in (*rules.inbound, *rules.outbound))
        }
        for workload in state.workloads.values():
            is_touched = self.is_all or workload.key in self.workloads
            if is_touched or not rules.isdisjoint(_rules_in(workload.outbound)):
                yield workload, "outbound"
            if is_touched or not rules.isdisjoint(_rules_in(workload.inbound)):
                yield workload, "inbound"

    def _may_deny(self, rule: HostRule, closed: Collection[SetId]) -> bool:
        """Whether its sets changed so that something it permitted may be denied: it permits less, or denies more."""
        if any(each in closed for each in (*rule.sets, *rule.port_sets) if each in self.gained):
            return True
        if rule.action == "log":
            return False
        asked = {*rule.src_sets, *rule.dst_sets, *rule.src_port_sets, *rule.dst_port_sets}
        refused = {*rule.not_src_sets, *rule.not_dst_sets, *rule.not_src_port_sets, *rule.not_dst_port_sets}
        matches_less = not (self.lost.isdisjoint(asked) and self.gained.isdisjoint(refused))
        matches_more = not (self.gained.isdisjoint(asked) and self.lost.isdisjoint(refused))
        return (matches_less and rule.action in ("allow", "pass")) or (matches_more and rule.action != "allow")


class LookFailed(NamedTuple):
    """Of the changes ``touched``, nobody knows yet which connections they deny."""

    touched: Touched


class _Look(NamedTuple):
    state: HostState
    touched: Touched
    own: frozenset[IPAddress]


class FlowCutter:
    """``note`` and ``next_look`` are the engine thread's, which asks ``wants`` and then calls ``look``. A look that
    failed goes to ``on_failure``, in the thread of the cutter, for the engine to ``take_back``."""

    def __init__(
        self,
        dataplane: Dataplane,
        on_failure: Callable[[LookFailed], None],
        *,
        max_set_size: int,
        has_ipv6: bool = True,
    ) -> None:
        """``max_set_size`` and ``has_ipv6``: as ``DataplaneOptions`` has them."""
        self._dataplane, self._on_failure, self._max_set_size = dataplane, on_failure, max_set_size
        self._has_ipv6 = has_ipv6
        self._known = Known()
        self._touched = Touched()
        self._due: float | None = None
        self._rest_until = 0.0
        self._slot: LatestSlot[_Look] = LatestSlot()
        self._is_looking = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flow-cutter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._slot.close()
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def note(self, changes: HostChanges, now: float) -> None:
        if self._touched.note(changes, self._known) and self._due is None:
            self._due = now + _GATHER_S
        self._known.note(changes)

    def take_back(self, failed: LookFailed, now: float) -> None:
        """What it was to judge is judged again, with what changes until then."""
        self._touched.add(failed.touched)
        if self._due is None:
            self._due = now

    def next_look(self, now: float) -> float | None:
        """When to ask again; None: nothing has changed."""
        if self._due is None:
            return None
        return now + _GATHER_S if self._is_looking else max(self._due, self._rest_until)

    def wants(self, now: float) -> bool:
        at = self.next_look(now)
        return at is not None and at <= now

    def look(self, state: HostState, own: frozenset[IPAddress]) -> None:
        """``state`` is a copy; ``own``: the addresses of the host itself."""
        touched, self._touched, self._due = self._touched, Touched(), None
        self._is_looking = True
        self._slot.put(_Look(state, touched, own))

    # --- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        retry_s = 0.0
        while not self._stopping.is_set():
            look = self._slot.take(None)
            if look is None:
                continue
            started = time.monotonic()
            try:
                self._judge(look)
                retry_s = 0.0
            except Exception as error:
                retry_s = min(max(retry_s * 2, _RETRY_FIRST_S), _RETRY_MAX_S)
                if isinstance(error, CalicoError):
                    log.warning("flows.not_judged", reason=str(error), retry_s=retry_s)
                else:
                    log.exception("flows.not_judged", retry_s=retry_s)
            now = time.monotonic()
            self._rest_until = now + max(rest_s(now - started), retry_s)
            self._is_looking = False
            if retry_s:
                self._on_failure(LookFailed(look.touched))

    def _judge(self, look: _Look) -> None:
        closed = sets_beyond(look.state, self._max_set_size)
        concerned = list(look.touched.concerns(look.state, closed))
        if not concerned:
            return
        if closed:
            close_rules(look.state, self._max_set_size)
        connections = self._dataplane.connections()
        down = self._dataplane.interfaces_down()
        denied = denied_now(look.state, concerned, connections, look.own, has_ipv6=self._has_ipv6, down=down)
        if denied:
            count = self._dataplane.cut(denied)
            log.info("flows.cut", connections=count, first=_text(denied[0]))


def rest_s(took_s: float) -> float:
    """Until the next look begins at the earliest, after one that took so long."""
    return max(_REST * took_s, min(_SHORT_REST * took_s, _SHORT_REST_MAX_S))


def denied_now(
    state: HostState,
    concerned: Collection[tuple[HostWorkload, Direction]],
    connections: Iterable[Connection],
    own: frozenset[IPAddress],
    *,
    has_ipv6: bool = True,
    down: frozenset[str] = frozenset(),
) -> list[Connection]:
    """The connections that one of these directions denies; where workloads have no IPv6, any of it does. Translation is
    seen through: policy knows the sender's address before it, and the receiver's after it. What comes from a prefix
    that a workload may send from, and from no workload's own address, is taken for that workload's: nobody can tell,
    and what is cut in vain begins again. ``down``: see ``Evaluator``."""
    judges: dict[Direction, defaultdict[IPAddress, list[HostWorkload]]] = {
        "inbound": defaultdict(list),
        "outbound": defaultdict(list),
    }
    evaluator = Evaluator(state, down)
    for workload, direction in concerned:
        for net in workload.nets:
            if evaluator.holder(net) is workload:  # what another record says of the address has no say
                judges[direction][net.ip].append(workload)
    outbound, inbound = judges["outbound"], judges["inbound"]
    foreign = _ForeignSources(state, (each for each, direction in concerned if direction == "outbound"))
    found = []
    for connection in connections:
        sender, receiver = connection.src, connection.reply_src
        if foreign.prefixes and sender not in outbound and (senders := foreign.senders(sender)):
            outbound[sender] = senders
        if (sender not in outbound and receiver not in inbound) or sender in own or receiver in own:
            continue
        if sender.version == 6 and not has_ipv6:
            found.append(connection)
            continue
        packet = _packet(connection)
        sides: list[tuple[Direction, HostWorkload]] = [("outbound", each) for each in outbound.get(sender, ())]
        sides += [("inbound", each) for each in inbound.get(receiver, ())]
        if any(evaluator.explain_side(each, direction, packet)[-1].outcome == "deny" for direction, each in sides):
            found.append(connection)
    return found


class _ForeignSources:
    """Who may have sent what no workload of the host has the address of."""

    def __init__(self, state: HostState, workloads: Iterable[HostWorkload]) -> None:
        self.prefixes = [(net, each) for each in workloads for net in each.allowed_source_prefixes]
        known = state.workloads.values() if self.prefixes else ()
        self._own = {net.ip for each in known for net in each.nets}

    def senders(self, address: IPAddress) -> list[HostWorkload]:
        if address in self._own:
            return []
        return [workload for net, workload in self.prefixes if contains(net, address)]


def _packet(connection: Connection) -> Packet:
    """Its first one, as policy saw it."""
    protocol = connection.protocol
    has_ports = protocol in PORT_PROTOCOLS
    return Packet(
        src=connection.src,
        dst=connection.reply_src,
        protocol=protocol,
        src_port=connection.src_port if has_ports else None,
        dst_port=connection.reply_src_port if has_ports else None,
        icmp=(connection.src_port, connection.dst_port) if protocol in _ICMP else None,
    )


def _rules_in(policies: PolicyList) -> Iterator[RulesId]:
    for tier in policies.tiers:
        yield from tier.policies
    yield from policies.profiles


def _text(connection: Connection) -> str:
    return f"{connection.src} > {connection.dst} protocol {connection.protocol} port {connection.dst_port}"
