"""What a host says of itself. Source: datastore specification 2.4."""

from __future__ import annotations

import msgspec

from calico_core.model.record import Record

NODE_STOPPED = "stopped"
DATAPLANE_FAILED = "dataplane"
"""How an entry of ``failed_checks`` begins that says why the kernel does not have the whole policy."""
"""The last word of a node that was asked to end; it stays, without a lease."""


class FelixStatus(Record, frozen=True, omit_defaults=False):
    """Liveness of the agent, as the reference system writes it: ISO-8601 UTC, seconds."""

    time: str
    uptime: float
    first_update: bool


class AddressClaim(Record, frozen=True):
    """That a host uses an address of its own; ``token`` is boot and machine id."""

    host: str
    token: str


class NodeStatus(Record, frozen=True, omit_defaults=False):
    """The node's own report, kept under a lease. ``started`` is seconds since the epoch."""

    version: str
    started: float
    state: str
    endpoints: dict[str, int] = msgspec.field(default_factory=dict)
    routing: dict[str, str] = msgspec.field(default_factory=dict)
    integrations: dict[str, str] = msgspec.field(default_factory=dict)
    failed_checks: tuple[str, ...] = ()
