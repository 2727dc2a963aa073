"""Endpoints that several networks of one container share: who uses one, who joins, what is left when one goes.

The record says it, so that every process of the node, and a call that comes late, sees the same. Pure: the time comes
in. Source: cni specification 5.4 and 6, ``interface_mode: single``.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from calico_core.errors import InvalidRequest
from calico_core.model.endpoints import EndpointAttachment, WorkloadEndpoint
from calico_core.model.workloads import AddressRequest, Attach, Detach

_FIRST_INTERFACE = "eth0"


class Departure(NamedTuple):
    """What a detach comes to. ``remaining``: the record that stands afterwards, None when there is none.
    ``own_profiles`` go. ``handles`` are released."""

    remaining: WorkloadEndpoint | None
    is_changed: bool
    handles: tuple[str, ...]
    own_profiles: tuple[str, ...] = ()


def attachment_of(request: Attach, now: float) -> EndpointAttachment:
    return EndpointAttachment(
        network=request.network or "",
        ifname=request.container_interface,
        profile_ids=request.profiles,
        created=round(now, 3),
    )


def is_attached(record: WorkloadEndpoint, request: Attach) -> bool:
    """Whether the request is one that the container's record answers already."""
    if record.attachments:
        return any(_names(each, request) for each in record.attachments)
    if None not in {record.network, request.network} and record.network != request.network:
        return False
    # who would share takes one interface for all, whatever it is called
    return request.shared_handle is not None or record.ifname in {None, request.container_interface}


def joined(record: WorkloadEndpoint, request: Attach, now: float) -> WorkloadEndpoint:
    """With one attachment more.

    :raises InvalidRequest: it asks for addresses or a MAC that the endpoint does not have.
    """
    held = {net.ip for net in record.nets}
    wanted = request.addresses.requested if isinstance(request.addresses, AddressRequest) else request.addresses
    strange = [str(address) for address in wanted if address not in held]
    if strange:
        raise InvalidRequest("addresses", _refusal(record, f"the addresses {', '.join(map(str, held))}", strange[0]))
    if request.mac is not None and request.mac != record.mac:
        has = f"the MAC {record.mac}" if record.mac is not None else "a MAC that nobody asked for"
        raise InvalidRequest("mac", _refusal(record, has, str(request.mac)))
    own = (new.name for new in request.new_profiles if new.is_own)
    return msgspec.structs.replace(
        record,
        profile_ids=_once(*record.profile_ids, *request.profiles),
        own_profiles=_once(*record.own_profiles, *own),
        attachments=(*record.attachments, attachment_of(request, now)),
    )


def departure(record: WorkloadEndpoint | None, request: Detach) -> Departure:
    """``record`` None: there is none, or it cannot be read and goes in any case."""
    if record is None:
        return Departure(None, is_changed=True, handles=request.handles)
    if None not in {record.container_id, request.container_id} and record.container_id != request.container_id:
        return Departure(record, is_changed=False, handles=request.handles)
    if record.attachments:
        return _departure_of_one(record, request)
    if None not in {record.network, request.network} and record.network != request.network:
        return Departure(record, is_changed=False, handles=request.handles)
    if request.is_shared and (record.ifname or _FIRST_INTERFACE) != request.container_interface:
        return Departure(record, is_changed=False, handles=())  # what is named like a shared one's is this endpoint's
    handles = () if record.is_borrowed else request.handles
    return Departure(None, is_changed=True, handles=handles, own_profiles=record.own_profiles)


def interfaces_to_remove(
    record: WorkloadEndpoint | None, remaining: WorkloadEndpoint | None, request: Detach
) -> tuple[str, ...]:
    """Host ends, when ``remaining`` is left of ``record``. The record's has another name than the request's if the
    host's prefix was changed since."""
    names = [request.interface]
    if record is not None and remaining is None and not record.is_borrowed:
        names.append(record.name)
    return _once(*(name for name in names if remaining is None or remaining.name != name))


def abandoned_handle(record: WorkloadEndpoint) -> str | None:
    """The handle of a shared endpoint, if the attachment that it is named after is gone."""
    maker = (record.network, record.ifname)
    if not record.attachments or any((each.network, each.ifname) == maker for each in record.attachments):
        return None
    return record.handle


def _departure_of_one(record: WorkloadEndpoint, request: Detach) -> Departure:
    left = tuple(each for each in record.attachments if request.network is not None and not _names(each, request))
    if not left:
        handles = _once(*request.handles, *((record.handle,) if record.handle else ()))
        return Departure(None, is_changed=True, handles=handles, own_profiles=record.own_profiles)
    # whoever made the endpoint may go before the others: its handle holds their addresses
    handles = tuple(each for each in request.handles if each != record.handle)
    if len(left) == len(record.attachments):
        return Departure(record, is_changed=False, handles=handles)
    brought = {profile for each in record.attachments if each not in left for profile in each.profile_ids}
    gone = brought - {profile for each in left for profile in each.profile_ids}
    remaining = msgspec.structs.replace(
        record,
        profile_ids=tuple(each for each in record.profile_ids if each not in gone),
        own_profiles=tuple(each for each in record.own_profiles if each not in gone),
        attachments=left,
    )
    own = tuple(each for each in record.own_profiles if each in gone)
    return Departure(remaining, is_changed=True, handles=handles, own_profiles=own)


def _names(attachment: EndpointAttachment, request: Attach | Detach) -> bool:
    return (attachment.network, attachment.ifname) == (request.network, request.container_interface)


def _refusal(record: WorkloadEndpoint, has: str, wanted: str) -> str:
    return f"{wanted} cannot be had: the container's interface is that of network {record.network}, with {has}"


def _once(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
