"""A pod's part in an ADD: who it is, how policies select it, and what its annotations ask for.

With ``policy.type: k8s`` the pod is looked up through the API. Only an ADD does that; everything else gets along with
the names that are in the call. Source: cni specification 4 and 5.5.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_cni import annotated_policy
from calico_cni.environment import Invocation
from calico_cni.errors import NotAvailable, PolicySourceFailed
from calico_cni.kubeconfig import Source
from calico_cni.kubernetes_api import KubernetesApi
from calico_cni.pod_cidr import with_pod_cidrs
from calico_cni.programs import IPAM_PROGRAM
from calico_cni.requested import parse_pool, parse_unicast_mac
from calico_cni.wire import NetworkConfiguration
from calico_core.errors import InvalidRequest, NotReady
from calico_core.model.addresses import parse_address, parse_network
from calico_core.model.kubernetes import (
    NAMESPACE_LABEL,
    ORCHESTRATOR,
    ORCHESTRATOR_LABEL,
    Pod,
    endpoint_labels,
    endpoint_profiles,
)
from calico_core.model.workloads import NewProfile

PREFIX = "cni.projectcalico.org/"
_POOLS = {4: "ipv4pools", 6: "ipv6pools"}
_NO_IPAM = "ipAddrsNoIpam"
_FLOATING = "floatingIPs"
FLOATING_ANNOTATION = PREFIX + _FLOATING
_SOURCES = "allowedSourcePrefixes"
_MAX_SOURCES = 64


class PodName(NamedTuple):
    namespace: str
    name: str

    @classmethod
    def of(cls, arguments: Mapping[str, str]) -> PodName | None:
        """None when the call does not name one."""
        namespace, name = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
        return cls(namespace, name) if namespace and name else None


class PodPolicy(NamedTuple):
    """How policies see the endpoint. ``profiles`` empty: the network's own. ``floating``: addresses that lead to the
    pod's own. ``addresses``: its own, where no IPAM is to be asked for any. ``source_prefixes``: what it may send from
    beside its own addresses. ``profile``: of the pod alone. ``uid``: empty where nobody says it."""

    labels: dict[str, str]
    profiles: tuple[str, ...] = ()
    floating: tuple[IPAddress, ...] = ()
    addresses: tuple[IPAddress, ...] = ()
    source_prefixes: tuple[IPNetwork, ...] = ()
    profile: NewProfile | None = None
    uid: str = ""


class Pods:
    """Looks pods up. Any thread."""

    def __init__(self) -> None:
        self._apis: dict[Source, KubernetesApi] = {}
        self._lock = threading.Lock()

    def policy_and_wishes(
        self, configuration: NetworkConfiguration, invocation: Invocation, name: PodName
    ) -> tuple[PodPolicy, NetworkConfiguration]:
        """Also the configuration as the pod's annotations change it.

        :raises NotReady: the API is away.
        :raises PolicySourceFailed: the API refuses, or has no such pod (any more).
        :raises InvalidRequest: naming the annotation, or the key that is missing.
        """
        if configuration.policy.type == annotated_policy.TYPE:
            return self._annotated(configuration, invocation, name), configuration
        if configuration.policy.type != "k8s":
            labels = {NAMESPACE_LABEL: name.namespace, ORCHESTRATOR_LABEL: ORCHESTRATOR}
            return PodPolicy(labels, uid=_asked_uid(invocation)), configuration
        api = self._api(Source.of(configuration))
        pod = api.pod(*name)
        uid = _uid(pod, invocation)
        annotations = _ours(pod.metadata.annotations)
        left_open = [each for each in _POOLS.values() if each not in annotations]
        if left_open:
            of_namespace = _ours(api.namespace(name.namespace).metadata.annotations)
            annotations |= {key: of_namespace[key] for key in left_open if key in of_namespace}
        floating = floating_addresses(configuration, annotations)
        addresses = addresses_without_ipam(configuration, annotations)
        sources = source_prefixes(annotations)
        policy = PodPolicy(endpoint_labels(pod), endpoint_profiles(pod), floating, addresses, sources, uid=uid)
        return policy, with_annotations(configuration, annotations)

    def with_pod_cidrs(self, configuration: NetworkConfiguration, stdin: bytes, host: str) -> bytes:
        """The configuration for another IPAM plugin, with the node's own ranges where it says ``usePodCidr``. Raises as
        :meth:`policy_and_wishes`."""
        node = configuration.kubernetes.node_name or host
        found = self._api(Source.of(configuration, reason="is required with usePodCidr")).node(node)
        return with_pod_cidrs(stdin, found.pod_cidrs, node=node)

    def check(self, configuration: NetworkConfiguration, *, needs_node: bool) -> None:
        """Whether the API that an ADD would ask says where it is, in files that can be used, and answers within two
        seconds.

        :raises InvalidRequest: naming the key; :raises NotAvailable: it does not answer, or refuses us.
        """
        needs_pods = configuration.policy.type in {"k8s", annotated_policy.TYPE} and configuration.orchestrator != "cni"
        if not needs_pods and not needs_node:
            return
        try:
            self._api(Source.of(configuration)).check()
        except (NotReady, PolicySourceFailed) as error:
            raise NotAvailable(str(error)) from error

    def _annotated(self, configuration: NetworkConfiguration, invocation: Invocation, name: PodName) -> PodPolicy:
        """Other annotations mean nothing with this policy. Pods of the cluster's own start without the API."""
        uid = _asked_uid(invocation)
        if name.namespace == annotated_policy.OPEN_NAMESPACE:
            labels = {NAMESPACE_LABEL: name.namespace, ORCHESTRATOR_LABEL: ORCHESTRATOR}
            profile = annotated_policy.open_pod_profile(*name, invocation.interface)
        else:
            pod = self._api(Source.of(configuration)).pod(*name)
            uid = _uid(pod, invocation)
            labels, profile = endpoint_labels(pod), annotated_policy.pod_profile(pod, invocation.interface)
        return PodPolicy(labels, (profile.name,), profile=profile, uid=uid)

    def close(self) -> None:
        with self._lock:
            for api in self._apis.values():
                api.close()

    def _api(self, source: Source) -> KubernetesApi:
        with self._lock:
            if len(self._apis) >= _MAX_SOURCES:
                self._apis.clear()
            return self._apis.setdefault(source, KubernetesApi(source))


