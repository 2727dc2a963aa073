"""``calico-ipam -upgrade``: the addresses that ``host-local`` gave on this host become those of our IPAM.

Containers keep running with the addresses they have. Each address is assigned under the handle that an ADD would have
used, and its file is removed after that: whatever ends the move in the middle, repeating it goes on from there, and a
DEL finds the address where it is. What cannot be assigned keeps its file and is named.
Source: cni specification 1; cni-plugin ``pkg/upgrade``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from netaddr import IPAddress

from calico_cni.environment import NAME
from calico_cni.errors import InvalidEnvironment, NotAvailable
from calico_cni.host_local import DIRECTORY, HostLocalLeases, Lease
from calico_cni.identity import ORCHESTRATORS, handle_of
from calico_cni.migrations import Migrations
from calico_cni.requested import address_notes
from calico_cni.status import check_datastore_soon
from calico_cni.tunnel_addresses import keep_tunnel_addresses
from calico_core.errors import CalicoError, InvalidRequest, IpamError
from calico_core.interfaces.datastore import Versioned
from calico_core.interfaces.integration import IntegrationContext
from calico_core.log import get_logger
from calico_core.model import kubernetes
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import HOSTS
from calico_core.model.workloads import AddressRequest

NODE_VARIABLE = "KUBERNETES_NODE_NAME"
DIRECTORY_VARIABLE = "CALICO_HOST_LOCAL_DIRECTORY"
RETRY_S = 60.0
_PAUSE_S = 1.0
_LOCK_S = 60.0  # longer than any ADD may take

log = get_logger(__name__)


class MigrationIncomplete(CalicoError):
    """Some addresses stay with ``host-local``; ``refused`` says which, and why."""

    def __init__(self, directory: Path, moved: int, refused: tuple[str, ...]) -> None:
        kept = f"{len(refused)} stay in {directory}: {'; '.join(refused)}"
        super().__init__(f"{_addresses(moved)} moved to calico-ipam, {kept}")
        self.refused = refused

    @property
    def hint(self) -> str:  # type: ignore[override]
        return "free the addresses or add a pool for them (calicoctl ipam show, calicoctl pool add), then run it again"


class _Outcome(NamedTuple):
    """``alone``: moved, but no endpoint of this host carries them. ``lost``: tunnel addresses that were not kept."""

    moved: int
    alone: tuple[str, ...]
    refused: tuple[str, ...]
    lost: tuple[str, ...] = ()


class Migration:
    """One run of ``-upgrade``. ``environment`` is the caller's."""

    def __init__(self, context: IntegrationContext, migrations: Migrations, environment: Mapping[str, str]) -> None:
        self._context = context
        self._migrations = migrations
        self._environment = environment
        self._leases = HostLocalLeases(Path(environment.get(DIRECTORY_VARIABLE) or DIRECTORY))

    def run(self) -> str:
        """What was done, for people.

        :raises InvalidEnvironment: naming the variable; :raises MigrationIncomplete: some addresses could not be moved.
        """
        self._check()
        if not self._leases.exists():
            self._migrations.end(self._leases.network, is_whole=True)  # it was killed just before it would have said so
            return f"{self._leases.directory} does not exist: nothing is to be moved\n"
        deadline = time.monotonic() + RETRY_S
        reason = ""
        while True:
            try:
                return self._text(self._once())
            except CalicoError as error:
                if not (error.retryable or isinstance(error, NotAvailable)) or time.monotonic() >= deadline:
                    raise
                if str(error) != reason:
                    log.error("migration.waits", reason=str(error))  # the level that a process of one call shows
                reason = str(error)
            time.sleep(_PAUSE_S)

    def _check(self) -> None:
        node = self._environment.get(NODE_VARIABLE, "").strip()
        if not node:
            raise InvalidEnvironment(NODE_VARIABLE, "is not set: name the node whose addresses are to be moved")
        if node != self._context.host:
            host = self._context.host
            raise InvalidEnvironment(NODE_VARIABLE, f"{node!r} is not the node here, {host!r} (setting node_name)")
        if not self._leases.directory.is_absolute() or not NAME.fullmatch(self._leases.network):
            reason = f"{self._leases.directory} is not the absolute path of a directory named after a network"
            raise InvalidEnvironment(DIRECTORY_VARIABLE, reason)
        if self._context.settings.datastore.partition(":")[0] == "memory":
            raise InvalidRequest("datastore", "is the node's memory: addresses moved there would be lost")

    def _once(self) -> _Outcome:
        check_datastore_soon(self._context)
        lost = keep_tunnel_addresses(self._context, self._environment)
        leases = self._leases
        with (
            self._migrations.moving(leases.network, leases.directory, timeout_s=_LOCK_S),
            leases.locked(timeout_s=_LOCK_S),
        ):
            outcome = self._move(*leases.read())
            if not outcome.refused:
                leases.remove()
            # what stays is assigned already, or outside of every pool: no attach can get it
            self._migrations.end(leases.network, is_whole=not outcome.refused)
        return outcome._replace(lost=lost)

    def _move(self, leases: Sequence[Lease], strangers: Sequence[str]) -> _Outcome:
        refused = [f"{name}: is no file of host-local, move it away" for name in strangers]
        carrying = self._carrying()
        handles: dict[str, list[Lease]] = {}
        for lease in leases:
            handle = handle_of(self._leases.network, lease.container_id, lease.interface)
            handles.setdefault(handle, []).append(lease)
        moved = 0
        alone: list[str] = []
        for handle, group in handles.items():
            for part, reason in self._assign(handle, group, carrying):
                if reason:
                    refused += [f"{lease.address} of container {lease.container_id}: {reason}" for lease in part]
                    continue
                for lease in part:
                    self._leases.forget(lease)
                    if lease.address not in carrying:
                        alone.append(str(lease.address))
                moved += len(part)
        return _Outcome(moved, tuple(alone), tuple(refused))

    def _assign(
        self, handle: str, leases: list[Lease], carrying: Mapping[IPAddress, Versioned[WorkloadEndpoint]]
    ) -> list[tuple[list[Lease], str]]:
        """The addresses of one interface at once, where that is possible; else each by itself. With each part why it
        was refused; empty: it is assigned."""
        for lease in leases:
            owner = carrying[lease.address].record.container_id if lease.address in carrying else None
            if owner not in {None, lease.container_id}:
                return [(leases, f"the endpoint of container {owner} carries it")]
        addresses = tuple(lease.address for lease in leases)
        request = AddressRequest(
            handle=handle,
            num_v4=sum(address.version == 4 for address in addresses),
            num_v6=sum(address.version == 6 for address in addresses),
            requested=addresses,
            attributes=self._attributes(leases[0], carrying.get(addresses[0])),
        )
        try:
            self._context.ipam.auto_assign(request)
        except IpamError as error:
            if error.retryable:
                raise
            if len(leases) == 1:
                return [(leases, str(error))]
            return [part for lease in leases for part in self._assign(handle, [lease], carrying)]
        return [(leases, "")]

    def _attributes(self, lease: Lease, found: Versioned[WorkloadEndpoint] | None) -> dict[str, Any]:
        """As an ADD notes them. An address without an endpoint record gets no orchestrator: another plugin made the
        interface, and nobody but its runtime can say that it is gone."""
        orchestrator = interface = namespace = pod = ""
        if found is not None:
            key: Any = found.key
            orchestrator, interface = key.orchestrator, found.record.name
            if orchestrator == kubernetes.ORCHESTRATOR:
                namespace, pod = kubernetes.split_workload_id(key.workload)
        return address_notes(
            host=self._context.host,
            network=self._leases.network,
            container_id=lease.container_id,
            ifname=lease.interface,
            orchestrator=orchestrator,
            interface=interface,
            namespace=namespace,
            pod=pod,
        )

    def _carrying(self) -> dict[IPAddress, Versioned[WorkloadEndpoint]]:
        """Endpoints of this host by address."""
        found = self._context.records.list(f"{HOSTS}{self._context.host}/workload/")
        return {
            IPAddress(net.first, net.version): each
            for each in found
            if isinstance(each.record, WorkloadEndpoint) and getattr(each.key, "orchestrator", "") in ORCHESTRATORS
            for net in each.record.nets
        }

    def _text(self, outcome: _Outcome) -> str:
        """:raises MigrationIncomplete: something was refused."""
        if outcome.refused:
            raise MigrationIncomplete(self._leases.directory, outcome.moved, outcome.refused)
        text = f"{_addresses(outcome.moved)} of network {self._leases.network} moved to calico-ipam\n"
        if outcome.alone:
            why = "no endpoint here carries them; if no container has one, free it with calicoctl ipam release"
            text += f"{', '.join(outcome.alone)}: {why}\n"
        return text + "".join(f"{each}; the node takes another one\n" for each in outcome.lost)


def _addresses(number: int) -> str:
    return "1 address" if number == 1 else f"{number} addresses"
