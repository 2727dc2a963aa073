"""From :class:`HostState` to the table the kernel shall hold, kept up batch by batch.

Pure. :meth:`TableBuilder.update` takes one batch and says which chains and sets it touched, so that the driver
compares those alone. Endpoints with equal lists of policies share one chain, named by the list's content; an endpoint
more is then a few set elements.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import msgspec
from netaddr import IPAddress

from calico_core.dataplane.claims import Claims
from calico_core.dataplane.denials import Origins
from calico_core.dataplane.nftables import layout
from calico_core.dataplane.nftables.elements import merge_ranges, no_elements
from calico_core.dataplane.nftables.host_endpoints import rules_of
from calico_core.dataplane.nftables.host_part import HostInputs, HostPart
from calico_core.dataplane.nftables.names import digest, kernel_name
from calico_core.dataplane.nftables.rules import render_rule
from calico_core.dataplane.nftables.verdicts import Verdicts
from calico_core.dataplane.persistent_set import PersistentSet
from calico_core.dataplane.reconcile import Chain, NamedSet, Table
from calico_core.errors import InvalidRequest
from calico_core.interfaces.dataplane import DenialOrigin
from calico_core.model.addresses import WIDTH
from calico_core.model.ids import check_interface

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Literal

    from calico_core.interfaces.dataplane import DataplaneOptions
    from calico_core.model.hoststate import (
        AddressSet,
        HostChanges,
        HostInterface,
        HostNat,
        HostRule,
        HostRules,
        HostState,
        HostWorkload,
        PolicyList,
        PortMember,
        RulesId,
        SetId,
    )
    from calico_core.model.keys import WorkloadEndpointKey

_DIRECTIONS: tuple[tuple[layout.Direction, Literal["inbound", "outbound"]], ...] = (
    ("in", "inbound"),
    ("out", "outbound"),
)
_NAT_SETS = frozenset(name for kinds in layout.NAT_KINDS.values() for name in kinds)


class CountedChain(msgspec.Struct, frozen=True):
    """Whose rules a chain renders: the number of the rule behind each of its lines."""

    rules: RulesId
    direction: Literal["inbound", "outbound"]
    numbers: tuple[int, ...]


class _Placed(msgspec.Struct, frozen=True):
    """What one interface contributes: elements by set, and the list chains it needs."""

    subject: str
    elements: tuple[tuple[str, Any], ...]
    chains: tuple[str, ...]


class TableBuilder:
    """The desired table of one host. One thread.

    *Subjects* name what can fail by itself, as reports do: a workload or a host endpoint by its key's path, rules and
    sets by their id, ``pools``, ``peers``. A closed subject stays wanted: its workload has no way in or out, its rules
    deny. ``origins`` learns what is behind each denial.
    """

    def __init__(self, options: DataplaneOptions, origins: Origins | None = None) -> None:
        self._options = options
        self._verdicts = Verdicts(options, Origins() if origins is None else origins)
        self.families: tuple[int, ...] = (4, 6) if options.is_ipv6_enabled else (4,)
        self.counted: dict[str, CountedChain] = {}
        self._problems: dict[str, str] = {}
        self._closed: dict[str, str] = {}
        self._rules: dict[RulesId, HostRules] = {}
        self._set_names: dict[SetId, dict[int, str]] = {}
        self._set_users: defaultdict[SetId, set[RulesId]] = defaultdict(set)
        self._lists: Counter[str] = Counter()
        # by identity, so each is held as long as it stands here
        self._digests: dict[int, tuple[PolicyList, str]] = {}
        self._claims = Claims()
        self._placed: dict[str, _Placed] = {}
        self._named_rules: dict[str, frozenset[RulesId]] = {}
        self._rules_users: defaultdict[RulesId, set[str]] = defaultdict(set)
        self._owners: dict[str, str] = {}
        self._dirty: set[str] = set()
        # by shared set: elements that came (True) or went since the last time
        self._moved: defaultdict[str, dict[Any, bool]] = defaultdict(dict)
        self._kinds = {layout.FROM_MAP: "verdict", layout.TO_MAP: "verdict"}
        for family in self.families:
            for kind in layout.SOURCE_KINDS[family]:
                self._kinds[layout.source_set(kind)] = kind
        nat_kinds = [kind for family in self.families for kind in layout.NAT_KINDS[family]]
        self._shared: dict[str, PersistentSet[Any]] = {name: PersistentSet() for name in (*self._kinds, *nat_kinds)}
        self._host = HostInputs(options, self.families, self._verdicts)
        self._is_host_dirty = True
        self.table = Table(
            layout.fixed_chains(options, self.families, self._verdicts),
            {name: NamedSet(kind) for name, kind in self._kinds.items()},
        )
        self._host_part = self._render_host()
        self._put_host()

    @classmethod
    def of(
        cls,
        options: DataplaneOptions,
        state: HostState,
        closed: Mapping[str, str] | None = None,
        origins: Origins | None = None,
    ) -> TableBuilder:
        """The table of a whole state, with these subjects closed."""
        built = cls(options, origins)
        built._closed.update(closed or {})
        for set_id in state.sets:
            built._put_set(set_id, state.sets[set_id])
        for set_id in state.port_sets:
            built._put_port_set(set_id, state.port_sets[set_id])
        for rules in state.rules.values():
            built._put_rules(rules)
        built._put_workloads(state.workloads.values(), ())
        built._take_host(state)
        built._finish()
        return built

    @property
    def problems(self) -> dict[str, str]:
        """What could not be rendered as wanted, by subject."""
        return {**self._problems, **self._host_part.problems}

    def update(self, changes: HostChanges, state: HostState) -> set[str]:
        """Follow a batch that ``state`` has taken in. Gives the names of chains and sets to compare."""
        affected: dict[RulesId, HostRules] = {}
        for change in changes.sets:
            if change.id in state.sets:
                affected |= self._put_set(change.id, state.sets[change.id])
        for ports in changes.port_sets:
            if ports.id in state.port_sets:
                affected |= self._put_port_set(ports.id, state.port_sets[ports.id])
        affected |= {rules.id: rules for rules in changes.rules}
        for rules in affected.values():
            if rules.id in state.rules:
                self._put_rules(state.rules[rules.id])
        if changes.workloads or changes.removed_workloads:
            self._put_workloads(changes.workloads, changes.removed_workloads)
        for rules_id in changes.removed_rules:
            self._drop_rules(rules_id)
        for set_id in (*changes.removed_sets, *changes.removed_port_sets):
            self._drop_set(set_id)
        if changes.interfaces or changes.removed_interfaces or changes.pools is not None or changes.peers is not None:
            self._take_host(state)
        return self._finish()

    def subject_of(self, name: str, element: Any = None) -> str:
        """What a chain, a set, or an element of a shared set belongs to; empty for the fixed part."""
        if element is None or name in self._owners:
            return self._owners.get(name, "")
        if name in _NAT_SETS:
            claimant = self._claims.claimant(IPAddress(element[0], 4 if name.endswith("4") else 6))
            return claimant.key.path if claimant else ""
        if name in self._shared:
            placed = self._placed.get(element[0])
            return placed.subject if placed else ""
        interface = self._host.interfaces.get(element[0])
        return interface.key.path if interface else ""

    def keeps(self, name: str, element: Any) -> bool:
        """Whether who has an address by this element of a shared set is to have it still, by whatever element."""
        if name in _NAT_SETS:
            return element in self._shared.get(name, ())
        placed = self._placed.get(element[0])
        sources = {layout.source_set(kind) for kind in layout.SOURCE_KINDS[6 if name.endswith("6") else 4]}
        return placed is not None and any(
            each in sources and other[-1] == element[-1] for each, other in placed.elements
        )

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

    def _put_port_set(self, set_id: SetId, members: frozenset[PortMember]) -> dict[RulesId, HostRules]:
        """As :meth:`_put_set`."""
        names = {family: kernel_name(f"p{family}", set_id) for family in self.families}
        for family, name in names.items():
            elements = frozenset(tuple(member)[1:] for member in members if member.version == family)
            self._put_named_set(name, f"ports{family}", elements, set_id)
        if self._set_names.get(set_id) == names:
            return {}
        self._set_names[set_id] = names
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
            for set_id in (*rule.sets, *rule.port_sets):
                self._set_users[set_id].add(rules.id)
        for direction, side in _DIRECTIONS:
            name = layout.rules_chain_name(rules.id, direction)
            chain, numbers = self._render(rules.id, side, rules.inbound if direction == "in" else rules.outbound)
            self.counted[name] = CountedChain(rules.id, side, numbers)
            self._put_chain(name, chain, rules.id)

    def _render(
        self, rules_id: RulesId, side: Literal["inbound", "outbound"], rules: tuple[HostRule, ...]
    ) -> tuple[Chain, tuple[int, ...]]:
        """The chain, and the number of the rule behind each line."""
        if rules_id in self._closed:
            origin = DenialOrigin(reason="refused by the kernel", direction=side, rules=rules_id)
            return layout.closed_chain("refused by the kernel", origin, self._verdicts), ()
        texts: list[str] = []
        numbers: list[int] = []
        for number, rule in enumerate(rules):
            origin = DenialOrigin(reason="rule", direction=side, rules=rules_id, rule=number)
            try:
                lines = render_rule(
                    rule, self._set_name, families=self.families, verdicts=self._verdicts, origin=origin
                )
            except InvalidRequest as error:
                self._problems[rules_id] = f"rule {number + 1}: {error}; it drops instead"
                lines = self._verdicts.deny("", origin, f"rule {number + 1} cannot be expressed")
            texts += lines
            numbers += [number] * len(lines)
        return layout.chain(texts), tuple(numbers)

    def _forget_rules(self, rules_id: RulesId) -> None:
        before = self._rules.pop(rules_id, None)
        self._problems.pop(rules_id, None)
        if before is None:
            return
        for rule in (*before.inbound, *before.outbound):
            for set_id in (*rule.sets, *rule.port_sets):
                self._set_users[set_id].discard(rules_id)

    def _drop_rules(self, rules_id: RulesId) -> None:
        self._forget_rules(rules_id)
        self._place_users(rules_id)
        for direction, _ in _DIRECTIONS:
            name = layout.rules_chain_name(rules_id, direction)
            self.counted.pop(name, None)
            self._drop_chain(name)

    def _place_users(self, rules_id: RulesId) -> None:
        """The rules came or went: endpoints that name them open or close."""
        for interface in sorted(self._rules_users.get(rules_id, ())):
            self._place(interface)
        self._is_host_dirty |= rules_id in self._host_part.named

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
            self._problems.pop(key.path, None)
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
                self._moved[name][element] = False
        if after is not None:
            self._placed[interface] = after
            for name, element in after.elements:
                self._moved[name][element] = True
        # only now, so that a list both name stays
        for name in before.chains if before is not None else ():
            self._lists[name] -= 1
            if not self._lists[name]:
                del self._lists[name]
                self._drop_chain(name)

    def _note_rules(self, interface: str, workload: HostWorkload | None) -> None:
        before = self._named_rules.pop(interface, frozenset())
        named: frozenset[RulesId] = frozenset()
        if workload is not None:
            named = self._named_rules[interface] = _rules_in(workload.inbound) | _rules_in(workload.outbound)
        for rules_id in before - named:
            self._rules_users[rules_id].discard(interface)
            if not self._rules_users[rules_id]:
                del self._rules_users[rules_id]
        for rules_id in named - before:
            self._rules_users[rules_id].add(interface)

    def _contribution(self, workload: HostWorkload | None) -> _Placed | None:
        """None: closed, nothing leads in or out."""
        if workload is None:
            return None
        subject = workload.key.path
        self._problems.pop(subject, None)
        if not workload.is_active or subject in self._closed:
            return None
        try:
            check_interface(workload.interface, field="interface")
            if not workload.interface.startswith(self._options.interface_prefix):
                raise InvalidRequest("interface", f"must start with {self._options.interface_prefix!r}")
            missing = sorted(self._named_rules[workload.interface] - self._rules.keys())
            if missing:
                raise InvalidRequest("policies", f"there are no rules for {', '.join(missing)}")
        except InvalidRequest as error:
            self._problems[subject] = f"{error}; it is closed"
            return None
        elements: list[tuple[str, Any]] = []
        for net in workload.nets:
            if net.version not in self.families:
                continue
            if net.prefixlen != WIDTH[net.version]:
                self._problems[subject] = f"{net} is wider than one address; it is left out"
                continue
            any_kind, mac_kind = layout.SOURCE_KINDS[net.version]
            if workload.mac is None:
                elements.append((layout.source_set(any_kind), (workload.interface, net.first)))
            else:
                elements.append((layout.source_set(mac_kind), (workload.interface, int(workload.mac), net.first)))
        for nat in workload.nats:
            elements += self._nat_elements(workload, nat)
        inbound = self._use_list(workload.inbound, "in", subject)
        outbound = self._use_list(workload.outbound, "out", subject)
        elements.append((layout.TO_MAP, (workload.interface, inbound)))
        elements.append((layout.FROM_MAP, (workload.interface, outbound)))
        return _Placed(subject, tuple(elements), (inbound, outbound))

    def _nat_elements(self, workload: HostWorkload, nat: HostNat) -> list[tuple[str, Any]]:
        """A floating address goes to one workload only, and to an address that it has."""
        family = nat.internal.version
        if nat.external.version != family:
            self._problems[workload.key.path] = f"{nat.external} is of another family than {nat.internal}"
            return []
        if nat.internal not in {net.ip for net in workload.nets}:
            self._problems[workload.key.path] = f"{nat.internal} is none of its addresses; {nat.external} is left out"
            return []
        is_ours = self._claims.has(workload.key, nat.external) and self._claims.has(workload.key, nat.internal)
        first = min(each.internal for each in workload.nats if each.external == nat.external)
        if family not in self.families or not is_ours or nat.internal != first:
            return []
        seen_as = min(
            each.external for each in workload.nats if each.internal == nat.internal and each.external.version == family
        )
        address_map, hairpin_map = layout.NAT_KINDS[family]
        return [
            (address_map, (int(nat.external), int(nat.internal))),
            (hairpin_map, (int(nat.internal), int(seen_as))),
        ]

    def _use_list(self, policies: PolicyList, direction: layout.Direction, subject: str) -> str:
        name = f"{'to' if direction == 'in' else 'from'}_{self._digest_of(policies)}"
        if not self._lists[name]:
            self._put_chain(name, layout.chain(layout.list_rules(policies, direction, self._verdicts)), subject)
        self._lists[name] += 1
        return name

    def _digest_of(self, policies: PolicyList) -> str:
        """Equal lists are mostly one object: its content is looked at once a batch."""
        known = self._digests.get(id(policies))
        if known is None:
            known = self._digests[id(policies)] = (policies, digest(msgspec.json.encode(policies), 8))
        return known[1]

    # --- the host itself --------------------------------------------------------------------------

    def _take_host(self, state: HostState) -> None:
        self._host.interfaces = state.interfaces
        self._host.pools, self._host.peers = state.pools, state.peers
        self._is_host_dirty = True

    def _render_host(self) -> HostPart:
        self._is_host_dirty = False
        return self._host.render(
            floats=any(self._shared.get(name) for name in _NAT_SETS),
            is_closed=self._closed.__contains__,
            problem_of=self._problem_of,
        )

    def _put_host(self) -> None:
        """Follow what differs from the last time; what nothing needs any more goes."""
        before, after = self._host_part.names, self._render_host()
        self._host_part = after
        for name, chain in after.chains.items():
            if self.table.chains.get(name) != chain:
                self._put_chain(name, chain, after.subjects.get(name, ""))
        for name, named_set in after.sets.items():
            if self.table.sets.get(name) != named_set:
                self.table.sets[name] = named_set
                self._dirty.add(name)
            if name in after.subjects:
                self._owners[name] = after.subjects[name]
        for name in before - after.names:
            (self._drop_named_set if name in self.table.sets else self._drop_chain)(name)

    def _problem_of(self, interface: HostInterface) -> str | None:
        """Why a host endpoint cannot be programmed as it is wanted."""
        if interface.key.path in self._closed:
            return "refused by the kernel"
        if interface.interface.startswith(self._options.interface_prefix):
            return f"{interface.interface} is a workload's interface"
        missing = sorted({each for each in rules_of(interface) if each not in self._rules})
        return f"there are no rules for {', '.join(missing)}" if missing else None

    def _finish(self) -> set[str]:
        """Bring the shared sets up to date and hand out the names touched since the last time."""
        self._digests.clear()
        moved, self._moved = self._moved, defaultdict(dict)
        for name, elements in moved.items():
            self._shared[name] = self._shared[name].changed(
                added=[each for each, is_there in elements.items() if is_there],
                removed=[each for each, is_there in elements.items() if not is_there],
            )
        self._dirty |= moved.keys()
        nat = self._dirty & _NAT_SETS
        if nat or self._is_host_dirty:
            self._put_host()
        for name in self._dirty & self._kinds.keys():
            self.table.sets[name] = NamedSet(self._kinds[name], self._shared[name])
        if nat:
            self._freeze_nat()
        dirty, self._dirty = self._dirty, set()
        return dirty

    def _freeze_nat(self) -> None:
        """All maps stand while one has something, as the rules name them all."""
        names = [name for family in self.families for name in layout.NAT_KINDS[family]]
        is_wanted = any(self._shared[name] for name in names)
        for name in names:
            self._dirty.add(name)
            if is_wanted:
                self.table.sets[name] = NamedSet(name, self._shared[name])
            else:
                self.table.sets.pop(name, None)


def _elements(members: AddressSet, family: int) -> Any:
    hosts: Any = members.v4 if family == 4 else members.v6
    if not members.nets:
        return hosts
    ranges = [(value, value) for value in hosts]
    ranges += [(net.first, net.last) for net in members.nets if net.version == family]
    return frozenset(merge_ranges(ranges))


def _rules_in(policies: PolicyList) -> frozenset[RulesId]:
    return frozenset(policies.profiles).union(*(tier.policies for tier in policies.tiers))
