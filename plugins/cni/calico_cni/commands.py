"""The network plugin ``calico``: ADD, DEL, CHECK, STATUS. Source: cni specification 5 and 6.

A command turns the call into a request to the workload service and the answer into a result. Everything is validated
before the first effect; undoing a failed attach is the service's.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec
from netaddr import IPAddress

from calico_cni.environment import Invocation
from calico_cni.errors import CheckFailed, InvalidEnvironment
from calico_cni.identity import Identity, identify, network_profile
from calico_cni.labels import endpoint_labels
from calico_cni.namespace import check_container_namespace
from calico_cni.outcome import Outcome
from calico_cni.requested import address_request, requested_mac
from calico_cni.results import Interface, Ip, Result, Route, decode_result, encode_result
from calico_cni.status import check_available
from calico_cni.supported import check_supported, has_default_route
from calico_cni.versions import check_command
from calico_cni.wire import (
    CommonConfiguration,
    Dns,
    MinimalConfiguration,
    NetworkConfiguration,
    parse_configuration,
    unknown_keys,
)
from calico_core.errors import DatastoreError, InterfaceTaken, InvalidRecord, InvalidRequest, NotReady
from calico_core.interfaces.integration import Call, IntegrationContext
from calico_core.log import get_logger
from calico_core.model.workloads import Attach, Attached, Detach

CONTAINER_SIDE = 1  # index in our own result; 0 is the host side
DEFAULT_ROUTES = {4: ("0.0.0.0/0", "169.254.1.1"), 6: ("::/0", "fe80::ecee:eeff:feee:eeee")}
"""The one next hop that every container has: the host end of its pair. Source: cni specification 5.2."""

log = get_logger(__name__)


def host_interface_exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


class NetworkCommands:
    """Any thread. ``interface_exists`` looks in the host's namespace."""

    def __init__(
        self, context: IntegrationContext, *, interface_exists: Callable[[str], bool] = host_interface_exists
    ) -> None:
        self._context = context
        self._interface_exists = interface_exists

    def run(self, call: Call, invocation: Invocation) -> Outcome:
        """Raises what the table in ``errors`` maps."""
        match invocation.command:
            case "ADD":
                return self._add(call, invocation)
            case "DEL":
                return self._delete(call, invocation)
            case "CHECK":
                return self._check(call, invocation)
            case "STATUS":
                configuration = parse_configuration(call.stdin, NetworkConfiguration)
                check_command(configuration.version, "STATUS")
                check_supported(configuration, host=self._context.host)
                return check_available(self._context.records, configuration.ipam)
        raise InvalidEnvironment("CNI_COMMAND", f"{invocation.command} is not implemented")

    def _add(self, call: Call, invocation: Invocation) -> Outcome:
        configuration = parse_configuration(call.stdin, NetworkConfiguration)
        strangers = unknown_keys(call.stdin)
        if strangers:
            log.info("configuration.unknown_keys", network=configuration.name, keys=", ".join(strangers))
        check_supported(configuration, host=self._context.host)
        identity = self._identify(configuration, invocation)
        request = self._attach_request(call, invocation, configuration, identity)
        if configuration.fallback == "never" and not self._context.is_resident:
            raise NotReady("the node does not run, and the configuration forbids to do without (fallback: never)")
        attached = self._context.workloads.attach(request)
        standing = attached.endpoint.network
        if standing is not None and standing != configuration.name:
            raise InterfaceTaken(invocation.interface, "the container", f"network {standing}")
        result = _result(attached, invocation, configuration)
        return Outcome(encode_result(result, configuration.version), steps=attached.steps)

    def _attach_request(
        self, call: Call, invocation: Invocation, configuration: NetworkConfiguration, identity: Identity
    ) -> Attach:
        profile = network_profile(configuration.name)
        request = Attach(
            key=identity.key,
            interface=identity.interface,
            addresses=address_request(configuration, invocation, handle=identity.handle, host=self._context.host),
            namespace_fd=check_container_namespace(call.namespace_fd, invocation.namespace),
            namespace=invocation.namespace,
            container_interface=invocation.interface,
            profiles=(profile.name,),
            new_profiles=(profile,),
            labels=endpoint_labels(configuration.args),
            mac=requested_mac(configuration, invocation),
            mtu_bytes=configuration.mtu or None,
            container_id=invocation.container_id,
            network=configuration.name,
            is_default_route=has_default_route(configuration),
            allow_ip_forwarding=configuration.container_settings.allow_ip_forwarding,
        )
        timeout_s = configuration.policy_setup_timeout_seconds
        return msgspec.structs.replace(request, policy_timeout_s=timeout_s) if timeout_s else request

    def _delete(self, call: Call, invocation: Invocation) -> Outcome:
        configuration = parse_configuration(call.stdin, MinimalConfiguration)
        identity = self._identify(configuration, invocation)
        if self._is_of_another_network(identity, configuration.name):
            self._context.ipam.release_by_handle((identity.handle,))
            return Outcome()
        self._context.workloads.detach(
            Detach(
                key=identity.key,
                interface=identity.interface,
                handles=(identity.handle, *identity.legacy_handles),
                container_id=invocation.container_id,
            )
        )
        return Outcome()

    def _is_of_another_network(self, identity: Identity, network: str) -> bool:
        """A runtime deletes after a refused ADD too: that must not take the interface which was in the way."""
        try:
            found = self._context.records.get(identity.key)
        except (DatastoreError, InvalidRecord):
            return False  # the interface goes all the same
        return found is not None and found.record.network not in {None, network}

    def _check(self, call: Call, invocation: Invocation) -> Outcome:
        configuration = parse_configuration(call.stdin, NetworkConfiguration)
        check_command(configuration.version, "CHECK")
        wanted = addresses_before(configuration, invocation.interface)
        check_container_namespace(call.namespace_fd, invocation.namespace)
        identity = self._identify(configuration, invocation)
        if not self._interface_exists(identity.interface):
            raise CheckFailed(f"host interface {identity.interface} is missing")
        self._check_record(identity, invocation, wanted)
        held = set(self._context.ipam.by_handle(identity.handle))
        if not wanted <= held:
            raise CheckFailed(f"handle {identity.handle} does not hold {_text(wanted - held)}")
        return Outcome()

    def _check_record(self, identity: Identity, invocation: Invocation, wanted: set[IPAddress]) -> None:
        found = self._context.records.get(identity.key)
        if found is None:
            raise CheckFailed(f"endpoint {identity.key.path} is missing")
        endpoint = found.record
        if endpoint.container_id not in {None, invocation.container_id}:
            raise CheckFailed(f"endpoint {identity.key.path} belongs to container {endpoint.container_id}")
        recorded = {IPAddress(net.first, net.version) for net in endpoint.nets}
        if recorded != wanted:
            raise CheckFailed(f"endpoint {identity.key.path} has {_text(recorded)}, the result had {_text(wanted)}")

    def _identify(self, configuration: MinimalConfiguration, invocation: Invocation) -> Identity:
        return identify(
            host=self._context.host,
            network=configuration.name,
            container_id=invocation.container_id,
            container_interface=invocation.interface,
            prefix=self._context.settings.interface_prefix,
        )


