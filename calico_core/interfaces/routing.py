"""The routing seam: what a routing daemon is told, what it says back."""

from __future__ import annotations

import abc
from typing import Literal

from netaddr import IPAddress, IPNetwork

from calico_core.model.record import Value


class Peer(Value, frozen=True):
    """One BGP session wanted. ``origin``: mesh, global or node; ``description`` for people (the host's name)."""

    ip: IPAddress
    as_number: int
    origin: Literal["mesh", "global", "node"]
    description: str = ""
    is_passive: bool = False


class RoutingState(Value, frozen=True):
    """All a routing driver needs to know of one host. Addresses None: no session of that family. ``blocks``: own
    blocks, announced whole and blackholed. ``pools``: what may be announced; ``encapsulated`` of them are routed by
    the agent and kept out of the kernel by the daemon."""

    host: str
    as_number: int
    ipv4: IPAddress | None = None
    ipv6: IPAddress | None = None
    router_id: IPAddress | None = None
    peers: tuple[Peer, ...] = ()
    blocks: tuple[IPNetwork, ...] = ()
    pools: tuple[IPNetwork, ...] = ()
    encapsulated: tuple[IPNetwork, ...] = ()
    unexported: tuple[IPNetwork, ...] = ()
    log_level: Literal["none", "info", "debug"] = "info"


class PeerStatus(Value, frozen=True):
    """``state`` in the daemon's words: Established, Active, Idle …"""

    ip: IPAddress
    origin: str
    state: str
    since: str = ""
    info: str = ""


class RoutingStatus(Value, frozen=True):
    """``is_running`` False: the daemon does not answer; ``rejected``: the last configuration it refused, or ''."""

    driver: str
    is_running: bool
    peers: tuple[PeerStatus, ...] = ()
    rejected: str = ""


class RoutingOptions(Value, frozen=True):
    """``run_directory`` holds configuration, control socket and pid file of this host's daemon."""

    host: str
    run_directory: str


class Routing(abc.ABC):
    """Drives a routing daemon. Used by the routing thread alone, but for :meth:`status`."""

    @classmethod
    @abc.abstractmethod
    def open(cls, options: RoutingOptions) -> Routing: ...

    @abc.abstractmethod
    def configure(self, state: RoutingState) -> None:
        """Make the daemon follow ``state``: started or adopted if need be, reconfigured without a restart. Nothing
        happens when it already does. Raises ``ConfigRejected`` (the old configuration stays), ``DaemonDown``."""

    @abc.abstractmethod
    def status(self) -> RoutingStatus:
        """Never raises for a daemon that is down. Any thread."""

    @abc.abstractmethod
    def close(self, *, stop_daemon: bool) -> None:
        """Let go of the daemon; by default it outlives us so that routes stay."""
