"""The integrations of a running node: prepared one by one, given the calls of their programs, served, and closed.

A broken one is reported by its state and never stops the others.
"""

from __future__ import annotations

import contextlib
import threading

from netaddr import IPAddress

from calico_core.errors import PluginError
from calico_core.interfaces.integration import Call, CallReply, Integration, IntegrationContext
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.node import composition
from calico_core.node.local_view import ask_integrations
from calico_core.node.metric import Metric
from calico_core.node.metrics import of_integration
from calico_core.plugin_host.loader import LoadedPlugin

log = get_logger(__name__)

_END_S = 10.0


class HostedIntegrations:
    """Started and closed by the main thread; calls come from any."""

    def __init__(self, stopping: threading.Event) -> None:
        """``stopping`` ends the servers among them."""
        self._stopping = stopping
        self._stack = contextlib.ExitStack()
        self._prepared: dict[str, Integration] = {}
        self._programs: dict[str, Integration] = {}
        self.chosen: tuple[LoadedPlugin, ...] = ()
        """Loaded; that one cannot be prepared stands in its state."""
        self.states: dict[str, str] = {}
        """Name → "ready", or "broken" and why."""

    def start(self, context: IntegrationContext) -> None:
        self.chosen, self.states = composition.select_integrations(context.settings)
        for plugin in self.chosen:
            try:
                integration = composition.prepare(plugin, context)
            except PluginError as error:
                self.states[plugin.name] = f"broken: {error}"
                log.error("integration.broken", integration=plugin.name, reason=str(error))
                continue
            self._stack.callback(integration.close)
            self._prepared[plugin.name] = integration
            self.states[plugin.name] = "ready"
            self._programs.update(dict.fromkeys(integration.info.programs, integration))
        codec.build_types()  # everything is imported, and no call is served yet
        for name, integration in self._prepared.items():
            if integration.is_server:
                self._serve(name, integration)

    def answer(self, call: Call) -> CallReply:
        integration = self._programs.get(call.program)
        if integration is None:
            known = ", ".join(sorted(self._programs)) or "none"
            reason = f"no integration takes calls of {call.program!r}; programs known here: {known}\n"
            return CallReply(status=1, stderr=reason.encode())
        return integration.handle(call)

    def lists(self) -> dict[str, dict[IPAddress, str]]:
        """Who has which address, by integration."""
        return ask_integrations({name: each for name, each in self._prepared.items() if self.states[name] == "ready"})

    def metrics(self) -> list[Metric]:
        """What each tells of itself, but for those that cannot."""
        found: list[Metric] = []
        for name, integration in list(self._prepared.items()):
            try:
                found += of_integration(name, integration.gauges())
            except Exception:  # it may come from a third party
                log.exception("integration.gauges_unknown", integration=name)
        return found

    def close(self) -> None:
        self._stack.close()

    def _serve(self, name: str, integration: Integration) -> None:
        def run() -> None:
            try:
                integration.serve(self._stopping)
            except Exception as error:
                self.states[name] = f"broken: {type(error).__name__}: {error}"
                log.exception("integration.died", integration=name)

        thread = threading.Thread(target=run, name=f"serve-{name}", daemon=True)
        thread.start()
        self._stack.callback(lambda: thread.join(_END_S))
        self._stack.callback(self._stopping.set)
