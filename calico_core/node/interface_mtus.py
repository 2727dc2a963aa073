"""Which MTU this node gives, and which one the interface of each of its workloads has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.linux.rtnetlink import RouteSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calico_core.model.keys import WorkloadEndpointKey


def interface_mtus(
    interfaces: Mapping[WorkloadEndpointKey, str], *, given_bytes: int | None, namespace_fd: int | None = None
) -> dict[str, object]:
    """JSON-ready. ``interfaces``: those of the endpoints; one that is not there is left out. ``given_bytes``: what a
    workload gets whose request names no MTU; None: the kernel decides. Raises ``KernelRefused``."""
    with RouteSocket(namespace_fd) as socket:
        found = {link.name: link.mtu_bytes for link in socket.links()}
    return {
        "given_bytes": given_bytes,
        "interfaces": [
            {"endpoint": key.path, "orchestrator": key.orchestrator, "interface": name, "mtu_bytes": found[name]}
            for key, name in sorted(interfaces.items(), key=lambda item: item[0].path)
            if name in found
        ],
    }
