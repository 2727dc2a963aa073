"""The record that an attach writes."""

from __future__ import annotations

from netaddr import EUI, IPAddress

from calico_core.errors import InvalidRequest
from calico_core.model.addresses import host_network
from calico_core.model.endpoints import Nat, WorkloadEndpoint
from calico_core.model.workloads import Attach
from calico_core.workload.sharing import attachment_of


def endpoint_record(request: Attach, mac: EUI | None, addresses: tuple[IPAddress, ...], now: float) -> WorkloadEndpoint:
    """Raises ``InvalidRequest`` for what the record may not hold."""
    try:
        return _unchecked(request, mac, addresses, now)
    except ValueError as error:
        raise InvalidRequest("endpoint", str(error)) from error


def _unchecked(request: Attach, mac: EUI | None, addresses: tuple[IPAddress, ...], now: float) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        state="active",
        name=request.interface,
        mac=mac,
        profile_ids=request.profiles,
        ipv4_nets=tuple(host_network(address) for address in addresses if address.version == 4),
        ipv6_nets=tuple(host_network(address) for address in addresses if address.version == 6),
        ipv4_nat=_nats(request, addresses, 4),
        ipv6_nat=_nats(request, addresses, 6),
        labels=request.labels,
        allowed_source_prefixes=request.allowed_source_prefixes,
        container_id=request.container_id,
        ifname=request.container_interface,
        network=request.network,
        netns=request.namespace or None,
        own_profiles=tuple(new.name for new in request.new_profiles if new.is_own),
        created=round(now, 3),
        attachments=(attachment_of(request, now),) if request.shared_handle is not None else (),
        handle=request.shared_handle,
        is_borrowed=request.is_borrowed,
        dns=request.dns,
        pod_uid=request.pod_uid,
    )


def _nats(request: Attach, addresses: tuple[IPAddress, ...], version: int) -> tuple[Nat, ...]:
    own = next((address for address in addresses if address.version == version), None)
    wanted = [address for address in request.floating if address.version == version]
    if wanted and own is None:
        raise InvalidRequest("floating", f"{wanted[0]} leads nowhere: the workload has no IPv{version} address")
    return tuple(Nat(int_ip=own, ext_ip=address) for address in wanted) if own is not None else ()
