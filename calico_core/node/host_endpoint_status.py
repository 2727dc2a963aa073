"""How the host endpoints of this host are: under policy on some interface, on none, or refused. The engine's."""

from __future__ import annotations

from collections.abc import Mapping

from calico_core.model.hoststate import HostChanges
from calico_core.model.keys import HostEndpointKey

_NO_INTERFACE = "no interface of this host has its name or one of its expected addresses, or another endpoint has it"


class HostEndpointStatuses:
    """``write`` and ``remove`` follow the datastore, ``note`` what is given to the dataplane."""

    def __init__(self) -> None:
        self._keys: set[HostEndpointKey] = set()
        self._on: dict[str, HostEndpointKey] = {}

    def write(self, key: HostEndpointKey) -> None:
        self._keys.add(key)

    def remove(self, key: HostEndpointKey) -> None:
        self._keys.discard(key)

    def note(self, changes: HostChanges) -> None:
        if changes.is_complete:
            self._on.clear()
        for name in changes.removed_interfaces:
            self._on.pop(name, None)
        self._on.update((each.interface, each.key) for each in changes.interfaces)

    def status(self, failures: Mapping[str, str], whole: str) -> dict[HostEndpointKey, tuple[str, str]]:
        """``up``, ``down`` or ``error``, and why. ``failures``: subjects of the dataplane's failures to their
        reasons. ``whole``: why policy as a whole is not in force, or ''."""
        placed = set(self._on.values())
        found: dict[HostEndpointKey, tuple[str, str]] = {}
        for key in self._keys:
            reason = whole or failures.get(key.path, "")
            if reason:
                found[key] = ("error", reason)
            else:
                found[key] = ("up", "") if key in placed else ("down", _NO_INTERFACE)
        return found
