"""From :class:`HostState` to the table the kernel shall hold, kept up batch by batch.

Pure. :meth:`TableBuilder.update` takes one batch and says which chains and sets it touched, so that the driver
compares those alone. Endpoints with equal lists of policies share one chain, named by the list's content; an endpoint
more is then a few set elements.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from netaddr import IPAddress

from calico_core.dataplane.claims import Claims, Down
from calico_core.dataplane.denials import Origins
from calico_core.dataplane.nftables import layout
from calico_core.dataplane.nftables.desired import Desired
from calico_core.dataplane.nftables.host_endpoints import rules_of
from calico_core.dataplane.nftables.host_part import HostInputs, HostPart
from calico_core.dataplane.nftables.known_sets import KnownSets
from calico_core.dataplane.nftables.names import kernel_name
from calico_core.dataplane.nftables.placed import Own, Placed
from calico_core.dataplane.nftables.policy_chains import PolicyChains
from calico_core.dataplane.nftables.verdicts import Verdicts
from calico_core.dataplane.persistent_set import PersistentSet
from calico_core.dataplane.reconcile import NamedSet, Table
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import WIDTH
from calico_core.model.ids import check_interface
from calico_core.model.interface_names import prefixes_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from calico_core.dataplane.nftables.policy_chains import CountedChain
    from calico_core.interfaces.dataplane import DataplaneOptions
    from calico_core.model.hoststate import (
        HostChanges,
        HostInterface,
        HostNat,
        HostRules,
        HostState,
        HostWorkload,
        RulesId,
    )
    from calico_core.model.keys import WorkloadEndpointKey

_NAT_SETS = frozenset(name for kinds in layout.NAT_KINDS.values() for name in kinds)


class TableBuilder:
    """The desired table of one host. One thread.

    *Subjects* name what can fail by itself, as reports do: a workload or a host endpoint by its key's path, rules and
    sets by their id, ``pools``, ``peers``. A closed subject stays wanted: its workload has no way in or out, its rules
    deny. ``origins`` learns what is behind each denial. ``down``: see :class:`Down`.
    """

    def __init__(self, options: DataplaneOptions, origins: Origins | None = None, down: Down | None = None) -> None:
        self._options = options
        self._verdicts = Verdicts(options, Origins() if origins is None else origins)
        self.families: tuple[int, ...] = (4, 6) if options.is_ipv6_enabled else (4,)
        self._problems: dict[str, str] = {}
        self._closed: dict[str, str] = {}
        self._claims = Claims(down)
        self._placed: dict[str, Placed] = {}
        self._named_rules: dict[str, frozenset[RulesId]] = {}
        self._rules_users: defaultdict[RulesId, set[str]] = defaultdict(set)
        # by shared set: elements that came (True) or went since the last time
        self._moved: defaultdict[str, dict[Any, bool]] = defaultdict(dict)
        self._nat_users: Counter[tuple[str, Any]] = Counter()
        self._kinds = dict.fromkeys((layout.FROM_MAP, layout.TO_MAP, layout.SOURCE_MAP), "verdict")
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
        self._desired = Desired(self.table)
        self._sets = KnownSets(self._desired, self.families, self._problems, self._closed, options.max_set_size)
        self._policies = PolicyChains(
            self._desired, self._sets, self.families, self._verdicts, self._problems, self._closed
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
        down: Down | None = None,
    ) -> TableBuilder:
        """The table of a whole state, with these subjects closed."""
        built = cls(options, origins, down)
        built._closed.update(closed or {})
        for set_id in state.sets:
            built._sets.put_addresses(set_id, state.sets[set_id])
        for set_id in state.port_sets:
            built._sets.put_ports(set_id, state.port_sets[set_id])
        for rules in state.rules.values():
            built._put_rules(rules)
        built._put_workloads(state.workloads.values(), ())
        built._take_host(state)
        built._finish()
        return built

    @property
    def counted(self) -> dict[str, CountedChain]:
        """By chain: whose rules it renders."""
        return self._policies.counted

    @property
    def problems(self) -> dict[str, str]:
        """What could not be rendered as wanted, by subject."""
        return {**self._problems, **self._host_part.problems}

    def update(self, changes: HostChanges, state: HostState) -> set[str]:
        """Follow a batch that ``state`` has taken in. Gives the names of chains and sets to compare."""
        affected: dict[RulesId, None] = {}
        for change in changes.sets:
            if change.id in state.sets and self._sets.put_addresses(change.id, state.sets[change.id]):
                affected |= dict.fromkeys(self._policies.users_of(change.id))
        for ports in changes.port_sets:
            if ports.id in state.port_sets and self._sets.put_ports(ports.id, state.port_sets[ports.id]):
                affected |= dict.fromkeys(self._policies.users_of(ports.id))
        affected |= dict.fromkeys(rules.id for rules in changes.rules)
        for rules_id in affected:
            if rules_id in state.rules:
                self._put_rules(state.rules[rules_id])
        if changes.workloads or changes.removed_workloads:
            self._put_workloads(changes.workloads, changes.removed_workloads)
        for rules_id in changes.removed_rules:
            self._drop_rules(rules_id)
        for set_id in (*changes.removed_sets, *changes.removed_port_sets):
            self._sets.drop(set_id)
        if changes.interfaces or changes.removed_interfaces or changes.pools is not None or changes.peers is not None:
            self._take_host(state)
        return self._finish()

    def subject_of(self, name: str, element: Any = None) -> str:
        """What a chain, a set, or an element of a shared set belongs to; empty for the fixed part."""
        if element is None or name in self._desired.owners:
            return self._desired.owners.get(name, "")
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

    # --- rules ------------------------------------------------------------------------------------

    def _put_rules(self, rules: HostRules) -> None:
        if self._policies.put(rules):
            self._place_users(rules.id)

    def _drop_rules(self, rules_id: RulesId) -> None:
        self._policies.drop(rules_id)
        self._place_users(rules_id)

    def _place_users(self, rules_id: RulesId) -> None:
        """The rules came or went: endpoints that name them open or close."""
        for interface in sorted(self._rules_users.get(rules_id, ())):
            self._place(interface)
        self._is_host_dirty |= rules_id in self._host_part.named

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
        before = self._placed.pop(interface, None)
        after = self._contribution(workload, before)
        if after is not None:
            self._placed[interface] = after
        was, now = (() if each is None else each.elements for each in (before, after))
        if len(was) == len(now):  # most changes are of lists: what stays is not moved
            differing = [pair for pair in zip(was, now, strict=True) if pair[0] != pair[1]]
            was, now = tuple(one for one, _ in differing), tuple(two for _, two in differing)
        for moves, is_there in ((was, False), (now, True)):
            for name, element in moves:
                if name in _NAT_SETS:  # an address may pass from one to the other, whoever is placed first
                    self._nat_users[name, element] += 1 if is_there else -1
                    self._moved[name][element] = self._nat_users[name, element] > 0
                    if not self._nat_users[name, element]:
                        del self._nat_users[name, element]
                else:
                    self._moved[name][element] = is_there
        # only now, so that a list both name stays
        for name in before.chains if before is not None else ():
            self._policies.free_list(name)
        if before is not None and before.own.source_chain and (after is None or not after.own.source_chain):
            self._desired.drop_chain(before.own.source_chain)

    def _note_rules(self, interface: str, workload: HostWorkload | None) -> None:
        before = self._named_rules.pop(interface, frozenset())
        named: frozenset[RulesId] = frozenset()
        if workload is not None:
            inbound, outbound = map(self._policies.rules_in, (workload.inbound, workload.outbound))
            named = self._named_rules[interface] = inbound if outbound <= inbound else inbound | outbound
        if named == before:
            return
        for rules_id in before - named:
            self._rules_users[rules_id].discard(interface)
            if not self._rules_users[rules_id]:
                del self._rules_users[rules_id]
        for rules_id in named - before:
            self._rules_users[rules_id].add(interface)

    def _contribution(self, workload: HostWorkload | None, before: Placed | None) -> Placed | None:
        """None: closed, nothing leads in or out."""
        if workload is None:
            return None
        subject = workload.key.path
        self._problems.pop(subject, None)
        if not workload.is_active or subject in self._closed:
            return None
        try:
            check_interface(workload.interface, field="interface")
            if not workload.interface.startswith(self._options.interface_prefixes):
                raise InvalidRequest(
                    "interface", f"must start with {prefixes_in_words(self._options.interface_prefixes)}"
                )
            missing = self._policies.missing(self._named_rules[workload.interface])
            if missing:
                raise InvalidRequest("policies", f"there are no rules for {', '.join(missing)}")
        except InvalidRequest as error:
            self._problems[subject] = f"{error}; it is closed"
            return None
        if before is not None and before.own.holds(workload, self._claims.generation):
            own = before.own
            if own.problem is not None:
                self._problems[subject] = own.problem
        else:
            own = self._own(workload)
        inbound = self._policies.use_list(workload.inbound, "in", subject)
        outbound = self._policies.use_list(workload.outbound, "out", subject)
        elements = [
            *own.addresses,
            (layout.TO_MAP, (workload.interface, inbound)),
            (layout.FROM_MAP, (workload.interface, outbound)),
        ]
        if own.source_chain:
            elements.append((layout.SOURCE_MAP, (workload.interface, own.source_chain)))
        return Placed(subject, tuple(elements), (inbound, outbound), own)

    def _own(self, workload: HostWorkload) -> Own:
        subject = workload.key.path
        elements: list[tuple[str, Any]] = []
        for net in dict.fromkeys(workload.nets):  # a record may name one twice
            if net.version not in self.families:
                continue
            if net.prefixlen != WIDTH[net.version]:
                self._problems[subject] = f"{net} is wider than one address; it is left out"
                continue
            if not self._claims.has(workload.key, net.ip):
                continue  # who has it may send from it, as a strict reverse-path filter would have it
            any_kind, mac_kind = layout.SOURCE_KINDS[net.version]
            if workload.mac is None:
                elements.append((layout.source_set(any_kind), (workload.interface, net.first)))
            else:
                elements.append((layout.source_set(mac_kind), (workload.interface, int(workload.mac), net.first)))
        # two floating addresses of one address of the workload have an element in common
        elements += dict.fromkeys(each for nat in workload.nats for each in self._nat_elements(workload, nat))
        sources = self._put_source_chain(workload)
        return Own(workload, self._claims.generation, tuple(elements), sources, self._problems.get(subject))

    def _put_source_chain(self, workload: HostWorkload) -> str:
        """Its name, empty without one."""
        wanted = layout.source_chain(workload, self.families, self._verdicts)
        if wanted is None:
            return ""
        name = kernel_name("ws", workload.interface)
        if self.table.chains.get(name) != wanted:
            self._desired.put_chain(name, wanted, workload.key.path)
        return name

    def _nat_elements(self, workload: HostWorkload, nat: HostNat) -> list[tuple[str, Any]]:
        """A floating address goes to one workload only, and to an address that it has."""
        family = nat.internal.version
        if nat.external.version != family:
            self._problems[workload.key.path] = f"{nat.external} is of another family than {nat.internal}"
            return []
        if nat.internal not in {net.ip for net in workload.nets}:
            self._problems[workload.key.path] = f"{nat.internal} is none of its addresses; {nat.external} is left out"
            return []
        is_ours = self._claims.leads(workload, nat)
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
                self._desired.put_chain(name, chain, after.subjects.get(name, ""))
        for name, named_set in after.sets.items():
            if self.table.sets.get(name) != named_set:
                self.table.sets[name] = named_set
                self._desired.dirty.add(name)
            if name in after.subjects:
                self._desired.owners[name] = after.subjects[name]
        for name in before - after.names:
            (self._desired.drop_set if name in self.table.sets else self._desired.drop_chain)(name)

    def _problem_of(self, interface: HostInterface) -> str | None:
        """Why a host endpoint cannot be programmed as it is wanted."""
        if interface.key.path in self._closed:
            return "refused by the kernel"
        if interface.interface.startswith(self._options.interface_prefixes):
            return f"{interface.interface} is a workload's interface"
        missing = sorted({each for each in rules_of(interface) if each not in self._policies})
        return f"there are no rules for {', '.join(missing)}" if missing else None

    def _finish(self) -> set[str]:
        """Bring the shared sets up to date and hand out the names touched since the last time."""
        self._policies.end_batch()
        moved, self._moved = self._moved, defaultdict(dict)
        for name, elements in moved.items():
            self._shared[name] = self._shared[name].changed(
                added=[each for each, is_there in elements.items() if is_there],
                removed=[each for each, is_there in elements.items() if not is_there],
            )
        self._desired.dirty |= moved.keys()
        nat = self._desired.dirty & _NAT_SETS
        if nat or self._is_host_dirty:
            self._put_host()
        for name in self._desired.dirty & self._kinds.keys():
            self.table.sets[name] = NamedSet(self._kinds[name], self._shared[name])
        if nat:
            self._freeze_nat()
        dirty, self._desired.dirty = self._desired.dirty, set()
        return dirty

    def _freeze_nat(self) -> None:
        """All maps stand while one has something, as the rules name them all."""
        names = [name for family in self.families for name in layout.NAT_KINDS[family]]
        is_wanted = any(self._shared[name] for name in names)
        for name in names:
            self._desired.dirty.add(name)
            if is_wanted:
                self.table.sets[name] = NamedSet(name, self._shared[name])
            else:
                self.table.sets.pop(name, None)
