"""Every setting: what it is called in the environment, in the file and in the datastore, and how its text is read.

Names in CamelCase are those of the reference system's agent, so that its files and its keys keep their meaning; each is
also read from ``FELIX_`` and the name in capitals. Source: felix specification 2.2 and 2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from calico_core import setting_values as values

ENVIRONMENT_PREFIX = "FELIX_"


class Field(NamedTuple):
    """``environment``: variable names, first wins. ``config``: names in the datastore's config trees and in the file.
    ``local_names``: names in the file alone, of what is needed before the datastore. ``is_live``: a running node
    follows the datastore; the others need a start. ``has_fallback``: a value that cannot be used counts as none,
    with a warning; without it, it ends the start."""

    name: str
    parse: Callable[[str], Any]
    environment: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    local_names: tuple[str, ...] = ()
    is_live: bool = False
    has_fallback: bool = False

    @property
    def in_file(self) -> tuple[str, ...]:
        """In lower case."""
        return (self.name, *(each.lower() for each in (*self.config, *self.local_names)))


def _field(
    name: str,
    parse: Callable[[str], Any],
    environment: tuple[str, ...] = (),
    *config: str,
    local: tuple[str, ...] = (),
    is_live: bool = False,
    has_fallback: bool = False,
) -> Field:
    generated = (f"{ENVIRONMENT_PREFIX}{each.upper()}" for each in (*config, *local))
    variables = (*environment, *(each for each in generated if each not in environment))
    return Field(name, parse, variables, config, local, is_live, has_fallback)


FIELDS: tuple[Field, ...] = (
    _field(
        "node_name",
        values.name,
        ("NODENAME", "CALICO_HOSTNAME", "FELIX_FELIXHOSTNAME", "HOSTNAME"),
        local=("FelixHostname",),
    ),
    _field("datastore", values.url, ("CALICO_DATASTORE",)),
    _field("socket", values.path, ("CALICO_SOCKET",)),
    _field("run_directory", values.path, ("CALICO_RUN_DIRECTORY",)),
    _field("state_directory", values.path, ("CALICO_STATE_DIRECTORY",)),
    _field("dataplane_driver", values.dataplane_driver, ("CALICO_DATAPLANE_DRIVER",), "NFTablesMode"),
    _field("routing_driver", values.text, ("CALICO_ROUTING_DRIVER", "CALICO_NETWORKING_BACKEND")),
    _field("integrations", values.names, ("CALICO_INTEGRATIONS",)),
    _field("ip", values.own_address(4), ("IP",)),
    _field("ip6", values.own_address(6), ("IP6",)),
    _field("as_number", values.as_number, ("AS",)),
    _field("no_default_pools", values.boolean, ("NO_DEFAULT_POOLS",)),
    _field("pool_v4", values.pool(4), ("CALICO_IPV4POOL_CIDR",)),
    _field("pool_v6", values.pool(6), ("CALICO_IPV6POOL_CIDR",)),
    _field("pool_v4_nat_outgoing", values.boolean, ("CALICO_IPV4POOL_NAT_OUTGOING",)),
    _field("etcd_ca_file", values.text_or_none_word, ("ETCD_CA_CERT_FILE",), local=("EtcdCaFile",)),
    _field("etcd_cert_file", values.or_none(values.text), ("ETCD_CERT_FILE",), local=("EtcdCertFile",)),
    _field("etcd_key_file", values.or_none(values.text), ("ETCD_KEY_FILE",), local=("EtcdKeyFile",)),
    _field("etcd_username", values.text, ("ETCD_USERNAME",)),
    _field("etcd_password", values.text, ("ETCD_PASSWORD",)),
    # what the dataplane does
    _field("interface_prefix", values.interface_prefixes, (), "InterfacePrefix"),
    _field("endpoint_to_host", values.choice("DROP", "RETURN", "ACCEPT"), (), "DefaultEndpointToHostAction"),
    _field("ipv6_support", values.choice("true", "false", "auto"), (), "Ipv6Support"),
    _field("deny_action", values.choice("DROP", "REJECT"), (), "IptablesFilterDenyAction", "NftablesFilterDenyAction"),
    _field(
        "drop_override",
        values.choice("DROP", "ACCEPT", "LOG-and-DROP", "LOG-and-ACCEPT"),
        (),
        "DropActionOverride",
        has_fallback=True,
    ),
    _field("failsafe_inbound", values.failsafe_ports, (), "FailsafeInboundHostPorts"),
    _field("failsafe_outbound", values.failsafe_ports, (), "FailsafeOutboundHostPorts"),
    _field("metadata_address", values.host_or_none, (), "MetadataAddr"),
    _field("metadata_port", values.integer(1, 65535), (), "MetadataPort"),
    _field("chain_insert", values.choice("Insert", "Append"), (), "ChainInsertMode"),
    _field("allow_ipip", values.boolean, (), "AllowIPIPPacketsFromWorkloads"),
    _field("allow_vxlan", values.boolean, (), "AllowVXLANPacketsFromWorkloads"),
    _field("external_nodes", values.networks, (), "ExternalNodesCIDRList"),
    _field("no_invalid_check", values.boolean, (), "DisableConntrackInvalidCheck"),
    _field(
        "filter_allow",
        values.choice("ACCEPT", "RETURN"),
        (),
        "IptablesFilterAllowAction",
        "NftablesFilterAllowAction",
    ),
    _field(
        "mangle_allow",
        values.choice("ACCEPT", "RETURN"),
        (),
        "IptablesMangleAllowAction",
        "NftablesMangleAllowAction",
    ),
    _field("route_source_v4", values.or_none(values.address_of(4)), (), "DeviceRouteSourceAddress"),
    _field("route_source_v6", values.or_none(values.address_of(6)), (), "DeviceRouteSourceAddressIPv6"),
    _field("nat_port_range", values.port_range, (), "NATPortRange"),
    _field("nat_outgoing_address", values.or_none(values.address), (), "NATOutgoingAddress"),
    _field("nat_exclusions", values.choice("IPPoolsOnly", "IPPoolsAndHostIPs"), (), "NATOutgoingExclusions"),
    _field("nat_interfaces", values.or_none(values.interface_match), (), "IptablesNATOutgoingInterfaceFilter"),
    _field("max_set_size", values.integer(1, 1 << 30), (), "MaxIpsetSize", has_fallback=True),
    _field("log_prefix", values.text, (), "LogPrefix"),
    _field("log_limit", values.rate, (), "LogActionRateLimit"),
    _field("log_burst", values.integer(1, 10000), (), "LogActionRateLimitBurst"),
    _field("denied_group", values.integer(0, 65535), ("CALICO_DENIED_GROUP",)),
    _field("mark_mask", values.mark_mask, (), "IptablesMarkMask", "NftablesMarkMask", has_fallback=True),
    _field("route_protocol", values.integer(5, 255), (), "DeviceRouteProtocol"),
    _field("route_sync_disabled", values.boolean, (), "RouteSyncDisabled"),
    _field("ip_forwarding", values.choice("Enabled", "Disabled"), (), "IPForwarding"),
    _field("netlink_timeout_s", values.number(0.1, 3600), (), "NetlinkTimeoutSecs"),
    _field("excluded_interfaces", values.interface_names, (), "InterfaceExclude"),
    _field("mtu_interfaces", values.pattern, (), "MTUIfacePattern"),
    _field("ignore_loose_rpf", values.boolean, (), "IgnoreLooseRPF"),
    _field("source_spoofing", values.choice("Disabled", "Any"), (), "WorkloadSourceSpoofing"),
    _field("floating_ips", values.choice("Enabled", "Disabled"), (), "FloatingIPs"),
    _field("refresh_interval_s", values.number(0, 86400), (), "IptablesRefreshInterval", "NftablesRefreshInterval"),
    _field("route_refresh_interval_s", values.number(0, 86400), (), "RouteRefreshInterval"),
    _field("link_refresh_interval_s", values.number(0, 86400), (), "InterfaceRefreshInterval"),
    _field("set_refresh_interval_s", values.number(0, 86400), (), "IpsetsRefreshInterval"),
    _field("address_poll_s", values.number(0, 86400), (), "HostInterfacePollInterval", has_fallback=True),
    _field("established_flows", values.choice("cut", "keep"), ("CALICO_ESTABLISHED_FLOWS",), "EstablishedFlows"),
    _field("confirm_removals_after_s", values.number(0, 86400), ("CALICO_CONFIRM_REMOVALS_AFTER",)),
    # what the agent reports
    _field("reporting_interval_s", values.number(-86400, 86400), (), "ReportingIntervalSecs"),
    _field("reporting_ttl_s", values.number(-86400, 86400), (), "ReportingTTLSecs"),
    _field("endpoint_reporting", values.boolean, (), "EndpointReportingEnabled"),
    _field("endpoint_reporting_delay_s", values.number(0, 3600), (), "EndpointReportingDelaySecs", has_fallback=True),
    _field("endpoint_files", values.path_or_none_word, (), "EndpointStatusPathPrefix"),
    _field("collector_interval_s", values.number(0, 86400), ("CALICO_COLLECTOR_INTERVAL",)),
    _field("collector_grace_s", values.number(0, 86400), ("CALICO_COLLECTOR_GRACE",)),
    _field("health_enabled", values.boolean, (), "HealthEnabled"),
    _field("loop_limit_s", values.number(1, 86400), (), "DataplaneWatchdogTimeout"),
    _field("loop_limits", values.limits, (), "HealthTimeoutOverrides"),
    _field("health_host", values.text, (), "HealthHost"),
    _field("health_port", values.integer(0, 65535), (), "HealthPort"),
    _field("metrics_enabled", values.boolean, (), "PrometheusMetricsEnabled"),
    _field("metrics_host", values.text, (), "PrometheusMetricsHost"),
    _field("metrics_port", values.integer(0, 65535), (), "PrometheusMetricsPort", has_fallback=True),
    _field("metrics_cert_file", values.or_none(values.path), (), "PrometheusMetricsCertFile"),
    _field("metrics_key_file", values.or_none(values.path), (), "PrometheusMetricsKeyFile"),
    _field("metrics_ca_file", values.or_none(values.path), (), "PrometheusMetricsCAFile"),
    _field("metrics_client_auth", values.choice(*values.CLIENT_AUTH), (), "PrometheusMetricsClientAuth"),
    # integrations
    _field("libnetwork_plugin_dir", values.path, ("CALICO_LIBNETWORK_PLUGIN_DIR",)),
    _field("libnetwork_scope", values.choice("global", "local"), ("CALICO_LIBNETWORK_SCOPE",)),
    _field("docker_host", values.text, ("DOCKER_HOST",)),
    _field("mesos_strict", values.boolean, ("CALICO_MESOS_STRICT",)),
    _field("kubeconfig", values.text, ("CALICO_KUBECONFIG",)),
    _field("cni_kubeconfig", values.or_none(values.path), ("CALICO_CNI_KUBECONFIG",)),
    _field("cni_service_account", values.text, ("CALICO_CNI_SERVICE_ACCOUNT",)),
    _field("mtu_bytes", values.integer(0, 65535), ("CALICO_MTU",)),
    # logging
    _field("log_level", values.log_level, ("CALICO_LOG_LEVEL",), "LogSeverityScreen", is_live=True),
    _field("log_file", values.or_none(values.path), (), "LogFilePath", is_live=True),
    _field("log_file_level", values.log_level, (), "LogSeverityFile", is_live=True),
    _field("log_syslog_level", values.log_level, (), "LogSeveritySys", is_live=True),
    _field("log_format", values.choice("console", "json"), ("CALICO_LOG_FORMAT",)),
)
LIVE = frozenset(field.name for field in FIELDS if field.is_live)
NO_GUESS = frozenset({"interface_prefix"})
"""What no default may stand in for: workloads whose interfaces are called otherwise would be without policy."""
BY_CONFIG: Mapping[str, Field] = {name: field for field in FIELDS for name in field.config}
"""By the datastore's name."""

