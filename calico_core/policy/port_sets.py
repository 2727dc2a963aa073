"""Sets of (address, protocol, port): who offers a port of a name. Source: felix specification 4.4.

They stand beside the address sets, on the same index: an endpoint with ports carries a label for each that no record
can spell, so that a name of a port is one more thing that selectors ask for. Endpoints without ports are not known
here at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyroaring import BitMap

from calico_core.model.endpoints import EndpointPort
from calico_core.model.hoststate import PortMember, PortSetChange, SetId
from calico_core.model.rules import protocol_number
from calico_core.model.selectors import And, Has, Labels, Node
from calico_core.policy.active import References
from calico_core.policy.label_index import Delta
from calico_core.policy.members import V6, MemberTable, each_host
from calico_core.policy.postings import Query
from calico_core.policy.rules import NamedPort, port_label

Ports = tuple[EndpointPort, ...]


def node_of(source: NamedPort) -> Node:
    """Who has the port and is among those meant."""
    return And((Has(port_label(source.name, source.protocol)), *source.among))


def with_port_labels(labels: Labels, ports: Ports) -> Labels:
    return {**labels, **{port_label(port.name, protocol_number(port.protocol)): "" for port in ports}}


class _ActivePorts:
    """What the dataplane knows of a set. ``offers``: what each endpoint brings in; several may bring the same."""

    __slots__ = ("id", "is_new", "members", "offers", "query", "source")

    def __init__(self, set_id: SetId, query: Query, source: NamedPort) -> None:
        self.id = set_id
        self.query = query
        self.source = source
        self.is_new = True
        self.members: References[PortMember] = References()
        self.offers: dict[int, frozenset[PortMember]] = {}


class PortSets:
    """The sets in use, by the query of each."""

    def __init__(self, table: MemberTable) -> None:
        self.ports: dict[int, Ports] = {}
        """Of the endpoints that have some. To be read; change it by :meth:`put`."""
        self._table = table
        self._sets: dict[SetId, _ActivePorts] = {}
        self._of_query: dict[Query, _ActivePorts] = {}
        # Of the batch under way.
        self._begun: set[SetId] = set()
        self._touched = BitMap()

    def __contains__(self, set_id: SetId) -> bool:
        return set_id in self._sets

    def activate(self, set_id: SetId, source: NamedPort, query: Query) -> None:
        self._sets[set_id] = self._of_query[query] = _ActivePorts(set_id, query, source)
        self._begun.add(set_id)

    def deactivate(self, set_id: SetId) -> Query:
        query = self._sets.pop(set_id).query
        self._begun.discard(set_id)
        del self._of_query[query]
        return query

    def put(self, item: int, ports: Ports) -> None:
        """An endpoint that has ports, or had some."""
        if self.ports.get(item, ()) == ports:
            return
        self._touched.add(item)
        if ports:
            self.ports[item] = ports
        else:
            del self.ports[item]

    def touch(self, item: int) -> None:
        """Its addresses are others now."""
        if item in self.ports:
            self._touched.add(item)

    def flush(self, deltas: Mapping[Query, Delta]) -> tuple[PortSetChange, ...]:
        """``deltas``: how the items of each query changed; those of other sets are among them."""
        if not self._sets:
            self._touched.clear()
            return ()
        dirty: dict[_ActivePorts, BitMap] = {}
        for query, delta in deltas.items():
            active = self._of_query.get(query)
            if active is not None:
                dirty[active] = delta.added | delta.removed
        if self._touched:
            for active in self._of_query.values():
                kept = active.query.matched & self._touched
                if kept:
                    dirty[active] = dirty.get(active, BitMap()) | kept
        for set_id in self._begun:
            dirty.setdefault(self._sets[set_id], BitMap())
        changes = tuple(change for active, items in dirty.items() if (change := self._change(active, items)))
        self._begun.clear()
        self._touched.clear()
        return changes

    def _change(self, active: _ActivePorts, items: Iterable[int]) -> PortSetChange | None:
        matched = active.query.matched
        for item in items:
            before = active.offers.pop(item, frozenset())
            after = self._offer(item, active.source) if item in matched else frozenset()
            if after:
                active.offers[item] = after
            active.members.hold(after)
            active.members.release(before)
        added, removed = active.members.take_changes()
        if not active.is_new and not added and not removed:
            return None
        is_new, active.is_new = active.is_new, False
        return PortSetChange(id=active.id, is_new=is_new, added=frozenset(added), removed=frozenset(removed))

    def _offer(self, item: int, source: NamedPort) -> frozenset[PortMember]:
        numbers = [
            port.port
            for port in self.ports[item]
            if port.name == source.name and protocol_number(port.protocol) == source.protocol
        ]
        return frozenset(
            PortMember(4, host, source.protocol, number)
            if host < V6
            else PortMember(6, host - V6, source.protocol, number)
            for host in each_host(self._table.hosts(item))
            for number in numbers
        )
