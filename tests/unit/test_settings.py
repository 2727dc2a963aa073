"""Where a setting comes from, what it may be, and that a bad one is named with its source."""

from __future__ import annotations

import pytest

from calico_core.errors import InvalidSettings
from calico_core.model.failsafe import DEFAULT_INBOUND, DEFAULT_OUTBOUND
from calico_core.setting_fields import FIELDS, unknown_names
from calico_core.settings import Settings, load_settings, report_ttl_s

REPORTING = {
    "environment": ({"FELIX_REPORTINGINTERVALSECS": "11"}, "environment FELIX_REPORTINGINTERVALSECS", 11.0),
    "file": ({"reporting_interval_s": "12"}, "file reporting_interval_s", 12.0),
    "host": ({"ReportingIntervalSecs": "13"}, "datastore host ReportingIntervalSecs", 13.0),
    "global": ({"ReportingIntervalSecs": "14"}, "datastore global ReportingIntervalSecs", 14.0),
}


@pytest.mark.parametrize(
    ("given", "winner"),
    [
        (("environment", "file", "host", "global"), "environment"),
        (("file", "host", "global"), "file"),
        (("host", "global"), "host"),
        (("global",), "global"),
        (("environment", "global"), "environment"),
        (("file", "global"), "file"),
    ],
)
def test_the_first_source_wins_and_is_named(given: tuple[str, ...], winner: str) -> None:
    sources = {name: REPORTING[name][0] if name in given else {} for name in REPORTING}
    settings = load_settings(
        sources["environment"], file=sources["file"], host_config=sources["host"], global_config=sources["global"]
    )
    _, origin, value = REPORTING[winner]
    assert settings.reporting_interval_s == value
    assert settings.origins["reporting_interval_s"] == origin


def test_defaults_have_no_origin() -> None:
    settings = load_settings({})
    assert settings == Settings()
    assert settings.origins == {}


def test_an_empty_value_is_unset() -> None:
    settings = load_settings({"CALICO_MTU": "", "NODENAME": "", "HOSTNAME": "rack-a"}, file={"mtu_bytes": "1400"})
    assert settings.mtu_bytes == 1400
    assert settings.node_name == "rack-a"
    assert settings.origins["node_name"] == "environment HOSTNAME"


def test_the_first_variable_of_a_field_wins() -> None:
    settings = load_settings({"HOSTNAME": "c", "CALICO_HOSTNAME": "b", "NODENAME": "a"})
    assert settings.node_name == "a"


