"""Settings of a process: sources → one frozen :class:`Settings`, each field with its origin.

First source that has a value wins: environment, file, datastore (this host), datastore (global), default. An empty
value counts as unset. Datastore and identity settings come from environment and file only: they are needed before the
datastore. What the names are and how texts are read: ``setting_fields`` and ``setting_values``. Sources: node
specification 4, felix specification 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from calico_core.errors import CalicoError, InvalidRequest, InvalidSettings
from calico_core.setting_fields import FIELDS, Field

IN_CLUSTER = "in-cluster"
"""``kubeconfig``, in place of a path: the service account of the pod that this process runs in."""
_TTL_INTERVALS = 2.5


class Shadowed(NamedTuple):
    """A value that another source's came before."""

    origin: str
    text: str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting with its unit in the name. ``origins`` maps field to source, ``shadowed`` to what other sources
    say; ``notes`` are sentences about values that were passed over."""

    # identity and places
    node_name: str = ""
    datastore: str = "sqlite:///var/lib/calico/calico.db"
    socket: str = "/run/calico/node.sock"
    run_directory: str = "/run/calico"
    state_directory: str = "/var/lib/calico"
    # what runs
    dataplane_driver: str = "auto"
    routing_driver: str = "bird"
    integrations: tuple[str, ...] = ()
    # node
    ip: str = "autodetect"
    ip6: str = "none"
    as_number: str = ""
    no_default_pools: bool = False
    pool_v4: str = "192.168.0.0/16"
    pool_v6: str = "fd80:24e2:f998:72d6::/64"
    pool_v4_nat_outgoing: bool = False
    # datastore connection
    etcd_ca_file: str = ""
    etcd_cert_file: str = ""
    etcd_key_file: str = ""
    etcd_username: str = ""
    etcd_password: str = ""
    # agent
    interface_prefix: str = "cali"
    endpoint_to_host: str = "RETURN"
    ipv6_support: str = "auto"
    deny_action: Literal["DROP", "REJECT"] = "DROP"
    drop_override: Literal["DROP", "ACCEPT", "LOG-and-DROP", "LOG-and-ACCEPT"] = "DROP"
    failsafe_inbound: str = "tcp:22,udp:68,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667"
    failsafe_outbound: str = "udp:53,udp:67,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667"
    metadata_address: str = "none"
    metadata_port: int = 8775
    chain_insert: Literal["Insert", "Append"] = "Insert"
    allow_ipip: bool = False
    allow_vxlan: bool = False
    external_nodes: tuple[str, ...] = ()
    no_invalid_check: bool = False
    filter_allow: Literal["ACCEPT", "RETURN"] = "ACCEPT"
    mangle_allow: Literal["ACCEPT", "RETURN"] = "ACCEPT"
    route_source_v4: str = ""
    route_source_v6: str = ""
    nat_port_range: str = ""
    nat_outgoing_address: str = ""
    nat_exclusions: str = "IPPoolsOnly"
    nat_interfaces: str = ""
    max_set_size: int = 1048576
    log_prefix: str = "calico-packet"
    log_limit: str = ""
    log_burst: int = 5
    denied_group: int = 80
    mark_mask: int = 0xFF000000
    route_protocol: int = 80
    route_sync_disabled: bool = False
    ip_forwarding: str = "Enabled"
    netlink_timeout_s: float = 10.0
    excluded_interfaces: str = "kube-ipvs0"
    mtu_interfaces: str = ""
    ignore_loose_rpf: bool = False
    source_spoofing: str = "Disabled"
    floating_ips: str = "Enabled"
    refresh_interval_s: float = 60.0
    route_refresh_interval_s: float = 0.0
    link_refresh_interval_s: float = 0.0
    set_refresh_interval_s: float = 0.0
    address_poll_s: float = 10.0
    confirm_removals_after_s: float = 300.0
    established_flows: str = "cut"
    reporting_interval_s: float = 30.0
    reporting_ttl_s: float = 90.0
    endpoint_reporting: bool = True
    endpoint_reporting_delay_s: float = 1.0
    endpoint_files: str = ""
    collector_interval_s: float = 600.0
    collector_grace_s: float = 900.0
    health_enabled: bool = True
    loop_limit_s: float = 90.0
    loop_limits: tuple[tuple[str, float], ...] = ()
    health_host: str = "127.0.0.1"
    health_port: int = 9099
    metrics_enabled: bool = False
    metrics_host: str = "0.0.0.0"
    metrics_port: int = 9091
    metrics_cert_file: str = ""
    metrics_key_file: str = ""
    metrics_ca_file: str = ""
    metrics_client_auth: str = "RequireAndVerifyClientCert"
    # integrations
    libnetwork_plugin_dir: str = "/run/docker/plugins"
    libnetwork_scope: str = "global"
    docker_host: str = "unix:///var/run/docker.sock"
    mesos_strict: bool = False
    kubeconfig: str = ""
    cni_kubeconfig: str = ""
    cni_service_account: str = ""
    mtu_bytes: int = 0
    # logging
    log_level: str = "info"
    log_file: str = ""
    log_file_level: str = "info"
    log_syslog_level: str = "none"
    log_format: str = "console"
    origins: dict[str, str] = msgspec.field(default_factory=dict)
    shadowed: dict[str, tuple[Shadowed, ...]] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def interface_prefixes(self) -> tuple[str, ...]:
        """What names of workloads' interfaces begin with; new ones with the first."""
        return tuple(self.interface_prefix.split(","))

    def __repr__(self) -> str:
        """Without secrets."""
        shown = {field.name: shown_value(field.name, getattr(self, field.name)) for field in FIELDS}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Sources(NamedTuple):
    """``file`` maps names in lower case; the two configs map the datastore's CamelCase names."""

    environment: Mapping[str, str]
    file: Mapping[str, str]
    host_config: Mapping[str, str]
    global_config: Mapping[str, str]

    def candidates(self, field: Field) -> list[Shadowed]:
        """All that is said of a field, the winner first."""
        places = (
            ("environment", self.environment, field.environment),
            ("file", self.file, field.in_file),
            ("datastore host", self.host_config, field.config),
            ("datastore global", self.global_config, field.config),
        )
        return [
            Shadowed(f"{place} {name}", values[name])
            for place, values, names in places
            for name in names
            if values.get(name)
        ]


