"""From :class:`HostState` to the table the kernel shall hold, kept up batch by batch.

Pure. :meth:`TableBuilder.update` takes one batch and says which chains and sets it touched, so that the driver
compares those alone. Endpoints with equal lists of policies share one chain, named by the list's content; an endpoint
more is then a few set elements.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from calico_core.dataplane.claims import Claims
from calico_core.dataplane.nftables import layout
from calico_core.dataplane.nftables.elements import merge_ranges, no_elements
from calico_core.dataplane.nftables.names import digest, kernel_name
from calico_core.dataplane.nftables.rules import DROP, render_rule
from calico_core.dataplane.reconcile import Chain, NamedSet, Table
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import WIDTH
from calico_core.model.ids import check_interface

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from calico_core.interfaces.dataplane import DataplaneOptions
    from calico_core.model.hoststate import (
        AddressSet,
        HostChanges,
        HostPools,
        HostRule,
        HostRules,
        HostState,
        HostWorkload,
        PolicyList,
        RulesId,
        SetId,
    )
    from calico_core.model.keys import WorkloadEndpointKey

POOLS = "pools"
_DIRECTIONS = ("in", "out")


class _Placed(msgspec.Struct, frozen=True):
    """What one interface contributes: elements by set, and the list chains it needs."""

    subject: str
    elements: tuple[tuple[str, Any], ...]
    chains: tuple[str, ...]


class TableBuilder:
    """The desired table of one host. One thread.

    *Subjects* name what can fail by itself, as reports do: a workload by its key's path, rules and sets by their id,
    ``pools``. A closed subject stays wanted: its workload has no way in or out, its rules drop.
    """

    def __init__(self, options: DataplaneOptions) -> None:
        self._options = options
        self.families: tuple[int, ...] = (4, 6) if options.is_ipv6_enabled else (4,)
        self.problems: dict[str, str] = {}
        self._closed: dict[str, str] = {}
        self._rules: dict[RulesId, HostRules] = {}
        self._set_names: dict[SetId, dict[int, str]] = {}
        self._set_users: defaultdict[SetId, set[RulesId]] = defaultdict(set)
        self._lists: Counter[str] = Counter()
        self._claims = Claims()
        self._placed: dict[str, _Placed] = {}
        self._named_rules: dict[str, frozenset[RulesId]] = {}
        self._rules_users: defaultdict[RulesId, set[str]] = defaultdict(set)
        self._owners: dict[str, str] = {}
        self._dirty: set[str] = set()
        self._shared: dict[str, set[Any]] = {layout.FROM_MAP: set(), layout.TO_MAP: set()}
        self._kinds = {layout.FROM_MAP: "verdict", layout.TO_MAP: "verdict"}
        for family in self.families:
            for kind in layout.SOURCE_KINDS[family]:
                self._shared[layout.source_set(kind)] = set()
                self._kinds[layout.source_set(kind)] = kind
        self.table = Table(
            layout.fixed_chains(options.interface_prefix, options.endpoint_to_host, self.families),
            {name: NamedSet(kind) for name, kind in self._kinds.items()},
        )

    @classmethod
    def of(cls, options: DataplaneOptions, state: HostState, closed: Mapping[str, str] | None = None) -> TableBuilder:
        """The table of a whole state, with these subjects closed."""
        built = cls(options)
        built._closed.update(closed or {})
        for set_id in state.sets:
            built._put_set(set_id, state.sets[set_id])
        for rules in state.rules.values():
            built._put_rules(rules)
        built._put_workloads(state.workloads.values(), ())
        built._put_pools(state.pools)
        built._finish()
        return built

    def update(self, changes: HostChanges, state: HostState) -> set[str]:
        """Follow a batch that ``state`` has taken in. Gives the names of chains and sets to compare."""
        affected: dict[RulesId, HostRules] = {}
        for change in changes.sets:
            if change.id in state.sets:
                affected |= self._put_set(change.id, state.sets[change.id])
        affected |= {rules.id: rules for rules in changes.rules}
        for rules in affected.values():
            if rules.id in state.rules:
                self._put_rules(state.rules[rules.id])
        if changes.workloads or changes.removed_workloads:
            self._put_workloads(changes.workloads, changes.removed_workloads)
        if changes.pools is not None:
            self._put_pools(state.pools)
        for rules_id in changes.removed_rules:
            self._drop_rules(rules_id)
        for set_id in changes.removed_sets:
            self._drop_set(set_id)
        return self._finish()

    def subject_of(self, name: str, element: Any = None) -> str:
        """What a chain, a set, or an element of a shared set belongs to; empty for the fixed part."""
        if name in self._shared and element is not None:
            placed = self._placed.get(element[0])
            return placed.subject if placed else ""
        return self._owners.get(name, "")

    # --- sets -------------------------------------------------------------------------------------

    def _put_set(self, set_id: SetId, members: AddressSet) -> dict[RulesId, HostRules]:
        """Gives the rules to write again: those that name the set, when its kernel name changed."""
        kind = "ranges" if members.nets else "hosts"
        names = {family: kernel_name(f"{kind[0]}{family}", set_id) for family in self.families}
        before = self._set_names.get(set_id)
        for family, name in names.items():
            self._put_named_set(name, f"{kind}{family}", _elements(members, family), set_id)
        if before == names:
            return {}
        self._set_names[set_id] = names
        for name in (before or {}).values():
            self._drop_named_set(name)
        return {each: self._rules[each] for each in self._set_users[set_id]}

    def _drop_set(self, set_id: SetId) -> None:
        for name in self._set_names.pop(set_id, {}).values():
            self._drop_named_set(name)
        if not self._set_users.get(set_id):
            self._set_users.pop(set_id, None)

    def _set_name(self, set_id: SetId, family: int) -> str:
        names = self._set_names.get(set_id)
        if names is None:
            raise InvalidRequest("sets", f"set {set_id} is not known")
        if set_id in self._closed:
            raise InvalidRequest("sets", f"set {set_id} could not be programmed")
        return names[family]

    def _put_named_set(self, name: str, kind: str, elements: Any, subject: str = "") -> None:
        self.table.sets[name] = NamedSet(kind, no_elements(kind) if subject in self._closed else elements)
        self._owners[name] = subject
        self._dirty.add(name)

    def _drop_named_set(self, name: str) -> None:
        self.table.sets.pop(name, None)
        self._owners.pop(name, None)
        self._dirty.add(name)

    # --- rules ------------------------------------------------------------------------------------

    def _put_rules(self, rules: HostRules) -> None:
        is_new = rules.id not in self._rules
        self._forget_rules(rules.id)
        self._rules[rules.id] = rules
        if is_new:
            self._place_users(rules.id)
        for rule in (*rules.inbound, *rules.outbound):
            for set_id in rule.sets:
                self._set_users[set_id].add(rules.id)
        for direction, each in zip(_DIRECTIONS, (rules.inbound, rules.outbound), strict=True):
            self._put_chain(layout.rules_chain_name(rules.id, direction), self._render(rules.id, each), rules.id)

    def _render(self, rules_id: RulesId, rules: tuple[HostRule, ...]) -> Chain:
        if rules_id in self._closed:
            return layout.closed_chain("refused by the kernel")
        texts: list[str] = []
        for position, rule in enumerate(rules):
            try:
                texts += render_rule(rule, self._set_name, families=self.families, log_prefix=self._options.log_prefix)
            except InvalidRequest as error:
                self.problems[rules_id] = f"rule {position + 1}: {error}; it drops instead"
                texts.append(f"{DROP} # rule {position + 1} cannot be expressed")
        return layout.chain(texts)

    def _forget_rules(self, rules_id: RulesId) -> None:
        before = self._rules.pop(rules_id, None)
        self.problems.pop(rules_id, None)
        if before is None:
            return
        for rule in (*before.inbound, *before.outbound):
            for set_id in rule.sets:
                self._set_users[set_id].discard(rules_id)

    def _drop_rules(self, rules_id: RulesId) -> None:
        self._forget_rules(rules_id)
        self._place_users(rules_id)
        for direction in _DIRECTIONS:
            self._drop_chain(layout.rules_chain_name(rules_id, direction))

    def _place_users(self, rules_id: RulesId) -> None:
        """The rules came or went: endpoints that name them open or close."""
        for interface in sorted(self._rules_users.get(rules_id, ())):
            self._place(interface)

    def _put_chain(self, name: str, chain: Chain, subject: str = "") -> None:
        self.table.chains[name] = chain
        self._owners[name] = subject
        self._dirty.add(name)

    def _drop_chain(self, name: str) -> None:
        self.table.chains.pop(name, None)
        self._owners.pop(name, None)
        self._dirty.add(name)

    # --- workloads --------------------------------------------------------------------------------

    def _put_workloads(self, workloads: Iterable[HostWorkload], removed: Iterable[WorkloadEndpointKey]) -> None:
        touched: set[str] = set()
        for workload in workloads:
            touched |= self._claims.put(workload)
        for key in removed:
            self.problems.pop(key.path, None)
            touched |= self._claims.remove(key)
        for interface in sorted(touched):
            self._place(interface)

    def _place(self, interface: str) -> None:
        """Write anew what the interface contributes."""
        workload = self._claims.owner(interface)
        self._note_rules(interface, workload)
        before, after = self._placed.pop(interface, None), self._contribution(workload)
        if before is not None:
            for name, element in before.elements:
                self._shared[name].discard(element)
                self._dirty.add(name)
        if after is not None:
            self._placed[interface] = after
            for name, element in after.elements:
                self._shared[name].add(element)
                self._dirty.add(name)
        # only now, so that a list both name stays
        for name in before.chains if before is not None else ():
            self._lists[name] -= 1
            if not self._lists[name]:
                del self._lists[name]
                self._drop_chain(name)

    def _note_rules(self, interface: str, workload: HostWorkload | None) -> None:
        for rules_id in self._named_rules.pop(interface, frozenset()):
            self._rules_users[rules_id].discard(interface)
            if not self._rules_users[rules_id]:
                del self._rules_users[rules_id]
        if workload is None:
            return
        named = frozenset({*_rules_in(workload.inbound), *_rules_in(workload.outbound)})
        self._named_rules[interface] = named
        for rules_id in named:
            self._rules_users[rules_id].add(interface)

    def _contribution(self, workload: HostWorkload | None) -> _Placed | None:
        """None: closed, nothing leads in or out."""
        if workload is None:
            return None
        subject = workload.key.path
        self.problems.pop(subject, None)
        if not workload.is_active or subject in self._closed:
            return None
        try:
            check_interface(workload.interface, field="interface")
            if not workload.interface.startswith(self._options.interface_prefix):
                raise InvalidRequest("interface", f"must start with {self._options.interface_prefix!r}")
            missing = sorted(each for each in self._named_rules[workload.interface] if each not in self._rules)
            if missing:
                raise InvalidRequest("policies", f"there are no rules for {', '.join(missing)}")
        except InvalidRequest as error:
            self.problems[subject] = f"{error}; it is closed"
            return None
        elements: list[tuple[str, Any]] = []
        for net in workload.nets:
            if net.version not in self.families:
                continue
            if net.prefixlen != WIDTH[net.version]:
                self.problems[subject] = f"{net} is wider than one address; it is left out"
                continue
            any_kind, mac_kind = layout.SOURCE_KINDS[net.version]
            if workload.mac is None:
                elements.append((layout.source_set(any_kind), (workload.interface, net.first)))
            else:
                elements.append((layout.source_set(mac_kind), (workload.interface, int(workload.mac), net.first)))
        inbound = self._use_list(workload.inbound, "in", subject)
        outbound = self._use_list(workload.outbound, "out", subject)
        elements.append((layout.TO_MAP, (workload.interface, inbound)))
        elements.append((layout.FROM_MAP, (workload.interface, outbound)))
        return _Placed(subject, tuple(elements), (inbound, outbound))

    def _use_list(self, policies: PolicyList, direction: str, subject: str) -> str:
        name = f"{'to' if direction == 'in' else 'from'}_{digest(msgspec.json.encode(policies), 8)}"
        if not self._lists[name]:
            self._put_chain(name, layout.list_chain(policies, direction), subject)
        self._lists[name] += 1
        return name

    # --- pools ------------------------------------------------------------------------------------

    def _put_pools(self, pools: HostPools) -> None:
        """The hook stands only while a pool masquerades: it makes the kernel look up NAT for every connection."""
        is_wanted = bool(pools.masquerade) and POOLS not in self._closed
        for family in self.families:
            for prefix, nets in (("masq", pools.masquerade), ("pools", pools.all)):
                name = f"{prefix}{family}"
                ranges = merge_ranges((net.first, net.last) for net in nets if net.version == family)
                if is_wanted:
                    self._put_named_set(name, f"ranges{family}", frozenset(ranges), POOLS)
                elif name in self.table.sets:
                    self._drop_named_set(name)
        if is_wanted:
            self._put_chain(layout.NAT_CHAIN, layout.nat_chain(self.families), POOLS)
        elif layout.NAT_CHAIN in self.table.chains:
            self._drop_chain(layout.NAT_CHAIN)

    def _finish(self) -> set[str]:
        """Freeze the shared sets that changed and hand out the names touched since the last time."""
        for name in self._dirty & self._shared.keys():
            self.table.sets[name] = NamedSet(self._kinds[name], frozenset(self._shared[name]))
        dirty, self._dirty = self._dirty, set()
        return dirty


def _elements(members: AddressSet, family: int) -> Any:
    hosts: Any = members.v4 if family == 4 else members.v6
    if not members.nets:
        return hosts
    ranges = [(value, value) for value in hosts]
    ranges += [(net.first, net.last) for net in members.nets if net.version == family]
    return frozenset(merge_ranges(ranges))


def _rules_in(policies: PolicyList) -> Iterator[RulesId]:
    for tier in policies.tiers:
        yield from tier.policies
    yield from policies.profiles
