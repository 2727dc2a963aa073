"""Host endpoints: from an interface of the host to the lists of policies that hold there. Pure.

Trees, jumps and fail-safe chains of a kind stand only while some interface needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.host_hooks import earlier, is_asked
from calico_core.dataplane.iptables import layout
from calico_core.dataplane.iptables.layout import FAILSAFE, NO_TRACK, Purpose
from calico_core.dataplane.iptables.names import FILTER, MANGLE, RAW
from calico_core.dataplane.iptables.policy_chains import rules_in
from calico_core.dataplane.iptables.trees import Trees
from calico_core.dataplane.iptables.verdicts import RETURN
from calico_core.errors import InvalidRequest
from calico_core.interfaces.dataplane import DenialOrigin
from calico_core.model.hoststate import ANY_INTERFACE, HostInterface, PolicyList
from calico_core.model.ids import check_host_interface

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from calico_core.dataplane.host_hooks import Place
    from calico_core.dataplane.iptables.desired import Desired
    from calico_core.dataplane.iptables.layout import Direction, Layout
    from calico_core.dataplane.iptables.policy_chains import PolicyChains
    from calico_core.dataplane.reconcile import Chain
    from calico_core.model.hoststate import RulesId


class _Hook(msgspec.Struct, frozen=True):
    """One kind of tree: where it stands, and what leads to it."""

    root: str
    option: str
    table: str


_IN, _OUT = _Hook("calico-hfrom", "-i", FILTER), _Hook("calico-hto", "-o", FILTER)
_FORWARD_IN, _FORWARD_OUT = _Hook("calico-vfrom", "-i", FILTER), _Hook("calico-vto", "-o", FILTER)
_EARLY_IN, _EARLY_OUT = _Hook("calico-ufrom", "-i", RAW), _Hook("calico-uto", "-o", RAW)
_PRE_DNAT = _Hook("calico-dfrom", "-i", MANGLE)
_PLACES: tuple[tuple[Place, _Hook, Purpose], ...] = (
    ("inbound", _IN, layout.HOST_IN),
    ("outbound", _OUT, layout.HOST_OUT),
    ("forward_inbound", _FORWARD_IN, layout.FORWARD_IN),
    ("forward_outbound", _FORWARD_OUT, layout.FORWARD_OUT),
    ("untracked_inbound", _EARLY_IN, layout.UNTRACKED_IN),
    ("untracked_outbound", _EARLY_OUT, layout.UNTRACKED_OUT),
    ("pre_dnat", _PRE_DNAT, layout.PRE_DNAT),
)
_HOOKS = tuple(hook for _, hook, _ in _PLACES)
#: By table and chain of ours: the tree, and whether workloads have rules of their own before.
_STEPS = {
    (FILTER, "calico-INPUT"): (_IN, True),
    (FILTER, "calico-OUTPUT"): (_OUT, False),
    (RAW, "calico-PREROUTING"): (_EARLY_IN, True),
    (RAW, "calico-OUTPUT"): (_EARLY_OUT, False),
    (MANGLE, "calico-PREROUTING"): (_PRE_DNAT, False),
}
#: The interface that no endpoint is for unless it is named: the host's talk with itself.
_LOOPBACK = "lo"
_CLOSED = "calico-hclosed"
#: The lists that an IPv6 packet meets where there is no policy of it, and the chain in their place.
_WITHOUT_IPV6 = {
    _IN: (layout.HOST_IN, "calico-no6-in"),
    _OUT: (layout.HOST_OUT, "calico-no6-out"),
    _FORWARD_IN: (layout.FORWARD_IN, "calico-no6-fwd-in"),
    _FORWARD_OUT: (layout.FORWARD_OUT, "calico-no6-fwd-out"),
}


#: Where workloads' interfaces begin in several ways: the chain that asks whether one is none of these.
_FORWARD = {_FORWARD_IN: "calico-fwd-from", _FORWARD_OUT: "calico-fwd-to"}


class _Placed(msgspec.Struct, frozen=True):
    """By hook: the chain of the interface's list, and what the list is for (None: the chain that only drops)."""

    chains: tuple[tuple[_Hook, str, Purpose | None], ...]


