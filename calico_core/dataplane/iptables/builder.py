"""From :class:`HostState` to the chains and sets the kernel shall hold, kept up batch by batch.

Pure. :meth:`TablesBuilder.update` takes one batch; what it touches is noted in :attr:`TablesBuilder.desired`.
Endpoints with equal lists of policies share one chain, named by the list's content.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.claims import Claims, Down
from calico_core.dataplane.denials import Origins
from calico_core.dataplane.iptables import layout
from calico_core.dataplane.iptables.desired import Desired
from calico_core.dataplane.iptables.host_chains import HostChains
from calico_core.dataplane.iptables.ipsets import elements_for, kind_for
from calico_core.dataplane.iptables.known_sets import KnownSets
from calico_core.dataplane.iptables.layout import Layout
from calico_core.dataplane.iptables.names import FILTER, MANGLE, RAW, set_name, source_chain_name
from calico_core.dataplane.iptables.nat_chains import NatChains
from calico_core.dataplane.iptables.policy_chains import PolicyChains, rules_in
from calico_core.dataplane.iptables.trees import Trees
from calico_core.dataplane.reconcile import NamedSet, Table
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import WIDTH
from calico_core.model.hoststate import AddressSet, HostPeers
from calico_core.model.ids import check_interface
from calico_core.model.interface_names import prefixes_in_words
from calico_core.model.tunnels import IPIP_PROTOCOL, VXLAN_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from netaddr import IPAddress

    from calico_core.interfaces.dataplane import DataplaneOptions
    from calico_core.model.hoststate import HostChanges, HostNat, HostRules, HostState, HostWorkload, RulesId
    from calico_core.model.keys import WorkloadEndpointKey

PEERS = "peers"
_BOTH = (4, 6)


class _Placed(msgspec.Struct, frozen=True):
    """The chains of one interface's lists: inbound, outbound."""

    inbound: str
    outbound: str


