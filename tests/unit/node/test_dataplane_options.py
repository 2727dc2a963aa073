"""From settings to what a driver is opened with."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidSettings
from calico_core.interfaces.dataplane import FailsafePort
from calico_core.node.dataplane_options import (
    cuts_denied_flows,
    dataplane_options,
    ipv6_lack,
    refresh_interval_s,
    refuse_loose_rpf,
    tell_ipv6,
    warn_of_open_policy,
    warn_of_strict_rpf,
)
from calico_core.settings import load_settings


def test_every_option_follows_its_setting() -> None:
    options = dataplane_options(
        load_settings(
            {
                "FELIX_INTERFACEPREFIX": "tap, cali",
                "FELIX_DEFAULTENDPOINTTOHOSTACTION": "DROP",
                "FELIX_IPV6SUPPORT": "false",
                "FELIX_IPTABLESFILTERDENYACTION": "REJECT",
                "FELIX_DROPACTIONOVERRIDE": "LOG-and-DROP",
                "FELIX_FAILSAFEINBOUNDHOSTPORTS": "22,udp:192.0.2.0/24:53",
                "FELIX_FAILSAFEOUTBOUNDHOSTPORTS": "none",
                "FELIX_METADATAADDR": "127.0.0.1",
                "FELIX_METADATAPORT": "80",
                "FELIX_LOGPREFIX": "deny",
                "FELIX_LOGACTIONRATELIMIT": "3/minute",
                "FELIX_LOGACTIONRATELIMITBURST": "4",
                "FELIX_IPTABLESMARKMASK": "0xff",
                "FELIX_DEVICEROUTEPROTOCOL": "99",
                "CALICO_DENIED_GROUP": "7",
                "FELIX_HOSTINTERFACEPOLLINTERVAL": "20",
                "FELIX_NETLINKTIMEOUTSECS": "3",
                "FELIX_ROUTESYNCDISABLED": "yes",
                "FELIX_IPFORWARDING": "disabled",
                "FELIX_CHAININSERTMODE": "append",
                "FELIX_ALLOWVXLANPACKETSFROMWORKLOADS": "true",
                "FELIX_EXTERNALNODESCIDRLIST": "198.51.100.0/24",
                "FELIX_DISABLECONNTRACKINVALIDCHECK": "true",
                "FELIX_IPTABLESFILTERALLOWACTION": "RETURN",
                "FELIX_DEVICEROUTESOURCEADDRESS": "192.0.2.8",
                "FELIX_DEVICEROUTESOURCEADDRESSIPV6": "2001:db8::8",
                "FELIX_NATPORTRANGE": "1024:2048",
                "FELIX_NATOUTGOINGADDRESS": "192.0.2.7",
                "FELIX_NATOUTGOINGEXCLUSIONS": "IPPoolsAndHostIPs",
                "FELIX_IPTABLESNATOUTGOINGINTERFACEFILTER": "eth+",
            }
        ),
        "rack-a",
    )
    assert (options.host, options.interface_prefixes, options.endpoint_to_host) == ("rack-a", ("tap", "cali"), "DROP")
    assert (options.is_ipv6_enabled, options.route_protocol) == (False, 99)
    assert (options.deny_action, options.drop_override) == ("REJECT", "LOG-and-DROP")
    assert options.failsafe_inbound == (FailsafePort(6, 22), FailsafePort(17, 53, IPNetwork("192.0.2.0/24")))
    assert options.failsafe_outbound == ()
    assert options.metadata == (IPAddress("127.0.0.1"), 80)
    assert (options.log_prefix, options.log_burst) == ("deny", 4)
    assert (options.log_rate, options.log_unit) == (3, "minute")
    assert (options.mark_mask, options.denied_group) == (0xFF, 7)
    assert (options.address_poll_s, options.netlink_timeout_s) == (20, 3)
    assert (options.makes_routes, options.makes_router) == (False, False)
    assert options.chain_insert == "Append"
    assert (options.drops_invalid, options.filter_allow, options.mangle_allow) == (False, "RETURN", "ACCEPT")
    assert options.route_sources == (IPAddress("192.0.2.8"), IPAddress("2001:db8::8"))
    assert (options.allows_ipip, options.allows_vxlan) == (False, True)
    assert options.external_peers == (IPNetwork("198.51.100.0/24"),)
    assert (options.nat_ports, options.nat_address) == ((1024, 2048), IPAddress("192.0.2.7"))
    assert (options.nat_interfaces, options.nat_spares_hosts) == ("eth+", True)


def test_without_settings_no_metadata_and_the_usual_ports() -> None:
    options = dataplane_options(load_settings({}), "rack-a")
    assert options.metadata is None
    assert (options.log_rate, options.log_unit) == (0, "second")
    assert (options.drops_invalid, options.filter_allow, options.route_sources) == (True, "ACCEPT", ())
    assert (options.nat_ports, options.nat_address, options.nat_interfaces) == (None, None, "")
    assert (options.nat_spares_hosts, options.allows_ipip, options.allows_vxlan) == (False, False, False)
    assert FailsafePort(6, 22) in options.failsafe_inbound
    assert FailsafePort(17, 53) in options.failsafe_outbound


def test_without_ipv6_in_the_kernel_there_is_none_and_the_reason_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ipv6").mkdir()
    for text, lack in (("auto", ""), ("true", ""), ("false", "Ipv6Support is false")):
        assert ipv6_lack(load_settings({"FELIX_IPV6SUPPORT": text}), tmp_path / "ipv6") == lack
    assert "the kernel has no IPv6" in ipv6_lack(load_settings({}), tmp_path / "nowhere")
    with pytest.raises(InvalidSettings, match=r"ipv6_support.*FELIX_IPV6SUPPORT.*the kernel has no IPv6"):
        ipv6_lack(load_settings({"FELIX_IPV6SUPPORT": "true"}), tmp_path / "nowhere")
    tell_ipv6(load_settings({"FELIX_IPV6SUPPORT": "false"}))
    (said,) = [each for each in caplog.records if each.getMessage() == "ipv6.off"]
    assert said.calico_fields == {"reason": "Ipv6Support is false"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({}, 60),
        ({"IptablesRefreshInterval": "0"}, 0),
        ({"RouteRefreshInterval": "15", "IpsetsRefreshInterval": "0"}, 15),
        ({"InterfaceRefreshInterval": "300"}, 60),
        ({"IptablesRefreshInterval": "0", "IpsetsRefreshInterval": "40"}, 40),
    ],
)
def test_the_shortest_refresh_interval_counts(given: dict[str, str], counts: float) -> None:
    assert refresh_interval_s(load_settings({}, global_config=given)) == counts


def test_a_metadata_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="no IPv4 address") as caught:
        dataplane_options(load_settings({"FELIX_METADATAADDR": "metadata.invalid"}), "rack-a")
    assert caught.value.name == "metadata_address"


@pytest.mark.parametrize("name", ["a..b", "a\0b"])
def test_a_metadata_address_that_is_no_name_is_refused_too(name: str) -> None:
    """As a file that an older version left may hold it."""
    settings = msgspec.structs.replace(load_settings({}), metadata_address=name)
    with pytest.raises(InvalidSettings, match="no IPv4 address") as caught:
        dataplane_options(settings, "rack-a")
    assert caught.value.name == "metadata_address"


@pytest.mark.parametrize("value", ["0", "1", None])
def test_a_strict_or_absent_filter_is_fine(tmp_path: Path, value: str | None) -> None:
    path = tmp_path / "rp_filter"
    if value is not None:
        path.write_text(f"{value}\n")
    refuse_loose_rpf(load_settings({}), path)


def test_a_loose_filter_ends_the_start_unless_it_is_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rp_filter"
    path.write_text("2\n")
    with pytest.raises(InvalidSettings, match="rp_filter is 2") as caught:
        refuse_loose_rpf(load_settings({}), path)
    assert caught.value.name == "ignore_loose_rpf"
    refuse_loose_rpf(load_settings({"FELIX_IGNORELOOSERPF": "true"}), path)
    assert "kernel.loose_rpf" in [each.getMessage() for each in caplog.records]


@pytest.mark.parametrize(
    ("value", "spoofing", "is_told"), [("0", "any", False), ("1", "any", True), ("2", "any", True), ("1", "", False)]
)
def test_a_filter_of_the_whole_host_is_told_of_where_prefixes_are_allowed(
    tmp_path: Path, value: str, spoofing: str, *, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rp_filter"
    path.write_text(f"{value}\n")
    warn_of_strict_rpf(load_settings({"FELIX_WORKLOADSOURCESPOOFING": spoofing}), path)
    assert ("kernel.strict_rpf" in [each.getMessage() for each in caplog.records]) is is_told


@pytest.mark.parametrize(("override", "is_told"), [("DROP", False), ("LOG-and-DROP", False), ("LOG-and-ACCEPT", True)])
def test_policy_that_is_off_is_an_error_in_the_log(
    override: str, *, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_open_policy(load_settings({"FELIX_DROPACTIONOVERRIDE": override}))
    assert ("policy.switched_off" in [each.getMessage() for each in caplog.records]) is is_told


@pytest.mark.parametrize(
    ("environment", "are_cut"),
    [
        ({}, True),
        ({"CALICO_ESTABLISHED_FLOWS": "keep"}, False),
        ({"FELIX_DROPACTIONOVERRIDE": "LOG-and-DROP"}, True),
        ({"FELIX_DROPACTIONOVERRIDE": "ACCEPT"}, False),
        ({"FELIX_DROPACTIONOVERRIDE": "LOG-and-ACCEPT"}, False),
    ],
)
def test_connections_are_cut_where_policy_denies_packets(environment: dict[str, str], *, are_cut: bool) -> None:
    assert cuts_denied_flows(load_settings(environment)) is are_cut