ETCD_NAMES = frozenset({"EtcdEndpoints", "EtcdAddr", "EtcdScheme"})
"""Names in the file that make up :attr:`Settings.datastore` together."""
WRITTEN_BY_NODES = "the node writes it"
LOCAL_ALONE = "it comes from environment and file alone"
IGNORED: Mapping[str, str] = {
    "marker": WRITTEN_BY_NODES,
    "ClusterGUID": "nothing is reported to anyone",
    "UsageReportingEnabled": "nothing is reported to anyone",
    "EtcdDriverLogFilePath": "the datastore is read by the same process",
    "EtcdDriverPrometheusMetricsPort": "the datastore is read by the same process",
    "IptablesGeneratorPlugin": "a dataplane is a driver of its own: CALICO_DATAPLANE_DRIVER",
    "StartupCleanupDelay": "the first complete apply replaces what was left in one transaction",
    "PeriodicResyncInterval": "a watch that missed something begins again with a snapshot",
    "IpInIpEnabled": "a pool says itself whether it is encapsulated",
    "IpInIpMtu": "it follows from the MTU of the host's own interface",
    "IpInIpTunnelAddr": WRITTEN_BY_NODES,
    "IPv4VXLANTunnelAddr": WRITTEN_BY_NODES,
    "IPv6VXLANTunnelAddr": WRITTEN_BY_NODES,
    "VXLANTunnelMACAddr": WRITTEN_BY_NODES,
    "VXLANTunnelMACAddrV6": WRITTEN_BY_NODES,
    "Labels": WRITTEN_BY_NODES,
    "RequireMTUFile": "there is no file: CNI's require_mtu_file asks whether the node names an MTU",
    "ServiceLoopPrevention": "no ranges of services are known here, and none are announced: their packets do not come",
    "RemoveExternalRoutes": "only routes of our own protocol are touched: DeviceRouteProtocol",
}
"""Names of the reference system that are known and change nothing, and why."""
WITHOUT_EFFECT_IN_STORE: Mapping[str, str] = {
    **IGNORED,
    **dict.fromkeys(sorted(ETCD_NAMES), LOCAL_ALONE),
    **dict.fromkeys((name for field in FIELDS for name in field.local_names), LOCAL_ALONE),
}
"""The same in the datastore, where a node looks for nothing that it needs before it."""


def unknown_names(names: Iterable[str], *, is_file: bool = False) -> dict[str, str]:
    """Names that mean nothing here, each with a known one that is near ('' when none is). In a file case does not
    count; in the datastore it does."""
    known = {*BY_CONFIG, *WITHOUT_EFFECT_IN_STORE}
    if is_file:
        known |= {field.name for field in FIELDS}
    by_case = {name.lower(): name for name in known}
    found = {}
    for name in names:
        if name in known or (is_file and name.lower() in by_case):
            continue
        import difflib  # only now, as most starts meet no such name

        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)
        found[name] = by_case.get(name.lower()) or (near[0] if near else "")
    return found
