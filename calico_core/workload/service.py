"""Attach and detach as transactions with undo (journey B of the architecture).

An attach is one datastore transaction (addresses, handle, endpoint record, missing profiles) and one interface. The
agent sees the record and programs its policy while the interface is being made; the call returns when both stand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import msgspec
from netaddr import IPAddress

from calico_core.errors import (
    CalicoError,
    Conflict,
    InterfaceTaken,
    InvalidRecord,
    InvalidRequest,
    KeyExists,
    NotReady,
    StoreNotReady,
    Unavailable,
)
from calico_core.interfaces.dataplane import WorkloadWiring
from calico_core.interfaces.datastore import Compare, Delete, Put, Records, Versioned, absent
from calico_core.interfaces.ipam import Companion, Ipam
from calico_core.interfaces.workloads import Workloads
from calico_core.locks import NamedLocks
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.addresses import local_mac
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import (
    ReadyKey,
    WorkloadEndpointKey,
)
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
from calico_core.stopwatch import Stopwatch, lap, measured
from calico_core.workload.endpoint_record import endpoint_record
from calico_core.workload.gate import PolicyGate
from calico_core.workload.orphans import remove_orphans
from calico_core.workload.profiles import profile_copies, profile_deletions, profile_writes, profiles_to_write
from calico_core.workload.sharing import Departure, abandoned_handle, departure, is_attached, joined
from calico_core.workload.slowest import SlowestAttaches
from calico_core.workload.undo import UndoStack

log = get_logger(__name__)

_LOCK_TIMEOUT_S = 30.0
_ATTEMPTS = 5


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
        self._ipam = ipam
        self._wiring = wiring
        self._gate = gate
        self._host = host
        self._default_mtu_bytes = default_mtu_bytes
        self._locks = NamedLocks()
        self.slowest = SlowestAttaches()
        self._links = ThreadPoolExecutor(max_workers=64, thread_name_prefix="links")

    def close(self) -> None:
        self._links.shutdown(wait=True)

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
            committed = self._record(request)
            endpoint, revision = committed.endpoint, committed.revision
            if committed.is_new:
                undo.push("record", lambda: self._forget(request, committed))
            elif committed.is_joined:
                undo.push("attachment", lambda: self._leave(request))
            watch.lap("record")
            wired = self._wire(request, endpoint)
            if wired is not None and wired.is_new:
                undo.push("interface", lambda: self._wiring.detach(request.interface))
            watch.lap("interface")
            is_programmed = self._gate.wait_programmed(request.key, revision, request.policy_timeout_s)
            watch.lap("policy")
            undo.commit()
            self._release_left_behind(committed.replaced)
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

    def _record(self, request: Attach) -> _Committed:
        """Commit addresses and record, or find that they stand."""
        # an endpoint that may be shared is looked for first: who joins needs no address, and none may be left
        replaced = self._records.get(request.key) if request.shared_handle is not None else None
        for _attempt in range(_ATTEMPTS):
            if replaced is not None and replaced.record.container_id == request.container_id:
                committed = self._use(request, replaced)
                if committed is not None:
                    return committed
                replaced = self._records.get(request.key)
                continue
            if replaced is not None and not request.replaces:
                raise KeyExists(request.key.path, replaced)
            expected = Compare(request.key.path, replaced.mod_revision) if replaced else absent(request.key.path)
            profiles = profiles_to_write(self._records, request.new_profiles, self._gate.knows_profile)
            try:
                before = replaced.record.own_profiles if replaced else ()
                copies = profile_copies(self._records, before)
                endpoint, revision = self._commit(request, expected, profiles, before)
                standing = replaced.record if replaced else None
                return _Committed(endpoint, revision, is_new=True, replaced=standing, copies=copies)
            except Conflict as conflict:
                if conflict.key != request.key.path:
                    continue  # a profile came or went meanwhile: look again
            replaced = self._records.get(request.key)
        raise Conflict(request.key.path, None)

    def _use(self, request: Attach, standing: Versioned[WorkloadEndpoint]) -> _Committed | None:
        """The container's record, which the request is part of already or joins; None when it changed meanwhile.

        :raises InterfaceTaken: it is another network's, and not for sharing.
        """
        record = standing.record
        if is_attached(record, request):
            return _Committed(record, standing.mod_revision, is_new=False)
        if request.shared_handle is None or not record.attachments:
            taken = record.ifname or request.container_interface
            raise InterfaceTaken(taken, "the container", f"network {record.network or 'unknown'}")
        path = request.key.path
        record = joined(record, request, time.time())
        written = profile_writes(profiles_to_write(self._records, request.new_profiles, self._gate.knows_profile))
        preconditions = (Compare(path, standing.mod_revision), *written.preconditions)
        put = Put(path, codec.encode(record))
        try:
            revision = self._transact(Companion(preconditions, (put, *written.operations)))
        except Conflict:
            return None
        log.info("endpoint.joined", endpoint=path, network=request.network)
        return _Committed(record, revision, is_new=False, is_joined=True)

    def _commit(
        self, request: Attach, expected: Compare, profiles: tuple[NewProfile, ...], before: tuple[str, ...]
    ) -> tuple[WorkloadEndpoint, int]:
        mac = request.mac or local_mac(os.urandom(6))
        written = profile_writes(profiles)
        gone = profile_deletions(set(before) - {profile.name for profile in profiles})
        made: list[WorkloadEndpoint] = []
        revisions: list[int] = []

        def companion(addresses: tuple[IPAddress, ...]) -> Companion:
            made[:] = [endpoint_record(request, mac, addresses, time.time())]
            put = Put(request.key.path, codec.encode(made[0]))
            preconditions = (expected, *written.preconditions)
            return Companion(preconditions, (put, *gone, *written.operations), revisions.append)

        if not isinstance(request.addresses, AddressRequest):
            revision = self._transact(companion(request.addresses))
            return made[0], revision
        self._ipam.auto_assign(request.addresses, companion)
        if revisions:
            return made[0], revisions[-1]
        current = self._records.get(request.key)  # the answer to the commit was lost
        if current is None:
            raise Conflict(request.key.path, None)
        return current.record, current.mod_revision

    def _transact(self, companion: Companion) -> int:
        keys = [check.key for check in companion.preconditions if isinstance(check, Compare)]
        result = self._records.store.transact(companion.preconditions, companion.operations, keys)
        if result.committed:
            return result.revision
        for check, entry in zip(keys, result.current, strict=True):
            wanted = next(c for c in companion.preconditions if isinstance(c, Compare) and c.key == check)
            if (entry.mod_revision if entry else 0) != wanted.mod_revision:
                raise Conflict(check, entry)
        raise Conflict(keys[0], None)

    def _wire(self, request: Attach, endpoint: WorkloadEndpoint) -> WiredInterface | None:
        if request.namespace_fd is None:
            return None
        container_interface = endpoint.ifname or request.container_interface
        if not endpoint.is_made_for(request.network, request.container_interface):
            # the interface is as the first network wanted it; it is made here only where it is missing
            standing = self._wiring.host_end(request.namespace_fd, container_interface)
            if standing == request.interface:
                return None
        return self._wiring.attach(
            WiringRequest(
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
        )

    def _forget(self, request: Attach, committed: _Committed) -> None:
        """Take back what :meth:`_record` committed, if nobody has changed it since: the record it replaced returns.
        Profiles that are not its own stay: others may have come to use them."""
        path = request.key.path
        back = Put(path, codec.encode(committed.replaced)) if committed.replaced is not None else Delete(path)
        restored = {put.key for put in committed.copies}
        gone = [each for each in profile_deletions(committed.endpoint.own_profiles) if each.key not in restored]
        companion = Companion((Compare(path, committed.revision),), (back, *committed.copies, *gone))
        if isinstance(request.addresses, AddressRequest):
            self._ipam.release_by_handle([request.addresses.handle], companion)
        else:
            self._transact(companion)

    def _release_left_behind(self, replaced: WorkloadEndpoint | None) -> None:
        """The attachment that made the replaced endpoint may have gone before the others, and left its handle to them:
        none of their own detaches would find it now. What fails here the collector finds."""
        handle = abandoned_handle(replaced) if replaced is not None else None
        if handle is None:
            return
        try:
            self._ipam.release_by_handle([handle])
        except CalicoError as error:
            log.warning("handle.left_behind", handle=handle, reason=str(error))

    def _leave(self, request: Attach) -> None:
        """Take back a join."""
        attachment = Detach(
            key=request.key,
            interface=request.interface,
            container_id=request.container_id,
            network=request.network,
            container_interface=request.container_interface,
            is_shared=True,
        )
        self._release(attachment, self._standing(request.key))

    # --- detach ----------------------------------------------------------------------------------

    def detach(self, request: Detach) -> bool:
        with self._locks.hold(request.key, timeout_s=_LOCK_TIMEOUT_S):
            lap("lock")
            try:
                standing = self._standing(request.key)
            except Unavailable:
                if not request.is_shared:
                    self._wiring.detach(request.interface)  # whoever's it is: nobody can say, and it must not leak
                raise
            is_shared = standing is not None and standing.record is not None and bool(standing.record.attachments)
            if request.needs_ready:
                self._await_ready(request, standing, is_shared=is_shared)
            if standing is not None and is_shared:
                return self._detach_shared(request, standing)
            link = self._remove_link(request, standing)
            try:
                going = self._release(request, standing)
                lap("record")
            finally:
                link.result()
                lap("interface")
        log.info("endpoint.detached", endpoint=request.key.path)
        return going is not None and going.is_changed

    def _await_ready(
        self, request: Detach, standing: Versioned[WorkloadEndpoint | None] | None, *, is_shared: bool
    ) -> None:
        """Whoever fills the store or copies it counts on nobody writing. The container's interface goes all the same,
        unless others may use it."""
        try:
            self._require_ready()
        except StoreNotReady:
            if not is_shared and not request.is_shared:
                self._remove_link(request, standing).result()
            raise

    def _detach_shared(self, request: Detach, standing: Versioned[WorkloadEndpoint | None]) -> bool:
        """Whether the interface goes is known when the record's part is done: until then somebody may join."""
        going = self._release(request, standing)
        remaining = going.remaining if going is not None else None
        lap("record")
        if remaining is None or remaining.name != request.interface:
            self._wiring.detach(request.interface)
            lap("interface")
        log.info("endpoint.detached", endpoint=request.key.path, network=request.network)
        return going is not None and going.is_changed

    def _standing(self, key: WorkloadEndpointKey) -> Versioned[WorkloadEndpoint | None] | None:
        """The record now; one that does not decode has a None inside."""
        try:
            return self._records.get(key)
        except InvalidRecord:
            entry = self._records.store.get(key.path)
            return Versioned(key, None, entry.mod_revision) if entry is not None else None

    def _remove_link(self, request: Detach, standing: Versioned[WorkloadEndpoint | None] | None) -> Future[None]:
        """The kernel takes tens of milliseconds to delete a link: that runs beside the datastore's part."""
        remaining = departure(standing.record if standing is not None else None, request).remaining
        if remaining is not None and remaining.name == request.interface:
            done: Future[None] = Future()
            done.set_result(None)
            return done  # it is the next owner's interface by now
        return self._links.submit(self._wiring.detach, request.interface)

    def _release(self, request: Detach, standing: Versioned[WorkloadEndpoint | None] | None) -> Departure | None:
        """Addresses and record in one transaction. The record stays when another container owns it by now, and loses
        one attachment while others share it. None: there was none."""
        path = request.key.path
        for _attempt in range(_ATTEMPTS):
            going = departure(standing.record if standing is not None else None, request)
            companion: Companion | None = None
            if not going.is_changed:
                owner = going.remaining.container_id if going.remaining is not None else None
                log.info("endpoint.kept", endpoint=path, owner=owner, asked_by=request.container_id)
            elif standing is not None:
                write = Put(path, codec.encode(going.remaining)) if going.remaining is not None else Delete(path)
                operations = (write, *profile_deletions(going.own_profiles))
                companion = Companion((Compare(path, standing.mod_revision),), operations)
            try:
                self._ipam.release_by_handle(going.handles, companion)
                return going if standing is not None else None
            except Conflict as conflict:
                if conflict.key != path:
                    raise
            standing = self._standing(request.key)
        raise Conflict(path, None)

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
                request = PairRequest(
                    interface=request.interface,
                    peer=request.peer,
                    mac=request.mac,
                    mtu_bytes=request.mtu_bytes,
                    addresses=existing.record.nets,
                )
            if not request.mtu_bytes:
                request = msgspec.structs.replace(request, mtu_bytes=self._default_mtu_bytes())
            wired = self._wiring.make_pair(request)
            if not self._gate.wait_programmed(key, existing.mod_revision, 10.0):
                log.warning("endpoint.policy_pending", endpoint=key.path)
            return wired

    def remove_pair(self, interface: str) -> None:
        self._wiring.detach(interface)


class _Committed(NamedTuple):
    """What stands after the datastore's part of an attach. ``is_joined``: one attachment is new. ``replaced``: the
    record of another container that was there before. ``copies`` bring its own profiles back."""

    endpoint: WorkloadEndpoint
    revision: int
    is_new: bool
    is_joined: bool = False
    replaced: WorkloadEndpoint | None = None
    copies: tuple[Put, ...] = ()
