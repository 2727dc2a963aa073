"""Settings of a process: sources → one frozen :class:`Settings`, each field with its origin.

First source that has a value wins: environment, file, datastore (this host), datastore (global), default. An empty
value counts as unset. Datastore and identity settings come from environment and file only: they are needed before the
datastore. Source: node specification 4, felix specification 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from calico_core.errors import CalicoError, InvalidRequest, InvalidSettings

_TRUE = frozenset({"true", "1", "yes", "y", "t"})
_FALSE = frozenset({"false", "0", "no", "n", "f"})
_LEVEL_WORDS = {
    **dict.fromkeys(("trace", "verbose"), "debug"),
    "warn": "warning",
    **dict.fromkeys(("err", "crit", "critical", "fatal"), "error"),
}
LIVE = frozenset({"log_level"})
"""Settings that a running node follows when the datastore changes; the others need a start."""


class Field(NamedTuple):
    """``environment``: variable names, first wins. ``config``: name of the key in the datastore's config trees."""

    name: str
    default: Any
    parse: Callable[[str], Any]
    environment: tuple[str, ...] = ()
    config: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting with its unit in the name. ``origins`` maps field to source."""

    # identity and places
    node_name: str = ""
    datastore: str = "sqlite:///var/lib/calico/calico.db"
    socket: str = "/run/calico/node.sock"
    run_directory: str = "/run/calico"
    state_directory: str = "/var/lib/calico"
    # what runs
    dataplane_driver: str = "nftables"
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
    refresh_interval_s: float = 60.0
    confirm_removals_after_s: float = 300.0
    established_flows: str = "cut"
    reporting_interval_s: float = 30.0
    reporting_ttl_s: float = 90.0
    endpoint_reporting: bool = True
    collector_interval_s: float = 600.0
    collector_grace_s: float = 900.0
    health_enabled: bool = True
    health_host: str = "127.0.0.1"
    health_port: int = 9099
    metrics_enabled: bool = False
    metrics_host: str = "0.0.0.0"
    metrics_port: int = 9091
    # integrations
    libnetwork_plugin_dir: str = "/run/docker/plugins"
    libnetwork_scope: str = "global"
    docker_host: str = "unix:///var/run/docker.sock"
    mesos_strict: bool = False
    kubeconfig: str = ""
    mtu_bytes: int = 0
    # logging
    log_level: str = "info"
    log_format: str = "console"
    origins: dict[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        """Without secrets."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name != "origins"}
        if shown["etcd_password"]:
            shown["etcd_password"] = "(set)"
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def load_settings(
    environment: Mapping[str, str],
    *,
    file: Mapping[str, str] | None = None,
    host_config: Mapping[str, str] | None = None,
    global_config: Mapping[str, str] | None = None,
) -> Settings:
    """Merge the sources. ``file`` maps lower-case names; the two configs map the datastore's CamelCase names.
    Raises ``InvalidSettings(name, origin)`` for the first unusable value."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for field in FIELDS:
        found = _find(field, environment, file or {}, host_config or {}, global_config or {})
        if found is None:
            continue
        text, origin = found
        try:
            values[field.name] = field.parse(text)
        except CalicoError as error:
            reason = error.reason if isinstance(error, InvalidRequest) else str(error)
            raise InvalidSettings(field.name, origin, reason) from error
        origins[field.name] = origin
    _datastore_from_etcd_names(environment, values, origins)
    return Settings(**values, origins=origins)


def _find(
    field: Field,
    environment: Mapping[str, str],
    file: Mapping[str, str],
    host_config: Mapping[str, str],
    global_config: Mapping[str, str],
) -> tuple[str, str] | None:
    for variable in field.environment:
        if environment.get(variable):
            return environment[variable], f"environment {variable}"
    for name in (field.name, field.config.lower()):
        if name and file.get(name):
            return file[name], f"file {name}"
    if field.config and host_config.get(field.config):
        return host_config[field.config], f"datastore host {field.config}"
    if field.config and global_config.get(field.config):
        return global_config[field.config], f"datastore global {field.config}"
    return None


def _datastore_from_etcd_names(environment: Mapping[str, str], values: dict[str, Any], origins: dict[str, str]) -> None:
    """The reference system's names imply etcd when no URL is given."""
    if "datastore" in values:
        return
    endpoints = environment.get("ETCD_ENDPOINTS", "")
    authority = environment.get("ETCD_AUTHORITY", "")
    if endpoints:
        hosts = [endpoint.strip() for endpoint in endpoints.split(",") if endpoint.strip()]
        schemes = {host.partition("://")[0] for host in hosts}
        if any("://" not in host for host in hosts) or len(schemes) != 1 or not schemes <= {"http", "https"}:
            raise InvalidSettings(
                "datastore", "environment ETCD_ENDPOINTS", "give http://HOST:PORT,… with one scheme for all"
            )
        is_tls = schemes == {"https"}
        values["datastore"] = ("etcd3s://" if is_tls else "etcd3://") + ",".join(
            host.partition("://")[2].rstrip("/") for host in hosts
        )
        origins["datastore"] = "environment ETCD_ENDPOINTS"
    elif authority:
        scheme = environment.get("ETCD_SCHEME") or "http"
        if scheme not in {"http", "https"}:
            raise InvalidSettings("datastore", "environment ETCD_SCHEME", f"{scheme!r} is not http or https")
        values["datastore"] = f"{'etcd3s' if scheme == 'https' else 'etcd3'}://{authority}"
        origins["datastore"] = "environment ETCD_AUTHORITY"