def load_settings(
    environment: Mapping[str, str],
    *,
    file: Mapping[str, str] | None = None,
    host_config: Mapping[str, str] | None = None,
    global_config: Mapping[str, str] | None = None,
) -> Settings:
    """Merge the sources. Raises ``InvalidSettings(name, origin)`` for the first unusable value."""
    sources = Sources(environment, file or {}, host_config or {}, global_config or {})
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    shadowed: dict[str, tuple[Shadowed, ...]] = {}
    notes: list[str] = []
    for field in FIELDS:
        candidates = sources.candidates(field)
        if not candidates:
            continue
        origin, text = candidates[0]
        if len(candidates) > 1:
            shadowed[field.name] = tuple(candidates[1:])
        try:
            values[field.name] = parse_setting(field, origin, text)
        except InvalidSettings as error:
            if not field.has_fallback:
                raise
            notes.append(f"{error}; the default counts")
            continue
        origins[field.name] = origin
    if "datastore" not in values:
        found = _datastore_of_etcd_names(sources)
        if found is not None:
            origins["datastore"], values["datastore"] = found
    if values.get("etcd_ca_file") == "none":
        if values.get("etcd_cert_file") or str(values.get("datastore", "")).startswith("etcd3s:"):
            right = "etcd's certificate is always checked: name a file, or leave it out for those the host trusts"
            raise InvalidSettings("etcd_ca_file", origins["etcd_ca_file"], right)
        values["etcd_ca_file"] = ""
    if bool(values.get("etcd_cert_file")) != bool(values.get("etcd_key_file")):
        given, missing = ("cert", "key") if values.get("etcd_cert_file") else ("key", "cert")
        origin = origins[f"etcd_{given}_file"]
        raise InvalidSettings(f"etcd_{given}_file", origin, f"give etcd_{missing}_file too, or neither")
    settings = Settings(**values, origins=origins, shadowed=shadowed)
    return msgspec.structs.replace(settings, notes=(*notes, *_note_of_ttl(settings)))


def report_ttl_s(settings: Settings) -> float:
    """For how long a report of liveness stands: one that would end before the next comes lasts longer."""
    interval_s, ttl_s = settings.reporting_interval_s, settings.reporting_ttl_s
    return ttl_s if ttl_s > interval_s or interval_s <= 0 else interval_s * _TTL_INTERVALS


def _note_of_ttl(settings: Settings) -> tuple[str, ...]:
    counts = report_ttl_s(settings)
    if counts == settings.reporting_ttl_s:
        return ()
    origin = settings.origins.get("reporting_ttl_s", "default")
    reason = f"{settings.reporting_ttl_s:g} is no more than reporting_interval_s, {settings.reporting_interval_s:g}"
    return (f"setting reporting_ttl_s (from {origin}): {reason}; {counts:g} counts",)


def parse_setting(field: Field, origin: str, text: str) -> Any:
    """Raises ``InvalidSettings``."""
    try:
        return field.parse(text)
    except CalicoError as error:
        reason = error.reason if isinstance(error, InvalidRequest) else str(error)
        raise InvalidSettings(field.name, origin, reason) from error


def shown_value(name: str, value: Any) -> Any:
    """Without secrets; limits as they may be written."""
    if name == "loop_limits":
        return ",".join(f"{loop}={seconds:g}s" for loop, seconds in value) if isinstance(value, tuple) else value
    return "(set)" if name.endswith("password") and value else value


def _datastore_of_etcd_names(sources: Sources) -> tuple[str, str] | None:
    """The reference system's names imply etcd when no URL is given. Origin and URL."""
    endpoints = _first(sources, "ETCD_ENDPOINTS", "EtcdEndpoints")
    if endpoints is not None:
        hosts = [endpoint.strip() for endpoint in endpoints.text.split(",") if endpoint.strip()]
        schemes = {host.partition("://")[0] for host in hosts}
        if any("://" not in host for host in hosts) or len(schemes) != 1 or not schemes <= {"http", "https"}:
            raise InvalidSettings("datastore", endpoints.origin, "give http://HOST:PORT,… with one scheme for all")
        names = ",".join(host.partition("://")[2].rstrip("/") for host in hosts)
        return endpoints.origin, f"{'etcd3s' if schemes == {'https'} else 'etcd3'}://{names}"
    authority = _first(sources, "ETCD_AUTHORITY", "EtcdAddr")
    if authority is None:
        return None
    scheme = _first(sources, "ETCD_SCHEME", "EtcdScheme") or Shadowed("default", "http")
    if scheme.text not in {"http", "https"}:
        raise InvalidSettings("datastore", scheme.origin, f"{scheme.text!r} is not http or https")
    return authority.origin, f"{'etcd3s' if scheme.text == 'https' else 'etcd3'}://{authority.text}"


def _first(sources: Sources, variable: str, name: str) -> Shadowed | None:
    field = Field("datastore", str, (variable, f"FELIX_{name.upper()}"), local_names=(name,))
    return next(iter(sources.candidates(field)), None)
