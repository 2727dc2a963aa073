"""Which endpoints a container has joined, and the next hop each was given.

The kernel refuses a second connected route to the same next hop, so every Calico network of one container gets a hop of
its own; the first has the default route. Kept in memory, and in the endpoint records for after a restart. Source:
libnetwork specification 3.4.8.
"""

from __future__ import annotations

import threading

from netaddr import IPAddress

from calico_core.interfaces.datastore import Records
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import HOSTS
from calico_libnetwork.errors import Refused

ORCHESTRATOR = "libnetwork"
FIRST_HOP = IPAddress("169.254.1.1")
_MAX_HOPS = 250


class Sandboxes:
    """Any thread."""

    def __init__(self, records: Records, host: str) -> None:
        self._records = records
        self._host = host
        self._lock = threading.Lock()
        self._hops: dict[str, dict[str, IPAddress]] = {}
        self._is_loaded = False

    def join(self, sandbox: str, endpoint_id: str) -> IPAddress:
        """The endpoint's hop: what it had already, or the lowest that is free in this sandbox."""
        with self._lock:
            self._load()
            hops = self._hops.setdefault(sandbox, {})
            if endpoint_id not in hops:
                free = (FIRST_HOP + number for number in range(_MAX_HOPS))
                hop = next((each for each in free if each not in hops.values()), None)
                if hop is None:
                    raise Refused(f"A container can have at most {_MAX_HOPS} Calico networks.")
                hops[endpoint_id] = hop
            return hops[endpoint_id]

    def leave(self, endpoint_id: str) -> None:
        with self._lock:
            for sandbox in [name for name, hops in self._hops.items() if endpoint_id in hops]:
                del self._hops[sandbox][endpoint_id]
                if not self._hops[sandbox]:
                    del self._hops[sandbox]

    def _load(self) -> None:
        """What containers joined before this process began."""
        if self._is_loaded:
            return
        for found in self._records.list(f"{HOSTS}{self._host}/workload/{ORCHESTRATOR}/"):
            record = found.record
            if isinstance(record, WorkloadEndpoint) and record.netns and record.ipv4_gateway is not None:
                endpoint_id = getattr(found.key, "endpoint", "")
                self._hops.setdefault(record.netns, {})[endpoint_id] = record.ipv4_gateway
        self._is_loaded = True
