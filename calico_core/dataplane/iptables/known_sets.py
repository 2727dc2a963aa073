"""The sets that policy names: their kinds and names in the kernel, and those that are too large for it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calico_core.dataplane.iptables.ipsets import elements_for, kind_for, port_elements
from calico_core.dataplane.iptables.names import set_name
from calico_core.dataplane.reconcile import NamedSet
from calico_core.errors import InvalidRequest
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from calico_core.dataplane.iptables.desired import Desired
    from calico_core.model.hoststate import AddressSet, PortMember, SetId

log = get_logger(__name__)


class KnownSets:
    """One thread. ``problems`` and ``closed``: reasons by subject, shared with the caller.

    A set beyond the kernel's limit does not stand at all, and the rules that name it drop: a part of it would let
    pass what a rule denies, or deny what another allows.
    """

    def __init__(
        self,
        desired: Desired,
        families: tuple[int, ...],
        problems: dict[str, str],
        closed: Mapping[str, str],
        max_elements: int,
    ) -> None:
        self._desired, self._families, self._problems, self._closed = desired, families, problems, closed
        self._max_elements = max_elements
        self._names: dict[SetId, dict[int, str]] = {}
        self._oversized: set[SetId] = set()

    def put_addresses(self, set_id: SetId, members: AddressSet) -> bool:
        """Whether rules that name the set are to be written again: its kernel name, or its usability, changed."""
        kinds = {family: kind_for(members, family) for family in self._families}
        return self._put(set_id, kinds, {family: elements_for(members, kind) for family, kind in kinds.items()})

    def put_ports(self, set_id: SetId, members: Iterable[PortMember]) -> bool:
        """As :meth:`put_addresses`."""
        kinds = {family: f"ports{family}" for family in self._families}
        return self._put(set_id, kinds, {family: port_elements(members, family) for family in self._families})

    def drop(self, set_id: SetId) -> None:
        self._note_size(set_id, is_oversized=False)
        for name in self._names.pop(set_id, {}).values():
            self._desired.drop_set(name)

    def name(self, set_id: SetId, family: int) -> str:
        """:raises InvalidRequest: no rule can match by it."""
        names = self._names.get(set_id)
        if names is None:
            raise InvalidRequest("sets", f"set {set_id} is not known")
        if set_id in self._closed or set_id in self._oversized:
            raise InvalidRequest("sets", f"set {set_id} could not be programmed")
        return names[family]

    def _put(self, set_id: SetId, kinds: dict[int, str], elements: dict[int, Any]) -> bool:
        names = {family: set_name(kind, set_id) for family, kind in kinds.items()}
        before = self._names.get(set_id, {})
        was_oversized = set_id in self._oversized
        is_oversized = any(len(each) > self._max_elements for each in elements.values())
        self._note_size(set_id, is_oversized=is_oversized)
        for family, name in names.items():
            if is_oversized or set_id in self._closed:
                self._desired.drop_set(name)
            else:
                self._desired.put_set(name, NamedSet(kinds[family], elements[family]), set_id)
        if before == names and was_oversized == is_oversized:
            return False
        self._names[set_id] = names
        for family, name in before.items():
            if names[family] != name:
                self._desired.drop_set(name)
        return True

    def _note_size(self, set_id: SetId, *, is_oversized: bool) -> None:
        if is_oversized:
            if set_id not in self._oversized:
                log.warning("ipset.too_large", set=set_id, limit=self._max_elements)
            self._oversized.add(set_id)
            self._problems[set_id] = f"more than {self._max_elements} members; rules that name it drop"
        elif set_id in self._oversized:
            self._oversized.discard(set_id)
            self._problems.pop(set_id, None)
