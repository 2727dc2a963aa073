"""How a Kubernetes pod appears in our records: names and labels.

The CNI plugin writes an endpoint when a pod starts, the policy controller keeps it right afterwards and selects it in
policies; what both must agree on stands here. Source: cni specification 4 and 5.5.

Own labels of an endpoint win over those its profiles give. So that a pod cannot pass for one of another namespace, its
labels that are spelled like ours are kept under another name, in endpoints and selectors alike (:func:`pod_label`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

ORCHESTRATOR = "k8s"
FIRST_INTERFACE = "eth0"

NAMESPACE_LABEL = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"
SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount"
NAME_LABEL = "projectcalico.org/name"
NAMESPACE_LABEL_PREFIX = "pcns."
"""Before the labels of a namespace, in its profile."""
SERVICE_ACCOUNT_LABEL_PREFIX = "pcsa."
PORT_LABEL_PREFIX = "port.projectcalico.org/"
_POD_LABEL_PREFIX = "pod.projectcalico.org/"
_RESERVED = (
    NAMESPACE_LABEL_PREFIX, SERVICE_ACCOUNT_LABEL_PREFIX, "projectcalico.org/", PORT_LABEL_PREFIX, _POD_LABEL_PREFIX,
)  # fmt: skip

CONFIG_HASH = "kubernetes.io/config.hash"
"""Of a pod that a kubelet runs from a file: it knows that one as the pod's identity, the API gives another, and a new
one to whoever deletes it there while the containers run on."""

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")
"""What names of profiles and tags have no place for."""

DEFAULT_SERVICE_ACCOUNT = "default"


class _Object(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of an API object; what we have no use for is ignored. An empty map or list may come as null."""


class Metadata(_Object, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class Namespace(_Object, frozen=True):
    metadata: Metadata = Metadata()


class NodeSpec(_Object, frozen=True):
    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    pod_cidrs: tuple[str, ...] | None = msgspec.field(default=None, name="podCIDRs")


class Node(_Object, frozen=True):
    metadata: Metadata = Metadata()
    spec: NodeSpec = NodeSpec()

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """What its pods' addresses come from, where the cluster gives each node a range; at most one a family."""
        return self.spec.pod_cidrs or tuple(filter(None, (self.spec.pod_cidr,)))


class ServiceAccount(_Object, frozen=True):
    metadata: Metadata = Metadata()


class ContainerPort(_Object, frozen=True):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(_Object, frozen=True):
    ports: tuple[ContainerPort, ...] | None = None
    restart_policy: str = ""


class PodSpec(_Object, frozen=True):
    service_account_name: str = ""
    containers: tuple[Container, ...] | None = None
    init_containers: tuple[Container, ...] | None = None


class Pod(_Object, frozen=True):
    metadata: Metadata = Metadata()
    spec: PodSpec = PodSpec()

    @property
    def service_account(self) -> str:
        return self.spec.service_account_name or DEFAULT_SERVICE_ACCOUNT

    @property
    def config_hash(self) -> str:
        """Empty but for pods that a kubelet runs from a file."""
        return (self.metadata.annotations or {}).get(CONFIG_HASH, "")

    def is_known_as(self, uid: str) -> bool:
        """Whether the API or the pod's kubelet calls it so."""
        return uid in {self.metadata.uid, self.config_hash}


class NamedPort(NamedTuple):
    """A container's port that has a name. ``protocol`` as our rules write it: ``tcp``, ``udp``, ``sctp``."""

    name: str
    protocol: str
    number: int

    @property
    def label(self) -> str:
        """Which endpoints have it. The kernel knows numbers only, and a name may mean another number in each pod."""
        return f"{PORT_LABEL_PREFIX}{self.protocol}.{self.name}.{self.number}"


def named_ports(pod: Pod) -> frozenset[NamedPort]:
    """Of containers that run beside each other: the ordinary ones, and init containers that are never done."""
    sidecars = (each for each in pod.spec.init_containers or () if each.restart_policy == "Always")
    return frozenset(
        NamedPort(port.name, port.protocol.lower(), port.container_port)
        for container in (*(pod.spec.containers or ()), *sidecars)
        for port in container.ports or ()
        if port.name
    )


def endpoint_labels(pod: Pod) -> dict[str, str]:
    """Everything that policies select a pod by, but for the labels its profiles give."""
    labels = {pod_label(name): value for name, value in (pod.metadata.labels or {}).items()}
    labels |= {port.label: "" for port in named_ports(pod)}
    labels |= {
        NAMESPACE_LABEL: pod.metadata.namespace,
        ORCHESTRATOR_LABEL: ORCHESTRATOR,
        SERVICE_ACCOUNT_LABEL: pod.service_account,
    }
    return labels


def endpoint_profiles(pod: Pod) -> tuple[str, ...]:
    namespace = pod.metadata.namespace
    return namespace_profile(namespace), service_account_profile(namespace, pod.service_account)


def namespace_profile(namespace: str) -> str:
    return f"kns.{namespace}"


def service_account_profile(namespace: str, name: str) -> str:
    return f"ksa.{namespace}.{name}"


def own_profile(namespace: str, pod: str, interface: str) -> str:
    """Of the pod alone, where its annotation says who may reach it. No pod's name has an underscore, so none is
    another's. Source: cni specification 5.5."""
    parts = (namespace, pod) if interface == FIRST_INTERFACE else (namespace, pod, interface)
    return "_".join(NOT_IN_NAMES.sub("_", each) for each in parts)


def pod_label(name: str) -> str:
    """A pod's label as its endpoint carries it. No two names meet."""
    return f"{_POD_LABEL_PREFIX}{name}" if name.startswith(_RESERVED) else name


def prefixed(prefix: str, labels: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {f"{prefix}{name}": value for name, value in labels}


def workload_id(namespace: str, pod: str) -> str:
    return f"{namespace}.{pod}"


def split_workload_id(workload: str) -> tuple[str, str]:
    """Namespace and pod: only the pod's name may hold dots."""
    namespace, _, pod = workload.partition(".")
    return namespace, pod


def endpoint_id(namespace: str, pod: str, interface: str) -> str:
    """Forty hexadecimal digits, the same for every container of that name. Source: cni specification 4."""
    text = workload_id(namespace, pod)
    if interface != FIRST_INTERFACE:
        text = f"{text}/{interface}"
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