def addresses_before(configuration: CommonConfiguration, container_interface: str) -> set[IPAddress]:
    """The addresses of our interface in ``prevResult``; those that name no interface count.

    :raises InvalidRequest: there is none, and CHECK cannot do without.
    """
    if not configuration.has_prev_result:
        raise InvalidRequest("prevResult", "is required for CHECK")
    previous = decode_result(bytes(configuration.prev_result), configuration.version)
    ours = {None, *(index for index, each in enumerate(previous.interfaces) if each.name == container_interface)}
    return {ip.host for ip in previous.ips if ip.interface in ours}


def _result(attached: Attached, invocation: Invocation, configuration: NetworkConfiguration) -> Result:
    versions = sorted({address.version for address in attached.addresses})
    routes = [DEFAULT_ROUTES[version] for version in versions] if has_default_route(configuration) else []
    container = Interface(
        name=invocation.interface,
        mac=str(attached.mac or ""),
        mtu=attached.mtu_bytes or 0,
        sandbox=invocation.namespace,
    )
    return Result(
        interfaces=(Interface(name=attached.interface, mac=str(attached.host_mac or "")), container),
        ips=tuple(Ip(address=str(address), interface=CONTAINER_SIDE) for address in attached.addresses),
        routes=tuple(Route(dst=destination, gw=gateway) for destination, gateway in routes),
        dns=_dns(configuration),
    )


def _dns(configuration: NetworkConfiguration) -> Dns:
    """The runtime's, field by field before the configuration's."""
    static, runtime = configuration.dns, configuration.runtime_config.dns
    if runtime is None:
        return static
    return Dns(
        nameservers=runtime.servers or static.nameservers,
        domain=static.domain,
        search=runtime.searches or static.search,
        options=runtime.options or static.options,
    )


def _text(addresses: set[IPAddress]) -> str:
    return ", ".join(map(str, sorted(addresses))) or "none"