def with_annotations(configuration: NetworkConfiguration, annotations: Mapping[str, str]) -> NetworkConfiguration:
    """``annotations`` without their prefix. What the runtime or the ``args`` ask for goes before.

    :raises InvalidRequest: naming the annotation.
    """
    if "hwAddr" in annotations and not configuration.runtime_config.mac:
        parse_unicast_mac(annotations["hwAddr"], field=f"{PREFIX}hwAddr")
        runtime = msgspec.structs.replace(configuration.runtime_config, mac=annotations["hwAddr"])
        configuration = msgspec.structs.replace(configuration, runtime_config=runtime)
    if "ipAddrs" in annotations and not configuration.runtime_config.ips and not configuration.args.cni.ips:
        addresses = _list(annotations, "ipAddrs")
        if configuration.ipam.type != IPAM_PROGRAM:
            raise InvalidRequest(f"{PREFIX}ipAddrs", f"needs ipam.type {IPAM_PROGRAM}")
        conventions = msgspec.structs.replace(configuration.args.cni, ips=_one_of_each(addresses, "ipAddrs"))
        args = msgspec.structs.replace(configuration.args, cni=conventions)
        configuration = msgspec.structs.replace(configuration, args=args)
    return msgspec.structs.replace(configuration, ipam=_with_pools(configuration, annotations))


def floating_addresses(configuration: NetworkConfiguration, annotations: Mapping[str, str]) -> tuple[IPAddress, ...]:
    """:raises InvalidRequest: naming the annotation; also when the configuration does not allow them."""
    if not annotations.get(_FLOATING):
        return ()
    if not configuration.feature_control.floating_ips:
        reason = "feature_control.floating_ips is not true in the network configuration"
        raise InvalidRequest(FLOATING_ANNOTATION, reason)
    return tuple(parse_address(text, field=FLOATING_ANNOTATION) for text in _list(annotations, _FLOATING))