# --- parsers -----------------------------------------------------------------------------------------------------


def _text(value: str) -> str:
    return value.strip()


def _boolean(value: str) -> bool:
    lowered = value.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise InvalidRequest("value", f"{value!r} is not true or false")


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(int(value, 0)) if value.strip().lower().startswith("0x") else float(value)
        except ValueError:
            raise InvalidRequest("value", f"{value!r} is not a number") from None
        if not low <= number <= high:
            raise InvalidRequest("value", f"{value} is not between {low:g} and {high:g}")
        return number

    return parse


def _integer(low: int, high: int) -> Callable[[str], int]:
    number = _number(low, high)

    def parse(value: str) -> int:
        found = number(value)
        if found != int(found):
            raise InvalidRequest("value", f"{value!r} is not a whole number")
        return int(found)

    return parse


def _choice(*choices: str, upper: bool = False) -> Callable[[str], str]:
    def parse(value: str) -> str:
        cleaned = value.strip().upper() if upper else value.strip().lower()
        if cleaned not in choices:
            raise InvalidRequest("value", f"{value!r} is not one of {', '.join(choices)}")
        return cleaned

    return parse


def _log_level(value: str) -> str:
    """The reference system's words too, in any case."""
    cleaned = value.strip().lower()
    return _LEVEL_WORDS.get(cleaned) or _choice("debug", "info", "warning", "error", "none")(cleaned)


def _name(value: str) -> str:
    from calico_core.model.ids import check_name

    return check_name(value.strip(), field="value")


def _interface_prefix(value: str) -> str:
    from calico_core.model.ids import check_interface

    return check_interface(value.strip(), field="value")


def _url(value: str) -> str:
    scheme, separator, rest = value.strip().partition("://")
    if not (scheme and separator and rest):
        raise InvalidRequest("value", f"{value!r} is not a URL such as etcd3://HOST:2379 or sqlite:///PATH")
    return value.strip()


def _path(value: str) -> str:
    if not value.strip().startswith("/"):
        raise InvalidRequest("value", f"{value!r} is not an absolute path")
    return value.strip()


def _own_address(version: int) -> Callable[[str], str]:
    """``autodetect``, ``none`` or an address, of which a prefix length is dropped."""

    def parse(value: str) -> str:
        from calico_core.model.addresses import parse_network

        cleaned = value.strip().lower()
        if cleaned in {"autodetect", "none"}:
            return cleaned
        try:
            parse_network(cleaned, version=version)
        except InvalidRequest:
            wanted = f"an IPv{version} address, 'autodetect' or 'none'"
            raise InvalidRequest("value", f"{value!r} is not {wanted}") from None
        return cleaned.partition("/")[0]

    return parse


def _pool(version: int) -> Callable[[str], str]:
    """A CIDR that holds a block at least, or ``none``."""

    def parse(value: str) -> str:
        from calico_core.model.addresses import parse_network
        from calico_core.model.pools import BLOCK_PREFIX

        cleaned = value.strip().lower()
        if cleaned == "none":
            return cleaned
        network = parse_network(cleaned, field="value", version=version)
        if network.prefixlen > BLOCK_PREFIX[version]:
            raise InvalidRequest("value", f"{network} holds no block: give /{BLOCK_PREFIX[version]} or shorter")
        return str(network)

    return parse


def _as_number(value: str) -> str:
    from calico_core.model.bgp import parse_as_number

    parse_as_number(value, field="value")
    return value.strip()


