"""Names of an attachment, all computable from the call: nothing has to be looked up. Source: cni specification 4.

Runtimes other than a kubelet set pod arguments too (podman does), so these alone do not make a Kubernetes endpoint.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from calico_core.model import kubernetes
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.rules import Rule, RuleLists
from calico_core.model.workloads import NewProfile

ORCHESTRATOR = "cni"
ORCHESTRATORS = (ORCHESTRATOR, kubernetes.ORCHESTRATOR)
"""Those that the keys of our endpoints begin with."""
FIRST_INTERFACE = "eth0"
_INTERFACE_LENGTH = 15


class Identity(NamedTuple):
    """``interface`` is the host side. ``handle`` holds the addresses. ``is_shared``: key and interface are those of
    all networks of the container that share one, and the handle is that of no interface of the network's own."""

    key: WorkloadEndpointKey
    interface: str
    handle: str
    legacy_handles: tuple[str, ...]
    is_shared: bool = False


def identify(
    *,
    host: str,
    network: str,
    container_id: str,
    container_interface: str,
    prefix: str = "cali",
    pod: tuple[str, str] | None = None,
    is_shared: bool = False,
) -> Identity:
    """``prefix``: of host interfaces. ``pod``: namespace and name, where these give the endpoint its name; every
    container of the pod then has the same one. ``is_shared``: by whatever name the container's interface goes."""
    named_after = FIRST_INTERFACE if is_shared else container_interface
    if pod is None:
        orchestrator, workload = ORCHESTRATOR, container_id
        digest = hashlib.sha1(f"{container_id}/{named_after}".encode(), usedforsecurity=False).hexdigest()
    else:
        orchestrator, workload = kubernetes.ORCHESTRATOR, kubernetes.workload_id(*pod)
        digest = kubernetes.endpoint_id(*pod, named_after)
    return Identity(
        key=WorkloadEndpointKey(host, orchestrator, workload, digest),
        # eleven digits of the hash after the usual prefix of four
        interface=f"{prefix}{digest}"[:_INTERFACE_LENGTH],
        handle=handle_of(network, container_id, named_after),
        legacy_handles=legacy_handles(container_id, named_after),
        is_shared=is_shared,
    )


def handle_of(network: str, container_id: str, container_interface: str) -> str:
    """``<network>.<container id>``, and ``.<interface>`` after it unless that is a container's usual first one. A dot
    in the id is a ``~`` here, so that it ends where the interface begins; the ids of the known runtimes have none."""
    base = f"{network}.{container_id.replace('.', '~')}"
    return base if container_interface == FIRST_INTERFACE else f"{base}.{container_interface}"


def recorded_handle(endpoint: WorkloadEndpoint) -> str | None:
    """The one that an endpoint's record tells of; None for a record of other software."""
    if endpoint.handle:
        return endpoint.handle
    if not endpoint.network or not endpoint.container_id:
        return None
    return handle_of(endpoint.network, endpoint.container_id, endpoint.ifname or FIRST_INTERFACE)


def legacy_handles(container_id: str, container_interface: str) -> tuple[str, ...]:
    """How the first reference plugin named the handle; it knew one interface a container. An id with a dot is left out:
    it may be the handle of another container."""
    return (container_id,) if container_interface == FIRST_INTERFACE and "." not in container_id else ()


def network_profile(network: str) -> NewProfile:
    """Workloads of one network talk to each other and may open connections to anywhere. Source: 5.5, default."""
    rules = RuleLists(
        id=network,
        inbound_rules=(Rule(action="allow", src_tag=network),),
        outbound_rules=(Rule(action="allow"),),
    )
    return NewProfile(name=network, tags=(network,), rules=rules)


def open_profile(network: str) -> NewProfile:
    """Pods whose policy nobody looks after talk to everybody. Source: 5.5, Kubernetes without policy."""
    both = (Rule(action="allow"),)
    return NewProfile(
        name=network, tags=(network,), rules=RuleLists(id=network, inbound_rules=both, outbound_rules=both)
    )