def test_a_file_may_use_the_name_of_the_datastore() -> None:
    assert load_settings({}, file={"reportingintervalsecs": "7"}).reporting_interval_s == 7.0


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("NODENAME", " rack-a ", "node_name", "rack-a"),
        ("CALICO_DATASTORE", "etcd3://a:2379,b:2379", "datastore", "etcd3://a:2379,b:2379"),
        ("CALICO_SOCKET", "/run/x.sock", "socket", "/run/x.sock"),
        ("CALICO_INTEGRATIONS", "cni, -mesos,,", "integrations", ("cni", "-mesos")),
        ("IP", "10.0.0.1/24", "ip", "10.0.0.1"),
        ("IP", "Autodetect", "ip", "autodetect"),
        ("IP6", "none", "ip6", "none"),
        ("IP6", "fd00::1", "ip6", "fd00::1"),
        ("AS", "64512", "as_number", "64512"),
        ("AS", "1.10", "as_number", "1.10"),
        ("NO_DEFAULT_POOLS", "Yes", "no_default_pools", True),
        ("NO_DEFAULT_POOLS", "0", "no_default_pools", False),
        ("CALICO_IPV4POOL_CIDR", "10.1.2.3/16", "pool_v4", "10.1.0.0/16"),
        ("CALICO_IPV4POOL_CIDR", "None", "pool_v4", "none"),
        ("CALICO_IPV6POOL_CIDR", "fd80::/64", "pool_v6", "fd80::/64"),
        ("CALICO_IPV4POOL_NAT_OUTGOING", "true", "pool_v4_nat_outgoing", True),
        ("FELIX_INTERFACEPREFIX", "tap", "interface_prefix", "tap"),
        ("FELIX_INTERFACEPREFIX", " tap, cali,,tap", "interface_prefix", "tap,cali"),
        ("FELIX_DEFAULTENDPOINTTOHOSTACTION", "drop", "endpoint_to_host", "DROP"),
        ("FELIX_IPV6SUPPORT", "FALSE", "ipv6_support", "false"),
        ("FELIX_IPTABLESREFRESHINTERVAL", "0", "refresh_interval_s", 0.0),
        ("FELIX_REPORTINGTTLSECS", "0x10", "reporting_ttl_s", 16.0),
        ("FELIX_ENDPOINTREPORTINGENABLED", "n", "endpoint_reporting", False),
        ("CALICO_LIBNETWORK_SCOPE", "Local", "libnetwork_scope", "local"),
        ("CALICO_MESOS_STRICT", "t", "mesos_strict", True),
        ("CALICO_MTU", "9000", "mtu_bytes", 9000),
        ("CALICO_LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("CALICO_LOG_LEVEL", "CRIT", "log_level", "critical"),
        ("FELIX_LOGSEVERITYSYS", "err", "log_syslog_level", "error"),
        ("FELIX_LOGSEVERITYFILE", "None", "log_file_level", "none"),
        ("FELIX_LOGFILEPATH", "/var/log/calico/felix.log", "log_file", "/var/log/calico/felix.log"),
        ("FELIX_LOGFILEPATH", "NONE", "log_file", ""),
        ("FELIX_LOGSEVERITYSCREEN", "Warn", "log_level", "warning"),
        ("FELIX_LOGSEVERITYSCREEN", "none", "log_level", "none"),
        ("FELIX_HEALTHENABLED", "no", "health_enabled", False),
        ("FELIX_HEALTHHOST", "::1", "health_host", "::1"),
        ("FELIX_HEALTHPORT", "0", "health_port", 0),
        ("FELIX_PROMETHEUSMETRICSENABLED", "true", "metrics_enabled", True),
        ("FELIX_PROMETHEUSMETRICSPORT", "9100", "metrics_port", 9100),
        ("CALICO_LOG_FORMAT", "json", "log_format", "json"),
        ("FELIX_IPTABLESFILTERDENYACTION", "reject", "deny_action", "REJECT"),
        ("FELIX_DROPACTIONOVERRIDE", "log-AND-drop", "drop_override", "LOG-and-DROP"),
        ("FELIX_FAILSAFEINBOUNDHOSTPORTS", "22, udp:192.0.2.0/24:53", "failsafe_inbound", "22, udp:192.0.2.0/24:53"),
        ("FELIX_FAILSAFEOUTBOUNDHOSTPORTS", "none", "failsafe_outbound", "none"),
        ("FELIX_METADATAADDR", "NONE", "metadata_address", "none"),
        ("FELIX_METADATAADDR", "metadata.example", "metadata_address", "metadata.example"),
        ("FELIX_METADATAADDR", "metadata.example.", "metadata_address", "metadata.example."),
        ("FELIX_METADATAADDR", "bücher.example", "metadata_address", "bücher.example"),
        ("FELIX_METADATAPORT", "80", "metadata_port", 80),
        ("FELIX_LOGACTIONRATELIMIT", "10", "log_limit", "10/second"),
        ("FELIX_LOGACTIONRATELIMIT", " 10/Second ", "log_limit", "10/second"),
        ("FELIX_LOGACTIONRATELIMIT", "10/minute", "log_limit", "10/minute"),
        ("FELIX_LOGACTIONRATELIMIT", "3/h", "log_limit", "3/hour"),
        ("FELIX_LOGACTIONRATELIMIT", "0/day", "log_limit", ""),
        ("FELIX_REPORTINGINTERVALSECS", "-5", "reporting_interval_s", -5.0),
        ("FELIX_REPORTINGTTLSECS", "-1", "reporting_ttl_s", -1.0),
        ("FELIX_LOGACTIONRATELIMITBURST", "7", "log_burst", 7),
        ("FELIX_IPTABLESMARKMASK", "0xffff0000", "mark_mask", 0xFFFF0000),
        ("FELIX_NFTABLESREFRESHINTERVAL", "90", "refresh_interval_s", 90.0),
        ("FELIX_DEVICEROUTEPROTOCOL", "99", "route_protocol", 99),
        (
            "FELIX_HEALTHTIMEOUTOVERRIDES",
            "engine=1m30s, routing=20",
            "loop_limits",
            (("engine", 90.0), ("routing", 20.0)),
        ),
        ("FELIX_PROMETHEUSMETRICSCLIENTAUTH", "noclientcert", "metrics_client_auth", "NoClientCert"),
        ("FELIX_IGNORELOOSERPF", "y", "ignore_loose_rpf", True),
        ("FELIX_CHAININSERTMODE", "append", "chain_insert", "Append"),
        ("FELIX_ALLOWIPIPPACKETSFROMWORKLOADS", "true", "allow_ipip", True),
        ("FELIX_ALLOWVXLANPACKETSFROMWORKLOADS", "y", "allow_vxlan", True),
        ("FELIX_EXTERNALNODESCIDRLIST", "192.0.2.9/24, fd00::1", "external_nodes", ("192.0.2.0/24", "fd00::1/128")),
        ("FELIX_EXTERNALNODESCIDRLIST", "None", "external_nodes", ()),
        ("FELIX_DISABLECONNTRACKINVALIDCHECK", "true", "no_invalid_check", True),
        ("FELIX_IPTABLESFILTERALLOWACTION", "return", "filter_allow", "RETURN"),
        ("FELIX_NFTABLESFILTERALLOWACTION", "Return", "filter_allow", "RETURN"),
        ("FELIX_IPTABLESMANGLEALLOWACTION", "Return", "mangle_allow", "RETURN"),
        ("FELIX_NFTABLESFILTERDENYACTION", "Reject", "deny_action", "REJECT"),
        ("FELIX_DEVICEROUTESOURCEADDRESS", "192.0.2.7", "route_source_v4", "192.0.2.7"),
        ("FELIX_DEVICEROUTESOURCEADDRESSIPV6", "FD00:0::7", "route_source_v6", "fd00::7"),
        ("FELIX_DEVICEROUTESOURCEADDRESSIPV6", "none", "route_source_v6", ""),
        ("FELIX_NATPORTRANGE", "32768:65535", "nat_port_range", "32768:65535"),
        ("FELIX_NATPORTRANGE", "4000", "nat_port_range", "4000:4000"),
        ("FELIX_NATPORTRANGE", "0:0", "nat_port_range", ""),
        ("FELIX_NATOUTGOINGADDRESS", "FD00::0:1", "nat_outgoing_address", "fd00::1"),
        ("FELIX_NATOUTGOINGADDRESS", "None", "nat_outgoing_address", ""),
        ("FELIX_NATOUTGOINGEXCLUSIONS", "ippoolsandhostips", "nat_exclusions", "IPPoolsAndHostIPs"),
        ("FELIX_IPTABLESNATOUTGOINGINTERFACEFILTER", "eth+", "nat_interfaces", "eth+"),
        ("FELIX_FELIXHOSTNAME", "rack-b", "node_name", "rack-b"),
    ],
)
def test_values_are_parsed(variable: str, text: str, field: str, value: object) -> None:
    settings = load_settings({variable: text})
    assert getattr(settings, field) == value
    assert type(getattr(settings, field)) is type(value)
    assert settings.origins == {field: f"environment {variable}"}


