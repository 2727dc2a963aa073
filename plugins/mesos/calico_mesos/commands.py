"""What the commands do: addresses through IPAM, interfaces through the workload service. Source: mesos spec 2.2.

Everything is checked before the first effect. Each command may come again after it failed half way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from netaddr import IPAddress

from calico_core import __version__
from calico_core.errors import CalicoError, StaleRelease
from calico_core.interfaces.datastore import Versioned
from calico_core.interfaces.integration import IntegrationContext
from calico_core.log import get_logger
from calico_core.model.workloads import AddressRequest, Attach, Detach
from calico_mesos import profiles
from calico_mesos.arguments import sanitised
from calico_mesos.container import ORCHESTRATOR, Container, ContainerRecord, Holding, identify
from calico_mesos.errors import ALREADY_ISOLATED, Refused
from calico_mesos.namespace import namespace_of, namespace_path
from calico_mesos.wire import Allocate, Cleanup, Isolate, Release, Reply, Request, Reserve, Version

CONTAINER_INTERFACE = "eth0"

_IPAM_S = 8.0  # the agent stands still meanwhile; 10 s in all
_POLICY_S = 5.0

log = get_logger(__name__)


class Commands:
    """Any thread. ``open_namespace`` gives the descriptor of a process' namespace."""

    def __init__(
        self,
        context: IntegrationContext,
        *,
        open_namespace: Callable[[int], AbstractContextManager[int]] = namespace_of,
    ) -> None:
        self._context = context
        self._open_namespace = open_namespace

    def run(self, request: Request) -> Reply:
        """Raises what the table in ``errors`` turns into text."""
        match request:
            case Allocate():
                return self._allocate(request)
            case Reserve():
                return self._reserve(request)
            case Release():
                return self._release(request)
            case Isolate():
                return self._isolate(request)
            case Cleanup():
                return self._cleanup(request)
            case Version():
                return Reply(version=__version__)
        raise Refused(f"Unknown command: {type(request).__name__}")

    # --- addresses -------------------------------------------------------------------------------

    def _allocate(self, request: Allocate) -> Reply:
        """The module reserves under the same uid first, and counts those addresses itself."""
        reserved = self._reserved(request.uid)
        automatic_v4 = max(request.num_ipv4 - len(request.static), 0)
        if not automatic_v4 and not request.num_ipv6 and not request.static:
            return Reply(ipv4=(), ipv6=())
        found = self._context.ipam.auto_assign(
            AddressRequest(
                handle=request.uid,
                num_v4=automatic_v4 + len(request.static) + _count(reserved, 4),
                num_v6=request.num_ipv6 + _count(reserved, 6),
                requested=(*request.static, *reserved),
                attributes=self._attributes(request.netgroups),
            ),
            deadline_s=_IPAM_S,
        )
        automatic = [address for address in found if address not in {*reserved, *request.static}]
        return Reply(
            ipv4=_texts([*(address for address in automatic if address.version == 4), *request.static]),
            ipv6=_texts([address for address in automatic if address.version == 6]),
        )

    def _reserve(self, request: Reserve) -> Reply:
        self._context.ipam.auto_assign(
            AddressRequest(
                handle=request.uid,
                num_v4=_count(request.addresses, 4),
                num_v6=_count(request.addresses, 6),
                requested=request.addresses,
                attributes={**self._attributes(request.netgroups), "reserved": "true"},
            ),
            deadline_s=_IPAM_S,
        )
        return Reply()

    def _release(self, request: Release) -> Reply:
        if request.uid is not None:
            self._context.ipam.release_by_handle([request.uid])
        elif request.addresses:
            self._context.ipam.release(request.addresses)
        return Reply()

    def _reserved(self, uid: str) -> tuple[IPAddress, ...]:
        """Of what the uid holds already, the part that an earlier ``reserve`` took; the rest a repeated call gets."""
        ipam = self._context.ipam
        return tuple(
            address
            for address in ipam.by_handle(uid)
            if (found := ipam.allocation(address)) is not None and found.attributes.get("reserved")
        )

    def _attributes(self, netgroups: tuple[str, ...]) -> dict[str, str]:
        attributes = {"orchestrator": ORCHESTRATOR, "node": self._context.host}
        return {**attributes, "netgroups": ",".join(netgroups)} if netgroups else attributes

    # --- containers ------------------------------------------------------------------------------

    def _isolate(self, request: Isolate) -> Reply:
        context = self._context
        container = self._identify(request.container_id)
        if context.records.get(container.record_key) is not None and context.records.get(container.key) is not None:
            raise Refused(ALREADY_ISOLATED)
        agent = profiles.agent_profile(
            request.hostname or context.host, profiles.host_addresses(context.records, context.host)
        )
        wanted = (agent, *profiles.netgroup_profiles(request.netgroups))
        labels = endpoint_labels(request.labels)
        holdings = self._holdings(request.addresses)
        with self._open_namespace(request.pid) as descriptor:
            profiles.refresh_agent_profile(context.records, agent)
            context.workloads.attach(
                Attach(
                    key=container.key,
                    interface=container.interface,
                    addresses=request.addresses,
                    namespace_fd=descriptor,
                    namespace=namespace_path(request.pid),
                    container_interface=CONTAINER_INTERFACE,
                    profiles=tuple(profile.name for profile in wanted),
                    new_profiles=wanted,
                    labels=labels,
                    mtu_bytes=context.settings.mtu_bytes or None,
                    container_id=request.container_id,
                    policy_timeout_s=_POLICY_S,
                )
            )
        try:
            context.records.put(container.record_key, ContainerRecord(holdings=holdings))
        except CalicoError:
            self._detach(container, request.container_id)
            raise
        return Reply()

    def _cleanup(self, request: Cleanup) -> Reply:
        """The interface and the endpoint go first, so that nobody gets an address that still leads here."""
        records = self._context.records
        container = self._identify(request.container_id)
        noted: Versioned[ContainerRecord] | None = records.get(container.record_key)
        is_known = noted is not None or records.get(container.key) is not None
        if not is_known and self._context.settings.mesos_strict:
            raise Refused(f"No endpoint found with container-id: {request.container_id}")
        self._detach(container, request.container_id)
        if noted is not None:
            for holding in noted.record.holdings:
                self._release_held(holding)
            records.delete(container.record_key)
        return Reply()

    def _detach(self, container: Container, container_id: str) -> None:
        self._context.workloads.detach(
            Detach(key=container.key, interface=container.interface, container_id=container_id)
        )

    def _release_held(self, holding: Holding) -> None:
        """The module released it before it asked for the cleanup; by now it may be somebody else's."""
        if holding.handle is None:
            return
        try:
            self._context.ipam.release([holding.address], handle=holding.handle)
        except StaleRelease as error:
            log.info("mesos.address_kept", address=error.address, holder=error.found)

    def _holdings(self, addresses: tuple[IPAddress, ...]) -> tuple[Holding, ...]:
        found = []
        for address in addresses:
            allocation = self._context.ipam.allocation(address)
            is_ours = allocation is not None and allocation.attributes.get("orchestrator") == ORCHESTRATOR
            found.append(Holding(address=address, handle=allocation.handle if allocation and is_ours else None))
        return tuple(found)

    def _identify(self, container_id: str) -> Container:
        return identify(self._context.host, container_id, prefix=self._context.settings.interface_prefixes[0])


def endpoint_labels(labels: dict[str, str]) -> dict[str, str]:
    """Made legal; a name of which nothing is left is dropped, the last of those that become equal wins."""
    found: dict[str, str] = {}
    for raw, value in labels.items():
        key = sanitised(raw)
        if not key or key in found:
            log.warning("mesos.label_lost", label=raw, reason="no legal character" if not key else f"is {key} too")
        if key:
            found[key] = sanitised(value)
    return found


def _count(addresses: tuple[IPAddress, ...], version: int) -> int:
    return sum(address.version == version for address in addresses)


def _texts(addresses: list[IPAddress]) -> tuple[str, ...]:
    return tuple(str(address) for address in addresses)
