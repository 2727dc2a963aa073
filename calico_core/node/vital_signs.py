"""What health is made of: a look at every part of the runtime. Source: node specification 10.3.

Ready: the first complete state is in the kernel, integrations are prepared and the socket listens. After that only a
death makes the node unready, and a kernel that refuses policy as a whole: a datastore that is away, a broken
integration or a routing daemon that does not answer leave it *degraded*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from calico_core.interfaces.routing import RoutingStatus
from calico_core.log import get_logger
from calico_core.node.agent import Agent
from calico_core.node.health import Component

log = get_logger(__name__)

_REFERENCE_NAMES = dict.fromkeys(("internaldataplanemainloop", "calculationgraph", "asynccalcgraph"), "engine")
LIMIT_S = 90.0
"""A turn of a loop that takes longer hangs. As the reference system's dataplane watchdog."""


class LoopSigns(Protocol):
    """A part with a thread that goes round."""

    @property
    def is_alive(self) -> bool: ...

    @property
    def busy_s(self) -> float: ...


class RouterSigns(LoopSigns, Protocol):
    last_error: str


class VitalSigns:
    """Filled in by the runtime as its parts come; read by any thread. None: not there yet."""

    def __init__(self, integrations: Callable[[], Mapping[str, str]], *, limit_s: float = LIMIT_S) -> None:
        self._integrations = integrations
        self.limit_s = limit_s
        self._limits: dict[str, float] = {}
        self.loops: dict[str, LoopSigns] = {}
        """The other parts with a loop, by the name of their component."""
        self.start_waits_for = ""
        self.agent: Agent | None = None
        self.router: RouterSigns | None = None
        self.routing_status: Callable[[], RoutingStatus] | None = None
        self.has_integrations = False
        self.is_serving = False

    def limit(self, limit_s: float, limits: Iterable[tuple[str, float]]) -> None:
        """``limits``: of single components, by their names or by those of the reference system's loops."""
        known = {"engine", "routing", "reporter", "tunnels"}
        self.limit_s, self._limits = limit_s, {}
        for given, seconds in limits:
            name = _REFERENCE_NAMES.get(given.lower(), given.lower())
            if name in known:
                self._limits[name] = seconds
            else:
                log.warning("health.unknown_component", name=given, known=sorted(known))

    def _limit_of(self, name: str) -> float:
        return self._limits.get(name, self.limit_s)

    def look(self) -> Iterator[Component]:
        yield self._engine()
        yield self._datastore()
        yield from self._plugins()
        yield Component("socket", "ready") if self.is_serving else Component("socket", "unready", "not listening yet")
        yield self._routing()
        for name, loop in dict(self.loops).items():
            yield Component(name, "dead", reason) if (reason := self._death(name, loop)) else Component(name, "ready")

    def _death(self, name: str, loop: LoopSigns) -> str:
        if not loop.is_alive:
            return "a thread of it ended"
        busy_s = loop.busy_s
        return f"one turn takes {busy_s:.0f} s already" if busy_s > self._limit_of(name) else ""

    def _engine(self) -> Component:
        agent = self.agent
        if agent is None:
            return Component("engine", "unready", self.start_waits_for or "not started yet")
        if not agent.is_alive:
            return Component("engine", "dead", "a thread of it ended")
        busy_s = agent.counters.busy_s
        if busy_s > self._limit_of("engine"):
            return Component("engine", "dead", f"one pass takes {busy_s:.0f} s already")
        if not agent.is_in_sync:
            reason = agent.frozen_because or agent.last_error or "no complete state is in the kernel yet"
            return Component("engine", "unready", reason)
        reason = agent.last_error or agent.frozen_because
        if agent.is_refused:
            return Component("engine", "unready", reason)
        return Component("engine", "degraded", reason) if reason else Component("engine", "ready")

    def _datastore(self) -> Component:
        agent = self.agent
        if agent is not None and agent.knows_ready():
            return Component("datastore", "ready")
        is_known = agent is not None and agent.is_in_sync
        return Component("datastore", "degraded" if is_known else "unready", "not in sync")

    def _plugins(self) -> Iterator[Component]:
        if not self.has_integrations:
            yield Component("integrations", "unready", "not prepared yet")
            return
        for name, state in sorted(dict(self._integrations()).items()):
            is_ready = state == "ready"
            yield Component(f"integration {name}", "ready" if is_ready else "degraded", "" if is_ready else state)

    def _routing(self) -> Component:
        if self.router is None or self.routing_status is None:
            return Component("routing", "unready", "not started yet")
        if reason := self._death("routing", self.router):
            return Component("routing", "dead", reason)
        status = self.routing_status()
        if not status.is_running:
            return Component("routing", "degraded", self.router.last_error or "the routing daemon does not answer")
        reason = status.rejected or self.router.last_error
        if not reason and status.peers and all(peer.state != "Established" for peer in status.peers):
            reason = f"none of {len(status.peers)} BGP sessions is established"
        return Component("routing", "degraded", reason) if reason else Component("routing", "ready")
