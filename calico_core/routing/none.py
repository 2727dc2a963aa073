"""No routing daemon: for clusters whose addresses are routed by something else, and for hosts on their own."""

from __future__ import annotations

from calico_core.interfaces.routing import Routing, RoutingOptions, RoutingState, RoutingStatus


class NoRouting(Routing):
    """Keeps the last state and does nothing with it."""

    def __init__(self) -> None:
        self.state: RoutingState | None = None

    @classmethod
    def open(cls, options: RoutingOptions) -> NoRouting:  # noqa: ARG003 - no files of its own
        return cls()

    def configure(self, state: RoutingState) -> None:
        self.state = state

    def status(self) -> RoutingStatus:
        return RoutingStatus(driver="none", is_running=True)

    def close(self, *, stop_daemon: bool) -> None:
        """Nothing runs."""
