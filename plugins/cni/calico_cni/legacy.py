"""Endpoints of the plugin that this one took the place of: their keys cannot be computed, and their records do not say
whose they are. Source: cni specification 4.
"""

from __future__ import annotations

from calico_cni.identity import FIRST_INTERFACE, ORCHESTRATOR, Identity
from calico_core.errors import NamespaceGone
from calico_core.interfaces.integration import IntegrationContext
from calico_core.log import get_logger
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.ids import escape
from calico_core.model.keys import HOSTS
from calico_core.model.workloads import Detach

log = get_logger(__name__)


class LegacyEndpoints:
    """Of one host. Any thread."""

    def __init__(self, context: IntegrationContext) -> None:
        self._context = context

    def detach(self, identity: Identity, container_id: str, namespace_fd: int | None) -> None:
        """Those of a container that has none of ours, filed under its own name; and those of its pod, whose name says
        nothing about the container: only with an interface that leads to it, for a newer container may have the record
        by now. A record that names a container or a network is none of an earlier plugin."""
        self._detach_those_of(ORCHESTRATOR, container_id, container_id)
        if identity.key.orchestrator != ORCHESTRATOR and namespace_fd is not None:
            end = self._host_end(namespace_fd)
            if end is not None:
                self._detach_those_of(identity.key.orchestrator, identity.key.workload, container_id, only=end)

    def _detach_those_of(self, orchestrator: str, workload: str, container_id: str, *, only: str | None = None) -> None:
        prefix = f"{HOSTS}{self._context.host}/workload/{orchestrator}/{escape(workload)}/endpoint/"
        for found in self._context.records.list(prefix):
            record: WorkloadEndpoint = found.record
            is_ours = record.container_id is not None or record.network is not None
            if is_ours or (only is not None and record.name != only):
                continue
            log.info("endpoint.legacy", endpoint=found.key.path, container=container_id)
            self._context.workloads.detach(
                Detach(
                    key=found.key,  # type: ignore[arg-type]  # nothing else lies below that prefix
                    interface=record.name,
                    # the first plugin named the handle after the workload, later ones after the container
                    handles=tuple(dict.fromkeys((workload, container_id))),
                    needs_ready=True,
                )
            )

    def _host_end(self, namespace_fd: int) -> str | None:
        try:
            return self._context.workloads.host_end(namespace_fd, FIRST_INTERFACE)
        except NamespaceGone:
            return None
