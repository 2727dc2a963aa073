"""Which addresses a request gets: the planner behind ``auto_assign``.

What the handle holds already comes first, so that repeating a request takes nothing more; the rest is decided family
by family and written together. Source: ipam specification 3.1, 4 and 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.errors import InvalidRecord
from calico_core.ipam import blocks
from calico_core.ipam.draft import handle_blocks
from calico_core.ipam.family_assignment import Context, FamilyAssignment, Unknown
from calico_core.ipam.steps import Fresh, Need, Plan
from calico_core.model.blocks import AllocationAttributes
from calico_core.model.keys import BlockKey, HandleKey

if TYPE_CHECKING:
    from netaddr import IPAddress

    from calico_core.ipam.draft import Draft
    from calico_core.ipam.knowledge import Knowledge
    from calico_core.model.workloads import AddressRequest


def plan_assignment(
    knowledge: Knowledge, request: AddressRequest, fresh: Fresh, draft: Draft, *, now_ns: int
) -> Plan | Need:
    """``now_ns``: the clock in nanoseconds; it numbers new blocks and ends cool-downs. Raises the errors of
    ``Ipam.auto_assign``, never from knowledge older than this call."""
    try:
        return _Assignment(knowledge, request, fresh, draft, now_ns).plan()
    except Unknown as unknown:
        return unknown.need


class _Assignment:
    def __init__(self, knowledge: Knowledge, request: AddressRequest, fresh: Fresh, draft: Draft, now_ns: int) -> None:
        self._knowledge = knowledge
        self._request = request
        self._fresh = fresh
        self._draft = draft
        # "node" is what routing tells borrowed addresses by.
        secondary = {"node": knowledge.host, **request.attributes}
        attributes = AllocationAttributes(handle_id=request.handle, secondary=secondary)
        self._context = Context(knowledge, request, fresh, now_ns, draft, attributes)

    def plan(self) -> Plan | Need:
        unread = tuple(v for v in wanted_versions(self._request) if not self._knowledge.families[v].is_loaded)
        if unread:
            return Need(load=unread, keys=(HandleKey(self._request.handle),))
        held = self._held()
        chosen: list[IPAddress] = []
        before = self._draft.changes_made
        for version in wanted_versions(self._request):
            mine = [address for address in held if address.version == version]
            chosen += FamilyAssignment(self._context, self._knowledge.families[version], mine).choose()
        if self._draft.changes_made == before and HandleKey(self._request.handle) not in self._fresh.keys:
            return self._need_held()
        self._draft.rest_on_handle(self._request.handle)
        addresses = tuple(chosen)
        return Plan(addresses, lambda: self._holds(addresses))

    def _held(self) -> tuple[IPAddress, ...]:
        """What the handle has. Its blocks must be known at least as of the handle's last change: the two are written
        together."""
        known = self._knowledge.handle(self._request.handle)
        if known.is_malformed:
            raise InvalidRecord(HandleKey(self._request.handle).path, "", "does not decode; it is left alone")
        if known.record is None:
            return ()
        found: list[IPAddress] = []
        for cidr in handle_blocks(known.record):
            block = self._knowledge.families[cidr.version].block(cidr)
            if block is None or block.as_of < known.mod_revision:
                raise Unknown(self._need_held())
            if block.record is not None:
                found += blocks.addresses_of(block.record, self._request.handle)
        return tuple(found)

    def _need_held(self) -> Need:
        handle = self._knowledge.handle(self._request.handle).record
        named = handle_blocks(handle) if handle else ()
        return Need(keys=(HandleKey(self._request.handle), *(BlockKey(cidr) for cidr in named)))

    def _holds(self, addresses: tuple[IPAddress, ...]) -> bool:
        try:
            return set(addresses) <= set(self._held())
        except (Unknown, InvalidRecord):
            return False


def wanted_versions(request: AddressRequest) -> tuple[int, ...]:
    versions = {address.version for address in request.requested}
    if request.num_v4:
        versions.add(4)
    if request.num_v6:
        versions.add(6)
    return tuple(sorted(versions))