@pytest.mark.parametrize(
    ("variable", "text", "field", "reason"),
    [
        ("NODENAME", "rack a", "node_name", "letters"),
        ("NODENAME", "..", "node_name", "letters"),
        ("CALICO_DATASTORE", "/var/lib/calico.db", "datastore", "URL"),
        ("CALICO_DATASTORE", "etcd3://", "datastore", "URL"),
        ("CALICO_SOCKET", "node.sock", "socket", "absolute"),
        ("CALICO_RUN_DIRECTORY", "run", "run_directory", "absolute"),
        ("IP", "10.0.0", "ip", "IPv4"),
        ("IP", "fd00::1", "ip", "IPv4"),
        ("IP6", "10.0.0.1", "ip6", "IPv6"),
        ("IP", "0.0.0.0", "ip", "unspecified"),
        ("IP", "127.0.0.1/8", "ip", "loopback"),
        ("IP", "169.254.0.1", "ip", "link-local"),
        ("IP", "224.0.0.1", "ip", "multicast"),
        ("IP6", "::", "ip6", "unspecified"),
        ("IP6", "::1", "ip6", "loopback"),
        ("IP6", "FE80::1/64", "ip6", "link-local"),
        ("IP6", "ff02::1", "ip6", "multicast"),
        ("AS", "0", "as_number", "AS number"),
        ("AS", "4294967296", "as_number", "AS number"),
        ("NO_DEFAULT_POOLS", "maybe", "no_default_pools", "true or false"),
        ("CALICO_IPV4POOL_CIDR", "10.0.0.0/27", "pool_v4", "/26"),
        ("CALICO_IPV4POOL_CIDR", "fd80::/64", "pool_v4", "IPv4"),
        ("CALICO_IPV6POOL_CIDR", "fd80::/130", "pool_v6", "128"),
        ("FELIX_INTERFACEPREFIX", "ca/li", "interface_prefix", "interface name"),
        ("FELIX_INTERFACEPREFIX", "cali,ta p", "interface_prefix", "'ta p' is not an interface name"),
        ("FELIX_INTERFACEPREFIX", ", ,", "interface_prefix", "names no prefix"),
        ("FELIX_DEFAULTENDPOINTTOHOSTACTION", "REJECT", "endpoint_to_host", "DROP, RETURN, ACCEPT"),
        ("FELIX_IPV6SUPPORT", "1", "ipv6_support", "auto"),
        ("FELIX_IPTABLESREFRESHINTERVAL", "soon", "refresh_interval_s", "number"),
        ("FELIX_IPTABLESREFRESHINTERVAL", "-1", "refresh_interval_s", "between 0"),
        ("FELIX_REPORTINGINTERVALSECS", "nan", "reporting_interval_s", "between"),
        ("FELIX_REPORTINGTTLSECS", "0xzz", "reporting_ttl_s", "number"),
        ("CALICO_LIBNETWORK_SCOPE", "swarm", "libnetwork_scope", "global, local"),
        ("CALICO_MTU", "1500.5", "mtu_bytes", "whole"),
        ("FELIX_MTUIFACEPATTERN", "eth(", "mtu_interfaces", "regular expression"),
        ("FELIX_INTERFACEEXCLUDE", "eth0,/eth(/", "excluded_interfaces", "regular expression"),
        ("FELIX_INTERFACEEXCLUDE", "much-too-long-a-name", "excluded_interfaces", "neither the name"),
        ("FELIX_ENDPOINTSTATUSPATHPREFIX", "run", "endpoint_files", "absolute path"),
        ("FELIX_HEALTHTIMEOUTOVERRIDES", "engine", "loop_limits", "NAME=DURATION"),
        ("FELIX_HEALTHTIMEOUTOVERRIDES", "engine=soon", "loop_limits", "1h30m"),
        ("FELIX_HEALTHTIMEOUTOVERRIDES", "engine=0s", "loop_limits", "no time"),
        ("CALICO_MTU", "70000", "mtu_bytes", "65535"),
        ("CALICO_LOG_LEVEL", "loud", "log_level", "debug, info"),
        ("CALICO_LOG_FORMAT", "xml", "log_format", "console, json"),
        ("FELIX_FAILSAFEINBOUNDHOSTPORTS", "icmp:1", "failsafe_inbound", "has no ports"),
        ("FELIX_FAILSAFEOUTBOUNDHOSTPORTS", "tcp:0", "failsafe_outbound", "port from 1"),
        ("FELIX_METADATAADDR", "a b", "metadata_address", "host name or none"),
        ("FELIX_METADATAADDR", "a..b", "metadata_address", "host name or none"),
        ("FELIX_METADATAADDR", ".a", "metadata_address", "host name or none"),
        ("FELIX_METADATAADDR", "x" * 64 + ".example", "metadata_address", "host name or none"),
        ("FELIX_METADATAADDR", "ß" * 70, "metadata_address", "host name or none"),
        ("FELIX_METADATAADDR", "a\0b", "metadata_address", "host name or none"),
        ("FELIX_METADATAPORT", "0", "metadata_port", "between 1"),
        ("FELIX_LOGACTIONRATELIMIT", "10/week", "log_limit", "minute, hour, day"),
        ("FELIX_LOGACTIONRATELIMIT", "10/", "log_limit", "10/second"),
        ("FELIX_LOGACTIONRATELIMIT", "ten/day", "log_limit", "number"),
        ("FELIX_DEVICEROUTEPROTOCOL", "4", "route_protocol", "between 5"),
        ("FELIX_CHAININSERTMODE", "last", "chain_insert", "Insert, Append"),
        ("FELIX_ALLOWIPIPPACKETSFROMWORKLOADS", "some", "allow_ipip", "true or false"),
        ("FELIX_EXTERNALNODESCIDRLIST", "192.0.2.0/24,rack", "external_nodes", "'rack' is not an IP address"),
        ("FELIX_IPTABLESFILTERALLOWACTION", "DROP", "filter_allow", "ACCEPT, RETURN"),
        ("FELIX_DEVICEROUTESOURCEADDRESS", "fd00::7", "route_source_v4", "IPv4"),
        ("FELIX_DEVICEROUTESOURCEADDRESSIPV6", "eth0", "route_source_v6", "IP address"),
        ("FELIX_NATPORTRANGE", "1024-2048", "nat_port_range", "FIRST:LAST"),
        ("FELIX_NATPORTRANGE", "2048:1024", "nat_port_range", "rise"),
        ("FELIX_NATPORTRANGE", "0:1024", "nat_port_range", "rise"),
        ("FELIX_NATPORTRANGE", "1:65536", "nat_port_range", "65535"),
        ("FELIX_NATOUTGOINGADDRESS", "192.0.2", "nat_outgoing_address", "address"),
        ("FELIX_NATOUTGOINGEXCLUSIONS", "all", "nat_exclusions", "IPPoolsOnly, IPPoolsAndHostIPs"),
        ("FELIX_IPTABLESNATOUTGOINGINTERFACEFILTER", "+", "nat_interfaces", "name of an interface"),
        ("FELIX_IPTABLESNATOUTGOINGINTERFACEFILTER", 'eth0" accept', "nat_interfaces", "name of an interface"),
        ("FELIX_IPTABLESNATOUTGOINGINTERFACEFILTER", "much-too-long-a+", "nat_interfaces", "name of an interface"),
        ("ETCD_CERT_FILE", "/a", "etcd_cert_file", "etcd_key_file too"),
        ("ETCD_KEY_FILE", "/a", "etcd_key_file", "etcd_cert_file too"),
    ],
)
def test_a_bad_value_names_field_and_origin(variable: str, text: str, field: str, reason: str) -> None:
    with pytest.raises(InvalidSettings, match=reason) as caught:
        load_settings({variable: text})
    assert caught.value.name == field
    assert caught.value.origin == f"environment {variable}"


