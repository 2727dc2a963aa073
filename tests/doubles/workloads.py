"""A small working ``Workloads``: endpoints in a dict, addresses from an ``Ipam``, no kernel.

It keeps what the seam promises (idempotence, container ids, handles), so that an integration can be tried without a
node. ``failure`` is raised by the next call, once.
"""

from __future__ import annotations

import threading
import time

import msgspec
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.errors import InterfaceTaken, KeyExists, StoreNotReady
from calico_core.interfaces.datastore import Records
from calico_core.interfaces.ipam import Ipam
from calico_core.interfaces.workloads import Workloads
from calico_core.model.addresses import host_network, parse_mac
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import ProfileRulesKey, ProfileTagsKey, ReadyKey, WorkloadEndpointKey
from calico_core.model.workloads import (
    AddressRequest,
    Attach,
    Attached,
    Detach,
    NewProfile,
    PairRequest,
    WiredInterface,
    WiringRequest,
)
from calico_core.stopwatch import lap
from calico_core.workload.endpoint_record import endpoint_record
from calico_core.workload.sharing import departure, is_attached, joined
from tests.doubles.ipam import MemoryIpam

HOST_MAC = parse_mac("ee:ee:ee:ee:ee:ee")
CONTAINER_MAC = parse_mac("02:00:5e:10:00:01")
MTU_BYTES = 1500


