"""Collects what workloads of this host left behind: addresses nobody uses, endpoints whose sandbox is gone.

One thread. It looks, :mod:`collection` decides; what is to go is looked at once more, whole and at one revision, and
then goes in a transaction that holds only while handle and endpoint records are as that look saw them. A sudden loss
of records freezes it until they are back or an operator says ``calicoctl ipam unfreeze``.
Source: ipam specification 9, cni 8, libnetwork 8, mesos 8.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from calico_core.errors import CalicoError, Conflict, InvalidRecord
from calico_core.interfaces.datastore import Compare, Delete, NoneNewer, Records, Versioned
from calico_core.interfaces.ipam import Companion, Ipam
from calico_core.ipam.local_view import LocalView
from calico_core.ipam.store_view import Held, StoreView, addresses_of, held_in, store_view
from calico_core.log import get_logger
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import (
    AFFINITIES,
    HOSTS,
    ROOT,
    AffinityKey,
    BlockKey,
    HandleKey,
    WorkloadEndpointKey,
)
from calico_core.node import collection
from calico_core.node.collection import Baseline, LeakedHandle, Observation, Suspect
from calico_core.node.local_view import lost_sandboxes

if TYPE_CHECKING:
    from netaddr import IPAddress, IPNetwork

log = get_logger(__name__)

FIRST_LOOK_S = 60.0
_WHOLE_EVERY = 6
"""Looks at all blocks one time in so many: only then are addresses seen that this host borrowed from another's."""


