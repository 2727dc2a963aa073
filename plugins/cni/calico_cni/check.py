"""CHECK: is everything still there that our ADD made? Source: cni specification 6.

The kernel is asked on both sides of the pair, then the datastore for record and addresses. What plugins after us may
change (more routes, another MAC, the MTU) is none of our business. Right after an ADD things may still be settling, so
a first look that finds something wrong is not the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from netaddr import IPAddress, IPNetwork

from calico_cni.attach import DEFAULT_ROUTES
from calico_cni.delegate import Delegate
from calico_cni.environment import Invocation
from calico_cni.errors import CheckFailed
from calico_cni.identity import Identity
from calico_cni.namespace import check_container_namespace
from calico_cni.previous import Previous
from calico_cni.programs import IPAM_PROGRAM
from calico_cni.routes import ContainerRoutes, container_routes
from calico_cni.wire import NetworkConfiguration
from calico_core.interfaces.integration import Call, IntegrationContext
from calico_core.model.addresses import host_network, parse_network
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadStatusKey
from calico_core.model.workloads import WiringRequest

PATIENCE_S = 2.0
_LOOK_AGAIN_S = 0.1


class CheckCall:
    """One CHECK, its configuration validated. ``sleep`` and ``clock`` are of one kind of time."""

    def __init__(
        self,
        context: IntegrationContext,
        call: Call,
        invocation: Invocation,
        configuration: NetworkConfiguration,
        identity: Identity,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._context = context
        self._call = call
        self._invocation = invocation
        self._configuration = configuration
        self._identity = identity
        self._container_interface = invocation.interface
        self._clock = clock
        self._sleep = sleep
        self._previous = Previous.of(configuration, self._container_interface)

    def run(self) -> None:
        """:raises CheckFailed: naming the first thing that is missing or different, still so after two seconds.
        :raises DelegateFailed: another IPAM plugin misses something.
        """
        namespace_fd = check_container_namespace(self._call.namespace_fd, self._invocation)
        deadline = self._clock() + PATIENCE_S
        while True:
            try:
                self._look(namespace_fd)
                return
            except CheckFailed:
                if self._clock() >= deadline:
                    raise
            self._sleep(_LOOK_AGAIN_S)

    def _look(self, namespace_fd: int) -> None:
        endpoint = self._endpoint()
        if endpoint.attachments and endpoint.ifname:  # a shared interface has the name that its first network gave it
            self._container_interface = endpoint.ifname
            self._previous = Previous.of(self._configuration, endpoint.ifname)
        if endpoint.name == self._identity.interface:
            self._check_interface(namespace_fd, endpoint)
        else:
            self._check_foreign_interface(namespace_fd, endpoint)
        self._check_record(endpoint)
        self._check_addresses(endpoint)
        self._check_policy()
        self._check_delegated(endpoint)

    def _endpoint(self) -> WorkloadEndpoint:
        path = self._identity.key.path
        found = self._context.records.get(self._identity.key)
        if found is None:
            raise CheckFailed(f"endpoint {path} is missing")
        endpoint: WorkloadEndpoint = found.record
        if endpoint.container_id not in {None, self._invocation.container_id}:
            raise CheckFailed(f"endpoint {path} belongs to container {endpoint.container_id}")
        if endpoint.attachments:
            ours = (self._configuration.name, self._invocation.interface)
            if all((each.network, each.ifname) != ours for each in endpoint.attachments):
                raise CheckFailed(f"endpoint {path} is not shared by network {self._configuration.name}")
        elif endpoint.network not in {None, self._configuration.name}:
            raise CheckFailed(f"endpoint {path} belongs to network {endpoint.network}")
        return endpoint

    def _check_interface(self, namespace_fd: int, endpoint: WorkloadEndpoint) -> None:
        if not endpoint.is_made_for(self._configuration.name, self._invocation.interface):
            self._check_foreign_interface(namespace_fd, endpoint)  # the rest is as another network wanted it
            return
        routes = self._listed_routes()
        damage = self._context.workloads.check(
            WiringRequest(
                interface=self._identity.interface,
                container_interface=self._container_interface,
                namespace_fd=namespace_fd,
                namespace=self._invocation.namespace,
                addresses=tuple(host_network(address) for address in self._previous.addresses),
                is_default_route=routes.has_default,
                routes=routes.others,
                allow_ip_forwarding=self._configuration.container_settings.allow_ip_forwarding,
            )
        )
        if damage:
            raise CheckFailed("; ".join(damage))

    def _listed_routes(self) -> ContainerRoutes:
        """Ours as far as the result has them: the others led through another interface of the container when ours was
        made, or a plugin after us took them away."""
        wanted = container_routes(self._configuration)
        listed = {parse_network(each.dst, field="prevResult.routes.dst") for each in self._previous.result.routes}
        versions = {address.version for address in self._previous.addresses}
        defaults = {IPNetwork(DEFAULT_ROUTES[version]) for version in versions} if wanted.has_default else set()
        others = tuple(each for each in wanted.others if each in listed)
        if defaults <= listed:
            return ContainerRoutes(wanted.has_default, others)
        return ContainerRoutes(has_default=False, others=(*sorted(defaults & listed), *others))

    def _check_foreign_interface(self, namespace_fd: int, endpoint: WorkloadEndpoint) -> None:
        """Made by a plugin before us, or for another network, which checks the rest itself."""
        found = self._context.workloads.host_end(namespace_fd, self._container_interface)
        if found != endpoint.name:
            what = f"{self._container_interface} is no longer a pair with {endpoint.name}"
            raise CheckFailed(f"{what} but with {found}" if found else what)

    def _check_record(self, endpoint: WorkloadEndpoint) -> None:
        recorded = {IPAddress(net.first, net.version) for net in endpoint.nets}
        wanted = set(self._previous.addresses)
        if recorded != wanted:
            path = self._identity.key.path
            raise CheckFailed(f"endpoint {path} has {_text(recorded)}, the result had {_text(wanted)}")

    def _check_addresses(self, endpoint: WorkloadEndpoint) -> None:
        """Ours, in the hands of our own IPAM."""
        if endpoint.name != self._identity.interface or self._configuration.ipam.type != IPAM_PROGRAM:
            return
        handle = endpoint.handle or self._identity.handle
        held = set(self._context.ipam.by_handle(handle))
        if not held and self._configuration.feature_control.ip_addrs_no_ipam:
            return  # only the pod's annotation tells such an address from a lost one, and a CHECK does not ask for it
        missing = set(self._previous.addresses) - held
        if missing:
            raise CheckFailed(f"handle {handle} does not hold {_text(missing)}")

    def _check_policy(self) -> None:
        """What the agent says of it; that it says nothing (yet) is no damage."""
        key = self._identity.key
        found = self._context.records.get(WorkloadStatusKey(key.host, key.orchestrator, key.workload, key.endpoint))
        if found is not None and found.record.status == "error":
            raise CheckFailed(f"the policy of endpoint {key.path} is not in force: {found.record.reason or 'unknown'}")

    def _check_delegated(self, endpoint: WorkloadEndpoint) -> None:
        """Ours, in the hands of another IPAM plugin. The last of all: what it misses it misses for good, so it is a
        program to be run once."""
        if endpoint.name == self._identity.interface and self._configuration.ipam.type != IPAM_PROGRAM:
            Delegate(self._configuration.ipam.type, self._call).check()


def _text(addresses: Iterable[IPAddress]) -> str:
    return ", ".join(map(str, sorted(addresses))) or "none"
