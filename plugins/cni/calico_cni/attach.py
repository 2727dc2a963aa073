"""ADD: from the call to a request of the workload service, and from its answer to a result.

Three ways lead to an endpoint: addresses of our own IPAM, assigned in one transaction with the record; addresses of
another IPAM plugin, which is run first and told to take them back when anything fails later; and an interface that a
plugin before us in the chain has made, to which only the policy is added. Source: cni specification 5.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec
from netaddr import IPAddress

from calico_cni.delegate import Delegate, Delegated
from calico_cni.environment import Invocation
from calico_cni.identity import Identity, network_profile, open_profile, recorded_handle
from calico_cni.kubernetes import FLOATING_ANNOTATION, PodPolicy
from calico_cni.labels import endpoint_labels
from calico_cni.outcome import Outcome
from calico_cni.previous import Previous
from calico_cni.programs import IPAM_PROGRAM
from calico_cni.requested import address_request, requested_mac
from calico_cni.results import Interface, Ip, Result, Route, encode_result
from calico_cni.routes import ContainerRoutes, container_routes
from calico_cni.wire import POLICY_ONLY, NetworkConfiguration
from calico_core.errors import AddressInUse, InvalidRecord, InvalidRequest
from calico_core.interfaces.integration import Call, IntegrationContext
from calico_core.model.endpoints import Dns, WorkloadEndpoint
from calico_core.model.workloads import AddressRequest, Attach, Attached
from calico_core.stopwatch import lap

CONTAINER_SIDE = 1  # index in our own result; 0 is the host side
DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}
NEXT_HOPS = {4: "169.254.1.1", 6: "fe80::ecee:eeff:feee:eeee"}
"""The one next hop that every container has: the host end of its pair. Source: cni specification 5.2."""

_NO_DNS = Dns()
_WRITTEN_AS = {"floating": FLOATING_ANNOTATION}
"""What a field of the request is called where it was asked for."""


class AttachCall:
    """One ADD, its configuration validated. ``turn``: entered when record and interface are to be made, after all that
    others were to be asked."""

    def __init__(
        self,
        context: IntegrationContext,
        call: Call,
        invocation: Invocation,
        configuration: NetworkConfiguration,
        identity: Identity,
        namespace_fd: int,
        pod: PodPolicy | None = None,
        *,
        turn: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._context = context
        self._call = call
        self._invocation = invocation
        self._configuration = configuration
        self._identity = identity
        self._namespace_fd = namespace_fd
        self._pod = pod
        self._turn = turn

    def run(self) -> Outcome:
        """Raises what the table in ``errors`` maps; nothing is left then that was not there before."""
        if self._configuration.has_prev_result:
            return self._add_policy()
        if self._pod is not None and self._pod.addresses:
            return self._attach(self._pod.addresses)
        if self._configuration.ipam.type == IPAM_PROGRAM:
            wanted = address_request(
                self._configuration,
                self._invocation,
                handle=self._identity.handle,
                host=self._context.host,
                orchestrator=self._identity.key.orchestrator,
                interface=self._identity.interface,
            )
            return self._attach(wanted)
        with self._delegated() as delegated:
            return self._attach(delegated.addresses, delegated.dns)

    def _attach(self, addresses: AddressRequest | tuple[IPAddress, ...], dns: Dns = _NO_DNS) -> Outcome:
        request = msgspec.structs.replace(self._request(addresses), dns=dns if dns != _NO_DNS else None)
        result = _result(self._attached(request), self._invocation, self._configuration, dns)
        return Outcome(encode_result(result, self._configuration.version))

    def _attached(self, request: Attach) -> Attached:
        try:
            with self._turn():
                return self._attached_in_turn(request)
        except InvalidRequest as error:
            if error.field not in _WRITTEN_AS:
                raise
            raise InvalidRequest(_WRITTEN_AS[error.field], error.reason) from error

    def _attached_in_turn(self, request: Attach) -> Attached:
        try:
            return self._context.workloads.attach(request)
        except AddressInUse as error:
            addresses = self._taken_over(request, error)
            return self._context.workloads.attach(msgspec.structs.replace(request, addresses=addresses))

    def _taken_over(self, request: Attach, error: AddressInUse) -> AddressRequest:
        """A pod's own address goes from its last sandbox to the one in its place, whose DEL comes later or never.

        :raises AddressInUse: it is another's.
        """
        standing = self._standing() if request.replaces else None
        if standing is None or not isinstance(request.addresses, AddressRequest):
            raise error
        is_replaced = standing.container_id != request.container_id
        if not is_replaced or error.holder is None or recorded_handle(standing) != error.holder:
            raise error
        return msgspec.structs.replace(request.addresses, takes_over=(error.holder,))

    @contextlib.contextmanager
    def _delegated(self) -> Iterator[Delegated]:
        """Addresses of another IPAM plugin, given back when the body fails. An attachment that stands keeps its own:
        the plugin is not asked twice, and what it said of DNS is in the record."""
        standing = self._standing()
        if standing is not None and standing.container_id == self._invocation.container_id:
            yield _standing(standing, self._configuration.name, self._invocation.interface)
            return
        delegate = Delegate(self._configuration.ipam.type, self._call)
        delegated = delegate.add(self._configuration.version)
        lap("delegate")
        try:
            yield delegated
        except BaseException:
            delegate.delete_quietly()
            raise

    def _standing(self) -> WorkloadEndpoint | None:
        """The record now, as far as it can be read; the service replaces one that cannot."""
        try:
            found = self._context.records.get(self._identity.key)
        except InvalidRecord:
            return None
        return found.record if found is not None else None

    def _add_policy(self) -> Outcome:
        """The result of the plugins before goes on as it came."""
        previous = Previous.of(self._configuration, self._invocation.interface)
        host_end = self._context.workloads.host_end(self._namespace_fd, self._invocation.interface)
        if host_end is None:
            raise InvalidRequest("prevResult", f"{self._invocation.interface} is no pair with an end in the host")
        is_forced = self._configuration.mode == POLICY_ONLY
        if not is_forced and host_end not in previous.host_interfaces:
            raise InvalidRequest("prevResult", f"does not name {host_end}, the host's end of the container's interface")
        settings = self._context.settings
        if not host_end.startswith(settings.interface_prefixes):
            reason = f"{host_end} does not begin with the node's interface prefix ({settings.interface_prefix})"
            raise InvalidRequest("prevResult", f"{reason}, so no policy would be in force on it")
        request = msgspec.structs.replace(
            self._request(previous.addresses),
            interface=host_end,
            namespace_fd=None,
            is_borrowed=True,
            mac=None,  # the result need not say it, and who comes after us may change it
        )
        self._attached(request)
        return Outcome(previous.encode(self._configuration.version))

    def _request(self, addresses: AddressRequest | tuple[IPAddress, ...]) -> Attach:
        configuration, invocation = self._configuration, self._invocation
        profile = open_profile(configuration.name) if self._pod else network_profile(configuration.name)
        routes = container_routes(configuration)
        request = Attach(
            key=self._identity.key,
            interface=self._identity.interface,
            addresses=addresses,
            namespace_fd=self._namespace_fd,
            namespace=invocation.namespace,
            container_interface=invocation.interface,
            profiles=(profile.name,),
            new_profiles=(profile,),
            labels=endpoint_labels(configuration.args, invocation.arguments),
            mac=requested_mac(configuration, invocation),
            may_change_mac=True,  # a tuning plugin after us, of which no configuration tells
            mtu_bytes=configuration.mtu or None,
            requires_mtu=configuration.require_mtu_file,
            queues=configuration.num_queues,
            device="netkit" if configuration.device_type == "netkit" else "veth",
            container_id=invocation.container_id,
            network=configuration.name,
            shared_handle=self._identity.handle if self._identity.is_shared else None,
            is_default_route=routes.has_default,
            routes=routes.others,
            allow_ip_forwarding=configuration.container_settings.allow_ip_forwarding,
        )
        if self._pod is not None:
            # a new sandbox of the pod takes the place of the one before, which may be deleted later or never
            request = msgspec.structs.replace(
                request,
                labels=self._pod.labels,
                pod_uid=self._pod.uid or None,
                floating=self._pod.floating,
                allowed_source_prefixes=self._pod.source_prefixes,
                replaces=True,
            )
        if self._pod is not None and self._pod.profiles:
            own = (self._pod.profile,) if self._pod.profile is not None else ()
            request = msgspec.structs.replace(request, profiles=self._pod.profiles, new_profiles=own)
        timeout_s = configuration.policy_setup_timeout_seconds
        return msgspec.structs.replace(request, policy_timeout_s=timeout_s) if timeout_s else request


def _standing(endpoint: WorkloadEndpoint, network: str, interface: str) -> Delegated:
    said = endpoint.dns if endpoint.is_made_for(network, interface) else None
    return Delegated(tuple(IPAddress(net.first, net.version) for net in endpoint.nets), said or _NO_DNS)


def _result(attached: Attached, invocation: Invocation, configuration: NetworkConfiguration, delegated: Dns) -> Result:
    endpoint = attached.endpoint
    versions = sorted({address.version for address in attached.addresses})
    if endpoint.is_made_for(configuration.name, invocation.interface):
        wanted = container_routes(configuration)
    else:
        wanted = ContainerRoutes(has_default=False)  # they are those of the network that made the interface
    routes = [(DEFAULT_ROUTES[version], NEXT_HOPS[version]) for version in versions] if wanted.has_default else []
    routes += [(str(each), NEXT_HOPS[each.version]) for each in wanted.others if each.version in versions]
    kept = {str(each) for each in attached.missing_routes}  # by another interface of the container
    routes = [each for each in routes if each[0] not in kept]
    container = Interface(
        name=endpoint.ifname or invocation.interface,
        mac=str(attached.mac or ""),
        mtu=attached.mtu_bytes or 0,
        sandbox=invocation.namespace,
    )
    return Result(
        interfaces=(Interface(name=attached.interface, mac=str(attached.host_mac or "")), container),
        ips=tuple(Ip(address=str(address), interface=CONTAINER_SIDE) for address in attached.addresses),
        routes=tuple(Route(dst=destination, gw=gateway) for destination, gateway in routes),
        dns=_dns(configuration, delegated),
    )


def _dns(configuration: NetworkConfiguration, delegated: Dns) -> Dns:
    """The runtime's, field by field before the configuration's. That of another IPAM plugin counts where the
    configuration has none, as with the reference plugins."""
    static, runtime = configuration.dns, configuration.runtime_config.dns
    if static == _NO_DNS:
        static = delegated
    if runtime is None:
        return static
    return Dns(
        nameservers=runtime.servers or static.nameservers,
        domain=static.domain,
        search=runtime.searches or static.search,
        options=runtime.options or static.options,
    )
