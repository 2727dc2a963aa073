"""The workload service as integrations see it."""

from __future__ import annotations

import abc

from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.workloads import Attach, Attached, Detach, PairRequest, WiredInterface, WiringRequest


class Workloads(abc.ABC):
    """Attach and detach, each a transaction with undo. Safe for several threads; calls for one endpoint are
    serialised inside."""

    @abc.abstractmethod
    def attach(self, request: Attach) -> Attached:
        """Addresses and record in one datastore transaction, interface made, policy in the kernel before it returns.
        A failure leaves what was there before. Repeating it returns what stands.

        Raises every error of ``Ipam.auto_assign`` and ``WorkloadWiring.attach``, ``KeyExists`` when the endpoint
        belongs to another container and ``replaces`` is off, ``NotReady``, ``Unavailable``.
        """

    @abc.abstractmethod
    def detach(self, request: Detach) -> bool:
        """Remove interface, record and addresses; whether there was a record, and the request's to take. The interface
        goes even when the datastore is away (then ``Unavailable`` is raised afterwards)."""

    @abc.abstractmethod
    def check(self, request: WiringRequest) -> tuple[str, ...]:
        """What of an attached interface is missing or different in the kernel, as sentences; empty when all is as an
        attach left it. Raises ``NamespaceGone``."""

    @abc.abstractmethod
    def host_end(self, namespace_fd: int, container_interface: str) -> str | None:
        """The host's end of a pair that somebody else made; None when the container has no such interface, or its
        other end is not in the host's namespace. Raises ``NamespaceGone``."""

    @abc.abstractmethod
    def remove_orphans(self) -> tuple[str, ...]:
        """Delete the host ends of pairs that no record names and no process is behind; which. None while a record of
        this host cannot be read."""

    @abc.abstractmethod
    def make_pair(self, key: WorkloadEndpointKey, request: PairRequest) -> WiredInterface:
        """For callers that move the container end themselves. Waits until the endpoint's policy is in the kernel."""

    @abc.abstractmethod
    def remove_pair(self, interface: str) -> None:
        """Absent is fine."""