class TablesBuilder:
    """The desired tables of one host. One thread.

    *Subjects* name what can fail by itself, as reports do: an endpoint by its key's path, rules and sets by their id,
    ``pools``, ``peers``, ``floating addresses``. A closed subject stays wanted: its endpoint has no way in or out, its
    rules drop. ``kernel_families``: those the kernel speaks; one that is not enabled gets the fixed chains,
    which drop, and lets fail-safe ports alone pass where an interface has a host endpoint. ``down``: see
    :class:`Down`.
    """

    def __init__(
        self,
        options: DataplaneOptions,
        kernel_families: tuple[int, ...] = _BOTH,
        origins: Origins | None = None,
        closed: Mapping[str, str] | None = None,
        down: Down | None = None,
    ) -> None:
        self._options = options
        self.kernel_families = kernel_families
        enabled = _BOTH if options.is_ipv6_enabled else (4,)
        self._families = tuple(family for family in enabled if family in kernel_families)
        self.problems: dict[str, str] = {}
        self._closed: dict[str, str] = dict(closed or {})
        self._claims = Claims(down)
        self._placed: dict[str, _Placed] = {}
        self._nats: dict[str, HostWorkload] = {}
        self._are_nats_dirty = False
        self._named_rules: dict[str, frozenset[RulesId]] = {}
        self._rules_users: defaultdict[RulesId, set[str]] = defaultdict(set)
        self._is_dispatch_dirty = True
        self._peers, self._peer_addresses = HostPeers(), AddressSet()
        self.desired = Desired()
        #: Addresses (of a family) an interface may send from, by family and chain.
        self.sources: dict[tuple[int, str], frozenset[int]] = {}
        #: By interface: what its source chains were made of, and whose they are.
        self._senders: dict[str, tuple[object, ...]] = {}
        self._layout = Layout(options, self._families, Origins() if origins is None else origins)
        for family in kernel_families:
            for table, chains in self._layout.fixed_chains(family).items():
                self.desired.tables[family, table] = Table(chains)
        self._sets = KnownSets(self.desired, self._families, self.problems, self._closed, options.max_set_size)
        self.policies = PolicyChains(self.desired, self._sets, self._layout, self.problems, self._closed)
        self._hosts = HostChains(
            self.desired,
            self.policies,
            self._layout,
            self.problems,
            self._closed,
            has_closed_ipv6=6 in kernel_families and 6 not in self._families,
        )
        self._nat = NatChains(self.desired, self._layout, self._closed)
        self._trees = Trees(self.desired)
        self._finish()

    @property
    def leading(self) -> dict[tuple[int, str], frozenset[int]]:
        """Floating addresses by the address they lead to."""
        return self._nat.leading

    @property
    def held(self) -> dict[tuple[int, str], frozenset[int]]:
        """Addresses by who has them: those an interface may send from, and those that lead to another address."""
        return self.sources | self.leading

    @classmethod
    def of(
        cls,
        options: DataplaneOptions,
        kernel_families: tuple[int, ...],
        state: HostState,
        closed: Mapping[str, str] | None = None,
        origins: Origins | None = None,
        down: Down | None = None,
    ) -> TablesBuilder:
        """The tables of a whole state, with these subjects closed."""
        built = cls(options, kernel_families, origins, closed, down)
        for set_id, members in state.sets.items():
            built._sets.put_addresses(set_id, members)
        for set_id, ports in state.port_sets.items():
            built._sets.put_ports(set_id, ports)
        for rules in state.rules.values():
            built.policies.put(rules)
        built._put_workloads(state.workloads.values(), ())
        for interface in state.interfaces.values():
            built._hosts.put(interface)
        built._nat.put_pools(state.pools)
        built._put_peers(state.peers)
        built._finish()
        return built

    def update(self, changes: HostChanges, state: HostState) -> None:
        """Follow a batch that ``state`` has taken in."""
        affected: dict[RulesId, HostRules] = {}
        for change in changes.sets:
            if change.id in state.sets and self._sets.put_addresses(change.id, state.sets[change.id]):
                affected |= {rules.id: rules for rules in self.policies.users_of(change.id)}
        for ports in changes.port_sets:
            if ports.id in state.port_sets and self._sets.put_ports(ports.id, state.port_sets[ports.id]):
                affected |= {rules.id: rules for rules in self.policies.users_of(ports.id)}
        affected |= {rules.id: rules for rules in changes.rules}
        for rules in affected.values():
            if rules.id in state.rules and self.policies.put(state.rules[rules.id]):
                self._place_users(rules.id)
        if changes.workloads or changes.removed_workloads:
            self._put_workloads(changes.workloads, changes.removed_workloads)
        for interface in changes.interfaces:
            self._hosts.put(interface)
        for name in changes.removed_interfaces:
            self._hosts.drop(name)
        if changes.pools is not None:
            self._nat.put_pools(state.pools)
        if changes.peers is not None:
            self._put_peers(state.peers)
        for rules_id in changes.removed_rules:
            self.policies.drop(rules_id)
            self._place_users(rules_id)
        for set_id in (*changes.removed_sets, *changes.removed_port_sets):
            self._sets.drop(set_id)
            self.policies.forget_set(set_id)
        self._finish()

    def _place_users(self, rules_id: RulesId) -> None:
        """The rules came or went: endpoints that name them open or close."""
        for interface in sorted(self._rules_users.get(rules_id, ())):
            self._place(interface)
        self._hosts.place_users(rules_id)

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
        if before is not None:
            self.policies.free_list(before.inbound, layout.TO_WORKLOAD)
            self.policies.free_list(before.outbound, layout.FROM_WORKLOAD)
        self._note_nats(interface, workload if after is not None else None)

    def _note_rules(self, interface: str, workload: HostWorkload | None) -> None:
        before = self._named_rules.pop(interface, frozenset())
        named: frozenset[RulesId] = frozenset()
        if workload is not None:
            named = frozenset({*rules_in(workload.inbound), *rules_in(workload.outbound)})
            self._named_rules[interface] = named
        for rules_id in before - named:
            self._rules_users[rules_id].discard(interface)
            if not self._rules_users[rules_id]:
                del self._rules_users[rules_id]
        for rules_id in named - before:
            self._rules_users[rules_id].add(interface)

    def _is_open(self, workload: HostWorkload) -> bool:
        """Otherwise nothing leads in or out."""
        subject = workload.key.path
        self.problems.pop(subject, None)
        if not workload.is_active or subject in self._closed:
            return False
        try:
            check_interface(workload.interface, field="interface")
            if not workload.interface.startswith(self._options.interface_prefixes):
                raise InvalidRequest(
                    "interface", f"must start with {prefixes_in_words(self._options.interface_prefixes)}"
                )
            missing = sorted(each for each in self._named_rules[workload.interface] if each not in self.policies)
            if missing:
                raise InvalidRequest("policies", f"there are no rules for {', '.join(missing)}")
        except InvalidRequest as error:
            self.problems[subject] = f"{error}; it is closed"
            return False
        return True

    def _lists_of(self, workload: HostWorkload) -> _Placed:
        return _Placed(
            self.policies.use_list(workload.inbound, layout.TO_WORKLOAD),
            self.policies.use_list(workload.outbound, layout.FROM_WORKLOAD),
        )

    def _note_nats(self, interface: str, workload: HostWorkload | None) -> None:
        before = self._nats.pop(interface, None)
        if workload is not None and workload.nats:
            self._nats[interface] = workload
            self._check_nats(workload)
        self._are_nats_dirty = self._are_nats_dirty or before is not None or interface in self._nats

    def _check_nats(self, workload: HostWorkload) -> None:
        own = {net.ip for net in workload.nets}
        for nat in workload.nats:
            if nat.external.version != nat.internal.version:
                self.problems[workload.key.path] = f"{nat.external} is of another family than {nat.internal}"
            elif nat.internal not in own:
                self.problems[workload.key.path] = (
                    f"{nat.internal} is none of its addresses; {nat.external} is left out"
                )

    def _put_nats(self) -> None:
        """A floating address goes to one workload only, and to an address that it has."""
        wanted: dict[IPAddress, HostNat] = {}
        for workload in self._nats.values():
            own = {net.ip for net in workload.nets}
            for nat in sorted(workload.nats, key=lambda each: each.internal):
                is_one_family = nat.external.version == nat.internal.version
                if is_one_family and nat.internal in own and self._claims.leads(workload, nat):
                    wanted.setdefault(nat.external, nat)
        self._nat.put_floating(wanted.values())

    def _put_sources(self, workload: HostWorkload) -> None:
        subject, name = workload.key.path, source_chain_name(workload.interface)
        addresses: dict[int, set[int]] = {family: set() for family in self._families}
        for net in workload.nets:
            if net.version not in addresses:
                continue
            if net.prefixlen != WIDTH[net.version]:
                self.problems[subject] = f"{net} is wider than one address; it is left out"
                continue
            if not self._claims.has(workload.key, net.ip):
                continue  # who has it may send from it, as a strict reverse-path filter would have it
            addresses[net.version].add(net.first)
        for family, each in addresses.items():
            self.sources[family, name] = frozenset(each)
        # most changes are of policies
        senders = (workload.mac, addresses, workload.allowed_source_prefixes, subject)
        if self._senders.get(workload.interface) == senders:
            return
        self._senders[workload.interface] = senders
        for family, each in addresses.items():
            chain = self._layout.source_chain(workload.mac, each, workload.allowed_source_prefixes, family)
            self.desired.put_chain((family, RAW), name, chain, subject)

    def _drop_sources(self, interface: str) -> None:
        name = source_chain_name(interface)
        self._senders.pop(interface, None)
        for family in self._families:
            self.sources.pop((family, name), None)
            self.desired.drop_chain((family, RAW), name)

    def _put_dispatch(self) -> None:
        inbound = {interface: f"-g {placed.inbound}" for interface, placed in self._placed.items()}
        outbound = {interface: f"-g {placed.outbound}" for interface, placed in self._placed.items()}
        senders = {interface: f"-g {source_chain_name(interface)}" for interface in self._placed}
        for table, root, option, targets in (
            (FILTER, layout.TO_ROOT, "-o", inbound),
            (FILTER, layout.FROM_ROOT, "-i", outbound),
            (RAW, layout.SOURCE_ROOT, "-i", senders),
        ):
            for family in self.kernel_families:
                known = targets if family in self._families else {}
                self._trees.put((family, table), root, option, known, self._layout.missed(root, family))

    # --- the host itself --------------------------------------------------------------------------

    def _put_peers(self, peers: HostPeers) -> None:
        """The set of those who may send encapsulated packets stands while somebody may."""
        self._peers = peers
        self._nat.put_peers(peers)
        self._peer_addresses = members = AddressSet.of([*peers.addresses, *self._options.external_peers])
        for family in self._families:
            kind = kind_for(members, family)
            names = {each: set_name(f"{each}{family}", PEERS) for each in ("hosts", "nets")}
            wanted = names[kind[:-1]] if self._guards(family) and PEERS not in self._closed else ""
            for name in names.values():
                if name == wanted:
                    self.desired.put_set(name, NamedSet(kind, elements_for(members, kind)), PEERS)
                elif name in self.desired.sets.sets:
                    self.desired.drop_set(name)

    def _guards(self, family: int) -> list[tuple[str, str]]:
        """What an encapsulated packet looks like, of the encapsulations in use, and their names."""
        if family not in self._families:
            return []
        guards = [(f"-p {IPIP_PROTOCOL}", "IPIP")] if self._peers.is_ipip and family == 4 else []
        return guards + ([(f"-p 17 -m udp --dport {VXLAN_PORT}", "VXLAN")] if self._peers.is_vxlan else [])

    def _from_peers(self, family: int) -> list[str]:
        """Encapsulated packets come from hosts only: from anybody else their content would be believed."""
        rules: list[str] = []
        for match, words in self._guards(family):
            # without the set everybody is a stranger
            rules += [] if PEERS in self._closed else [f"{match} {self._of_peers(family)} src -j ACCEPT"]
            rules += self._layout.verdicts(family).drop(match, f"{words} from no host of ours")
        return rules

    def _to_peers(self, family: int) -> list[str]:
        """What the host itself encapsulates is no matter of its endpoints' policy."""
        known = [] if PEERS in self._closed else self._guards(family)
        return [f"{match} {self._of_peers(family)} dst -j ACCEPT" for match, _ in known]

    def _of_peers(self, family: int) -> str:
        return f"-m set --match-set {set_name(kind_for(self._peer_addresses, family), PEERS)}"

    def _put_bases(self) -> None:
        """The chains the kernel's own lead to."""
        workloads = self._layout.workloads
        for family in self.kernel_families:
            entering, leaving = self._hosts.forward_steps(family)
            verdicts = self._layout.verdicts(family)
            passing = [f"{side} {each} -g {layout.WORKLOADS}" for each in workloads for side in ("-i", "-o")]
            if entering or leaving:
                passing = [*entering, *passing, *leaving, f"{verdicts.if_accepted} {verdicts.allow}"]
            bases = {
                (FILTER, layout.WORKLOADS): self._layout.forwarded(family, leaving),
                (FILTER, "calico-FORWARD"): passing,
                (FILTER, "calico-INPUT"): [
                    *self._from_peers(family),
                    *(f"-i {each} -g calico-wl-host" for each in workloads),
                ],
                (FILTER, "calico-OUTPUT"): [],
                (RAW, "calico-PREROUTING"): [f"-i {each} -g {layout.WORKLOAD_SOURCE}" for each in workloads],
                (RAW, "calico-OUTPUT"): [],
                (MANGLE, "calico-PREROUTING"): [],
            }
            for (table, name), rules in bases.items():
                steps = self._hosts.steps(family, table, name)
                before = self._to_peers(family) if steps and (table, name) == (FILTER, "calico-OUTPUT") else []
                self._put_base((family, table), name, [*rules, *before, *steps])

    def _put_base(self, where: tuple[int, str], name: str, rules: list[str]) -> None:
        standing = self.desired.tables[where].chains
        wanted = layout.chain(rules)
        if not rules:
            if name in standing:
                self.desired.drop_chain(where, name)
        elif standing.get(name) != wanted:
            self.desired.put_chain(where, name, wanted)

    def _finish(self) -> None:
        if self._is_dispatch_dirty:
            self._put_dispatch()
            self._is_dispatch_dirty = False
        if self._are_nats_dirty:
            self._put_nats()
            self._are_nats_dirty = False
        self._hosts.finish()
        self._nat.finish()
        self._put_bases()
