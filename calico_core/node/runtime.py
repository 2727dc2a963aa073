"""The composition root: one resident process a host. Phases of a start: node specification 1.4.

Holds the lock, opens the drivers by name, registers the host, runs agent, router, reporter and integrations, and
answers on the socket. ``stop`` undoes that in reverse and leaves the kernel (and BIRD) as they are.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from netaddr import IPAddress

from calico_core import __version__
from calico_core.datastore.records import TypedRecords
from calico_core.errors import NotReady
from calico_core.interfaces.dataplane import Dataplane
from calico_core.interfaces.datastore import Records
from calico_core.interfaces.integration import Call, CallReply, IntegrationContext
from calico_core.interfaces.ipam import Ipam
from calico_core.interfaces.routing import Routing, RoutingOptions
from calico_core.listening import Listeners
from calico_core.log import get_logger
from calico_core.node import composition, metrics, questions, startup, statistics
from calico_core.node.addresses import node_addresses
from calico_core.node.agent import Agent
from calico_core.node.agent_state import AgentState
from calico_core.node.collector import Collector
from calico_core.node.dataplane_options import check_kernel, cuts_denied_flows, ipv6_lack, refresh_interval_s
from calico_core.node.denied import DeniedLog
from calico_core.node.endpoint_files import DIRECTORY as ENDPOINT_FILES
from calico_core.node.endpoint_files import EndpointFiles
from calico_core.node.hosted import HostedIntegrations
from calico_core.node.live_settings import LiveSettings
from calico_core.node.local_view import read_local_view
from calico_core.node.log_targets import LogTargets
from calico_core.node.metric import Metric
from calico_core.node.pages import NodePages
from calico_core.node.questions import Parts
from calico_core.node.remembered import Remembered
from calico_core.node.remembered_mtu import RememberedMtu
from calico_core.node.restart import Restart
from calico_core.node.router import Router
from calico_core.node.run_lock import take_run_directory
from calico_core.node.socket_api import ABOUT_THE_NODE, SOCKET_NAME, SocketServer
from calico_core.node.status import StatusReporter
from calico_core.node.stored_config import read_stored_config, tell_settings, with_stored_config
from calico_core.node.tunnels import TunnelKeeper
from calico_core.node.unready_store import UnreadyStore
from calico_core.node.vital_signs import VitalSigns
from calico_core.plugin_host.loader import load_driver
from calico_core.plugin_host.namespaces import ROUTING
from calico_core.settings import Settings, report_ttl_s
from calico_core.workload.service import WorkloadService

log = get_logger(__name__)

_READY_WAIT_S = 20.0
_WATCH_S = 5.0
_PATIENCE_S = 20.0
"""Less than a shim waits for a detach."""
_STARTING = CallReply(status=1, stderr=b"the node is starting\n")


class Runtime:
    """Made, started and stopped by the main thread."""

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str] | None = None,
        log_targets: LogTargets | None = None,
        listeners: Listeners | None = None,
    ) -> None:
        """``log_targets``: where the log goes, which then follows the datastore. ``listeners``: with those that were
        handed to this process."""
        self._settings = settings
        self._log_targets = log_targets or LogTargets()
        self._environment = environment or {}
        self.host = composition.node_name(settings)
        self.stopping = threading.Event()
        self._stack = contextlib.ExitStack()
        self._hosted = HostedIntegrations(self.stopping)
        self._started = time.time()
        self._agent: Agent | None = None
        self._router: Router | None = None
        self._tunnels: TunnelKeeper | None = None
        self._routing: Routing | None = None
        self._reporter: StatusReporter | None = None
        self._endpoint_files: EndpointFiles | None = None
        self._collector: Collector | None = None
        self._workloads: WorkloadService | None = None
        self._signs = VitalSigns(lambda: self._hosted.states)
        self._pages = NodePages(self._signs.look, self._figures)
        self._denied: DeniedLog | None = None
        self._dataplane_name = settings.dataplane_driver
        self._dataplane_lack = ""
        self._listeners = listeners or Listeners()
        self.restart = Restart(self.stopping, self._prepare_restart, self._doubts_store)
        self._server = SocketServer(settings.socket, self._answer, listeners=self._listeners)
        self._has_waiting = False
        self._is_open = False
        self._unready: UnreadyStore | None = None
        self._ends_routing = os.getpid() == 1
        """A container takes its processes along."""

    def start(self) -> None:
        """Raises ``CalicoError`` with a sentence for people; what was started is stopped by :meth:`stop`."""
        self._take_place()
        addresses = node_addresses(self._settings)
        self._close_to_unknown()
        records = self._open_records()
        remembered = self._await_believable(records)
        live = self._read_config(records)
        dataplane = self._open_dataplane()
        self._register(records, *addresses)
        self._start_reporter(records)
        agent = self._start_agent(records, dataplane, live, remembered)
        self._start_routing(records)
        ipam = composition.open_ipam(records, self.host)
        self._stack.callback(ipam.close)
        tunnels = self._start_tunnels(records, ipam, [each for each in addresses if each is not None])
        settings = self._settings
        workloads = self._workloads = WorkloadService(
            records=records,
            ipam=ipam,
            wiring=dataplane.wiring(),
            gate=agent,
            host=self.host,
            default_mtu_bytes=lambda: settings.mtu_bytes or tunnels.workload_mtu_bytes,
        )
        self._stack.callback(workloads.close)
        self._start_integrations(records, ipam, workloads)
        self._start_collector(records, ipam)
        self._open_socket()
        startup.wait_for_policy(agent.wait_in_sync, self.stopping, _READY_WAIT_S)

    def watch(self) -> bool:
        """Until :attr:`stopping` is set: True; or until a part has died: False."""
        while not self.stopping.wait(_WATCH_S):
            for part in (self._agent, self._router, self._tunnels, self._reporter, self._endpoint_files):
                if part is not None and not part.is_alive:
                    log.error("node.part_died", part=type(part).__name__)
                    return False
        return True

    def stop(self) -> None:
        self.stopping.set()
        self.restart.cancel()
        self._stack.close()

    def _doubts_store(self) -> bool:
        return self._agent is not None and self._agent.doubts_store

    def _trusts_store(self) -> bool:
        return self._agent is not None and self._agent.trusts_store

    def _prepare_restart(self) -> None:
        """Callers wait for the next program, and so does the routing daemon. Any thread."""
        self._ends_routing = False
        self._listeners.keep()

    # --- figures -------------------------------------------------------------------------------------

    def tell_statistics(self) -> None:
        """In the log. Any thread."""
        statistics.tell(self._figures())

    def _figures(self) -> list[Metric]:
        agent, routing = self._agent, self._routing
        return metrics.collect(
            self.host,
            self._started,
            agent.figures() if agent else None,
            routing.status() if routing else None,
            self._log_targets.counts,
            self._hosted.metrics(),
        )

    # --- phases --------------------------------------------------------------------------------------

    def _take_place(self) -> None:
        """One node a host, whose health can be asked for from now on."""
        lock = take_run_directory(self._settings.run_directory, self._settings.origins.get("run_directory", "default"))
        self._stack.callback(lock.close)
        self._watch_over_waiting()
        self._stack.callback(self._pages.stop)
        self._pages.serve_health(self._settings)

    def _watch_over_waiting(self) -> None:
        """Who waits on a socket that was handed over does so for a restart, not for a start that takes its time."""
        self._has_waiting = self._listeners.is_inherited(SOCKET_NAME, Path(self._settings.socket))
        if not self._has_waiting:
            return
        timer = threading.Timer(_PATIENCE_S, self._send_waiting_away)
        timer.daemon = True
        timer.start()
        self._stack.callback(self._server.stop)
        self._stack.callback(timer.cancel)

    def _send_waiting_away(self) -> None:
        """Into their own processes, until this one is ready. Repeating it is fine."""
        if self._has_waiting:
            self._server.start()

    def _close_to_unknown(self) -> None:
        """Before anything that may wait: a host that has just booted must not pass what nobody has judged."""
        # whether it is to be made a router, the datastore may say
        dataplane = composition.open_dataplane(self._settings, self.host, makes_router=False)
        try:
            dataplane.ensure_closed()
        finally:
            dataplane.close()

    def _open_records(self) -> TypedRecords:
        """:raises NotReady: the node is to stop, and the datastore was never there."""
        records = composition.open_records(self._settings)
        self._stack.callback(records.store.close)
        if not startup.wait_for_store(records, self.stopping, on_away=self._send_waiting_away):
            raise NotReady("stopped while waiting for the datastore")
        return records

    def _await_believable(self, records: Records) -> Remembered:
        """Until the datastore may be begun with; gives what an earlier life of the node had. Raises ``NotReady`` when
        the node is to stop before."""
        settings = self._settings
        confirm_after_s = settings.confirm_removals_after_s
        remembered = Remembered(Path(settings.state_directory, "interfaces.json"), confirm_after_s=confirm_after_s)
        self._unready = UnreadyStore(records, self.host, remembered, confirm_after_s=confirm_after_s)
        if not self._unready.wait(self.stopping, self._tell_unready):
            raise NotReady("stopped while waiting for the datastore to be ready")
        return remembered

    def _tell_unready(self, reason: str) -> None:
        """Whoever asks this node is to hear why it does not go on. '': it does."""
        self._signs.start_waits_for = reason
        if reason:
            self._stack.callback(self._server.stop)
            self._server.start()

    def _read_config(self, records: Records) -> LiveSettings:
        """The settings are those of the datastore too afterwards; what is given back follows their changes."""
        stored = read_stored_config(records, self.host)
        settings = self._settings = with_stored_config(self._settings, self._environment, stored)
        tell_settings(settings, self._environment, stored)
        self._signs.limit(settings.loop_limit_s, settings.loop_limits)
        live = LiveSettings(
            settings, self.host, stored, lambda: self.restart.later(lambda: live.differing), self._log_targets.follow
        )
        live.begin()
        self._pages.serve_health(settings)
        return live

    def _open_dataplane(self) -> Dataplane:
        settings = self._settings
        check_kernel(settings)
        dataplane = composition.open_dataplane(settings, self.host)
        self._dataplane_name = composition.dataplane_name(settings)
        self._dataplane_lack = composition.dataplane_lack(self._dataplane_name)
        self._stack.callback(dataplane.close)
        return dataplane

    def _register(self, records: Records, ipv4: IPAddress | None, ipv6: IPAddress | None) -> None:
        """In the datastore, and on this host for the programs that run while the node does not."""
        startup.register_host(records, host=self.host, ipv4=ipv4, ipv6=ipv6, settings=self._settings)
        startup.remember_name(self._settings, self.host)
        composition.save_settings(self._settings, self.host)

    def _start_reporter(self, records: Records) -> None:
        settings = self._settings
        self._reporter = StatusReporter(
            records=records,
            host=self.host,
            version=__version__,
            interval_s=settings.reporting_interval_s,
            ttl_s=report_ttl_s(settings),
            reports_endpoints=settings.endpoint_reporting,
            endpoints_delay_s=settings.endpoint_reporting_delay_s,
            routing_status=lambda: self._require_routing().status(),
            integrations=lambda: dict(self._hosted.states),
        )
        options = RoutingOptions(host=self.host, run_directory=settings.run_directory)
        driver: type[Routing] = load_driver(ROUTING, settings.routing_driver)
        self._routing = driver.open(options)
        self._stack.callback(lambda: self._require_routing().close(stop_daemon=self._ends_routing))
        self._stack.callback(self._reporter.stop)
        self._reporter.start()
        self._signs.loops["reporter"] = self._reporter

    def _start_agent(self, records: Records, dataplane: Dataplane, live: LiveSettings, remembered: Remembered) -> Agent:
        settings = self._settings
        agent = self._agent = Agent(
            store=records.store,
            host=self.host,
            dataplane=dataplane,
            refresh_interval_s=refresh_interval_s(settings),
            reporter=self._report,
            on_death=self.stopping.set,
            on_config=live.take,
            confirm_removals_after_s=settings.confirm_removals_after_s,
            resolver=composition.make_resolver(settings, self.host),
            cuts_denied_flows=cuts_denied_flows(settings),
            give_up_after_s=settings.loop_limit_s,
            max_set_size=settings.max_set_size,
            has_ipv6=not ipv6_lack(settings),
            settings_differ=lambda: bool(live.differing),
            remembered=remembered,
        )
        self._start_endpoint_files(settings, agent)
        self._stack.callback(agent.stop)
        agent.start()
        self._signs.agent = agent
        self._denied = DeniedLog(dataplane)
        self._stack.callback(self._denied.close)
        self._pages.serve_metrics(settings)
        return agent

    def _report(self, state: AgentState) -> None:
        """Of the engine, after each pass."""
        if self._reporter is not None:
            self._reporter.put(state)
        if self._endpoint_files is not None:
            self._endpoint_files.put(state)

    def _start_endpoint_files(self, settings: Settings, agent: Agent) -> None:
        prefix = settings.endpoint_files or settings.run_directory
        if prefix == "none":
            return
        self._endpoint_files = EndpointFiles(Path(prefix, ENDPOINT_FILES), agent.workload)
        self._stack.callback(self._endpoint_files.stop)
        self._endpoint_files.start()

    def _require_routing(self) -> Routing:
        assert self._routing is not None
        return self._routing

    def _start_routing(self, records: Records) -> None:
        self._router = Router(
            store=records.store, host=self.host, routing=self._require_routing(), trusts_store=self._trusts_store
        )
        self._stack.callback(self._router.stop)
        self._router.start()
        self._signs.routing_status, self._signs.router = self._require_routing().status, self._router

    def _start_tunnels(self, records: Records, ipam: Ipam, addresses: list[IPAddress]) -> TunnelKeeper:
        self._tunnels = TunnelKeeper(
            records=records,
            ipam=ipam,
            host=self.host,
            addresses=addresses,
            refresh_interval_s=refresh_interval_s(self._settings),
            mtu_interfaces=self._settings.mtu_interfaces,
            on_mtu=RememberedMtu(self._settings).note,
            trusts_store=self._trusts_store,
        )
        self._stack.callback(self._tunnels.stop)
        self._tunnels.start()
        self._signs.loops["tunnels"] = self._tunnels
        # the first workload asks for its MTU
        self._tunnels.wait_judged(_READY_WAIT_S)
        return self._tunnels

    def _start_integrations(self, records: Records, ipam: Ipam, workloads: WorkloadService) -> None:
        self._stack.callback(self._hosted.close)
        self._hosted.start(
            IntegrationContext(
                workloads=workloads,
                ipam=ipam,
                records=records,
                settings=self._settings,
                host=self.host,
                listeners=self._listeners,
            )
        )
        composition.save_shortcuts(self._settings, self._dataplane_name, self._hosted.chosen)
        self._signs.has_integrations = True

    def _start_collector(self, records: Records, ipam: Ipam) -> None:
        settings = self._settings
        self._collector = Collector(
            records=records,
            ipam=ipam,
            host=self.host,
            look_locally=lambda: read_local_view(self.host, settings.interface_prefixes, lists=self._hosted.lists()),
            memory=Path(settings.state_directory, "collector.json"),
            interval_s=settings.collector_interval_s,
            grace_s=settings.collector_grace_s,
        )
        self._stack.callback(self._collector.stop)
        self._collector.start()

    def _open_socket(self) -> None:
        self._stack.callback(self._server.stop)
        self._is_open = True
        self._server.start()
        self._listeners.close_unused()
        self._signs.is_serving = True

    # --- calls ---------------------------------------------------------------------------------------

    def _answer(self, call: Call) -> CallReply | None:
        if not self._is_open:
            if call.program != ABOUT_THE_NODE:
                return None
            return self._unready.answer(call) if self._unready is not None and self._unready.reason else _STARTING
        if call.program == ABOUT_THE_NODE:
            return questions.answer(call, self._parts())
        return self._hosted.answer(call)

    def _parts(self) -> Parts:
        return Parts(
            host=self.host,
            started=self._started,
            settings=self._settings,
            dataplane_name=self._dataplane_name,
            dataplane_lack=self._dataplane_lack,
            integrations=self._hosted.states,
            lists=self._hosted.lists,
            state=self._reporter.state if self._reporter else None,
            agent=self._agent,
            router=self._router,
            routing=self._require_routing(),
            tunnels=self._tunnels,
            collector=self._collector,
            workloads=self._workloads,
            denied=self._denied,
            restart=self.restart.now,
        )