class MemoryWorkloads(Workloads):
    """With ``records``, endpoints and profiles are written there too. Requests are kept in order of arrival.
    ``damage`` is what a check of a standing interface finds; ``host_ends`` are pairs that somebody else made, by the
    container's end."""

    def __init__(self, ipam: Ipam | None = None, records: Records | None = None) -> None:
        self.ipam = ipam or MemoryIpam()
        self.attached: dict[WorkloadEndpointKey, Attached] = {}
        self.profiles: dict[str, NewProfile] = {}
        self.pairs: dict[str, PairRequest] = {}
        self.attach_requests: list[Attach] = []
        self.detach_requests: list[Detach] = []
        self.check_requests: list[WiringRequest] = []
        self.damage: tuple[str, ...] = ()
        self.host_ends: dict[str, str] = {}
        self.orphans: tuple[str, ...] = ()
        self.failure: BaseException | None = None
        self.host_end_failure: BaseException | None = None
        self._records = records
        self._lock = threading.Lock()

    def attach(self, request: Attach) -> Attached:
        with self._lock:
            self.attach_requests.append(request)
            self._fail()
            standing = self.attached.get(request.key)
            if standing is not None and standing.endpoint.container_id == request.container_id:
                return self._use(request, standing)
            if standing is not None and not request.replaces:
                raise KeyExists(request.key.path, standing.endpoint)
            attached = _attached(request, self._addresses(request.addresses))
            self.attached[request.key] = attached
            self._write(request, attached.endpoint)
            return attached

    def detach(self, request: Detach) -> bool:
        with self._lock:
            self.detach_requests.append(request)
            self._fail()
            self.pairs.pop(request.interface, None)
            if request.needs_ready and self._records is not None:
                _require_ready(self._records)
            standing = self.attached.get(request.key)
            going = departure(standing.endpoint if standing is not None else None, request)
            is_found = standing is not None and going.is_changed
            self.ipam.release_by_handle(going.handles if is_found or not request.keeps_handles else ())
            for profile in going.own_profiles:
                del self.profiles[profile]
            if standing is None or not is_found:
                return False
            if going.remaining is not None:
                self._stand(request.key, standing, going.remaining)
                return True
            del self.attached[request.key]
            if self._records is not None:
                self._records.delete(request.key)
            return True

    def check(self, request: WiringRequest) -> tuple[str, ...]:
        with self._lock:
            self.check_requests.append(request)
            self._fail()
            if any(request.interface == each.interface for each in self.attached.values()):
                return self.damage
            return (f"host interface {request.interface} is missing",)

    def adopt(self, key: WorkloadEndpointKey, endpoint: WorkloadEndpoint) -> None:
        """An endpoint that nobody attached here."""
        self.attached[key] = Attached(
            addresses=endpoint.nets,
            interface=endpoint.name,
            host_mac=HOST_MAC,
            mac=endpoint.mac,
            mtu_bytes=MTU_BYTES,
            is_policy_programmed=True,
            endpoint=endpoint,
        )
        if self._records is not None:
            self._records.put(key, endpoint)

    def host_end(self, namespace_fd: int, container_interface: str) -> str | None:
        if self.host_end_failure is not None:
            raise self.host_end_failure
        return self.host_ends.get(container_interface)

    def remove_orphans(self) -> tuple[str, ...]:
        with self._lock:
            self._fail()
            gone, self.orphans = self.orphans, ()
            return gone

    def make_pair(self, key: WorkloadEndpointKey, request: PairRequest) -> WiredInterface:
        with self._lock:
            self._fail()
            is_new = request.interface not in self.pairs
            self.pairs[request.interface] = request
            return WiredInterface(
                interface=request.interface,
                host_mac=HOST_MAC,
                mac=request.mac or CONTAINER_MAC,
                mtu_bytes=request.mtu_bytes or MTU_BYTES,
                is_new=is_new,
            )

    def remove_pair(self, interface: str) -> None:
        with self._lock:
            self._fail()
            self.pairs.pop(interface, None)

    def _use(self, request: Attach, standing: Attached) -> Attached:
        if is_attached(standing.endpoint, request):
            return standing
        if request.shared_handle is None or not standing.endpoint.attachments:
            raise InterfaceTaken(request.container_interface, "the container", f"network {standing.endpoint.network}")
        endpoint = joined(standing.endpoint, request, time.time())
        self._write(request, endpoint)
        return self._stand(request.key, standing, endpoint)

    def _stand(self, key: WorkloadEndpointKey, standing: Attached, endpoint: WorkloadEndpoint) -> Attached:
        self.attached[key] = msgspec.structs.replace(standing, endpoint=endpoint)
        if self._records is not None:
            self._records.put(key, endpoint)
        return self.attached[key]

    def _fail(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def _addresses(self, wanted: AddressRequest | tuple[IPAddress, ...]) -> tuple[IPNetwork, ...]:
        found = self.ipam.auto_assign(wanted) if isinstance(wanted, AddressRequest) else wanted
        return tuple(host_network(address) for address in found)

    def _write(self, request: Attach, endpoint: WorkloadEndpoint) -> None:
        for profile in request.new_profiles:
            if profile.is_own:
                self.profiles[profile.name] = profile
            self.profiles.setdefault(profile.name, profile)
        if self._records is None:
            return
        self._records.put(request.key, endpoint)
        for profile in request.new_profiles:
            if self._records.get(ProfileRulesKey(profile.name)) is None:
                self._records.put(ProfileTagsKey(profile.name), profile.tags)
                self._records.put(ProfileRulesKey(profile.name), profile.rules)


def _attached(request: Attach, nets: tuple[IPNetwork, ...]) -> Attached:
    for step in ("record", "interface"):
        lap(step)
    is_wired = request.namespace_fd is not None
    mac: EUI | None = request.mac or (CONTAINER_MAC if is_wired else None)
    endpoint = endpoint_record(request, mac or CONTAINER_MAC, tuple(net.ip for net in nets), time.time())
    recorded = request.mac if request.may_change_mac else mac
    endpoint = msgspec.structs.replace(endpoint, mac=recorded, created=None)
    return Attached(
        addresses=nets,
        interface=request.interface,
        host_mac=HOST_MAC if is_wired else None,
        mac=mac,
        mtu_bytes=(request.mtu_bytes or MTU_BYTES) if is_wired else None,
        is_policy_programmed=True,
        endpoint=endpoint,
        steps=(("record_ms", 0.5), ("interface_ms", 1.0)),
    )


def _require_ready(records: Records) -> None:
    found = records.get(ReadyKey())
    if found is None or found.record != "true":
        raise StoreNotReady("not ready")
