"""Reports liveness and endpoint status to the datastore. One thread, latest value wins.

Liveness keys live under a lease, so they vanish when the node does. Sources: felix specification 9, datastore
specification 2.4.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from calico_core.errors import DatastoreError
from calico_core.interfaces.datastore import Delete, Lease, Operation, Put, Records
from calico_core.interfaces.routing import RoutingStatus
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.endpoints import EndpointStatus
from calico_core.model.hosts import DATAPLANE_FAILED, NODE_STOPPED, FelixStatus, NodeStatus
from calico_core.model.keys import (
    FELIX_STATUS,
    FelixLastStatusKey,
    FelixStatusKey,
    HostEndpointKey,
    HostEndpointStatusKey,
    NodeStatusKey,
    WorkloadEndpointKey,
    WorkloadStatusKey,
)
from calico_core.node.agent_state import AgentState
from calico_core.node.busy import Busy
from calico_core.node.mailbox import LatestSlot

log = get_logger(__name__)

_NODE_TTL_S = 90.0
_RETRY_S = 5.0  # give or take a half: an etcd that was away for a moment failed all nodes at once
_GATHER_S = 0.02
_BEAT_JITTER = 1.1
_EndpointKey = WorkloadEndpointKey | HostEndpointKey
_BATCH = 64  # operations a transaction


class StatusReporter:
    """``put`` from the engine; everything else happens in the reporter's thread."""

    def __init__(
        self,
        *,
        records: Records,
        host: str,
        version: str,
        interval_s: float,
        ttl_s: float,
        reports_endpoints: bool,
        endpoints_delay_s: float = 0.0,
        routing_status: Callable[[], RoutingStatus],
        integrations: Callable[[], dict[str, str]],
    ) -> None:
        """``endpoints_delay_s``: at least so long, give or take a tenth, between two writes of endpoints' statuses."""
        self._records = records
        self._host = host
        self._version = version
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._reports_endpoints = reports_endpoints
        self._endpoints_delay_s = endpoints_delay_s
        self._endpoints_at = 0.0  # the earliest time of their next write
        self._routing_status = routing_status
        self._integrations = integrations
        self._slot: LatestSlot[AgentState] = LatestSlot()
        self._busy = Busy()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._started = time.time()
        self._started_monotonic = time.monotonic()
        self._state: AgentState | None = None
        self._written: dict[_EndpointKey, tuple[str, str]] = {}
        self._is_swept = False
        self._is_behind = False
        """The endpoints of the latest state are still to be written."""
        self._lease: Lease | None = None
        self._felix_lease: Lease | None = None
        self._node_written: NodeStatus | None = None

    @property
    def state(self) -> AgentState | None:
        return self._state

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """How long it writes to the datastore already; 0: it does not."""
        return self._busy.seconds

    def put(self, state: AgentState) -> None:
        self._slot.put(state)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Say that we stopped, as far as the datastore can be reached."""
        self._stopping.set()
        self._slot.close()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        next_beat = 0.0
        while not self._stopping.is_set():
            at = min(next_beat, self._endpoints_at) if self._is_behind else next_beat
            state = self._slot.take(max(0.05, min(at - time.monotonic(), 10.0)))
            if state is not None:
                # beside an attach it would be in the way; after a burst of them it is one write
                self._stopping.wait(_GATHER_S)
                before = self._dataplane_failure
                self._state, self._is_behind = self._slot.take(0) or state, True
                if bool(before) != bool(self._dataplane_failure):
                    next_beat = 0.0  # who asks whether policy is in force shall not hear it an interval later
            try:
                if self._is_behind and self._state is not None and not self._state.is_applied:
                    self._is_behind = False  # another state will come
                with self._busy.turn():
                    if self._is_behind and self._state is not None and time.monotonic() >= self._endpoints_at:
                        if self._write_endpoints(self._state):
                            self._endpoints_at = time.monotonic() + self._endpoints_delay_s * random.uniform(0.9, 1.1)
                        self._is_behind = False
                    if time.monotonic() >= next_beat:
                        self._beat()
                        next_beat = time.monotonic() + self._beat_interval_s * random.uniform(1.0, _BEAT_JITTER)
            except DatastoreError as error:
                log.warning("status.not_written", reason=str(error))
                next_beat = self._endpoints_at = time.monotonic() + _RETRY_S * random.uniform(0.5, 1.5)
                self._lease = self._felix_lease = None
                self._node_written = None
                self._forget_endpoints()
        self._last_words()

    @property
    def _beat_interval_s(self) -> float:
        return min(self._interval_s, _NODE_TTL_S / 3) if self._interval_s > 0 else _NODE_TTL_S / 3

    def _write_endpoints(self, state: AgentState) -> bool:
        """Whether there was anything to write."""
        if not self._reports_endpoints:
            return False
        wanted: dict[_EndpointKey, tuple[str, str]] = dict(state.endpoints.items())
        wanted.update(state.host_endpoints.items())
        if not self._is_swept:
            self._sweep(wanted)
        changed = {key: said for key, said in wanted.items() if self._written.get(key) != said}
        gone = self._written.keys() - wanted.keys()
        operations: list[Operation] = [_put(key, *said) for key, said in changed.items()]
        operations += [Delete(_status_key(key).path) for key in gone]
        for start in range(0, len(operations), _BATCH):
            self._records.store.transact((), operations[start : start + _BATCH])
        self._written.update(changed)
        for key in gone:
            del self._written[key]
        return bool(operations)

    def _forget_endpoints(self) -> None:
        """Nobody knows what the datastore still has of them: it is looked at again, and what differs is written."""
        self._written.clear()
        self._is_swept = False
        self._is_behind = self._state is not None

    def _sweep(self, wanted: Mapping[_EndpointKey, tuple[str, str]]) -> None:
        """Statuses of endpoints that went while we, or the datastore, were away go too; those that are as wanted
        count as written."""
        keys = {_status_key(key).path: key for key in wanted}
        for kind in ("workload", "endpoint"):
            for entry in self._records.store.list(f"{FELIX_STATUS}{self._host}/{kind}/").entries:
                key = keys.get(entry.key)
                if key is None:
                    self._records.store.delete(entry.key)
                elif entry.value == _put(key, *wanted[key]).value:
                    self._written[key] = wanted[key]
        self._is_swept = True

    def _beat(self) -> None:
        if self._interval_s > 0:
            self._felix_lease = self._alive(self._felix_lease, self._ttl_s)
            record = FelixStatus(
                time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                uptime=round(time.monotonic() - self._started_monotonic, 3),
                first_update=bool(self._state and self._state.is_applied),
            )
            self._records.put(FelixLastStatusKey(self._host), record)
            self._records.put(FelixStatusKey(self._host), record, lease=self._felix_lease.id)
        previous = self._lease
        self._lease = self._alive(self._lease, _NODE_TTL_S)
        node = self._node_status("running" if self._state and self._state.is_applied else "starting")
        if node != self._node_written or self._lease is not previous:
            self._records.put(NodeStatusKey(self._host), node, lease=self._lease.id)
            self._node_written = node

    def _alive(self, lease: Lease | None, ttl_s: float) -> Lease:
        if lease is not None and lease.keep_alive():
            return lease
        if lease is not None:  # a datastore that does not know it may be another, or an older one
            self._forget_endpoints()
        return self._records.store.lease(ttl_s)

    def _node_status(self, state: str) -> NodeStatus:
        routing = self._routing_status()
        sessions = Counter(peer.state for peer in routing.peers)
        endpoints = self._state.endpoints.values() if self._state else ()
        return NodeStatus(
            version=self._version,
            started=round(self._started, 3),
            state=state,
            endpoints=dict(Counter(status for status, _ in endpoints)),
            routing={
                "driver": routing.driver,
                "running": "yes" if routing.is_running else "no",
                **{name: str(count) for name, count in sorted(sessions.items())},
            },
            integrations=self._integrations(),
            failed_checks=tuple(filter(None, (routing.rejected, self._dataplane_failure))),
        )

    @property
    def _dataplane_failure(self) -> str:
        reason = self._state.last_error if self._state else ""
        return f"{DATAPLANE_FAILED}: {reason}" if reason else ""

    def _last_words(self) -> None:
        try:
            self._records.put(NodeStatusKey(self._host), self._node_status(NODE_STOPPED))
            self._records.delete(FelixStatusKey(self._host))
        except DatastoreError as error:
            log.warning("status.not_written", reason=str(error))


def _put(key: _EndpointKey, status: str, reason: str) -> Put:
    record = EndpointStatus(status=status, reason=reason or None)  # type: ignore[arg-type]
    return Put(_status_key(key).path, codec.encode(record))


def _status_key(key: _EndpointKey) -> WorkloadStatusKey | HostEndpointStatusKey:
    if isinstance(key, HostEndpointKey):
        return HostEndpointStatusKey(key.host, key.endpoint)
    return WorkloadStatusKey(key.host, key.orchestrator, key.workload, key.endpoint)
