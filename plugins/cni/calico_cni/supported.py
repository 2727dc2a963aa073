"""Which configurations the network plugin serves: what it would have to ignore, it refuses.

A wrong value is code 7. A legal one that asks for something not built yet is code 2, with key and value in the
details, so that nobody believes a policy is in force that is not. Source: cni specification 3.
"""

from __future__ import annotations

from collections.abc import Iterator

from calico_cni.environment import NAME
from calico_cni.errors import UnsupportedField
from calico_cni.programs import IPAM_PROGRAM
from calico_cni.readiness import check_gates
from calico_cni.routes import container_routes
from calico_cni.wire import NetworkConfiguration
from calico_core.errors import InvalidRequest

_MAX_MTU_BYTES = 65535

# key → words that are served, words that are legal but not served
_Choice = tuple[str, str, tuple[str, ...], tuple[str, ...]]


def check_supported(configuration: NetworkConfiguration, *, host: str) -> None:
    """:raises InvalidRequest: a value that is wrong; :raises UnsupportedField: one that is not served."""
    _check_ipam(configuration)
    for key, value, served, unserved in _choices(configuration):
        if value in unserved:
            raise UnsupportedField(key, value, f"{value!r} is not supported; supported: {_words(served)}")
        if value not in served:
            raise InvalidRequest(key, f"{value!r} is not one of {_words(served + unserved)}")
    _check_numbers(configuration)
    if configuration.require_mtu_file:
        raise UnsupportedField("require_mtu_file", "true", "is not supported")
    check_gates(configuration.readiness_gates)
    if configuration.feature_control.ip_addrs_no_ipam:
        raise InvalidRequest("feature_control.ip_addrs_no_ipam", "addresses without IPAM exist under Kubernetes only")
    if configuration.mode == "policy-only" and not configuration.has_prev_result:
        raise InvalidRequest("mode", "policy-only works behind another plugin: there is no prevResult")
    wanted = (configuration.nodename or configuration.hostname).strip()
    if wanted and wanted != host:
        key = "nodename" if configuration.nodename else "hostname"
        raise InvalidRequest(key, f"{wanted!r} is not the name of the node that runs here, {host!r}")


def _check_ipam(configuration: NetworkConfiguration) -> None:
    if configuration.has_prev_result:
        return  # the addresses are there already
    if not configuration.ipam.type:
        raise InvalidRequest("ipam.type", f"is required: {IPAM_PROGRAM}, host-local or another plugin in CNI_PATH")
    if not NAME.fullmatch(configuration.ipam.type):
        raise InvalidRequest("ipam.type", f"{configuration.ipam.type!r} is not the name of a file in CNI_PATH")
    container_routes(configuration)


def _choices(configuration: NetworkConfiguration) -> Iterator[_Choice]:
    policy = configuration.policy.type
    yield "policy.type", policy, ("", "k8s"), ("k8s-annotations",)
    yield "orchestrator", configuration.orchestrator, ("auto", "cni", "k8s"), ()
    yield "interface_mode", configuration.interface_mode, ("auto", "per-attachment"), ("single",)
    yield "fallback", configuration.fallback, ("auto", "never"), ("always",)
    yield "device_type", configuration.device_type, ("veth", ""), ("netkit",)
    yield "dataplane_options.type", configuration.dataplane_options.type, ("",), ("grpc",)
    yield "mode", configuration.mode, ("", "policy-only"), ("vxlan",)
    yield "default_route", str(configuration.default_route).lower(), ("auto", "true", "false"), ()


def _check_numbers(configuration: NetworkConfiguration) -> None:
    if not 0 <= configuration.mtu <= _MAX_MTU_BYTES:
        raise InvalidRequest("mtu", f"{configuration.mtu} is not between 0 (the node's own) and {_MAX_MTU_BYTES}")
    if configuration.policy_setup_timeout_seconds < 0:
        raise InvalidRequest("policy_setup_timeout_seconds", "must not be negative")
    if configuration.num_queues != 1:
        raise UnsupportedField("num_queues", configuration.num_queues, "only one queue is supported")


def _words(words: tuple[str, ...]) -> str:
    return ", ".join(word or "(none)" for word in words)
