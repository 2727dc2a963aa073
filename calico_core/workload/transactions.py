"""The datastore's part of attach and detach: addresses, handle, endpoint record and missing profiles, each time in one
transaction. Every write names the revision it was decided on; who was overtaken looks again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from netaddr import IPAddress

from calico_core.errors import CalicoError, Conflict, InterfaceTaken, InvalidRecord, KeyExists
from calico_core.interfaces.datastore import Compare, Delete, Put, Records, Versioned, absent
from calico_core.interfaces.ipam import Companion, Ipam
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.addresses import local_mac
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.workloads import AddressRequest, Attach, Detach, NewProfile
from calico_core.workload.endpoint_record import endpoint_record
from calico_core.workload.profiles import profile_copies, profile_deletions, profile_writes, profiles_to_write
from calico_core.workload.sharing import Departure, abandoned_handle, departure, is_attached, joined

log = get_logger(__name__)

_ATTEMPTS = 5


class Committed(NamedTuple):
    """What stands after the datastore's part of an attach. ``is_joined``: one attachment is new. ``replaced``: the
    record of another container that was there before. ``copies`` bring its own profiles back."""

    endpoint: WorkloadEndpoint
    revision: int
    is_new: bool
    is_joined: bool = False
    replaced: WorkloadEndpoint | None = None
    copies: tuple[Put, ...] = ()


class EndpointTransactions:
    """For one endpoint at a time: the caller holds its lock. ``knows_profile``: as of ``PolicyGate``."""

    def __init__(self, records: Records, ipam: Ipam, knows_profile: Callable[[str], bool]) -> None:
        self._records, self._ipam, self._knows_profile = records, ipam, knows_profile

    # --- attach ----------------------------------------------------------------------------------

    def commit(self, request: Attach) -> Committed:
        """Commit addresses and record, or find that they stand. A record that does not decode is nobody's any more."""
        # an endpoint that may be shared is looked for first: who joins needs no address, and none may be left
        replaced = self.standing(request.key) if request.shared_handle is not None else None
        for _attempt in range(_ATTEMPTS):
            record = replaced.record if replaced is not None else None
            if replaced is not None and record is not None and record.container_id == request.container_id:
                committed = self._use(request, record, replaced.mod_revision)
                if committed is not None:
                    return committed
                replaced = self.standing(request.key)
                continue
            if record is not None and not request.replaces:
                raise KeyExists(request.key.path, replaced)
            expected = Compare(request.key.path, replaced.mod_revision) if replaced else absent(request.key.path)
            profiles = profiles_to_write(self._records, request.new_profiles, self._knows_profile)
            try:
                before = record.own_profiles if record is not None else ()
                copies = profile_copies(self._records, before)
                endpoint, revision = self._write(request, expected, profiles, before)
                return Committed(endpoint, revision, is_new=True, replaced=record, copies=copies)
            except Conflict as conflict:
                if conflict.key != request.key.path:
                    continue  # a profile came or went meanwhile: look again
            replaced = self.standing(request.key)
        raise Conflict(request.key.path, None)

    def _use(self, request: Attach, record: WorkloadEndpoint, revision: int) -> Committed | None:
        """The container's record, which the request is part of already or joins; None when it changed meanwhile.

        :raises InterfaceTaken: it is another network's, and not for sharing.
        """
        if is_attached(record, request):
            return Committed(record, revision, is_new=False)
        if request.shared_handle is None or not record.attachments:
            taken = record.ifname or request.container_interface
            raise InterfaceTaken(taken, "the container", f"network {record.network or 'unknown'}")
        path = request.key.path
        record = joined(record, request, time.time())
        written = profile_writes(profiles_to_write(self._records, request.new_profiles, self._knows_profile))
        preconditions = (Compare(path, revision), *written.preconditions)
        put = Put(path, codec.encode(record))
        try:
            revision = self._transact(Companion(preconditions, (put, *written.operations)))
        except Conflict:
            return None
        log.info("endpoint.joined", endpoint=path, network=request.network)
        return Committed(record, revision, is_new=False, is_joined=True)

    def _write(
        self, request: Attach, expected: Compare, profiles: tuple[NewProfile, ...], before: tuple[str, ...]
    ) -> tuple[WorkloadEndpoint, int]:
        """The record as it stands now, and its revision. ``before``: own profiles of the record it replaces."""
        mac = request.mac
        if mac is None and not request.may_change_mac:
            mac = local_mac(os.urandom(6))
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

    def take_back(self, request: Attach, committed: Committed) -> None:
        """Take back what :meth:`commit` committed, if nobody has changed it since: the record it replaced returns.
        Profiles that are not its own stay: others may have come to use them. A record whose address was taken over does
        not return: the address is nobody's now."""
        path = request.key.path
        if isinstance(request.addresses, AddressRequest) and request.addresses.takes_over:
            committed = committed._replace(replaced=None, copies=())
        back = Put(path, codec.encode(committed.replaced)) if committed.replaced is not None else Delete(path)
        restored = {put.key for put in committed.copies}
        gone = [each for each in profile_deletions(committed.endpoint.own_profiles) if each.key not in restored]
        companion = Companion((Compare(path, committed.revision),), (back, *committed.copies, *gone))
        if isinstance(request.addresses, AddressRequest):
            self._ipam.release_by_handle([request.addresses.handle], companion)
        else:
            self._transact(companion)

    def release_left_behind(self, replaced: WorkloadEndpoint | None) -> None:
        """The attachment that made the replaced endpoint may have gone before the others, and left its handle to them:
        none of their own detaches would find it now. What fails here the collector finds."""
        handle = abandoned_handle(replaced) if replaced is not None else None
        if handle is None:
            return
        try:
            self._ipam.release_by_handle([handle])
        except CalicoError as error:
            log.warning("handle.left_behind", handle=handle, reason=str(error))

    def leave(self, request: Attach) -> None:
        """Take back a join."""
        attachment = Detach(
            key=request.key,
            interface=request.interface,
            container_id=request.container_id,
            network=request.network,
            container_interface=request.container_interface,
            is_shared=True,
        )
        self.release(attachment, self.standing(request.key))

    # --- detach ----------------------------------------------------------------------------------

    def standing(self, key: WorkloadEndpointKey) -> Versioned[WorkloadEndpoint | None] | None:
        """The record now; one that does not decode has a None inside."""
        try:
            return self._records.get(key)
        except InvalidRecord:
            entry = self._records.store.get(key.path)
            return Versioned(key, None, entry.mod_revision) if entry is not None else None

    def release(self, request: Detach, standing: Versioned[WorkloadEndpoint | None] | None) -> Departure | None:
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
                # no companion: nothing is found, or nothing of it goes
                handles = () if companion is None and request.keeps_handles else going.handles
                self._ipam.release_by_handle(handles, companion)
                return going if standing is not None else None
            except Conflict as conflict:
                if conflict.key != path:
                    raise
            standing = self.standing(request.key)
        raise Conflict(path, None)

    # --- inside ----------------------------------------------------------------------------------

    def _transact(self, companion: Companion) -> int:
        """The revision. A ``Conflict`` names the key that is not as it was thought to be."""
        keys = [check.key for check in companion.preconditions if isinstance(check, Compare)]
        result = self._records.store.transact(companion.preconditions, companion.operations, keys)
        if result.committed:
            return result.revision
        for check, entry in zip(keys, result.current, strict=True):
            wanted = next(c for c in companion.preconditions if isinstance(c, Compare) and c.key == check)
            if (entry.mod_revision if entry else 0) != wanted.mod_revision:
                raise Conflict(check, entry)
        raise Conflict(keys[0], None)
