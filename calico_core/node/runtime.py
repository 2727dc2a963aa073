"""The composition root: one resident process a host. Phases of a start: node specification 1.4.

Holds the lock, opens the drivers by name, registers the host, runs agent, router, reporter and integrations, and
answers on the socket. ``stop`` undoes that in reverse and leaves the kernel (and BIRD) as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import IO

import msgspec
from netaddr import IPAddress

from calico_core import __version__
from calico_core.errors import CalicoError, InvalidSettings, NotReady, PluginError
from calico_core.interfaces.datastore import Records
from calico_core.interfaces.integration import Call, CallReply, Integration, IntegrationContext
from calico_core.interfaces.ipam import Ipam
from calico_core.interfaces.routing import Routing, RoutingOptions
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.node import composition, metrics, startup
from calico_core.node.addresses import is_own_address, node_address
from calico_core.node.agent import Agent
from calico_core.node.agent_state import AgentState
from calico_core.node.collector import Collector
from calico_core.node.dataplane_options import refuse_loose_rpf, warn_of_open_policy
from calico_core.node.denied import DeniedLog, parse_question
from calico_core.node.health import Answer, Health, HttpServer
from calico_core.node.live_settings import LiveSettings
from calico_core.node.local_view import ask_integrations, read_local_view
from calico_core.node.log_targets import LogTargets
from calico_core.node.metric import CONTENT_TYPE, render
from calico_core.node.remembered import RememberedInterfaces
from calico_core.node.router import Router
from calico_core.node.socket_api import SocketServer
from calico_core.node.status import StatusReporter
from calico_core.node.stored_config import read_stored_config, tell_settings, with_stored_config
from calico_core.node.tunnels import TunnelKeeper
from calico_core.node.vital_signs import VitalSigns
from calico_core.plugin_host.loader import load_driver
from calico_core.plugin_host.namespaces import ROUTING
from calico_core.settings import Settings
from calico_core.workload.service import WorkloadService

log = get_logger(__name__)

_READY_WAIT_S = 20.0
_WATCH_S = 5.0
_RESTART_PAUSE_S = 2.0
"""Between a change of a setting and the end: supervisors give up on what ends too often."""


class Runtime:
    """Made, started and stopped by the main thread."""

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str] | None = None,
        log_targets: LogTargets | None = None,
    ) -> None:
        """``log_targets``: where the log goes, which then follows the datastore."""
        self._settings = settings
        self._log_targets = log_targets or LogTargets()
        self._environment = environment or {}
        self.host = composition.node_name(settings)
        self.stopping = threading.Event()
        self._stack = contextlib.ExitStack()
        self._integrations: dict[str, Integration] = {}
        self._programs: dict[str, Integration] = {}
        self._states: dict[str, str] = {}
        self._started = time.time()
        self._agent: Agent | None = None
        self._router: Router | None = None
        self._tunnels: TunnelKeeper | None = None
        self._routing: Routing | None = None
        self._reporter: StatusReporter | None = None
        self._collector: Collector | None = None
        self._workloads: WorkloadService | None = None
        self._signs = VitalSigns(lambda: self._states)
        self._health: HttpServer | None = None
        self._live: LiveSettings | None = None
        self._denied: DeniedLog | None = None
        self._dataplane_name = settings.dataplane_driver
        self._dataplane_lack = ""
        self._restart_timer: threading.Timer | None = None
        self.wants_restart = False
        """A setting that this process cannot follow has changed: it ends, and its supervisor starts another."""

    def start(self) -> None:
        """Raises ``CalicoError`` with a sentence for people; what was started is stopped by :meth:`stop`."""
        settings = self._settings
        self._lock()
        self._serve_health(settings)
        ipv4 = node_address(settings.ip, 4, pools=(settings.pool_v4,) if settings.pool_v4 != "none" else ())
        ipv6 = node_address(settings.ip6, 6)
        if ipv4 is None and ipv6 is None:
            raise InvalidSettings("ip", settings.origins.get("ip", "default"), "no address found; give IP or IP6")
        for address in (ipv4, ipv6):
            if address is not None and not is_own_address(address):
                log.warning("node.address_not_local", address=address)
        self._close_to_unknown(settings)
        records = composition.open_records(settings)
        self._stack.callback(records.store.close)
        if not startup.wait_for_store(records, self.stopping):
            raise NotReady("stopped while waiting for the datastore")
        stored = read_stored_config(records, self.host)
        settings = self._settings = with_stored_config(settings, self._environment, stored)
        tell_settings(settings, self._environment, stored)
        self._signs.limit_s = settings.loop_limit_s
        live = self._live = LiveSettings(settings, self.host, stored, self._restart_later, self._log_targets.follow)
        live.begin()
        self._serve_health(settings)
        refuse_loose_rpf(settings)
        warn_of_open_policy(settings)
        dataplane = composition.open_dataplane(settings, self.host)
        self._dataplane_name = composition.dataplane_name(settings)
        self._dataplane_lack = composition.dataplane_lack(self._dataplane_name)
        self._stack.callback(dataplane.close)
        startup.register_host(records, host=self.host, ipv4=ipv4, ipv6=ipv6, settings=settings)
        self._remember_name()
        composition.save_settings(settings, self.host)
        self._start_reporter(records)
        assert self._reporter is not None
        self._agent = Agent(
            store=records.store,
            host=self.host,
            dataplane=dataplane,
            refresh_interval_s=settings.refresh_interval_s,
            reporter=self._reporter.put,
            on_death=self.stopping.set,
            on_config=live.take,
            confirm_removals_after_s=settings.confirm_removals_after_s,
            interface_prefix=settings.interface_prefix,
            cuts_denied_flows=settings.established_flows == "cut",
            remembered=RememberedInterfaces(
                Path(settings.state_directory, "interfaces.json"), confirm_after_s=settings.confirm_removals_after_s
            ),
        )
        self._stack.callback(self._agent.stop)
        self._agent.start()
        self._signs.agent = self._agent
        self._denied = DeniedLog(dataplane)
        self._stack.callback(self._denied.close)
        self._serve_metrics(settings)
        self._start_routing(records)
        ipam = composition.open_ipam(records, self.host)
        self._stack.callback(ipam.close)
        tunnels = self._start_tunnels(records, ipam, [each for each in (ipv4, ipv6) if each is not None])
        workloads = self._workloads = WorkloadService(
            records=records,
            ipam=ipam,
            wiring=dataplane.wiring(),
            gate=self._agent,
            host=self.host,
            default_mtu_bytes=lambda: settings.mtu_bytes or tunnels.workload_mtu_bytes,
        )
        self._stack.callback(workloads.close)
        self._start_integrations(
            IntegrationContext(workloads=workloads, ipam=ipam, records=records, settings=settings, host=self.host)
        )
        self._start_collector(records, ipam)
        server = SocketServer(settings.socket, self._answer)
        self._stack.callback(server.stop)
        server.start()
        self._signs.is_serving = True
        self._agent.wait_in_sync(_READY_WAIT_S)

    def watch(self) -> bool:
        """Until :attr:`stopping` is set: True; or until a part has died: False."""
        while not self.stopping.wait(_WATCH_S):
            for part in (self._agent, self._router, self._tunnels, self._reporter):
                if part is not None and not part.is_alive:
                    log.error("node.part_died", part=type(part).__name__)
                    return False
        return True

    def stop(self) -> None:
        self.stopping.set()
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        self._stack.close()

    # --- changed settings ----------------------------------------------------------------------------

    def _restart_later(self) -> None:
        """Once for all changes of the pause; one that was taken back by then costs nothing. Engine thread."""
        if self._restart_timer is not None and self._restart_timer.is_alive():
            return
        self._restart_timer = threading.Timer(_RESTART_PAUSE_S, self._restart_if_needed)
        self._restart_timer.daemon = True
        self._restart_timer.start()

    def _restart_if_needed(self) -> None:
        if self._live is None or not self._live.differing or self.stopping.is_set():
            return
        log.error("node.restart_wanted", settings=sorted(self._live.differing))
        self.wants_restart = True
        self.stopping.set()

    # --- health --------------------------------------------------------------------------------------

    def _serve_health(self, settings: Settings) -> None:
        """From the first moment, so that a node that waits is seen to live; again when the datastore knows another
        place for it. A port that is taken stops nothing."""
        is_wanted = settings.health_enabled and settings.health_port != 0
        place = (settings.health_host, settings.health_port) if is_wanted else None
        if self._health is not None:
            if self._health.place == place:
                return
            self._health.stop()
            self._health = None
        if place is not None:
            self._health = self._listen(*place, Health(self._signs.look).pages(), name="health")

    def _serve_metrics(self, settings: Settings) -> None:
        if not settings.metrics_enabled or settings.metrics_port == 0:
            return

        def answer() -> Answer:
            agent, routing = self._agent, self._routing
            found = metrics.collect(
                self.host,
                self._started,
                agent.figures() if agent else None,
                routing.status() if routing else None,
                self._log_targets.counts,
            )
            return Answer(HTTPStatus.OK, CONTENT_TYPE, render(found))

        self._listen(settings.metrics_host, settings.metrics_port, {"/metrics": answer}, name="metrics")

    def _listen(
        self, host: str, port: int, pages: Mapping[str, Callable[[], Answer]], *, name: str
    ) -> HttpServer | None:
        try:
            server = HttpServer(host, port, pages, name=name)
        except OSError as error:
            log.error("http.not_listening", server=name, host=host, port=port, reason=error.strerror or str(error))
            return None
        server.start()
        self._stack.callback(server.stop)
        return server

    # --- phases --------------------------------------------------------------------------------------

    def _close_to_unknown(self, settings: Settings) -> None:
        """Before anything that may wait: a host that has just booted must not pass what nobody has judged."""
        dataplane = composition.open_dataplane(settings, self.host)
        try:
            dataplane.ensure_closed()
        finally:
            dataplane.close()

    def _lock(self) -> None:
        """One node a run directory. The lock goes with the process."""
        directory = Path(self._settings.run_directory)
        directory.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = open(directory / "node.lock", "a+")  # noqa: SIM115 - held until the end
        self._stack.callback(lock.close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise InvalidSettings(
                "run_directory", "lock", f"{directory} is in use by a running node ({holder})"
            ) from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()}\n")
        lock.flush()

    def _remember_name(self) -> None:
        directory = Path(self._settings.state_directory)
        directory.mkdir(parents=True, exist_ok=True)
        Path(directory, "nodename").write_text(f"{self.host}\n")

    def _start_reporter(self, records: Records) -> None:
        settings = self._settings
        self._reporter = StatusReporter(
            records=records,
            host=self.host,
            version=__version__,
            interval_s=settings.reporting_interval_s,
            ttl_s=settings.reporting_ttl_s,
            reports_endpoints=settings.endpoint_reporting,
            endpoints_delay_s=settings.endpoint_reporting_delay_s,
            routing_status=lambda: self._require_routing().status(),
            integrations=lambda: dict(self._states),
        )
        options = RoutingOptions(host=self.host, run_directory=settings.run_directory)
        driver: type[Routing] = load_driver(ROUTING, settings.routing_driver)
        self._routing = driver.open(options)
        self._stack.callback(lambda: self._require_routing().close(stop_daemon=os.getpid() == 1))
        self._stack.callback(self._reporter.stop)
        self._reporter.start()
        self._signs.loops["reporter"] = self._reporter

    def _require_routing(self) -> Routing:
        assert self._routing is not None
        return self._routing

    def _start_routing(self, records: Records) -> None:
        self._router = Router(store=records.store, host=self.host, routing=self._require_routing())
        self._stack.callback(self._router.stop)
        self._router.start()
        self._signs.routing_status, self._signs.router = self._require_routing().status, self._router

    def _start_tunnels(self, records: Records, ipam: Ipam, addresses: list[IPAddress]) -> TunnelKeeper:
        self._tunnels = TunnelKeeper(
            records=records,
            ipam=ipam,
            host=self.host,
            addresses=addresses,
            refresh_interval_s=self._settings.refresh_interval_s,
        )
        self._stack.callback(self._tunnels.stop)
        self._tunnels.start()
        self._signs.loops["tunnels"] = self._tunnels
        # the first workload asks for its MTU
        self._tunnels.wait_judged(_READY_WAIT_S)
        return self._tunnels

    def _start_integrations(self, context: IntegrationContext) -> None:
        """A broken one is reported and never stops the others."""
        chosen, self._states = composition.select_integrations(self._settings)
        for plugin in chosen:
            try:
                integration = composition.prepare(plugin, context)
            except PluginError as error:
                self._states[plugin.name] = f"broken: {error}"
                log.error("integration.broken", integration=plugin.name, reason=str(error))
                continue
            self._stack.callback(integration.close)
            self._integrations[plugin.name] = integration
            self._states[plugin.name] = "ready"
            self._programs.update(dict.fromkeys(integration.info.programs, integration))
        codec.build_types()  # everything is imported, and no call is served yet
        for name, integration in self._integrations.items():
            if integration.is_server:
                self._serve(name, integration)
        self._signs.has_integrations = True

    def _start_collector(self, records: Records, ipam: Ipam) -> None:
        settings = self._settings
        self._collector = Collector(
            records=records,
            ipam=ipam,
            host=self.host,
            look_locally=lambda: read_local_view(self.host, settings.interface_prefix, lists=self._lists()),
            memory=Path(settings.state_directory, "collector.json"),
            interval_s=settings.collector_interval_s,
            grace_s=settings.collector_grace_s,
        )
        self._stack.callback(self._collector.stop)
        self._collector.start()

    def _lists(self) -> dict[str, dict[IPAddress, str]]:
        ready = {name: each for name, each in self._integrations.items() if self._states[name] == "ready"}
        return ask_integrations(ready)

    def _serve(self, name: str, integration: Integration) -> None:
        def run() -> None:
            try:
                integration.serve(self.stopping)
            except Exception as error:
                self._states[name] = f"broken: {type(error).__name__}: {error}"
                log.exception("integration.died", integration=name)

        thread = threading.Thread(target=run, name=f"serve-{name}", daemon=True)
        thread.start()
        self._stack.callback(lambda: thread.join(10))
        self._stack.callback(self.stopping.set)

    # --- calls ---------------------------------------------------------------------------------------

    def _answer(self, call: Call) -> CallReply | None:
        if call.program == "node":
            return self._answer_node(call)
        integration = self._programs.get(call.program)
        if integration is None:
            known = ", ".join(sorted(self._programs)) or "none"
            reason = f"no integration takes calls of {call.program!r}; programs known here: {known}\n"
            return CallReply(status=1, stderr=reason.encode())
        return integration.handle(call)

    def _answer_node(self, call: Call) -> CallReply:
        """What calicoctl asks a running node."""
        answers: dict[str, Callable[[], object]] = {
            "status": self.status,
            "addresses": lambda: {
                name: {str(address): whose for address, whose in found.items()} for name, found in self._lists().items()
            },
            "confirm-removals": lambda: {"frozen_because": self._agent.confirm_removals() if self._agent else ""},
            "slow": self._slow,
            "unfreeze": lambda: {"frozen_because": self._collector.unfreeze() if self._collector else ""},
        }
        command, *words = call.stdin.decode(errors="replace").split() or ["status"]
        answers["counters"] = self._rule_counts
        answers["denied"] = lambda: self._denied_after(words)
        if command not in answers:
            return CallReply(status=2, stderr=f"unknown command {command!r}; known: {', '.join(answers)}\n".encode())
        try:
            return CallReply(stdout=msgspec.json.encode(answers[command]()))
        except (CalicoError, ValueError) as error:
            return CallReply(status=1, stderr=f"{error}\n".encode())

    def _rule_counts(self) -> list[dict[str, object]]:
        if self._agent is None:
            raise NotReady("the agent has not started yet")
        return [each._asdict() for each in self._agent.rule_counts.ask()]

    def _denied_after(self, words: list[str]) -> dict[str, object]:
        if self._settings.denied_group == 0:
            raise InvalidSettings(
                "denied_group",
                self._settings.origins.get("denied_group", "default"),
                "it is 0: no packet is told of; give a group of NFLOG and start the node again",
            )
        if self._denied is None:
            raise NotReady("the agent has not started yet")
        return self._denied.after(*parse_question(iter(words)))

    def _slow(self) -> dict[str, object]:
        """The slowest attaches since the start."""
        if self._workloads is None:
            return {"attaches": 0, "slowest": []}
        slowest = self._workloads.slowest
        return {"attaches": slowest.count, "slowest": slowest.list()}

    def status(self) -> dict[str, object]:
        """For people and programs: JSON-ready."""
        state = self._reporter.state if self._reporter else None
        routing = self._require_routing().status()
        endpoints = state.endpoints if state else {}
        return {
            "host": self.host,
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "datastore": _without_secrets(self._settings.datastore),
            "dataplane": self._dataplane_name,
            "dataplane_lack": self._dataplane_lack,
            "is_in_sync": bool(self._agent and self._agent.is_in_sync),
            "endpoints": {key.path: {"status": status, "reason": why} for key, (status, why) in endpoints.items()},
            "host_endpoints": {
                key.path: {"status": status, "reason": why}
                for key, (status, why) in (state.host_endpoints if state else {}).items()
            },
            "bad_records": list(state.bad_records) if state else [],
            "last_error": state.last_error if state else "",
            "removals": _removals(state),
            "routing": {**codec.to_builtins(routing), "last_error": self._router.last_error if self._router else ""},
            "tunnels": self._tunnels.status() if self._tunnels else {},
            "integrations": dict(self._states),
            "collector": self._collector.status() if self._collector else {"state": "off"},
        }


def _removals(state: AgentState | None) -> dict[str, object]:
    freeze = state.freeze if state else None
    if freeze is None:
        return {"state": "following"}
    since = time.time() - (time.monotonic() - freeze.since)
    return {"state": "frozen", "because": freeze.reason, "since": round(since, 3), "waiting": freeze.waiting}


def _without_secrets(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


__all__ = ["CalicoError", "Runtime"]