class HostChains:
    """One thread. ``problems`` and ``closed``: reasons by subject, shared with the caller. ``has_closed_ipv6``: the
    kernel speaks it and policy is not for it, so that it passes fail-safe ports alone."""

    def __init__(
        self,
        desired: Desired,
        chains: PolicyChains,
        layouts: Layout,
        problems: dict[str, str],
        closed: Mapping[str, str],
        *,
        has_closed_ipv6: bool = False,
    ) -> None:
        self._desired, self._chains, self._layout = desired, chains, layouts
        self._has_closed_ipv6 = has_closed_ipv6
        self._problems, self._closed = problems, closed
        self._interfaces: dict[str, HostInterface] = {}
        self._named: dict[str, frozenset[RulesId]] = {}
        self._placed: dict[str, _Placed] = {}
        self._trees = Trees(desired)
        self._is_dirty = True

    def put(self, interface: HostInterface) -> None:
        before = self._interfaces.get(interface.interface)
        self._interfaces[interface.interface] = interface
        self._named[interface.interface] = frozenset(each for one in _lists(interface) for each in rules_in(one))
        if before is not None and before.key != interface.key:
            self._forget_problem(before)
        self._is_dirty |= before is None or before.spares != interface.spares
        self.place(interface.interface)

    def drop(self, name: str) -> None:
        gone = self._interfaces.pop(name, None)
        if gone is not None:
            del self._named[name]
            self._forget_problem(gone)
            self.place(name)

    def place_users(self, rules_id: RulesId) -> None:
        """The rules came or went: interfaces whose lists name them open or close."""
        for name in sorted(name for name, named in self._named.items() if rules_id in named):
            self.place(name)

    def needs(self, hooks: Iterable[str]) -> bool:
        """Whether one of these trees stands."""
        return any(hook.root in hooks for placed in self._placed.values() for hook, _, _ in placed.chains)

    def place(self, name: str) -> None:
        """Write anew what belongs to the interface."""
        interface = self._interfaces.get(name)
        before = self._placed.pop(name, None)
        after = self._place(interface) if interface is not None else None
        if after is not None:
            self._placed[name] = after
        # only now, so that a list both name stays
        for _, chain, purpose in before.chains if before is not None else ():
            if purpose is not None:
                self._chains.free_list(chain, purpose)
        self._is_dirty = self._is_dirty or before != after

    def finish(self) -> bool:
        """Bring trees and fail-safe chains in line; whether anything may have changed."""
        if not self._is_dirty:
            return False
        self._is_dirty = False
        for family in self._layout.families:
            for hook in _HOOKS:
                self._put_tree(hook, family, self._targets(hook))
            self._put_shared(family)
        if self._has_closed_ipv6:
            self._put_closed_ipv6()
        return True

    # --- one interface ----------------------------------------------------------------------------

    def _place(self, interface: HostInterface) -> _Placed | None:
        subject = interface.key.path
        self._problems.pop(subject, None)
        try:
            self._check_name(interface.interface)
        except InvalidRequest as error:
            self._problems[subject] = f"{error}; no policy holds there"
            return None
        missing = sorted(each for each in self._named[interface.interface] if each not in self._chains)
        if missing:
            self._problems[subject] = f"policies: there are no rules for {', '.join(missing)}; it is closed"
        if missing or subject in self._closed:
            return self._closed_interface(interface)
        found: list[tuple[_Hook, str, Purpose | None]] = []
        for hook, policies, purpose in _wanted(interface):
            found.append((hook, self._chains.use_list(policies, purpose), purpose))
        return _Placed(tuple(found))

    def _closed_interface(self, interface: HostInterface) -> _Placed:
        """Fail-safe ports alone; nothing is forwarded where forwarding was under policy."""
        found: list[tuple[_Hook, str, Purpose | None]] = []
        for hook, policies, purpose in _wanted(HostInterface(key=interface.key, interface=interface.interface)):
            found.append((hook, self._chains.use_list(policies, purpose), purpose))
        if interface.forward_inbound.tiers:
            found.append((_FORWARD_IN, _CLOSED, None))
        if interface.forward_outbound.tiers:
            found.append((_FORWARD_OUT, _CLOSED, None))
        return _Placed(tuple(found))

    def _check_name(self, name: str) -> None:
        if name == ANY_INTERFACE:
            return
        check_host_interface(name, field="interface")
        if name.startswith(self._layout.options.interface_prefixes):
            raise InvalidRequest("interface", f"{name!r} is a workload's: it starts with the workloads' prefix")

    def _forget_problem(self, interface: HostInterface) -> None:
        self._problems.pop(interface.key.path, None)

    # --- all together -----------------------------------------------------------------------------

    def _targets(self, hook: _Hook) -> dict[str, str]:
        """By interface: its chain at the hook."""
        return {
            name: chain for name, placed in self._placed.items() for each, chain, _ in placed.chains if each == hook
        }

    def _put_tree(self, hook: _Hook, family: int, chains: Mapping[str, str]) -> None:
        where = (family, hook.table)
        targets = {name: f"-g {chain}" for name, chain in chains.items()}
        if hook in _FORWARD and len(self._layout.workloads) > 1:
            steps = layout.chain([*self._passed_over(hook), f"-g {hook.root}"])
            self._put(where, _FORWARD[hook], steps if targets else None)
        if not targets:
            self._trees.drop(where, hook.root)
            return
        miss = targets.pop(ANY_INTERFACE, RETURN)
        if miss != RETURN:
            # an interface with an endpoint of its own is not the business of the one for all others
            spared = (_LOOPBACK, *self._interfaces[ANY_INTERFACE].spares)
            others = {name: RETURN for name in (*self._placed, *spared) if name != ANY_INTERFACE}
            targets = {**others, **targets}
        self._trees.put(where, hook.root, hook.option, targets, [miss])

    def _put_closed_ipv6(self) -> None:
        for hook, (purpose, name) in _WITHOUT_IPV6.items():
            chains = dict.fromkeys(self._targets(hook), name)
            self._put((6, FILTER), name, self._layout.no_ipv6_chain(purpose) if chains else None)
            self._put_tree(hook, 6, chains)
        self._put_failsafe((_IN, _OUT), 6)

    def _put_shared(self, family: int) -> None:
        is_closed = any(chain == _CLOSED for placed in self._placed.values() for _, chain, _ in placed.chains)
        denial = self._layout.verdicts(family).deny("", DenialOrigin(reason="host endpoint is closed"), note="closed")
        self._put((family, FILTER), _CLOSED, layout.chain(denial) if is_closed else None)
        early = self.needs({_EARLY_IN.root, _EARLY_OUT.root})
        self._put((family, RAW), NO_TRACK, self._layout.no_track_chain() if early else None)
        self._put_failsafe((_IN, _EARLY_IN, _PRE_DNAT, _OUT, _EARLY_OUT), family)

    def _put_failsafe(self, hooks: Iterable[_Hook], family: int) -> None:
        for hook in hooks:
            direction: Direction = "inbound" if hook.option == "-i" else "outbound"
            wanted = self._layout.failsafe_chain(direction, family, hook.table) if self.needs({hook.root}) else None
            self._put((family, hook.table), FAILSAFE[direction], wanted)

    def _put(self, where: tuple[int, str], name: str, chain: Chain | None) -> None:
        standing = self._desired.tables[where].chains
        if chain is None:
            if name in standing:
                self._desired.drop_chain(where, name)
        elif standing.get(name) != chain:
            self._desired.put_chain(where, name, chain)

    # --- what leads to them -----------------------------------------------------------------------

    def steps(self, family: int, table: str, base: str) -> list[str]:
        """The rules for the chain of ours at this hook, after those for workloads; none when nothing needs them."""
        if (table, base) not in _STEPS:
            return []  # none is asked there, or not last
        hook, is_for_workloads = _STEPS[table, base]
        if not self.needs({hook.root}) or not self._stands(hook, family):
            return []
        # elsewhere a workload's packets are gone by then
        skip = [] if is_for_workloads else self._passed_over(hook)
        return [*skip, f"-g {hook.root}"]

    def forward_steps(self, family: int) -> tuple[list[str], list[str]]:
        """The rules for what is forwarded, before those for workloads and after them; none when no interface has
        forward policy."""
        if not self._stands(_FORWARD_IN, family):
            return [], []
        entering, leaving = self._forward_step(_FORWARD_IN), self._forward_step(_FORWARD_OUT)
        # earlier policy may have left its mark for these trees
        keeps_marks = self.needs({_EARLY_IN.root, _PRE_DNAT.root})
        if (entering or leaving) and not keeps_marks:
            entering = [self._layout.verdicts(family).clear_marks, *entering]
        return entering, leaving

    def _stands(self, hook: _Hook, family: int) -> bool:
        """Whether there are trees of the kind in the family at all."""
        return family in self._layout.families or (self._has_closed_ipv6 and hook in _WITHOUT_IPV6)

    def _forward_step(self, hook: _Hook) -> list[str]:
        if not self.needs({hook.root}):
            return []
        workloads = self._layout.workloads
        return [f"! {hook.option} {workloads[0]} -j {hook.root}" if len(workloads) == 1 else f"-j {_FORWARD[hook]}"]

    def _passed_over(self, hook: _Hook) -> list[str]:
        return [f"{hook.option} {each} {RETURN}" for each in self._layout.workloads]


def _lists(interface: HostInterface) -> tuple[PolicyList, ...]:
    return tuple(getattr(interface, place) for place, _, _ in _PLACES)


def _wanted(interface: HostInterface) -> list[tuple[_Hook, PolicyList, Purpose]]:
    return [
        (hook, policies, layout.after_early(purpose, **earlier(place, interface)._asdict()))
        for place, hook, purpose in _PLACES
        if is_asked(place, policies := getattr(interface, place))
    ]
