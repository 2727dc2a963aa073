"""The sets that policy names: their kinds and names in the kernel. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calico_core.dataplane.nftables.elements import merge_ranges, no_elements
from calico_core.dataplane.nftables.names import kernel_name
from calico_core.dataplane.reconcile import NamedSet
from calico_core.dataplane.set_limit import SetLimit
from calico_core.errors import InvalidRequest
from calico_core.model.set_size import address_count, port_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calico_core.dataplane.nftables.desired import Desired
    from calico_core.model.hoststate import AddressSet, PortMember, SetId


class KnownSets:
    """One thread. ``problems`` and ``closed``: reasons by subject, shared with the caller; a closed set stands empty,
    one beyond ``max_elements`` not at all, and no rule can match by them."""

    def __init__(
        self,
        desired: Desired,
        families: Sequence[int],
        problems: dict[str, str],
        closed: Mapping[str, str],
        max_elements: int,
    ) -> None:
        self._desired, self._families, self._closed = desired, families, closed
        self._limit = SetLimit(max_elements, problems)
        self._names: dict[SetId, dict[int, str]] = {}

    def put_addresses(self, set_id: SetId, members: AddressSet) -> bool:
        """Whether the rules that name the set are to be written again: its kernel name, or its usability, changed."""
        kind = "ranges" if members.nets else "hosts"
        names = {family: kernel_name(f"{kind[0]}{family}", set_id) for family in self._families}
        elements = {family: _elements(members, family) for family in self._families}
        return self._put(set_id, names, kind, elements, address_count(members))

    def put_ports(self, set_id: SetId, members: frozenset[PortMember]) -> bool:
        """As :meth:`put_addresses`."""
        names = {family: kernel_name(f"p{family}", set_id) for family in self._families}
        elements = {
            family: frozenset(tuple(member)[1:] for member in members if member.version == family)
            for family in self._families
        }
        return self._put(set_id, names, "ports", elements, port_count(members))

    def drop(self, set_id: SetId) -> None:
        self._limit.forget(set_id)
        for name in self._names.pop(set_id, {}).values():
            self._desired.drop_set(name)

    def name(self, set_id: SetId, family: int) -> str:
        """:raises InvalidRequest: no rule can match by it."""
        names = self._names.get(set_id)
        if names is None:
            raise InvalidRequest("sets", f"set {set_id} is not known")
        if set_id in self._closed or set_id in self._limit:
            raise InvalidRequest("sets", f"set {set_id} could not be programmed")
        return names[family]

    def _put(self, set_id: SetId, names: dict[int, str], kind: str, elements: dict[int, Any], size: int) -> bool:
        before, turned = self._names.get(set_id, {}), self._limit.note(set_id, size)
        for family, name in names.items():
            if set_id in self._limit:
                self._desired.drop_set(name)
            else:
                wanted = no_elements(f"{kind}{family}") if set_id in self._closed else elements[family]
                self._desired.put_set(name, NamedSet(f"{kind}{family}", wanted), set_id)
        if before == names:
            return turned
        self._names[set_id] = names
        for name in before.values():
            self._desired.drop_set(name)
        return True


def _elements(members: AddressSet, family: int) -> Any:
    hosts: Any = members.v4 if family == 4 else members.v6
    if not members.nets:
        return hosts
    ranges = [(value, value) for value in hosts]
    ranges += [(net.first, net.last) for net in members.nets if net.version == family]
    return frozenset(merge_ranges(ranges))
