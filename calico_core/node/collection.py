"""What may be collected on this host: observations in, decisions out. Pure: the clock comes in with the observation.

An address is valid until proven leaked. The proof takes two independent signs (no endpoint record, nothing in the
kernel), no claim of an integration, and time: both signs must have stood for the whole grace period, in at least two
looks. Source: ipam specification 9, "Leak GC".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
from netaddr import IPAddress

from calico_core.interfaces.datastore import Versioned
from calico_core.ipam.local_view import LocalView
from calico_core.ipam.store_view import Held, addresses_of
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.record import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REMOVABLE = frozenset({"cni", "k8s", "libnetwork", "mesos"})
"""Orchestrators whose endpoints record the sandbox they live in."""

_MOST_AT_ONCE = 256
_FEW = 2


class Observation(Value, frozen=True):
    """One look. ``held`` are the addresses this host assigned; ``at_s`` is monotonic; ``store`` tells one life of the
    datastore from another. ``lost_sandboxes`` are recorded namespaces that provably do not exist any more."""

    at_s: float
    store: str
    revision: int
    endpoints: tuple[Versioned[WorkloadEndpoint], ...]
    held: tuple[Held, ...]
    local: LocalView
    lost_sandboxes: frozenset[str] = frozenset()


class Freeze(Value, frozen=True):
    """Nothing is deleted while this stands. ``lost``: paths of the records that vanished; empty when the datastore
    itself is another one. ``since`` is seconds since the epoch."""

    reason: str
    since: float
    lost: tuple[str, ...] = ()


class Baseline(Value, frozen=True):
    """What must outlive the process: how the store looked, and whether deletions are frozen."""

    store: str = ""
    revision: int = 0
    endpoints: tuple[str, ...] = ()
    freeze: Freeze | None = None


class Suspect(Value, frozen=True):
    """A handle all of whose addresses lack both signs, or an endpoint without an interface. ``token`` changes when it
    is not the same assignment or record any more. ``first_s`` and ``looks`` count from when it became suspect."""

    subject: str
    token: tuple[object, ...]
    first_s: float
    looks: int = 1


class LeakedHandle(NamedTuple):
    handle: str
    held: tuple[Held, ...]

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        return tuple(each.address for each in self.held)


class Decisions(Value, frozen=True):
    """What to do now, and what to remember. ``release`` and ``remove`` are empty while frozen; both are to be looked
    at once more just before. ``suspects`` includes those whose time has not come."""

    baseline: Baseline
    suspects: dict[str, Suspect] = msgspec.field(default_factory=dict)
    release: tuple[LeakedHandle, ...] = ()
    remove: tuple[Versioned[WorkloadEndpoint], ...] = ()
    unwired: tuple[str, ...] = ()
    """Paths of endpoints that have had no interface for longer than the grace: reported, and removed only when the
    sandbox is gone too."""


def decide(
    seen: Observation, baseline: Baseline, suspects: Mapping[str, Suspect], *, grace_s: float, now: float
) -> Decisions:
    """``now`` is seconds since the epoch, for people; time is measured with the observation's clock."""
    leaks = leaked(seen.endpoints, seen.held, seen.local)
    unwired = _unwired(seen)
    fresh = {
        **{f"handle {leak.handle}": token_of(leak) for leak in leaks},
        **{f"endpoint {found.key.path}": (found.mod_revision,) for found in unwired},
    }
    following = _followed(fresh, suspects, seen.at_s)
    following_baseline = _next_baseline(seen, baseline, now)
    due = {name for name, suspect in following.items() if suspect.looks > 1 and seen.at_s - suspect.first_s >= grace_s}
    due_endpoints = tuple(found for found in unwired if f"endpoint {found.key.path}" in due)
    is_free = following_baseline.freeze is None
    return Decisions(
        baseline=following_baseline,
        suspects=following,
        release=tuple(leak for leak in leaks if f"handle {leak.handle}" in due)[:_MOST_AT_ONCE] if is_free else (),
        remove=tuple(found for found in due_endpoints if is_dead(found, seen))[:_MOST_AT_ONCE] if is_free else (),
        unwired=tuple(found.key.path for found in due_endpoints),
    )


def thawed(baseline: Baseline) -> Baseline:
    """An operator says that the loss is meant: what is there now is the new normal."""
    return msgspec.structs.replace(baseline, freeze=None)