@pytest.mark.parametrize(
    ("sources", "origin"),
    [
        ({"file": {"reporting_ttl_s": "x"}}, "file reporting_ttl_s"),
        ({"host_config": {"ReportingTTLSecs": "x"}}, "datastore host ReportingTTLSecs"),
        ({"global_config": {"ReportingTTLSecs": "x"}}, "datastore global ReportingTTLSecs"),
    ],
)
def test_a_bad_value_of_any_source_is_named(sources: dict[str, dict[str, str]], origin: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings({}, **sources)
    assert (caught.value.name, caught.value.origin) == ("reporting_ttl_s", origin)


def test_where_the_datastore_is_never_comes_from_the_datastore() -> None:
    config = {"CALICO_DATASTORE": "etcd3://elsewhere:1", "datastore": "etcd3://elsewhere:1", "Datastore": "x"}
    assert load_settings({}, host_config=config, global_config=config).datastore == Settings().datastore


@pytest.mark.parametrize(
    ("environment", "url", "origin"),
    [
        ({"ETCD_ENDPOINTS": "http://a:2379"}, "etcd3://a:2379", "ETCD_ENDPOINTS"),
        ({"ETCD_ENDPOINTS": "http://a:2379, http://b:2379/"}, "etcd3://a:2379,b:2379", "ETCD_ENDPOINTS"),
        ({"ETCD_ENDPOINTS": "https://a:2379,https://b:2379"}, "etcd3s://a:2379,b:2379", "ETCD_ENDPOINTS"),
        ({"ETCD_AUTHORITY": "a:2379"}, "etcd3://a:2379", "ETCD_AUTHORITY"),
        ({"ETCD_AUTHORITY": "a:2379", "ETCD_SCHEME": "https"}, "etcd3s://a:2379", "ETCD_AUTHORITY"),
        ({"ETCD_AUTHORITY": "a:1", "ETCD_ENDPOINTS": "http://b:2"}, "etcd3://b:2", "ETCD_ENDPOINTS"),
        ({"CALICO_DATASTORE": "sqlite:///x", "ETCD_AUTHORITY": "a:1"}, "sqlite:///x", "CALICO_DATASTORE"),
    ],
)
def test_older_names_imply_etcd(environment: dict[str, str], url: str, origin: str) -> None:
    settings = load_settings(environment)
    assert settings.datastore == url
    assert settings.origins["datastore"] == f"environment {origin}"


@pytest.mark.parametrize(
    ("environment", "origin"),
    [
        ({"ETCD_ENDPOINTS": "a:2379"}, "ETCD_ENDPOINTS"),
        ({"ETCD_ENDPOINTS": "http://a:1,https://b:2"}, "ETCD_ENDPOINTS"),
        ({"ETCD_ENDPOINTS": "ftp://a:1"}, "ETCD_ENDPOINTS"),
        ({"ETCD_ENDPOINTS": " , "}, "ETCD_ENDPOINTS"),
        ({"ETCD_AUTHORITY": "a:1", "ETCD_SCHEME": "ftp"}, "ETCD_SCHEME"),
    ],
)
def test_bad_older_names_are_refused(environment: dict[str, str], origin: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(environment)
    assert (caught.value.name, caught.value.origin) == ("datastore", f"environment {origin}")


@pytest.mark.parametrize(
    "environment",
    [
        {"ETCD_AUTHORITY": "a:1", "ETCD_SCHEME": "https"},
        {"CALICO_DATASTORE": "etcd3s://a:1"},
        {"ETCD_CERT_FILE": "/a.pem", "ETCD_KEY_FILE": "/a.key"},
    ],
)
def test_tls_without_a_check_of_the_server_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidSettings, match="always checked") as caught:
        load_settings({**environment, "FELIX_ETCDCAFILE": "None"})
    assert (caught.value.name, caught.value.origin) == ("etcd_ca_file", "environment FELIX_ETCDCAFILE")
    assert load_settings(environment).etcd_ca_file == ""
    assert load_settings({"FELIX_ETCDCAFILE": "None", "ETCD_AUTHORITY": "a:1"}).etcd_ca_file == ""


def test_secrets_are_not_shown() -> None:
    settings = load_settings({"ETCD_PASSWORD": "hunter2", "ETCD_USERNAME": "root"})
    assert settings.etcd_password == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in f"{settings} {settings!s}"
    assert "etcd_username='root'" in repr(settings)


def test_every_field_has_one_source_list_and_a_default() -> None:
    names = [field.name for field in FIELDS]
    assert sorted(names) == sorted(set(Settings.__struct_fields__) - {"origins", "shadowed", "notes"})
    variables = [variable for field in FIELDS for variable in field.environment]
    assert len(variables) == len(set(variables))


@pytest.mark.parametrize(
    ("variable", "text", "field"),
    [
        ("FELIX_DROPACTIONOVERRIDE", "REJECT", "drop_override"),
        ("FELIX_IPTABLESMARKMASK", "0x1", "mark_mask"),
        ("FELIX_IPTABLESMARKMASK", "0x1ffffffff", "mark_mask"),
        ("FELIX_PROMETHEUSMETRICSPORT", "high", "metrics_port"),
        ("FELIX_ENDPOINTREPORTINGDELAYSECS", "-1", "endpoint_reporting_delay_s"),
        ("FELIX_HOSTINTERFACEPOLLINTERVAL", "-1", "address_poll_s"),
    ],
)
def test_some_bad_values_count_as_the_default_and_are_noted(variable: str, text: str, field: str) -> None:
    settings = load_settings({variable: text})
    assert getattr(settings, field) == getattr(Settings(), field)
    assert field not in settings.origins
    (note,) = settings.notes
    assert variable in note
    assert text in note


@pytest.mark.parametrize(
    ("interval", "ttl", "counts"),
    [("30", "30", 75.0), ("30", "20", 75.0), ("120", "", 300.0), ("30", "31", 31.0), ("0", "5", 5.0), ("-1", "0", 0.0)],
)
def test_a_report_that_would_end_before_the_next_lasts_longer_and_is_noted(
    interval: str, ttl: str, counts: float
) -> None:
    settings = load_settings({"FELIX_REPORTINGINTERVALSECS": interval, "FELIX_REPORTINGTTLSECS": ttl})
    assert report_ttl_s(settings) == counts
    notes = [note for note in settings.notes if "reporting_ttl_s" in note and f"{counts:g} counts" in note]
    assert len(notes) == (0 if counts == settings.reporting_ttl_s else 1)


def test_default_ports_are_those_of_the_model() -> None:
    assert (Settings().failsafe_inbound, Settings().failsafe_outbound) == (DEFAULT_INBOUND, DEFAULT_OUTBOUND)


def test_every_name_of_the_reference_agent_is_known() -> None:
    """Felix specification 2.2."""
    names = (
        "EtcdEndpoints EtcdAddr EtcdScheme EtcdKeyFile EtcdCertFile EtcdCaFile FelixHostname StartupCleanupDelay "
        "PeriodicResyncInterval IptablesRefreshInterval MetadataAddr MetadataPort InterfacePrefix "
        "DefaultEndpointToHostAction DropActionOverride IgnoreLooseRPF ClusterGUID UsageReportingEnabled LogFilePath "
        "EtcdDriverLogFilePath LogSeverityFile LogSeveritySys LogSeverityScreen IpInIpEnabled IpInIpMtu "
        "IpInIpTunnelAddr ReportingIntervalSecs ReportingTTLSecs EndpointReportingEnabled "
        "EndpointReportingDelaySecs HostInterfacePollInterval MaxIpsetSize IptablesMarkMask "
        "PrometheusMetricsEnabled PrometheusMetricsPort EtcdDriverPrometheusMetricsPort FailsafeInboundHostPorts "
        "FailsafeOutboundHostPorts Ipv6Support IptablesGeneratorPlugin"
    )
    assert unknown_names(names.split(), is_file=True) == {}
    assert unknown_names(["HealthPorts", "FelixHostname"]) == {"HealthPorts": "HealthPort"}
