"""What goes into the agent's mailbox beside events of links, and what the agent says of itself after every pass."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import msgspec
from netaddr import IPAddress

from calico_core.datastore.syncer import SyncBatch
from calico_core.model.keys import HostEndpointKey, WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.model.workloads import InterfaceEvent
from calico_core.node.counters import CountedRule
from calico_core.node.flow_cutter import LookFailed
from calico_core.node.removal_guard import RemovalFreeze


class AgentState(Value, frozen=True):
    """What the agent reports: handed to the reporter after every pass."""

    is_in_sync: bool
    is_applied: bool
    endpoints: dict[WorkloadEndpointKey, tuple[str, str]]
    """Status (``up``, ``down``, ``error``) and reason of each local endpoint."""
    bad_records: tuple[str, ...] = ()
    last_error: str = ""
    host_endpoints: dict[HostEndpointKey, tuple[str, str]] = msgspec.field(default_factory=dict)
    """The same of its host endpoints."""
    freeze: RemovalFreeze | None = None
    """Deletions wait for confirmation. ``since`` is monotonic."""


Reporter = Callable[[AgentState], None]


class HostAddresses(NamedTuple):
    """An interface of the host and all its addresses; None: it is gone."""

    name: str
    addresses: frozenset[IPAddress] | None


class RemovalsConfirmed(NamedTuple):
    """A person says that what was deleted is meant to be."""


class CountsWanted(NamedTuple):
    """Somebody waits for the counters of rules, which only the engine may read."""

    reply: Future[tuple[CountedRule, ...]]


Item = SyncBatch | InterfaceEvent | HostAddresses | RemovalsConfirmed | CountsWanted | LookFailed
