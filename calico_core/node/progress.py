"""Which endpoints of this host are in force: the agent writes it down, integrations wait for it.

An endpoint is *written* (its record reached the agent at a revision) until an apply decides about it: *programmed* at
that revision, or *failed* with a reason. A failed one stays written, so that the apply that heals it says so.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from calico_core.model.keys import WorkloadEndpointKey

_NO_LINK = "its interface does not exist or is down"
_INACTIVE = "its record says that it is inactive"


class EndpointProgress:
    """Everything but :meth:`wait` and :meth:`close` belongs to the engine thread."""

    def __init__(self) -> None:
        self._interfaces: dict[WorkloadEndpointKey, str] = {}
        self._paths: dict[str, WorkloadEndpointKey] = {}
        self._owners: defaultdict[str, set[WorkloadEndpointKey]] = defaultdict(set)
        self._written: dict[WorkloadEndpointKey, int] = {}
        self._without_link: set[WorkloadEndpointKey] = set()
        self._inactive: set[WorkloadEndpointKey] = set()
        self._errors: dict[WorkloadEndpointKey, str] = {}
        self._status: dict[WorkloadEndpointKey, tuple[str, str]] = {}
        # Shared with waiting threads, under the condition.
        self._changed = threading.Condition()
        self._programmed_at: dict[WorkloadEndpointKey, int] = {}
        self._failed_at: dict[WorkloadEndpointKey, int] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._interfaces)

    @property
    def status(self) -> Mapping[WorkloadEndpointKey, tuple[str, str]]:
        """``up``, ``down`` or ``error``, and why. An endpoint that no apply has decided about yet is not in it."""
        return MappingProxyType(self._status)

    def write(self, key: WorkloadEndpointKey, revision: int, interface: str, *, is_active: bool = True) -> None:
        self._leave_interface(key)
        change = self._inactive.discard if is_active else self._inactive.add
        change(key)
        self._interfaces[key] = interface
        self._paths[key.path] = key
        self._owners[interface].add(key)
        self._written[key] = revision

    def remove(self, key: WorkloadEndpointKey) -> None:
        self._leave_interface(key)
        self._interfaces.pop(key, None)
        self._paths.pop(key.path, None)
        self._written.pop(key, None)
        self._without_link.discard(key)
        self._inactive.discard(key)
        self._errors.pop(key, None)
        self._status.pop(key, None)
        with self._changed:
            self._programmed_at.pop(key, None)
            self._failed_at.pop(key, None)

    def decide(self, failures: Mapping[str, str], *, whole: str = "") -> None:
        """An apply has taken in everything written. ``failures`` maps paths of endpoints to reasons; ``whole`` is why
        nothing at all could be programmed, or ''."""
        failing = {self._paths[path] for path in failures if path in self._paths}
        decided = failing | self._errors.keys() | self._written.keys()
        with self._changed:
            for key in decided:
                revision = self._written.get(key, 0)
                reason = whole or failures.get(key.path, "")
                if reason:
                    self._failed_at[key] = max(revision, self._failed_at.get(key, 0))
                    self._errors[key] = reason
                    continue
                self._errors.pop(key, None)
                if revision:
                    self._programmed_at[key] = revision
                    del self._written[key]
            self._changed.notify_all()
        self._describe(decided)

    def note_links(self, keys: Iterable[WorkloadEndpointKey], missing: Iterable[WorkloadEndpointKey]) -> None:
        """Of ``keys``, those in ``missing`` have no link, or one that is down, the others have; ``missing`` may name
        more."""
        looked_at = {*keys, *missing} & self._interfaces.keys()
        self._without_link = (self._without_link - looked_at) | ({*missing} & looked_at)
        self._describe(looked_at)

    def of_interface(self, interface: str) -> frozenset[WorkloadEndpointKey]:
        """Empty ``interface``: all endpoints."""
        return frozenset(self._owners.get(interface, ()) if interface else self._interfaces)

    # --- any thread ----------------------------------------------------------------------------------

    def wait(self, key: WorkloadEndpointKey, revision: int, timeout_s: float) -> bool:
        """Until the record of ``revision`` (or a later one) is decided: whether it is programmed."""

        def is_decided() -> bool:
            at = max(self._programmed_at.get(key, 0), self._failed_at.get(key, 0))
            return self._is_closed or at >= revision

        with self._changed:
            self._changed.wait_for(is_decided, timeout_s)
            return self._programmed_at.get(key, 0) >= revision

    def close(self) -> None:
        """Nothing will be decided any more: whoever waits is let go."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    # --- inside --------------------------------------------------------------------------------------

    def _leave_interface(self, key: WorkloadEndpointKey) -> None:
        before = self._interfaces.get(key)
        if before is None:
            return
        self._owners[before].discard(key)
        if not self._owners[before]:
            del self._owners[before]

    def _describe(self, keys: Iterable[WorkloadEndpointKey]) -> None:
        for key in keys:
            if key in self._errors:
                self._status[key] = ("error", self._errors[key])
            elif key in self._written:
                continue  # what was true of the record before
            elif key in self._without_link:
                self._status[key] = ("down", _NO_LINK)
            elif key in self._inactive:
                self._status[key] = ("down", _INACTIVE)
            else:
                self._status[key] = ("up", "")
