"""What workloads may send from beside their own addresses: their records say it, and their host must let them. Pure.

Source: felix specification 2.3, WorkloadSourceSpoofing, and 6.8.
"""

from __future__ import annotations

from netaddr import IPNetwork

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.policy.members import outermost


class AllowedSources:
    """One thread. ``is_wanted`` False: nobody may, and those that would are remembered."""

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._ignored: set[WorkloadEndpointKey] = set()
        self._fresh: set[WorkloadEndpointKey] = set()

    def of(self, key: WorkloadEndpointKey, endpoint: WorkloadEndpoint) -> tuple[IPNetwork, ...]:
        """Sorted, without those that lie in another."""
        prefixes = endpoint.allowed_source_prefixes
        if not prefixes:
            self.forget(key)
            return ()
        if self._is_wanted:
            return tuple(sorted(outermost(prefixes)))
        if key not in self._ignored:
            self._ignored.add(key)
            self._fresh.add(key)
        return ()

    def forget(self, key: WorkloadEndpointKey) -> None:
        """It is gone, or asks for nothing any more."""
        self._ignored.discard(key)
        self._fresh.discard(key)

    def take_ignored(self) -> list[WorkloadEndpointKey]:
        """Whose prefixes mean nothing here, each once."""
        fresh, self._fresh = self._fresh, set()
        return sorted(fresh, key=lambda key: key.path)
