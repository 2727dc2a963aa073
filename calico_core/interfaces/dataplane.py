"""The dataplane seams: the agent programs a host through :class:`Dataplane`, the workload service makes interfaces
through :class:`WorkloadWiring`. Neither sees the other's."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

from netaddr import IPNetwork

from calico_core.model.hoststate import HostChanges
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.model.workloads import InterfaceEvent, PairRequest, WiredInterface, WiringRequest


class DataplaneOptions(Value, frozen=True):
    """``interface_prefix``: host interfaces of workloads start with it. ``endpoint_to_host``: what happens to traffic
    from a workload to the host itself. ``route_protocol`` marks the routes that are ours."""

    host: str = ""
    interface_prefix: str = "cali"
    endpoint_to_host: str = "RETURN"
    is_ipv6_enabled: bool = True
    route_protocol: int = 80
    log_prefix: str = "calico-packet"


class Failure(NamedTuple):
    """Something that could not be programmed; it stays wanted and is tried again with the next apply.

    ``subject``: a workload by its key's path, rules and sets by their id, ``table …`` for the policy as a whole (then
    nothing of the batch is in force), anything else in the driver's words."""

    subject: str
    reason: str


def is_whole_policy(subject: str) -> bool:
    """Whether a failure of ``subject`` means that no workload's policy is known to be in force."""
    return subject.startswith("table ")


class ApplyReport(Value, frozen=True):
    """What one apply did. ``changes`` counts kernel objects touched (0: it was right already).
    ``endpoints_without_link``: programmed, but the interface is not there (yet)."""

    changes: int = 0
    failures: tuple[Failure, ...] = ()
    endpoints_without_link: tuple[WorkloadEndpointKey, ...] = ()
    healed: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        return not self.failures


class Dataplane(abc.ABC):
    """Programs policy, sets, routes and NAT of one host. Used by the engine thread alone.

    The order of life: :meth:`open`, :meth:`ensure_closed`, then applies; the first apply carries a complete state and
    is compared with what the kernel holds, so that a restart changes only what differs.
    """

    @classmethod
    @abc.abstractmethod
    def open(cls, options: DataplaneOptions) -> Dataplane: ...

    @abc.abstractmethod
    def ensure_closed(self) -> None:
        """Make sure that traffic of unknown workload interfaces is dropped. If our table stands already nothing is
        touched: what it enforces stays in force."""

    @abc.abstractmethod
    def apply(self, changes: HostChanges) -> ApplyReport:
        """Make the kernel follow one batch, atomically for policy. Traffic sees the old state or the new one."""

    @abc.abstractmethod
    def resync(self) -> ApplyReport:
        """Read the kernel, compare with what is wanted, repair; ``healed`` names what had been changed."""

    @abc.abstractmethod
    def interface_changed(self, event: InterfaceEvent) -> ApplyReport:
        """A link came, went or changed: program what depends on it (routes)."""

    @abc.abstractmethod
    def watch_interfaces(self, callback: Callable[[InterfaceEvent], None]) -> Callable[[], None]:
        """Call back, in a thread of the driver's, for each change of a host link. Returns what stops it."""

    @abc.abstractmethod
    def wiring(self) -> WorkloadWiring: ...

    @abc.abstractmethod
    def purge(self) -> None:
        """Remove everything of ours from the kernel (policy table, routes of our protocol)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free sockets; the kernel keeps enforcing."""


class WorkloadWiring(abc.ABC):
    """Makes the interfaces of workloads. Safe for several threads."""

    @abc.abstractmethod
    def attach(self, request: WiringRequest) -> WiredInterface:
        """Make the pair, its addresses, routes and sysctls on both sides. Equal to what stands: no change.
        On failure everything made in this call is undone. Raises ``NamespaceGone``, ``InterfaceTaken``,
        ``KernelRefused``."""

    @abc.abstractmethod
    def detach(self, interface: str) -> None:
        """Delete the host end (its peer and routes go with it). Absent is fine."""

    @abc.abstractmethod
    def check(self, request: WiringRequest) -> tuple[str, ...]:
        """What is missing or different, as sentences; empty when all is as :meth:`attach` left it."""

    @abc.abstractmethod
    def host_end(self, namespace_fd: int, container_interface: str) -> str | None:
        """The host's end of a container's interface, whoever made the pair; None when there is none."""

    @abc.abstractmethod
    def make_pair(self, request: PairRequest) -> WiredInterface:
        """Make a pair whose container end stays in the host namespace, both ends up, host routes and sysctls set.
        A leftover of the same name is replaced."""

    @abc.abstractmethod
    def exists(self, interface: str) -> bool: ...

    @abc.abstractmethod
    def routes(self, interface: str) -> tuple[IPNetwork, ...]:
        """Host routes through the interface, for diagnosis."""