def leaked(
    endpoints: Iterable[Versioned[WorkloadEndpoint]], held: Iterable[Held], local: LocalView
) -> tuple[LeakedHandle, ...]:
    """Handles none of whose addresses has a sign of life. One address in use keeps the whole handle."""
    found = tuple(endpoints)
    carried = {address for each in found for address in addresses_of(each.record)}
    named = {each.record.name for each in found}
    groups: dict[str, list[Held]] = {}
    alive: set[str] = set()
    for each in held:
        if each.handle is None:
            continue
        groups.setdefault(each.handle, []).append(each)
        if not _is_suspect(each, carried, named, local):
            alive.add(each.handle)
    return tuple(LeakedHandle(handle, tuple(each)) for handle, each in groups.items() if handle not in alive)


def is_dead(found: Versioned[WorkloadEndpoint], seen: Observation) -> bool:
    """Both signs: no interface, and the sandbox that its record names is gone. Nobody's list has it either."""
    assert isinstance(found.key, WorkloadEndpointKey)
    return (
        found.key.orchestrator in REMOVABLE
        and found.record.name not in seen.local.interfaces
        and found.record.netns in seen.lost_sandboxes
        and not any(seen.local.carries(address) for address in addresses_of(found.record))
    )


# --- inside ----------------------------------------------------------------------------------------


def _is_suspect(held: Held, carried: set[IPAddress], named: set[str], local: LocalView) -> bool:
    return (
        held.host == local.host
        and held.orchestrator is not None  # whose endpoint record would be expected
        and not held.is_tunnel
        and held.address not in carried
        and not local.sign_of(held, named)
        and not local.claims(held.address, held.orchestrator)
    )


def _unwired(seen: Observation) -> tuple[Versioned[WorkloadEndpoint], ...]:
    return tuple(found for found in seen.endpoints if found.record.name not in seen.local.interfaces)


def token_of(leak: LeakedHandle) -> tuple[object, ...]:
    return tuple(sorted((str(each.address), each.sequence or 0) for each in leak.held))


def _followed(
    fresh: Mapping[str, tuple[object, ...]], suspects: Mapping[str, Suspect], at_s: float
) -> dict[str, Suspect]:
    following: dict[str, Suspect] = {}
    for name, token in fresh.items():
        before = suspects.get(name)
        if before is None or before.token != token:
            following[name] = Suspect(subject=name, token=token, first_s=at_s)
        else:
            following[name] = msgspec.structs.replace(before, looks=before.looks + 1)
    return following


def _next_baseline(seen: Observation, baseline: Baseline, now: float) -> Baseline:
    paths = tuple(sorted(found.key.path for found in seen.endpoints))
    following = Baseline(store=seen.store, revision=seen.revision, endpoints=paths, freeze=baseline.freeze)
    frozen = baseline.freeze
    if frozen is not None and frozen.lost and (set(frozen.lost) <= set(paths) or _left_behind(seen) <= _FEW):
        following = msgspec.structs.replace(following, freeze=None)  # the records are back, or nothing hangs on them
    if following.freeze is not None or not baseline.store:
        return following
    freeze = _rebuilt_store(seen, baseline, now) or _sudden_loss(seen, baseline, paths, now)
    return msgspec.structs.replace(following, freeze=freeze)


def _rebuilt_store(seen: Observation, baseline: Baseline, now: float) -> Freeze | None:
    if seen.store != baseline.store:
        return Freeze(reason="the datastore is another one than before", since=now)
    if seen.revision < baseline.revision:
        why = f"the datastore went back from revision {baseline.revision} to {seen.revision}: restored from a backup?"
        return Freeze(reason=why, since=now)
    return None


def _sudden_loss(seen: Observation, baseline: Baseline, paths: tuple[str, ...], now: float) -> Freeze | None:
    """Records that went while what they stood for is still here. A workload that was detached takes its interface and
    its addresses along, so a thousand of those at once are no loss."""
    gone = set(baseline.endpoints) - set(paths)
    vanished = min(len(gone), _left_behind(seen))
    if vanished <= _FEW or 2 * vanished <= len(baseline.endpoints):
        return None
    why = f"{vanished} of {len(baseline.endpoints)} endpoint records vanished at once, and what they stood for did not"
    return Freeze(reason=why, since=now, lost=tuple(sorted(gone)))


def _left_behind(seen: Observation) -> int:
    """Addresses, or interfaces, of workloads without a record."""
    carried = {address for found in seen.endpoints for address in addresses_of(found.record)}
    orphans = {each.handle for each in seen.held if each.orchestrator is not None and each.address not in carried}
    named = {found.record.name for found in seen.endpoints}
    stray = {name for name in seen.local.interfaces if seen.local.is_workload(name)} - named
    return max(len(orphans), len(stray))
