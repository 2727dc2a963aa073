"""Which configurations the network plugin serves: what it would have to ignore, it refuses.

A wrong value is code 7. A legal one that asks for something not built yet is code 2, with key and value in the
details, so that nobody believes a policy is in force that is not. Source: cni specification 3.
"""

from __future__ import annotations

from collections.abc import Iterator

from calico_cni import annotated_policy
from calico_cni.environment import NAME
from calico_cni.errors import UnsupportedField
from calico_cni.interface_mode import AUTO, PER_ATTACHMENT, SINGLE
from calico_cni.programs import IPAM_PROGRAM
from calico_cni.readiness import check_gates
from calico_cni.routes import container_routes
from calico_cni.wire import POLICY_ONLY, NetworkConfiguration
from calico_core.errors import InvalidRequest

_MAX_MTU_BYTES = 65535
_MAX_QUEUES = 4096  # the kernel's limit

_USE_FALLBACK = "auto uses the node where it runs and does without where it does not"
_USE_NODE = "the node makes the interfaces itself: leave the key out"
_USE_POOLS = "encapsulation is a matter of pools (calicoctl pool add --vxlan): leave the key out"

# key, value, words that are served, words that are legal but not served with what to write in their place
_Choice = tuple[str, str, tuple[str, ...], dict[str, str]]


def check_supported(configuration: NetworkConfiguration, *, host: str) -> None:
    """For every command that is about an ADD, whether it shows the result of a plugin before us or not.

    :raises InvalidRequest: a value that is wrong; :raises UnsupportedField: one that is not served.
    """
    if not is_behind(configuration):
        _check_ipam(configuration)
    for key, value, served, unserved in _choices(configuration):
        if value in unserved:
            raise UnsupportedField(key, value, f"{value!r} is not served: {unserved[value]}")
        if value not in served:
            raise InvalidRequest(key, f"{value!r} is not one of {_words((*served, *unserved))}")
    _check_numbers(configuration)
    check_gates(configuration.readiness_gates)
    if configuration.feature_control.ip_addrs_no_ipam and not asks_for_pods(configuration):
        raise InvalidRequest("feature_control.ip_addrs_no_ipam", "addresses without IPAM exist under Kubernetes only")
    _check_single(configuration)
    wanted = (configuration.nodename or configuration.hostname).strip()
    if wanted and wanted != host:
        key = "nodename" if configuration.nodename else "hostname"
        raise InvalidRequest(key, f"{wanted!r} is not the name of the node that runs here, {host!r}")


def check_add(configuration: NetworkConfiguration) -> None:
    """An ADD, and nothing else, shows whether there is a plugin before us.

    :raises InvalidRequest: there is none, and nothing says where the address comes from.
    """
    if configuration.has_prev_result:
        return
    if configuration.mode == POLICY_ONLY:
        raise InvalidRequest("mode", f"{POLICY_ONLY} works behind another plugin: there is no prevResult")
    if not configuration.ipam.type:
        raise InvalidRequest("ipam.type", f"is required: {IPAM_PROGRAM}, host-local or another plugin in CNI_PATH")


def is_behind(configuration: NetworkConfiguration) -> bool:
    """Whether interface and addresses are those of a plugin before us, as far as the call shows it."""
    return configuration.has_prev_result or configuration.mode == POLICY_ONLY or not configuration.ipam.type


def is_foreign(configuration: NetworkConfiguration) -> bool:
    """Whether we have another plugin assign the addresses."""
    return not is_behind(configuration) and configuration.ipam.type != IPAM_PROGRAM


def asks_for_pods(configuration: NetworkConfiguration) -> bool:
    """Whether pods are looked up, and their annotations read."""
    return configuration.policy.type == "k8s" and configuration.orchestrator != "cni"


def _check_ipam(configuration: NetworkConfiguration) -> None:
    if not NAME.fullmatch(configuration.ipam.type):
        raise InvalidRequest("ipam.type", f"{configuration.ipam.type!r} is not the name of a file in CNI_PATH")
    container_routes(configuration)


def _check_single(configuration: NetworkConfiguration) -> None:
    """The endpoint outlives the network that asked for its addresses, so these must be ours to keep."""
    if configuration.interface_mode != SINGLE:
        return
    if is_behind(configuration):
        raise InvalidRequest("interface_mode", f"{SINGLE} is for who makes the interface: with prevResult one is there")
    if configuration.ipam.type != IPAM_PROGRAM:
        taken = f"{configuration.ipam.type} takes the addresses back with the first network that goes"
        raise InvalidRequest("interface_mode", f"{SINGLE} needs ipam.type {IPAM_PROGRAM}: {taken}")


def _choices(configuration: NetworkConfiguration) -> Iterator[_Choice]:
    policy = configuration.policy.type
    yield "policy.type", policy, ("", "k8s", annotated_policy.TYPE), {}
    yield "orchestrator", configuration.orchestrator, ("auto", "cni", "k8s"), {}
    yield "interface_mode", configuration.interface_mode, (AUTO, PER_ATTACHMENT, SINGLE), {}
    yield "fallback", configuration.fallback, ("auto", "never"), {"always": _USE_FALLBACK}
    yield "device_type", configuration.device_type, ("veth", "netkit", ""), {}
    yield "dataplane_options.type", configuration.dataplane_options.type, ("",), {"grpc": _USE_NODE}
    yield "mode", configuration.mode, ("", POLICY_ONLY), {"vxlan": _USE_POOLS}
    yield "default_route", str(configuration.default_route).lower(), ("auto", "true", "false"), {}


def _check_numbers(configuration: NetworkConfiguration) -> None:
    if not 0 <= configuration.mtu <= _MAX_MTU_BYTES:
        raise InvalidRequest("mtu", f"{configuration.mtu} is not between 0 (the node's own) and {_MAX_MTU_BYTES}")
    if configuration.policy_setup_timeout_seconds < 0:
        raise InvalidRequest("policy_setup_timeout_seconds", "must not be negative")
    if not 1 <= configuration.num_queues <= _MAX_QUEUES:
        raise InvalidRequest("num_queues", f"{configuration.num_queues} is not between 1 and {_MAX_QUEUES}")


def _words(words: tuple[str, ...]) -> str:
    return ", ".join(word or "(none)" for word in words)
