"""Attach and detach as transactions with undo (journey B of the architecture).

An attach is one datastore transaction (addresses, handle, endpoint record, missing profiles) and one interface. The
agent sees the record and programs its policy while the interface is being made; the call returns when both stand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from calico_core.errors import InvalidRequest, NamespaceGone, NotReady, RouteTaken, StoreNotReady, Unavailable
from calico_core.interfaces.dataplane import WorkloadWiring
from calico_core.interfaces.datastore import Records, Versioned
from calico_core.interfaces.ipam import Ipam
from calico_core.interfaces.workloads import Workloads
from calico_core.locks import NamedLocks
from calico_core.log import get_logger
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import ReadyKey, WorkloadEndpointKey
from calico_core.model.workloads import Attach, Attached, Detach, PairRequest, WiredInterface, WiringRequest
from calico_core.stopwatch import Stopwatch, lap, measured
from calico_core.workload.gate import PolicyGate
from calico_core.workload.leaving import LeavingLinks
from calico_core.workload.orphans import remove_orphans
from calico_core.workload.sharing import departure, interfaces_to_remove
from calico_core.workload.slowest import SlowestAttaches
from calico_core.workload.transactions import EndpointTransactions
from calico_core.workload.undo import UndoStack

log = get_logger(__name__)

_LOCK_TIMEOUT_S = 30.0
_LEAVING_S = 5.0
_PAUSE_S = 0.01

IPV6_MIN_MTU_BYTES = 1280
"""Source: RFC 8200, section 5."""


class WorkloadService(Workloads):
    """Shared by all integrations of a node. ``host`` is the node's name in keys. ``default_mtu_bytes`` is asked for
    every interface whose request names no MTU; None leaves it to the kernel."""

    def __init__(
        self,
        *,
        records: Records,
        ipam: Ipam,
        wiring: WorkloadWiring,
        gate: PolicyGate,
        host: str,
        default_mtu_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._records = records
        self._transactions = EndpointTransactions(records, ipam, gate.knows_profile)
        self._wiring = wiring
        self._gate = gate
        self._host = host
        self._default_mtu_bytes = default_mtu_bytes
        self._locks = NamedLocks()
        self.slowest = SlowestAttaches()
        self._links = LeavingLinks(wiring.detach)

    def close(self) -> None:
        self._links.close()

    # --- attach ----------------------------------------------------------------------------------

    def attach(self, request: Attach) -> Attached:
        with measured() as watch:
            try:
                attached = self._attach(request, watch)
            except BaseException as error:
                self.slowest.note(request, watch, error=str(error) or type(error).__name__)
                raise
            self.slowest.note(request, watch)
        return attached

    def _attach(self, request: Attach, watch: Stopwatch) -> Attached:
        watch.lap("before")
        with self._locks.hold(request.key, timeout_s=_LOCK_TIMEOUT_S), UndoStack() as undo:
            watch.lap("lock")
            self._require_ready()
            self._require_mtu(request)
            self._refuse_mtu_without_ipv6(request)
            committed = self._transactions.commit(request)
            endpoint, revision = committed.endpoint, committed.revision
            if committed.is_new:
                undo.push("record", lambda: self._transactions.take_back(request, committed))
            elif committed.is_joined:
                undo.push("attachment", lambda: self._transactions.leave(request))
            watch.lap("record")
            wired = self._wire(request, endpoint)
            if wired is not None and wired.is_new:
                undo.push("interface", lambda: self._wiring.detach(request.interface))
            watch.lap("interface")
            is_programmed = self._gate.wait_programmed(request.key, revision, request.policy_timeout_s)
            watch.lap("policy")
            undo.commit()
            self._transactions.release_left_behind(committed.replaced)
        if not is_programmed:
            log.warning("endpoint.policy_pending", endpoint=request.key.path)
        steps = tuple(watch.steps)
        is_made = endpoint.is_made_for(request.network, request.container_interface)
        log.info(
            "endpoint.attached",
            endpoint=request.key.path,
            addresses=[str(net.ip) for net in endpoint.nets],
            **dict(steps),
        )
        return Attached(
            addresses=endpoint.nets,
            interface=request.interface,
            host_mac=wired.host_mac if wired else None,
            mac=wired.mac if wired else endpoint.mac,
            mtu_bytes=wired.mtu_bytes if wired else request.mtu_bytes if is_made else None,
            is_policy_programmed=is_programmed,
            endpoint=endpoint,
            steps=steps,
            missing_routes=wired.missing_routes if wired else (),
        )

    def _require_ready(self) -> None:
        """Source: datastore specification 5, readiness."""
        if self._gate.knows_ready():
            return
        ready = self._records.get(ReadyKey())
        if ready is None or ready.record != "true":
            raise StoreNotReady(f"{ReadyKey().path} in the datastore is not 'true'")

    def _require_mtu(self, request: Attach) -> None:
        if request.requires_mtu and not request.mtu_bytes and not self._default_mtu_bytes():
            reason = (
                "the node has none of its own: no pool has a tunnel here, its setting mtu_interfaces matches nothing, "
                "and mtu_bytes is 0"
            )
            raise InvalidRequest("mtu", f"is required and not given, and {reason}")

    def _refuse_mtu_without_ipv6(self, request: Attach) -> None:
        """The kernel has no IPv6 on an interface below its least MTU, and says only that files are missing."""
        if request.is_borrowed or not request.wants_ipv6:
            return
        mtu_bytes = request.mtu_bytes or self._default_mtu_bytes() or IPV6_MIN_MTU_BYTES
        if mtu_bytes < IPV6_MIN_MTU_BYTES:
            least = f"IPv6 needs at least {IPV6_MIN_MTU_BYTES}"
            raise InvalidRequest("mtu", f"{mtu_bytes} is too small for the IPv6 address that is wanted: {least}")

    def _wire(self, request: Attach, endpoint: WorkloadEndpoint) -> WiredInterface | None:
        if request.namespace_fd is None:
            return None
        container_interface = endpoint.ifname or request.container_interface
        if not endpoint.is_made_for(request.network, request.container_interface):
            # the interface is as the first network wanted it; it is made here only where it is missing
            standing = self._wiring.host_end(request.namespace_fd, container_interface)
            if standing == request.interface:
                return None
        wanted = WiringRequest(
            interface=request.interface,
            container_interface=container_interface,
            namespace_fd=request.namespace_fd,
            namespace=request.namespace,
            addresses=endpoint.nets,
            mac=endpoint.mac,
            mtu_bytes=request.mtu_bytes or self._default_mtu_bytes(),
            queues=request.queues,
            device=request.device,
            is_default_route=request.is_default_route,
            routes=request.routes,
            allow_ip_forwarding=request.allow_ip_forwarding,
        )
        deadline = time.monotonic() + _LEAVING_S
        while True:
            try:
                return self._wiring.attach(wanted)
            except RouteTaken as taken:
                # where another of that name came at once, the agent may lead the address to it for a moment yet
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._links.await_gone(taken.owner, timeout_s=left_s):
                    raise
                log.info("endpoint.waited_for_leaving", endpoint=request.key.path, interface=taken.owner)
                time.sleep(_PAUSE_S)

    # --- detach ----------------------------------------------------------------------------------

    def detach(self, request: Detach) -> bool:
        with self._locks.hold(request.key, timeout_s=_LOCK_TIMEOUT_S):
            lap("lock")
            try:
                standing = self._transactions.standing(request.key)
            except Unavailable:
                if not request.is_shared and (not request.is_replaceable or self._leads_to_container(request)):
                    self._wiring.detach(request.interface)  # nobody can say whose it is, and it must not leak
                raise
            is_shared = standing is not None and standing.record is not None and bool(standing.record.attachments)
            if request.needs_ready:
                self._await_ready(request, standing, is_shared=is_shared)
            if standing is not None and is_shared:
                return self._detach_shared(request, standing)
            links = self._remove_links(request, standing)
            try:
                going = self._transactions.release(request, standing)
                lap("record")
            finally:
                for link in links:
                    link.result()
                lap("interface")
        log.info("endpoint.detached", endpoint=request.key.path)
        return going is not None and going.is_changed

    def _leads_to_container(self, request: Detach) -> bool:
        if request.namespace_fd is None:
            return False
        try:
            return self._wiring.host_end(request.namespace_fd, request.container_interface) == request.interface
        except NamespaceGone:
            return False

    def _await_ready(
        self, request: Detach, standing: Versioned[WorkloadEndpoint | None] | None, *, is_shared: bool
    ) -> None:
        """Whoever fills the store or copies it counts on nobody writing. The container's interface goes all the same,
        unless others may use it."""
        try:
            self._require_ready()
        except StoreNotReady:
            if not is_shared and not request.is_shared:
                for link in self._remove_links(request, standing):
                    link.result()
            raise

    def _detach_shared(self, request: Detach, standing: Versioned[WorkloadEndpoint | None]) -> bool:
        """Whether the interface goes is known when the record's part is done: until then somebody may join."""
        going = self._transactions.release(request, standing)
        remaining = going.remaining if going is not None else None
        lap("record")
        for interface in interfaces_to_remove(standing.record, remaining, request):
            self._wiring.detach(interface)
            lap("interface")
        log.info("endpoint.detached", endpoint=request.key.path, network=request.network)
        return going is not None and going.is_changed

    def _remove_links(
        self, request: Detach, standing: Versioned[WorkloadEndpoint | None] | None
    ) -> tuple[Future[None], ...]:
        """The kernel takes tens of milliseconds to delete a link: that runs beside the datastore's part. None are to
        go where the next owner has the interface by now."""
        record = standing.record if standing is not None else None
        remaining = departure(record, request).remaining
        return tuple(map(self._links.submit, interfaces_to_remove(record, remaining, request)))

    # --- questions -------------------------------------------------------------------------------

    def check(self, request: WiringRequest) -> tuple[str, ...]:
        return self._wiring.check(request)

    def host_end(self, namespace_fd: int, container_interface: str) -> str | None:
        return self._wiring.host_end(namespace_fd, container_interface)

    def remove_orphans(self) -> tuple[str, ...]:
        return remove_orphans(self._wiring, self._records, self._host)

    # --- pairs -----------------------------------------------------------------------------------

    def make_pair(self, key: WorkloadEndpointKey, request: PairRequest) -> WiredInterface:
        with self._locks.hold(key, timeout_s=_LOCK_TIMEOUT_S):
            existing = self._records.get(key)
            if existing is None:
                raise NotReady(f"endpoint {key.path} has no record")
            if not request.addresses:
                request = msgspec.structs.replace(request, addresses=existing.record.nets)
            if not request.mtu_bytes:
                request = msgspec.structs.replace(request, mtu_bytes=self._default_mtu_bytes())
            wired = self._wiring.make_pair(request)
            if not self._gate.wait_programmed(key, existing.mod_revision, 10.0):
                log.warning("endpoint.policy_pending", endpoint=key.path)
            return wired

    def remove_pair(self, interface: str) -> None:
        self._wiring.detach(interface)
