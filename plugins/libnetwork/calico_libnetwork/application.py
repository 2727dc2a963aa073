"""Method name → handler; and whatever happens becomes an answer. One log line a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from calico_core.errors import CalicoError
from calico_core.interfaces.integration import IntegrationContext
from calico_core.log import get_logger
from calico_libnetwork import wire
from calico_libnetwork.errors import UnknownMethod, WrongVerb, describe, encode_error
from calico_libnetwork.ipam_driver import IpamDriver
from calico_libnetwork.network_driver import NetworkDriver

CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"

log = get_logger(__name__)


class Answer(NamedTuple):
    status: HTTPStatus
    body: bytes


class Method(NamedTuple):
    """``kind`` Nothing: it takes no arguments, and health checks may GET it."""

    kind: type[wire.Message]
    handler: Callable[[Any], wire.Message]


class Application:
    """What one socket serves. Any thread."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = dict(methods)

    def respond(self, verb: str, path: str, body: bytes) -> Answer:
        """Never raises."""
        started = time.perf_counter()
        fields: dict[str, object] = {"method": path[:100]}
        try:
            method = self._find(verb, path)
            request = wire.decode_request(method.kind, body)
            fields |= _ids(request)
            answer = Answer(HTTPStatus.OK, wire.encode_message(method.handler(request)))
            log.info("libnetwork.done", **fields, ms=_milliseconds_since(started))
            return answer
        except CalicoError as error:
            answer = refusal(error)
            reason = describe(error)[1]
            log.warning("libnetwork.failed", **fields, reason=reason, ms=_milliseconds_since(started))
            return answer
        except Exception as error:
            log.exception("libnetwork.failed", **fields, ms=_milliseconds_since(started))
            return refusal(error)

    def _find(self, verb: str, path: str) -> Method:
        method = self._methods.get(path.partition("?")[0].removeprefix("/"))
        if method is None:
            raise UnknownMethod(f"There is no method {path[:100]!r} on this socket")
        if verb == "GET" and method.kind is not wire.Nothing:
            raise WrongVerb(f"{path[:100]} needs arguments: use POST")
        return method


def refusal(error: BaseException) -> Answer:
    status, text = describe(error)
    return Answer(status, encode_error(text))


def applications(context: IntegrationContext) -> tuple[Application, Application]:
    """Of ``calico.sock``, which is both drivers, and of ``calico-ipam.sock``. The engine registers whatever a socket
    says it implements under the socket's name."""
    network, ipam = _network_methods(NetworkDriver(context)), _ipam_methods(IpamDriver(context))
    return (
        Application({**network, **ipam, **_activation("NetworkDriver", "IpamDriver")}),
        Application({**ipam, **_activation("IpamDriver")}),
    )


def _activation(*interfaces: str) -> dict[str, Method]:
    activated = wire.Activated(implements=interfaces)
    return {"Plugin.Activate": Method(wire.Nothing, lambda _: activated)}


def _network_methods(driver: NetworkDriver) -> dict[str, Method]:
    methods = {
        "GetCapabilities": Method(wire.Nothing, driver.capabilities),
        "AllocateNetwork": Method(wire.Nothing, driver.allocate_network),
        "FreeNetwork": Method(wire.Nothing, driver.ignore),
        "CreateNetwork": Method(wire.CreateNetwork, driver.create_network),
        "DeleteNetwork": Method(wire.NetworkOnly, driver.delete_network),
        "CreateEndpoint": Method(wire.CreateEndpoint, driver.create_endpoint),
        "DeleteEndpoint": Method(wire.EndpointOnly, driver.delete_endpoint),
        "EndpointOperInfo": Method(wire.EndpointOnly, driver.oper_info),
        "Join": Method(wire.Join, driver.join),
        "Leave": Method(wire.EndpointOnly, driver.leave),
        "DiscoverNew": Method(wire.Nothing, driver.ignore),
        "DiscoverDelete": Method(wire.Nothing, driver.ignore),
        "ProgramExternalConnectivity": Method(wire.EndpointOnly, driver.program_external),
        "RevokeExternalConnectivity": Method(wire.Nothing, driver.ignore),
    }
    return {f"NetworkDriver.{name}": method for name, method in methods.items()}


def _ipam_methods(driver: IpamDriver) -> dict[str, Method]:
    methods = {
        "GetCapabilities": Method(wire.Nothing, driver.capabilities),
        "GetDefaultAddressSpaces": Method(wire.Nothing, driver.address_spaces),
        "RequestPool": Method(wire.RequestPool, driver.request_pool),
        "ReleasePool": Method(wire.ReleasePool, driver.release_pool),
        "RequestAddress": Method(wire.RequestAddress, driver.request_address),
        "ReleaseAddress": Method(wire.ReleaseAddress, driver.release_address),
    }
    return {f"IpamDriver.{name}": method for name, method in methods.items()}


def _ids(request: wire.Message) -> dict[str, object]:
    names = (("network", "network_id", 12), ("endpoint", "endpoint_id", 12), ("pool", "pool_id", 50))
    found = {label: getattr(request, field)[:length] for label, field, length in names if hasattr(request, field)}
    address = getattr(request, "address", None)
    return {**found, "address": address} if address is not None else found


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
