"""From :class:`HostState` to the chains and sets the kernel shall hold, kept up batch by batch.

Pure. :meth:`TablesBuilder.update` takes one batch; what it touches is noted in :attr:`TablesBuilder.desired`.
Endpoints with equal lists of policies share one chain, named by the list's content.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.claims import Claims
from calico_core.dataplane.iptables import layout
from calico_core.dataplane.iptables.desired import Desired
from calico_core.dataplane.iptables.dispatch import tree
from calico_core.dataplane.iptables.ipsets import MAX_ELEMENTS, elements_for, kind_for, nets_set
from calico_core.dataplane.iptables.layout import FILTER, NAT, RAW
from calico_core.dataplane.iptables.names import list_chain_name, rules_chain_name, set_name, source_chain_name
from calico_core.dataplane.iptables.render import DROP, render_rule
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

    TableId = tuple[int, str]

POOLS = "pools"
_DIRECTIONS = ("in", "out")
_BOTH = (4, 6)


class _Placed(msgspec.Struct, frozen=True):
    """The chains of one interface's lists: inbound, outbound."""

    inbound: str
    outbound: str


class TablesBuilder:
    """The desired tables of one host. One thread.

    *Subjects* name what can fail by itself, as reports do: a workload by its key's path, rules and sets by their id,
    ``pools``. A closed subject stays wanted: its workload has no way in or out, its rules drop. ``kernel_families``:
    those the kernel speaks; one that is not enabled gets the fixed chains alone, which drop.
    """

    def __init__(self, options: DataplaneOptions, kernel_families: tuple[int, ...] = _BOTH) -> None:
        self._options = options
        self.kernel_families = kernel_families
        enabled = _BOTH if options.is_ipv6_enabled else (4,)
        self._families = tuple(family for family in enabled if family in kernel_families)
        self.problems: dict[str, str] = {}
        self._closed: dict[str, str] = {}
        self._rules: dict[RulesId, HostRules] = {}
        self._set_names: dict[SetId, dict[int, str]] = {}
        self._oversized: set[SetId] = set()
        self._set_users: defaultdict[SetId, set[RulesId]] = defaultdict(set)
        self._nets_of: dict[RulesId, frozenset[str]] = {}
        self._nets_users: Counter[str] = Counter()
        self._lists: Counter[str] = Counter()
        self._claims = Claims()
        self._placed: dict[str, _Placed] = {}
        self._named_rules: dict[str, frozenset[RulesId]] = {}
        self._rules_users: defaultdict[RulesId, set[str]] = defaultdict(set)
        self._is_dispatch_dirty = True
        self._trees: dict[str, frozenset[str]] = {}
        self.desired = Desired()
        #: Addresses (of a family) an interface may send from, by family and chain.
        self.sources: dict[tuple[int, str], frozenset[int]] = {}
        for family in kernel_families:
            fixed = layout.fixed_chains(options.interface_prefix, options.endpoint_to_host, family)
            for table, chains in fixed.items():
                self.desired.tables[family, table] = Table(chains)
        self._finish()

    @classmethod
    def of(
        cls,
        options: DataplaneOptions,
        kernel_families: tuple[int, ...],
        state: HostState,
        closed: Mapping[str, str] | None = None,
    ) -> TablesBuilder:
        """The tables of a whole state, with these subjects closed."""
        built = cls(options, kernel_families)
        built._closed.update(closed or {})
        for set_id in state.sets:
            built._put_set(set_id, state.sets[set_id])
        for rules in state.rules.values():
            built._put_rules(rules)
        built._put_workloads(state.workloads.values(), ())
        built._put_pools(state.pools)
        built._finish()
        return built

    def update(self, changes: HostChanges, state: HostState) -> None:
        """Follow a batch that ``state`` has taken in."""
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
        self._finish()

    # --- sets -------------------------------------------------------------------------------------

    def _put_set(self, set_id: SetId, members: AddressSet) -> dict[RulesId, HostRules]:
        """Gives the rules to write again: those that name the set, when its kernel name changed."""
        kinds = {family: kind_for(members, family) for family in self._families}
        names = {family: set_name(kind, set_id) for family, kind in kinds.items()}
        elements = {family: elements_for(members, kind) for family, kind in kinds.items()}
        before = self._set_names.get(set_id)
        was_oversized = set_id in self._oversized
        is_oversized = any(len(each) > MAX_ELEMENTS for each in elements.values())
        self._note_size(set_id, is_oversized=is_oversized)
        for family, name in names.items():
            if is_oversized or set_id in self._closed:
                self.desired.drop_set(name)
            else:
                self.desired.put_set(name, NamedSet(kinds[family], elements[family]), set_id)
        if before == names and was_oversized == is_oversized:
            return {}
        self._set_names[set_id] = names
        for family, name in (before or {}).items():
            if names[family] != name:
                self.desired.drop_set(name)
        return {each: self._rules[each] for each in self._set_users[set_id]}

    def _note_size(self, set_id: SetId, *, is_oversized: bool) -> None:
        if is_oversized:
            self._oversized.add(set_id)
            self.problems[set_id] = f"more than {MAX_ELEMENTS} members; rules that name it drop"
        elif set_id in self._oversized:
            self._oversized.discard(set_id)
            self.problems.pop(set_id, None)

    def _drop_set(self, set_id: SetId) -> None:
        self._note_size(set_id, is_oversized=False)
        for name in self._set_names.pop(set_id, {}).values():
            self.desired.drop_set(name)
        if not self._set_users.get(set_id):
            self._set_users.pop(set_id, None)

    def _set_name(self, set_id: SetId, family: int) -> str:
        names = self._set_names.get(set_id)
        if names is None:
            raise InvalidRequest("sets", f"set {set_id} is not known")
        if set_id in self._closed or set_id in self._oversized:
            raise InvalidRequest("sets", f"set {set_id} could not be programmed")
        return names[family]

    # --- rules ------------------------------------------------------------------------------------

    def _put_rules(self, rules: HostRules) -> None:
        is_new = rules.id not in self._rules
        nets_before = self._nets_of.get(rules.id, frozenset())
        self._forget_rules(rules.id)
        self._rules[rules.id] = rules
        if is_new:
            self._place_users(rules.id)
        for rule in (*rules.inbound, *rules.outbound):
            for set_id in rule.sets:
                self._set_users[set_id].add(rules.id)
        nets: dict[str, NamedSet] = {}
        for family in self._families:
            for direction, each in zip(_DIRECTIONS, (rules.inbound, rules.outbound), strict=True):
                chain = self._render(rules.id, each, family, nets)
                self.desired.put_chain((family, FILTER), rules_chain_name(rules.id, direction), chain, rules.id)
        self._use_nets(rules.id, nets, nets_before)

    def _render(self, rules_id: RulesId, rules: tuple[HostRule, ...], family: int, nets: dict[str, NamedSet]) -> Chain:
        if rules_id in self._closed:
            return layout.closed_chain("refused by the kernel")
        texts: list[str] = []
        for position, rule in enumerate(rules):
            try:
                rendered = render_rule(rule, family, self._set_name, log_prefix=self._options.log_prefix)
            except InvalidRequest as error:
                self.problems[rules_id] = f"rule {position + 1}: {error}; it drops instead"
                texts.append(f"{DROP} # rule {position + 1} cannot be expressed")
                continue
            texts += rendered.rules
            nets |= rendered.nets
        return layout.chain(texts)

    def _use_nets(self, rules_id: RulesId, nets: Mapping[str, NamedSet], before: frozenset[str]) -> None:
        """Sets that stand for a list of networks inside rules; equal lists share one."""
        for name in nets.keys() - before:
            self._nets_users[name] += 1
            self.desired.put_set(name, nets[name], rules_id)
        for name in before - nets.keys():
            self._nets_users[name] -= 1
            if not self._nets_users[name]:
                del self._nets_users[name]
                self.desired.drop_set(name)
        if nets:
            self._nets_of[rules_id] = frozenset(nets)
        else:
            self._nets_of.pop(rules_id, None)

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
        self._use_nets(rules_id, {}, self._nets_of.get(rules_id, frozenset()))
        self._place_users(rules_id)
        for family in self._families:
            for direction in _DIRECTIONS:
                self.desired.drop_chain((family, FILTER), rules_chain_name(rules_id, direction))

    def _place_users(self, rules_id: RulesId) -> None:
        """The rules came or went: endpoints that name them open or close."""
        for interface in sorted(self._rules_users.get(rules_id, ())):
            self._place(interface)

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
        """Write anew what belongs to the interface: who may send, and its two lists."""
        workload = self._claims.owner(interface)
        self._note_rules(interface, workload)
        before = self._placed.pop(interface, None)
        after = self._lists_of(workload) if workload is not None and self._is_open(workload) else None
        if after is not None and workload is not None:
            self._placed[interface] = after
            self._put_sources(workload)
        elif before is not None:
            self._drop_sources(interface)
        if before != after:
            self._is_dispatch_dirty = True
        # only now, so that a list both name stays
        for name in (before.inbound, before.outbound) if before is not None else ():
            self._lists[name] -= 1
            if not self._lists[name]:
                del self._lists[name]
                for family in self._families:
                    self.desired.drop_chain((family, FILTER), name)

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

    def _is_open(self, workload: HostWorkload) -> bool:
        """Otherwise nothing leads in or out."""
        subject = workload.key.path
        self.problems.pop(subject, None)
        if not workload.is_active or subject in self._closed:
            return False
        try:
            check_interface(workload.interface, field="interface")
            if not workload.interface.startswith(self._options.interface_prefix):
                raise InvalidRequest("interface", f"must start with {self._options.interface_prefix!r}")
            missing = sorted(each for each in self._named_rules[workload.interface] if each not in self._rules)
            if missing:
                raise InvalidRequest("policies", f"there are no rules for {', '.join(missing)}")
        except InvalidRequest as error:
            self.problems[subject] = f"{error}; it is closed"
            return False
        return True

    def _lists_of(self, workload: HostWorkload) -> _Placed:
        return _Placed(self._use_list(workload.inbound, "in"), self._use_list(workload.outbound, "out"))

    def _use_list(self, policies: PolicyList, direction: str) -> str:
        name = list_chain_name(msgspec.json.encode(policies), direction)
        if not self._lists[name]:
            chain = layout.list_chain(policies, direction)
            for family in self._families:
                self.desired.put_chain((family, FILTER), name, chain)
        self._lists[name] += 1
        return name

    def _put_sources(self, workload: HostWorkload) -> None:
        subject, name = workload.key.path, source_chain_name(workload.interface)
        addresses: dict[int, set[int]] = {family: set() for family in self._families}
        for net in workload.nets:
            if net.version not in addresses:
                continue
            if net.prefixlen != WIDTH[net.version]:
                self.problems[subject] = f"{net} is wider than one address; it is left out"
                continue
            addresses[net.version].add(net.first)
        for family, each in addresses.items():
            self.sources[family, name] = frozenset(each)
            self.desired.put_chain((family, RAW), name, layout.source_chain(workload.mac, each, family), subject)

    def _drop_sources(self, interface: str) -> None:
        name = source_chain_name(interface)
        for family in self._families:
            self.sources.pop((family, name), None)
            self.desired.drop_chain((family, RAW), name)

    def _put_dispatch(self) -> None:
        inbound = {interface: placed.inbound for interface, placed in self._placed.items()}
        outbound = {interface: placed.outbound for interface, placed in self._placed.items()}
        senders = {interface: source_chain_name(interface) for interface in self._placed}
        for table, root, option, targets in (
            (FILTER, layout.TO_ROOT, "-o", inbound),
            (FILTER, layout.FROM_ROOT, "-i", outbound),
            (RAW, layout.SOURCE_ROOT, "-i", senders),
        ):
            miss = layout.MISSED[root]
            chains = {name: layout.chain(rules) for name, rules in tree(root, option, targets, miss).items()}
            closed = {root: layout.chain([miss])}
            for family in self.kernel_families:
                self._put_tree((family, table), root, chains if family in self._families else closed)
            self._trees[root] = frozenset(chains)

    def _put_tree(self, where: TableId, root: str, chains: Mapping[str, Chain]) -> None:
        standing = self.desired.tables[where].chains
        for name, chain in chains.items():
            if standing.get(name) != chain:
                self.desired.put_chain(where, name, chain)
        for name in self._trees.get(root, frozenset()) - chains.keys():
            self.desired.drop_chain(where, name)

    # --- pools ------------------------------------------------------------------------------------

    def _put_pools(self, pools: HostPools) -> None:
        """The chain and its jump stand only while a pool masquerades: they make the kernel look up NAT for every
        connection."""
        for family in self._families:
            is_wanted = POOLS not in self._closed and any(net.version == family for net in pools.masquerade)
            names: list[str] = []
            for identity, nets in (("masq", pools.masquerade), ("pools", pools.all)):
                kind = f"nets{family}"
                names.append(set_name(kind, identity))
                if is_wanted:
                    self.desired.put_set(names[-1], NamedSet(kind, nets_set(nets, family)[1].elements), POOLS)
                else:
                    self.desired.drop_set(names[-1])
            where = (family, NAT)
            if is_wanted:
                self.desired.put_chain(where, layout.NAT_CHAIN, layout.nat_chain(*names), POOLS)
            elif layout.NAT_CHAIN in self.desired.tables[where].chains:
                self.desired.drop_chain(where, layout.NAT_CHAIN)

    def _finish(self) -> None:
        if self._is_dispatch_dirty:
            self._put_dispatch()
            self._is_dispatch_dirty = False


def _rules_in(policies: PolicyList) -> Iterator[RulesId]:
    for tier in policies.tiers:
        yield from tier.policies
    yield from policies.profiles