class Collector:
    """``look_locally`` reads this host's kernel and asks its integrations. Times are seconds."""

    def __init__(
        self,
        *,
        records: Records,
        ipam: Ipam,
        host: str,
        look_locally: Callable[[], LocalView],
        memory: Path,
        interval_s: float,
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._ipam = ipam
        self._host = host
        self._look_locally = look_locally
        self._memory = memory
        self._interval_s = interval_s
        self._grace_s = grace_s
        self._clock = clock
        self._lock = threading.Lock()  # one look at a time; guards all that follows
        self._baseline = _remembered(memory)
        self._suspects: dict[str, Suspect] = {}
        self._unwired: tuple[str, ...] = ()
        self._borrowed: frozenset[IPNetwork] = frozenset()
        self._looks = self._released = self._removed = 0
        self._looked_at: float | None = None
        self._last_error = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """An interval of 0 switches it off."""
        if self._interval_s > 0:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def unfreeze(self) -> str:
        """What it was frozen for; empty when it was not. The next look may delete again."""
        with self._lock:
            freeze = self._baseline.freeze
            self._remember(collection.thawed(self._baseline))
        if freeze is not None:
            log.warning("collector.unfrozen", reason=freeze.reason)
        return freeze.reason if freeze is not None else ""

    def status(self) -> dict[str, Any]:
        """JSON-ready."""
        freeze = self._baseline.freeze
        return {
            "state": "off" if self._interval_s <= 0 else "frozen" if freeze is not None else "watching",
            "frozen_since": freeze.since if freeze is not None else None,
            "frozen_because": freeze.reason if freeze is not None else "",
            "last_look": self._looked_at,
            "suspects": sorted(self._suspects),
            "without_interface": list(self._unwired),
            "released": self._released,
            "removed": self._removed,
            "last_error": self._last_error,
        }

    # --- looking -------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = min(FIRST_LOOK_S, self._interval_s)
        while not self._stopping.wait(wait_s):
            self._try_look()
            wait_s = min(self._interval_s, max(self._grace_s / 2, 0.1)) if self._suspects else self._interval_s

    def _try_look(self) -> None:
        try:
            self.look()
            self._ipam.sweep()
            self._last_error = ""
        except CalicoError as error:
            self._last_error = str(error)
            log.warning("collector.look_failed", reason=str(error))
        except Exception as error:  # whatever a look meets, the next may do better
            self._last_error = f"{type(error).__name__}: {error}"
            log.exception("collector.look_failed")

    def look(self) -> None:
        """One look, and what follows from it."""
        with self._lock:
            seen = self._observe_whole()[0] if self._looks % _WHOLE_EVERY == 0 else self._observe()
            self._looks += 1
            before = self._baseline.freeze
            decided = collection.decide(
                seen, self._baseline, self._suspects, grace_s=self._grace_s, now=round(time.time(), 3)
            )
            self._suspects, self._unwired = decided.suspects, decided.unwired
            self._remember(decided.baseline)
            self._looked_at = time.time()
            if decided.baseline.freeze is not None and before is None:
                log.error("collector.frozen", reason=decided.baseline.freeze.reason)
            for path in decided.unwired:
                log.warning("collector.endpoint_without_interface", endpoint=path)
            if decided.release or decided.remove:
                self._collect(decided)

    def _observe(self) -> Observation:
        """Cheap: this host's endpoints and blocks, not of one revision. Good enough to suspect, not to act."""
        listing = self._records.store.list(f"{HOSTS}{self._host}/workload/")
        endpoints = store_view(listing.entries, listing.revision).endpoints
        held: list[Held] = []
        for cidr in sorted(self._own_blocks() | self._borrowed):
            try:
                found = self._records.get(BlockKey(cidr))
            except InvalidRecord:
                continue
            held += held_in(found.record) if found is not None else ()
        return self._observation(listing.revision, endpoints, tuple(held))

    def _observe_whole(self) -> tuple[Observation, StoreView]:
        """Everything at one revision."""
        listing = self._records.store.list(ROOT)
        view = store_view(listing.entries, listing.revision)
        held = tuple(view.held())
        self._borrowed = frozenset(
            each.block.cidr for each in held if each.host == self._host and each.block.owner != self._host
        )
        own = tuple(found for found in view.endpoints if _key(found).host == self._host)
        return self._observation(listing.revision, own, held), view

    def _observation(
        self, revision: int, endpoints: tuple[Versioned[WorkloadEndpoint], ...], held: tuple[Held, ...]
    ) -> Observation:
        return Observation(
            at_s=self._clock(),
            store=self._records.store.identity(),
            revision=revision,
            endpoints=endpoints,
            held=tuple(each for each in held if each.host == self._host),
            local=self._look_locally(),
            lost_sandboxes=lost_sandboxes(found.record for found in endpoints),
        )

    def _own_blocks(self) -> set[IPNetwork]:
        entries = self._records.store.list(f"{AFFINITIES}{self._host}/").entries
        keys = (parse_key(entry.key) for entry in entries)
        return {key.cidr for key in keys if isinstance(key, AffinityKey)}

    # --- acting --------------------------------------------------------------------------------------

    def _collect(self, decided: collection.Decisions) -> None:
        seen, view = self._observe_whole()
        still = {leak.handle: leak for leak in collection.leaked(view.endpoints, seen.held, seen.local)}
        for leak in decided.release:
            now = still.get(leak.handle)
            if now is None or collection.token_of(now) != collection.token_of(leak):
                continue
            if release_leak(self._records, self._ipam, now, host=self._host, view=view):
                self._released += len(now.held)
                self._forget(f"handle {leak.handle}")
        present = {found.key: found for found in seen.endpoints}
        for found in decided.remove:
            current = present.get(found.key)
            if current is None or current.mod_revision != found.mod_revision or not collection.is_dead(current, seen):
                continue
            if remove_endpoint(self._ipam, current, view=view):
                self._removed += 1
                self._forget(f"endpoint {found.key.path}")

    def _forget(self, subject: str) -> None:
        """In a new dict: status is read without the lock."""
        self._suspects = {name: suspect for name, suspect in self._suspects.items() if name != subject}

    def _remember(self, baseline: Baseline) -> None:
        if baseline != self._baseline:
            self._baseline = baseline
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._memory.with_name(f".{self._memory.name}.new")
            temporary.write_bytes(msgspec.json.encode(baseline))
            temporary.rename(self._memory)


def release_leak(records: Records, ipam: Ipam, leak: LeakedHandle, *, host: str, view: StoreView) -> bool:
    """Free a handle that ``view`` showed to be leaked, if neither it nor any endpoint of the host was written since:
    a workload that returns meanwhile wins. False: left alone."""
    everything = {each.address for each in view.held() if each.handle == leak.handle}
    entry = records.store.get(HandleKey(leak.handle).path)
    if everything != set(leak.addresses) or entry is None or entry.mod_revision > view.revision:
        return False
    unchanged = Companion(
        (Compare(entry.key, entry.mod_revision), NoneNewer(f"{HOSTS}{host}/workload/", view.revision))
    )
    try:
        sequences = {each.address: each.sequence for each in leak.held}
        freed = ipam.release_by_handle([leak.handle], unchanged, sequences=sequences)
    except Conflict as conflict:
        log.info("collector.handle_kept", handle=leak.handle, reason=str(conflict))
        return False
    log.warning("collector.released", handle=leak.handle, addresses=[str(address) for address in freed])
    return True


def remove_endpoint(ipam: Ipam, found: Versioned[WorkloadEndpoint], *, view: StoreView) -> bool:
    """Delete a record whose workload is dead, with the handles that hold nothing but its addresses. False: it was
    written meanwhile."""
    mine = set(addresses_of(found.record))
    holdings: dict[str, bool] = {}
    sequences: dict[IPAddress, int | None] = {}
    for each in view.held():
        sequences[each.address] = each.sequence
        if each.handle is not None:
            holdings[each.handle] = holdings.get(each.handle, True) and each.address in mine
    path = found.key.path
    companion = Companion((Compare(path, found.mod_revision),), (Delete(path),))
    try:
        freed = ipam.release_by_handle(
            [handle for handle, is_all_mine in holdings.items() if is_all_mine],
            companion,
            sequences={address: sequences[address] for address in mine if address in sequences},
        )
    except Conflict as conflict:
        log.info("collector.endpoint_kept", endpoint=path, reason=str(conflict))
        return False
    log.warning("collector.endpoint_removed", endpoint=path, addresses=[str(address) for address in freed])
    return True


def _key(found: Versioned[WorkloadEndpoint]) -> WorkloadEndpointKey:
    assert isinstance(found.key, WorkloadEndpointKey)
    return found.key


def _remembered(memory: Path) -> Baseline:
    """Nothing when there is nothing, or it is not ours: then the first look makes the baseline."""
    try:
        return msgspec.json.decode(memory.read_bytes(), type=Baseline)
    except (OSError, msgspec.DecodeError):
        return Baseline()