def addresses_without_ipam(
    configuration: NetworkConfiguration, annotations: Mapping[str, str]
) -> tuple[IPAddress, ...]:
    """Addresses that somebody else looks after, IPv4 first. What the runtime or the ``args`` ask for is asked of IPAM,
    so it cannot go before these.

    :raises InvalidRequest: naming the annotation; also when the configuration does not allow them.
    """
    if not annotations.get(_NO_IPAM):
        return ()
    field = PREFIX + _NO_IPAM
    if not configuration.feature_control.ip_addrs_no_ipam:
        raise InvalidRequest(field, "feature_control.ip_addrs_no_ipam is not true in the network configuration")
    if annotations.get("ipAddrs"):
        raise InvalidRequest(field, f"does not go with {PREFIX}ipAddrs: give one of them")
    if configuration.ipam.type != IPAM_PROGRAM:
        raise InvalidRequest(field, f"needs ipam.type {IPAM_PROGRAM}")
    if configuration.runtime_config.ips or configuration.args.cni.ips:
        raise InvalidRequest(field, "does not go with addresses in runtimeConfig.ips or args.cni.ips")
    texts = _one_of_each(_list(annotations, _NO_IPAM), _NO_IPAM)
    addresses = [parse_address(text.partition("/")[0], field=field) for text in texts]
    return tuple(sorted(addresses, key=lambda address: int(address.version)))


def source_prefixes(annotations: Mapping[str, str]) -> tuple[IPNetwork, ...]:
    """Whether the pod may use them is for its node to say. Raises ``InvalidRequest`` naming the annotation."""
    if not annotations.get(_SOURCES):
        return ()
    return tuple(parse_network(text, field=PREFIX + _SOURCES) for text in _list(annotations, _SOURCES))


def _with_pools(configuration: NetworkConfiguration, annotations: Mapping[str, str]) -> Any:
    ipam = configuration.ipam
    changes: dict[str, Any] = {}
    for version, key in _POOLS.items():
        if key in annotations:
            texts = _list(annotations, key)
            for text in texts:
                parse_pool(text, field=PREFIX + key, version=version)
            changes[f"ipv{version}_pools"] = texts
    if "ipFamilies" in annotations:
        families = _list(annotations, "ipFamilies")
        if not set(families) <= {"IPv4", "IPv6"}:
            raise InvalidRequest(f"{PREFIX}ipFamilies", f"{', '.join(families)}: not IPv4 or IPv6")
        changes |= {"assign_ipv4": "IPv4" in families, "assign_ipv6": "IPv6" in families}
    return msgspec.structs.replace(ipam, **changes)


def _one_of_each(texts: tuple[str, ...], key: str) -> tuple[str, ...]:
    """Checked here, where the name of the annotation is known."""
    versions = [parse_network(text, field=PREFIX + key).version for text in texts]
    if len(set(versions)) < len(versions):
        raise InvalidRequest(PREFIX + key, f"{', '.join(texts)}: only one address of a family can be requested")
    return texts


def _list(annotations: Mapping[str, str], key: str) -> tuple[str, ...]:
    try:
        found = msgspec.json.decode(annotations[key], type=tuple[str, ...])
    except msgspec.DecodeError as error:
        raise InvalidRequest(PREFIX + key, f"is not a JSON list of texts: {error}") from error
    if not found:
        raise InvalidRequest(PREFIX + key, "the list is empty")
    return found


def _ours(annotations: Mapping[str, str] | None) -> dict[str, str]:
    """An empty one says nothing, as in the reference plugin."""
    found = (annotations or {}).items()
    return {key.removeprefix(PREFIX): text for key, text in found if text and key.startswith(PREFIX)}


def _asked_uid(invocation: Invocation) -> str:
    """By which the runtime knows the pod."""
    return invocation.arguments.get("K8S_POD_UID", "")


def _uid(pod: Pod, invocation: Invocation) -> str:
    """Of the pod whose labels these are. Empty where the runtime does not say it, and the API's may change while the
    pod runs on.

    :raises PolicySourceFailed: a pod of the same name was made since, which has labels of its own.
    """
    asked = _asked_uid(invocation)
    if asked and not pod.is_known_as(asked):
        raise PolicySourceFailed(f"pod {pod.metadata.namespace}/{pod.metadata.name} is another one by now")
    return asked or ("" if pod.config_hash else pod.metadata.uid)
