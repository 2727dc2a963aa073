"""The sets that policy names: their kinds and names in the kernel. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calico_core.dataplane.nftables.elements import merge_ranges, no_elements
from calico_core.dataplane.nftables.names import kernel_name
from calico_core.dataplane.reconcile import NamedSet
from calico_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calico_core.dataplane.nftables.desired import Desired
    from calico_core.model.hoststate import AddressSet, PortMember, SetId


class KnownSets:
    """One thread. ``closed``: reasons by subject, shared with the caller; a closed set stands empty, and no rule can
    match by it."""

    def __init__(self, desired: Desired, families: Sequence[int], closed: Mapping[str, str]) -> None:
        self._desired, self._families, self._closed = desired, families, closed
        self._names: dict[SetId, dict[int, str]] = {}

    def put_addresses(self, set_id: SetId, members: AddressSet) -> bool:
        """Whether the rules that name the set are to be written again: its kernel name changed."""
        kind = "ranges" if members.nets else "hosts"
        names = {family: kernel_name(f"{kind[0]}{family}", set_id) for family in self._families}
        for family, name in names.items():
            self._put(name, f"{kind}{family}", _elements(members, family), set_id)
        return self._rename(set_id, names)

    def put_ports(self, set_id: SetId, members: frozenset[PortMember]) -> bool:
        """As :meth:`put_addresses`."""
        names = {family: kernel_name(f"p{family}", set_id) for family in self._families}
        for family, name in names.items():
            elements = frozenset(tuple(member)[1:] for member in members if member.version == family)
            self._put(name, f"ports{family}", elements, set_id)
        return self._rename(set_id, names)

    def drop(self, set_id: SetId) -> None:
        for name in self._names.pop(set_id, {}).values():
            self._desired.drop_set(name)

    def name(self, set_id: SetId, family: int) -> str:
        """:raises InvalidRequest: no rule can match by it."""
        names = self._names.get(set_id)
        if names is None:
            raise InvalidRequest("sets", f"set {set_id} is not known")
        if set_id in self._closed:
            raise InvalidRequest("sets", f"set {set_id} could not be programmed")
        return names[family]

    def _put(self, name: str, kind: str, elements: Any, set_id: SetId) -> None:
        wanted = no_elements(kind) if set_id in self._closed else elements
        self._desired.put_set(name, NamedSet(kind, wanted), set_id)

    def _rename(self, set_id: SetId, names: dict[int, str]) -> bool:
        before = self._names.get(set_id)
        if before == names:
            return False
        self._names[set_id] = names
        for name in (before or {}).values():
            self._desired.drop_set(name)
        return True


def _elements(members: AddressSet, family: int) -> Any:
    hosts: Any = members.v4 if family == 4 else members.v6
    if not members.nets:
        return hosts
    ranges = [(value, value) for value in hosts]
    ranges += [(net.first, net.last) for net in members.nets if net.version == family]
    return frozenset(merge_ranges(ranges))
