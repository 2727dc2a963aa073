"""The sets that policy names: their kinds and names in the kernel. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calico_core.dataplane.iptables.ipsets import elements_for, kind_for, port_elements
from calico_core.dataplane.iptables.names import set_name
from calico_core.dataplane.reconcile import NamedSet
from calico_core.dataplane.set_limit import SetLimit
from calico_core.errors import InvalidRequest
from calico_core.model.set_size import address_count, port_count

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from calico_core.dataplane.iptables.desired import Desired
    from calico_core.model.hoststate import AddressSet, PortMember, SetId


class KnownSets:
    """One thread. ``problems`` and ``closed``: reasons by subject, shared with the caller. A set beyond
    ``max_elements`` does not stand."""

    def __init__(
        self,
        desired: Desired,
        families: tuple[int, ...],
        problems: dict[str, str],
        closed: Mapping[str, str],
        max_elements: int,
    ) -> None:
        self._desired, self._families, self._closed = desired, families, closed
        self._limit = SetLimit(max_elements, problems)
        self._names: dict[SetId, dict[int, str]] = {}

    def put_addresses(self, set_id: SetId, members: AddressSet) -> bool:
        """Whether rules that name the set are to be written again: its kernel name, or its usability, changed."""
        kinds = {family: kind_for(members, family) for family in self._families}
        elements = {family: elements_for(members, kind) for family, kind in kinds.items()}
        return self._put(set_id, kinds, elements, address_count(members))

    def put_ports(self, set_id: SetId, members: Collection[PortMember]) -> bool:
        """As :meth:`put_addresses`."""
        kinds = {family: f"ports{family}" for family in self._families}
        elements = {family: port_elements(members, family) for family in self._families}
        return self._put(set_id, kinds, elements, port_count(members))

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

    def _put(self, set_id: SetId, kinds: dict[int, str], elements: dict[int, Any], size: int) -> bool:
        names = {family: set_name(kind, set_id) for family, kind in kinds.items()}
        before = self._names.get(set_id, {})
        turned = self._limit.note(set_id, size)
        for family, name in names.items():
            if set_id in self._limit or set_id in self._closed:
                self._desired.drop_set(name)
            else:
                self._desired.put_set(name, NamedSet(kinds[family], elements[family]), set_id)
        if before == names and not turned:
            return False
        self._names[set_id] = names
        for family, name in before.items():
            if names[family] != name:
                self._desired.drop_set(name)
        return True