def _names(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


FIELDS: tuple[Field, ...] = (
    Field("node_name", "", _name, ("NODENAME", "CALICO_HOSTNAME", "HOSTNAME")),
    Field("datastore", "", _url, ("CALICO_DATASTORE",)),
    Field("socket", "", _path, ("CALICO_SOCKET",)),
    Field("run_directory", "", _path, ("CALICO_RUN_DIRECTORY",)),
    Field("state_directory", "", _path, ("CALICO_STATE_DIRECTORY",)),
    Field("dataplane_driver", "", _text, ("CALICO_DATAPLANE_DRIVER",)),
    Field("routing_driver", "", _text, ("CALICO_ROUTING_DRIVER", "CALICO_NETWORKING_BACKEND")),
    Field("integrations", "", _names, ("CALICO_INTEGRATIONS",)),
    Field("ip", "", _own_address(4), ("IP",)),
    Field("ip6", "", _own_address(6), ("IP6",)),
    Field("as_number", "", _as_number, ("AS",)),
    Field("no_default_pools", "", _boolean, ("NO_DEFAULT_POOLS",)),
    Field("pool_v4", "", _pool(4), ("CALICO_IPV4POOL_CIDR",)),
    Field("pool_v6", "", _pool(6), ("CALICO_IPV6POOL_CIDR",)),
    Field("pool_v4_nat_outgoing", "", _boolean, ("CALICO_IPV4POOL_NAT_OUTGOING",)),
    Field("etcd_ca_file", "", _text, ("ETCD_CA_CERT_FILE",)),
    Field("etcd_cert_file", "", _text, ("ETCD_CERT_FILE",)),
    Field("etcd_key_file", "", _text, ("ETCD_KEY_FILE",)),
    Field("etcd_username", "", _text, ("ETCD_USERNAME",)),
    Field("etcd_password", "", _text, ("ETCD_PASSWORD",)),
    Field("interface_prefix", "", _interface_prefix, ("FELIX_INTERFACEPREFIX",), "InterfacePrefix"),
    Field(
        "endpoint_to_host",
        "",
        _choice("DROP", "RETURN", "ACCEPT", upper=True),
        ("FELIX_DEFAULTENDPOINTTOHOSTACTION",),
        "DefaultEndpointToHostAction",
    ),
    Field("ipv6_support", "", _choice("true", "false", "auto"), ("FELIX_IPV6SUPPORT",), "Ipv6Support"),
    Field(
        "refresh_interval_s",
        "",
        _number(0, 86400),
        ("FELIX_IPTABLESREFRESHINTERVAL",),
        "IptablesRefreshInterval",
    ),
    Field("established_flows", "", _choice("cut", "keep"), ("CALICO_ESTABLISHED_FLOWS",), "EstablishedFlows"),
    Field("confirm_removals_after_s", "", _number(0, 86400), ("CALICO_CONFIRM_REMOVALS_AFTER",)),
    Field(
        "reporting_interval_s",
        "",
        _number(-1, 86400),
        ("FELIX_REPORTINGINTERVALSECS",),
        "ReportingIntervalSecs",
    ),
    Field("reporting_ttl_s", "", _number(0, 86400), ("FELIX_REPORTINGTTLSECS",), "ReportingTTLSecs"),
    Field(
        "endpoint_reporting",
        "",
        _boolean,
        ("FELIX_ENDPOINTREPORTINGENABLED",),
        "EndpointReportingEnabled",
    ),
    Field("collector_interval_s", "", _number(0, 86400), ("CALICO_COLLECTOR_INTERVAL",)),
    Field("collector_grace_s", "", _number(0, 86400), ("CALICO_COLLECTOR_GRACE",)),
    Field("health_enabled", "", _boolean, ("FELIX_HEALTHENABLED",), "HealthEnabled"),
    Field("health_host", "", _text, ("FELIX_HEALTHHOST",), "HealthHost"),
    Field("health_port", "", _integer(0, 65535), ("FELIX_HEALTHPORT",), "HealthPort"),
    Field("metrics_enabled", "", _boolean, ("FELIX_PROMETHEUSMETRICSENABLED",), "PrometheusMetricsEnabled"),
    Field("metrics_host", "", _text, ("FELIX_PROMETHEUSMETRICSHOST",), "PrometheusMetricsHost"),
    Field("metrics_port", "", _integer(0, 65535), ("FELIX_PROMETHEUSMETRICSPORT",), "PrometheusMetricsPort"),
    Field("libnetwork_plugin_dir", "", _text, ("CALICO_LIBNETWORK_PLUGIN_DIR",)),
    Field("libnetwork_scope", "", _choice("global", "local"), ("CALICO_LIBNETWORK_SCOPE",)),
    Field("docker_host", "", _text, ("DOCKER_HOST",)),
    Field("mesos_strict", "", _boolean, ("CALICO_MESOS_STRICT",)),
    Field("kubeconfig", "", _text, ("CALICO_KUBECONFIG",)),
    Field("mtu_bytes", "", _integer(0, 65535), ("CALICO_MTU",)),
    Field("log_level", "", _log_level, ("CALICO_LOG_LEVEL", "FELIX_LOGSEVERITYSCREEN"), "LogSeverityScreen"),
    Field("log_format", "", _choice("console", "json"), ("CALICO_LOG_FORMAT",)),
)
