"""The calls of ``NetworkDriver``, each to whom it concerns."""

from __future__ import annotations

import collections

from calico_core.interfaces.integration import IntegrationContext
from calico_core.locks import NamedLocks
from calico_core.log import get_logger
from calico_libnetwork.endpoints import Endpoints
from calico_libnetwork.networks import Networks
from calico_libnetwork.wire import (
    PORT_MAP,
    AllocatedNetwork,
    CreatedEndpoint,
    CreateEndpoint,
    CreateNetwork,
    EndpointOnly,
    Join,
    Joined,
    NetworkCapabilities,
    NetworkOnly,
    Nothing,
    OperInfo,
)

_LOCK_S = 10.0
_REMEMBERED = 1024

log = get_logger(__name__)


class NetworkDriver:
    """Any thread. Calls for one network or one endpoint wait for each other."""

    def __init__(self, context: IntegrationContext) -> None:
        self._scope = context.settings.libnetwork_scope
        self._networks = Networks(context.records)
        self._endpoints = Endpoints(context)
        self._locks = NamedLocks()
        self._warned: collections.deque[str] = collections.deque(maxlen=_REMEMBERED)

    def capabilities(self, _request: Nothing) -> NetworkCapabilities:
        return NetworkCapabilities(scope=self._scope, connectivity_scope="global")

    def allocate_network(self, _request: Nothing) -> AllocatedNetwork:
        """Only managers of a swarm call it; nothing is to be allocated."""
        return AllocatedNetwork()

    def create_network(self, request: CreateNetwork) -> Nothing:
        with self._locks.hold(request.network_id, timeout_s=_LOCK_S):
            self._networks.create(request)
        return Nothing()

    def delete_network(self, request: NetworkOnly) -> Nothing:
        with self._locks.hold(request.network_id, timeout_s=_LOCK_S):
            self._networks.delete(request.network_id)
        return Nothing()

    def create_endpoint(self, request: CreateEndpoint) -> CreatedEndpoint:
        with self._locks.hold(request.endpoint_id, timeout_s=_LOCK_S):
            return self._endpoints.create(request)

    def delete_endpoint(self, request: EndpointOnly) -> Nothing:
        with self._locks.hold(request.endpoint_id, timeout_s=_LOCK_S):
            self._endpoints.delete(request)
        return Nothing()

    def join(self, request: Join) -> Joined:
        with self._locks.hold(request.endpoint_id, timeout_s=_LOCK_S):
            return self._endpoints.join(request)

    def leave(self, request: EndpointOnly) -> Nothing:
        with self._locks.hold(request.endpoint_id, timeout_s=_LOCK_S):
            self._endpoints.leave(request)
        return Nothing()

    def oper_info(self, _request: EndpointOnly) -> OperInfo:
        """Asked twice for every start: no look-up."""
        return OperInfo()

    def program_external(self, request: EndpointOnly) -> Nothing:
        """Containers are reached at their own addresses; a published port is not mapped, which users should learn."""
        ports = request.options.get(PORT_MAP)
        if ports and request.endpoint_id not in self._warned:
            self._warned.append(request.endpoint_id)
            log.warning("libnetwork.ports_not_published", endpoint=request.endpoint_id[:12], ports=len(ports))
        return Nothing()

    def ignore(self, _request: Nothing) -> Nothing:
        return Nothing()
