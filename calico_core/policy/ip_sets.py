"""Address sets: who is in the sets that active rules name. Source: felix specification 4.4.

All endpoints of all hosts are indexed; only the sets in use are evaluated and kept. A change of a set is found by the
difference of its endpoints; an address leaves with its last owner, and one that moves from endpoint to endpoint within
a batch makes no change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from netaddr import IPNetwork
from pyroaring import BitMap, FrozenBitMap

from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.hoststate import AddressSet, PortSetChange, SetChange, SetId
from calico_core.model.keys import Key
from calico_core.model.policies import NetworkSet
from calico_core.model.selectors import Labels
from calico_core.policy.dense_ids import DenseIds
from calico_core.policy.label_index import Delta, IndexFigures, LabelIndex
from calico_core.policy.members import NO_HOSTS, V6, Hosts, MemberTable, addresses_of, each_host, outermost
from calico_core.policy.port_sets import PortSets, node_of, with_port_labels
from calico_core.policy.postings import EMPTY, Query
from calico_core.policy.rules import NamedPort, Source

Member = WorkloadEndpoint | HostEndpoint | NetworkSet
_UNCHANGED = Delta(EMPTY, EMPTY)
_NO_NETS: frozenset[IPNetwork] = frozenset()
_NO_ADDRESSES = AddressSet()
_FEW_ITEMS = 64
"""Up to here the sets that an endpoint is in are asked for one endpoint at a time."""


class _ActiveSet:
    """What the dataplane knows of a set."""

    __slots__ = ("id", "is_new", "nets", "query", "v4", "v6")

    def __init__(self, set_id: SetId, query: Query) -> None:
        self.id = set_id
        self.query = query
        self.is_new = True
        self.v4 = BitMap()
        self.v6: set[int] = set()
        self.nets: frozenset[IPNetwork] = frozenset()


class IpSets:
    """Every endpoint and network set × the sets in use, of addresses and of ports."""

    def __init__(self) -> None:
        self._index = LabelIndex()
        self._ids: DenseIds[Key] = DenseIds()
        self._table = MemberTable()
        self._sets: dict[SetId, _ActiveSet] = {}
        self._of_query: dict[Query, _ActiveSet] = {}
        self._port_sets = PortSets(self._table)
        # Of the batch under way: what endpoints had whose addresses are others now.
        self._hosts_before: dict[int, Hosts] = {}
        self._nets_changed = BitMap()
        self._begun: set[SetId] = set()

    def index_figures(self) -> IndexFigures:
        return self._index.figures()

    def activate(self, set_id: SetId, source: Source) -> None:
        if isinstance(source, NamedPort):
            self._port_sets.activate(set_id, source, self._index.add_query(node_of(source)))
            return
        query = self._index.add_query(source)
        self._sets[set_id] = self._of_query[query] = _ActiveSet(set_id, query)
        self._begun.add(set_id)

    def deactivate(self, set_id: SetId) -> bool:
        """Whether it was a set of ports."""
        if set_id in self._port_sets:
            self._index.drop_query(self._port_sets.deactivate(set_id))
            return True
        query = self._sets.pop(set_id).query
        self._begun.discard(set_id)
        del self._of_query[query]
        self._index.drop_query(query)
        return False

    def set_profile_labels(self, profile: str, labels: Labels | None) -> None:
        """Labels, and tags as :func:`calico_core.policy.rules.tag_label` spells them."""
        self._index.set_parent(profile, labels)

    def update_members(self, updates: Collection[tuple[Key, Member | None]]) -> None:
        """Each key at most once a batch. None: gone."""
        ids, table, index = self._ids, self._table, self._index
        port_sets, with_ports = self._port_sets, self._port_sets.ports
        index.expect(len(updates))
        for key, record in updates:
            if record is None:
                item = ids.release(key)
                if item is not None:
                    self._set_addresses(item, NO_HOSTS, ())
                    port_sets.put(item, ())
                    index.remove(item)
                continue
            hosts, nets = addresses_of(record)
            item = ids.find(key)
            if item is None:
                item = ids.add(key)
                table.put(item, hosts, nets)
            else:
                self._set_addresses(item, hosts, nets)
            labels: Labels = record.labels
            if isinstance(record, NetworkSet):
                index.put(item, labels, ())
                continue
            if record.ports or item in with_ports:
                port_sets.put(item, record.ports)
                labels = with_port_labels(labels, record.ports)
            index.put(item, labels, record.profile_ids)

    def _set_addresses(self, item: int, hosts: Hosts, nets: tuple[IPNetwork, ...]) -> None:
        table = self._table
        before, nets_before = table.hosts(item), table.nets(item)
        if before == hosts and nets_before == nets:
            return
        if before != hosts:
            self._hosts_before[item] = before
            self._port_sets.touch(item)
        if nets_before != nets:
            self._nets_changed.add(item)
        table.replace(item, hosts, nets)

    def flush(self) -> tuple[tuple[SetChange, ...], tuple[PortSetChange, ...]]:
        """How the active sets changed since the last flush; one just activated comes with all its members."""
        answers = self._index.flush()
        port_changes = self._port_sets.flush(answers)
        deltas = {
            active: delta for query, delta in answers.items() if (active := self._of_query.get(query)) is not None
        }
        touched = BitMap(self._hosts_before) | self._nets_changed if self._hosts_before else self._nets_changed
        for active in self._sets_with(touched):
            deltas.setdefault(active, _UNCHANGED)
        for set_id in self._begun:
            deltas.setdefault(self._sets[set_id], _UNCHANGED)
        changes = [change for active, delta in deltas.items() if (change := self._change(active, delta, touched))]
        self._hosts_before.clear()
        self._nets_changed.clear()
        self._begun.clear()
        self._ids.end_batch()
        return tuple(changes), port_changes

    def _sets_with(self, items: BitMap) -> Iterable[_ActiveSet]:
        """The sets that hold one of the items."""
        if not items:
            return ()
        if len(items) > _FEW_ITEMS:
            return [active for active in self._sets.values() if not items.isdisjoint(active.query.matched)]
        queries = {query for item in items for query in self._index.matching(item)}
        return [active for query in queries if (active := self._of_query.get(query)) is not None]

    def _change(self, active: _ActiveSet, delta: Delta, touched: BitMap) -> SetChange | None:
        matched = active.query.matched
        kept = matched & touched if touched else EMPTY
        nets_added = nets_removed = _NO_NETS
        if self._table.with_nets or self._nets_changed:
            nets_added, nets_removed = self._change_nets(active, delta, kept)
        if active.is_new:
            active.is_new = False
            active.v4, active.v6 = self._table.collect(matched)
            return SetChange(id=active.id, is_new=True, added=_address_set(active.v4, active.v6, nets_added))
        # most changes are of one side only, and each operation on bitmaps costs some microseconds, empty or not
        v4, v6 = self._table.collect(delta.added | kept if kept else delta.added)
        v4_gone, v6_gone = self._gone(active, delta.removed | kept if kept else delta.removed)
        if v4:
            v4 -= active.v4
            active.v4 |= v4
        if v4_gone:
            active.v4 -= v4_gone
        if v6:
            v6 -= active.v6
            active.v6 |= v6
        if v6_gone:
            active.v6 -= v6_gone
        if not (v4 or v6 or v4_gone or v6_gone or nets_added or nets_removed):
            return None
        return SetChange(
            id=active.id,
            added=_address_set(v4, v6, nets_added),
            removed=_address_set(v4_gone, v6_gone, nets_removed),
        )

    def _gone(self, active: _ActiveSet, left: BitMap) -> tuple[BitMap, set[int]]:
        """Of the addresses these endpoints had, those that no endpoint of the set has any more."""
        v4: list[int] = []
        v6: set[int] = set()
        if not left:
            return EMPTY, v6
        table, matched = self._table, active.query.matched
        for item in left:
            hosts = self._hosts_before.get(item)
            for host in each_host(table.hosts(item) if hosts is None else hosts):
                if table.is_owned(host, matched):
                    continue
                if host < V6:
                    v4.append(host)
                else:
                    v6.add(host - V6)
        return BitMap(v4) & active.v4, v6 & active.v6

    def _change_nets(
        self, active: _ActiveSet, delta: Delta, kept: BitMap
    ) -> tuple[frozenset[IPNetwork], frozenset[IPNetwork]]:
        of_nets = self._table.with_nets | self._nets_changed
        if not active.is_new and of_nets.isdisjoint(delta.added | delta.removed | kept):
            return _NO_NETS, _NO_NETS
        before = active.nets
        holders = active.query.matched & self._table.with_nets
        active.nets = outermost({net for item in holders for net in self._table.nets(item)})
        return active.nets - before, before - active.nets


def _address_set(v4: BitMap, v6: set[int], nets: frozenset[IPNetwork]) -> AddressSet:
    if not (v4 or v6 or nets):
        return _NO_ADDRESSES
    return AddressSet(v4=FrozenBitMap(v4), v6=frozenset(v6), nets=nets)
