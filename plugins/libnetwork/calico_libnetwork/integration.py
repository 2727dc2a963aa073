"""Docker's network and address drivers on the node's runtime: a server on two sockets. Source: libnetwork spec 2.1.

``calico.sock`` is both drivers (``-d calico --ipam-driver calico``), ``calico-ipam.sock`` addresses only.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import ClassVar

from netaddr import IPAddress

from calico_core.errors import CalicoError
from calico_core.interfaces.integration import API_VERSION, Integration, IntegrationContext, IntegrationInfo
from calico_core.log import get_logger
from calico_libnetwork.application import applications
from calico_libnetwork.network_record import list_networks
from calico_libnetwork.server import PluginServer

NETWORK_SOCKET = "calico.sock"
IPAM_SOCKET = "calico-ipam.sock"

_WHY = {
    "global": "networks are shared through the engine's cluster store, which it must have",
    "local": "every engine keeps its own networks; name the profile with --opt org.projectcalico.profile=NAME",
}

log = get_logger(__name__)


class LibnetworkIntegration(Integration):
    info: ClassVar[IntegrationInfo] = IntegrationInfo(name="libnetwork", api_version=API_VERSION)

    def __init__(self) -> None:
        self._servers: tuple[PluginServer, ...] = ()
        self._context: IntegrationContext | None = None

    def prepare(self, context: IntegrationContext) -> None:
        """Takes both sockets; a call that comes before :meth:`serve` waits in the backlog. Raises ``InvalidSettings``
        with nothing taken."""
        self._context = context
        directory = Path(context.settings.libnetwork_plugin_dir)
        network, ipam = applications(context)
        servers = (
            PluginServer(directory / NETWORK_SOCKET, network, name="libnetwork", listeners=context.listeners),
            PluginServer(directory / IPAM_SOCKET, ipam, name="libnetwork-ipam", listeners=context.listeners),
        )
        try:
            for server in servers:
                server.listen()
        except CalicoError:
            for server in servers:
                server.close()
            raise
        self._servers = servers
        scope = context.settings.libnetwork_scope
        log.info("libnetwork.scope", scope=scope, meaning=_WHY.get(scope, ""))

    def addresses_in_use(self) -> dict[IPAddress, str]:
        """Those that networks keep for devices outside (``--aux-address``): no endpoint will ever carry them."""
        networks = list_networks(self._context.records) if self._context is not None else ()
        return {
            address: f"network {network.network_id[:12]}" for network in networks for address in network.aux_addresses
        }

    def serve(self, stop: threading.Event) -> None:
        """Both sockets until ``stop``; then the calls that run are finished."""
        threads = [
            threading.Thread(target=server.run, name="libnetwork-accept", daemon=True) for server in self._servers
        ]
        for thread in threads:
            thread.start()
        stop.wait()
        self.close()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        for server in self._servers:
            server.close()
