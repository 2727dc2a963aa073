"""Network configuration: what a runtime writes to standard input, decoded or refused by field name.

Every key of the reference plugin is declared, also those that mean nothing to a resident node (how to reach the
datastore, where to log): files written for it work unchanged, and a wrong type is still found. Booleans and numbers
may be written as strings. Keys nobody knows are accepted and reported. Source: cni specification 2.3, 2.7 and 3.
"""

from __future__ import annotations

import functools
import re
from typing import TypeVar

import msgspec

from calico_cni.environment import NAME
from calico_cni.errors import Undecodable
from calico_cni.programs import IPAM_PROGRAM
from calico_cni.versions import parse_version
from calico_core.errors import InvalidRequest
from calico_core.model.endpoints import Dns

NO_RESULT = msgspec.Raw(b"")
POLICY_ONLY = "policy-only"
"""The ``mode`` in which the interface is the one of a plugin before us."""

_VERBATIM = frozenset({"prevResult", "cni.dev/valid-attachments", "cni.dev/attachments"})
_AT = re.compile(r" - at `(?P<path>[^`]*)`$")
C = TypeVar("C", bound="MinimalConfiguration")
StructT = TypeVar("StructT", bound=msgspec.Struct)


class _Wire(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object of the protocol."""


class Label(_Wire, frozen=True):
    key: str
    value: str


class CniConventions(_Wire, frozen=True):
    ips: tuple[str, ...] | None = None
    labels: tuple[Label, ...] | None = None


class MesosLabels(_Wire, frozen=True):
    labels: tuple[Label, ...] | None = None


class MesosNetworkInfo(_Wire, frozen=True):
    labels: MesosLabels | None = None


class MesosArguments(_Wire, frozen=True):
    network_info: MesosNetworkInfo | None = None


class Arguments(_Wire, frozen=True, rename={"mesos": "org.apache.mesos"}):
    """The key ``args``."""

    cni: CniConventions = CniConventions()
    mesos: MesosArguments | None = None


class RuntimeDns(_Wire, frozen=True):
    """The ``dns`` capability spells its keys in its own way."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class RuntimeConfig(_Wire, frozen=True):
    """Capabilities we honour; those of chained plugins pass by."""

    ips: tuple[str, ...] | None = None
    mac: str = ""
    dns: RuntimeDns | None = None


class IpamConfiguration(_Wire, frozen=True):
    type: str = ""
    assign_ipv4: bool = True
    assign_ipv6: bool = False
    ipv4_pools: tuple[str, ...] | None = None
    ipv6_pools: tuple[str, ...] | None = None
    # of delegates
    subnet: str = ""
    ranges: msgspec.Raw = msgspec.Raw(b"")
    routes: msgspec.Raw = msgspec.Raw(b"")


class PolicyConfiguration(_Wire, frozen=True):
    type: str = ""
    k8s_api_root: str = ""
    k8s_auth_token: str = ""
    k8s_client_certificate: str = ""
    k8s_client_key: str = ""
    k8s_certificate_authority: str = ""


class KubernetesConfiguration(_Wire, frozen=True):
    kubeconfig: str = ""
    k8s_api_root: str = ""
    node_name: str = ""


class ContainerSettings(_Wire, frozen=True):
    allow_ip_forwarding: bool = False


class FeatureControl(_Wire, frozen=True):
    ip_addrs_no_ipam: bool = False
    floating_ips: bool = False


class DataplaneOptions(_Wire, frozen=True):
    type: str = ""
    socket: str = ""


class MinimalConfiguration(_Wire, frozen=True):
    """All that DEL looks at, so that nothing else can keep a container from being detached. ``version`` is a supported
    one, never empty after parsing."""

    name: str = ""
    version: str = msgspec.field(default="", name="cniVersion")


class CommonConfiguration(MinimalConfiguration, frozen=True):
    """What the IPAM program looks at, whoever's plugin the rest is for."""

    ipam: IpamConfiguration = IpamConfiguration()
    args: Arguments = Arguments()
    runtime_config: RuntimeConfig = msgspec.field(default=RuntimeConfig(), name="runtimeConfig")
    prev_result: msgspec.Raw = msgspec.field(default=NO_RESULT, name="prevResult")
    valid_attachments: msgspec.Raw = msgspec.field(default=NO_RESULT, name="cni.dev/valid-attachments")
    attachments: msgspec.Raw = msgspec.field(default=NO_RESULT, name="cni.dev/attachments")

    @property
    def has_prev_result(self) -> bool:
        return bytes(self.prev_result) not in {b"", b"null"}


class NetworkConfiguration(CommonConfiguration, frozen=True):
    """All keys of the network plugin."""

    type: str = ""
    dns: Dns = Dns()
    mtu: int = 0
    hostname: str = ""
    nodename: str = ""
    num_queues: int = 1
    device_type: str = "veth"
    require_mtu_file: bool = False
    policy: PolicyConfiguration = PolicyConfiguration()
    kubernetes: KubernetesConfiguration = KubernetesConfiguration()
    container_settings: ContainerSettings = ContainerSettings()
    feature_control: FeatureControl = FeatureControl()
    dataplane_options: DataplaneOptions = DataplaneOptions()
    policy_setup_timeout_seconds: float = 0.0
    readiness_gates: tuple[str, ...] = ()
    include_default_routes: bool = False
    mode: str = ""
    # ours
    orchestrator: str = "auto"
    interface_mode: str = "auto"
    fallback: str = "auto"
    default_route: bool | str = "auto"
    trace: bool | int | str = False  # read where calls that cannot be parsed are answered too
    # settings of the plugin process of the reference system, which the node has its own for
    etcd_authority: str = ""
    etcd_endpoints: str = ""
    etcd_scheme: str = ""
    etcd_key_file: str = ""
    etcd_cert_file: str = ""
    etcd_ca_cert_file: str = ""
    etcd_discovery_srv: str = ""
    datastore_type: str = ""
    datastore: str = ""
    nodename_file: str = ""
    nodename_file_optional: bool = False
    log_level: str = ""
    log_level_stderr: str = ""
    log_file_path: str = ""
    log_file_max_size: int = 0
    log_file_max_age: int = 0
    log_file_max_count: int = 0
    endpoint_status_dir: str = ""
    ipam_lock_file: str = ""
    qps: float = 0.0
    burst: int = 0
    calico_api_group: str = ""
    vxlan_mac_prefix: str = ""
    vxlan_vni: int = 0
    socket: str = ""
    # of the protocol, for the runtime
    capabilities: dict[str, bool] = {}
    cni_versions: tuple[str, ...] = msgspec.field(default=(), name="cniVersions")
    disable_check: bool = msgspec.field(default=False, name="disableCheck")
    disable_gc: bool = msgspec.field(default=False, name="disableGC")


_NESTED: dict[str, type[msgspec.Struct]] = {
    "policy": PolicyConfiguration,
    "kubernetes": KubernetesConfiguration,
    "container_settings": ContainerSettings,
    "feature_control": FeatureControl,
    "ipam": IpamConfiguration,
}


def read_version(stdin: bytes) -> object:
    """``cniVersion`` of an input that may be unusable otherwise; None: it names none. What cannot be read at all gives
    ``False``, which is no version."""
    try:
        return decode(stdin, _VersionOnly).version
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def ipam_type(stdin: bytes) -> str:
    """Whose addresses they are, for detaching; empty when the configuration does not say it in a usable way."""
    try:
        return decode(stdin, _IpamOnly).ipam.type
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def is_policy_only(stdin: bytes) -> bool:
    """Whether the interface and its addresses are another plugin's, for detaching; not so when the configuration does
    not say it in a usable way."""
    try:
        return decode(stdin, _ModeOnly).mode == POLICY_ONLY
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def is_of_kubernetes(stdin: bytes) -> bool:
    """Whether endpoints of the network are named after their pods, where the call names one. Runtimes other than a
    kubelet name pods too, so this must be asked for."""
    try:
        found = decode(stdin, _OrchestratorOnly)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    is_asked = found.policy.type in {"k8s", "k8s-annotations"}
    return found.orchestrator == "k8s" or (found.orchestrator == "auto" and is_asked)


def decode(stdin: bytes, kind: type[StructT], *, strict: bool = True) -> StructT:
    """A key that is ``null`` is as if it were not there: so it is for runtimes and plugins in Go.

    :raises msgspec.DecodeError: or ``UnicodeDecodeError``.
    """
    try:
        return msgspec.json.decode(stdin, type=kind, strict=strict)
    except msgspec.ValidationError:
        if b"null" not in stdin:
            raise
    plain = msgspec.json.encode(_without_nulls(msgspec.json.decode(stdin)))
    return msgspec.json.decode(plain, type=kind, strict=strict)


def parse_configuration(stdin: bytes, kind: type[C]) -> C:
    """:raises Undecodable: not a JSON object, or its version is no version.
    :raises IncompatibleVersion: a version that we do not speak.
    :raises InvalidRequest: the name, or a key of the wrong type; ``field`` is its path.
    """
    try:
        keys = msgspec.json.decode(stdin, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise Undecodable("configuration", "is not a JSON object") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Undecodable("configuration", f"is not JSON: {error}" if stdin else "standard input is empty") from error
    version = parse_version(msgspec.json.decode(keys.get("cniVersion", b'""')))
    configuration = _decode(stdin, kind)
    if not NAME.fullmatch(configuration.name):
        reason = "must begin with a letter or digit and hold only letters, digits, '_', '.' and '-'"
        raise InvalidRequest("name", f"{configuration.name!r} {reason}" if configuration.name else "is required")
    return msgspec.structs.replace(configuration, version=version)


def unknown_keys(stdin: bytes) -> tuple[str, ...]:
    """Names in a parsed network configuration that nobody declared. They are legal, and may be what somebody meant to
    write otherwise. Those in the ``ipam`` of another plugin are its own."""
    keys = msgspec.json.decode(stdin, type=dict[str, msgspec.Raw])
    found = sorted(set(keys) - _names(NetworkConfiguration))
    for key, kind in _NESTED.items():
        inside = msgspec.json.decode(keys[key]) if key in keys else None
        if inside and (key != "ipam" or inside.get("type") == IPAM_PROGRAM):
            found += sorted(f"{key}.{each}" for each in set(inside) - _names(kind))
    return tuple(found)


class _VersionOnly(_Wire, frozen=True):
    version: object = msgspec.field(default=None, name="cniVersion")


class _IpamType(_Wire, frozen=True):
    type: str = ""


class _IpamOnly(_Wire, frozen=True):
    ipam: _IpamType = _IpamType()


class _ModeOnly(_Wire, frozen=True):
    mode: str = ""


class _PolicyType(_Wire, frozen=True):
    type: str = ""


class _OrchestratorOnly(_Wire, frozen=True):
    orchestrator: str = "auto"
    policy: _PolicyType = _PolicyType()


def _decode(stdin: bytes, kind: type[C]) -> C:
    try:
        return decode(stdin, kind, strict=False)
    except msgspec.ValidationError as error:
        message = str(error)
        match = _AT.search(message)
        path, reason = (match["path"], message[: match.start()]) if match else ("$", message)
        raise InvalidRequest(path.removeprefix("$.") or "configuration", reason) from error


def _without_nulls(value: object) -> object:
    """What goes on as it came, or has a null that means something, is not looked into. An element of a list that is
    null stays: it is no key."""
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    if not isinstance(value, dict):
        return value
    whole = {key: each if key in _VERBATIM else _without_nulls(each) for key, each in value.items()}
    return {key: each for key, each in whole.items() if each is not None or key in _VERBATIM}


@functools.cache  # looking the fields up evaluates every annotation: more than all the rest of a call
def _names(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))
