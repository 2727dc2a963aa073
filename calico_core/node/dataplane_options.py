"""What the settings say to a dataplane driver, and what of the kernel has to be right before one starts."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidSettings
from calico_core.interfaces.dataplane import DataplaneOptions, FailsafePort
from calico_core.log import get_logger
from calico_core.model.failsafe import parse_failsafe_ports
from calico_core.settings import Settings

log = get_logger(__name__)

_RP_FILTER = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
_IPV6 = Path("/proc/sys/net/ipv6")
_LOOSE = "2"


def dataplane_options(settings: Settings, host: str) -> DataplaneOptions:
    """Raises ``InvalidSettings`` for a metadata address that no resolver knows, and for IPv6 the kernel has not."""
    log_rate, _, log_unit = (settings.log_limit or "0/second").partition("/")
    return DataplaneOptions(
        host=host,
        interface_prefixes=settings.interface_prefixes,
        endpoint_to_host=settings.endpoint_to_host,
        is_ipv6_enabled=not ipv6_lack(settings),
        route_protocol=settings.route_protocol,
        log_prefix=settings.log_prefix,
        log_rate=int(log_rate),
        log_unit=log_unit,  # type: ignore[arg-type]
        log_burst=settings.log_burst,
        deny_action=settings.deny_action,
        drop_override=settings.drop_override,
        failsafe_inbound=_failsafe_ports(settings.failsafe_inbound, "failsafe_inbound"),
        failsafe_outbound=_failsafe_ports(settings.failsafe_outbound, "failsafe_outbound"),
        metadata=_metadata(settings),
        denied_group=settings.denied_group,
        mark_mask=settings.mark_mask,
        max_set_size=settings.max_set_size,
        address_poll_s=settings.address_poll_s,
        netlink_timeout_s=settings.netlink_timeout_s,
        makes_routes=not settings.route_sync_disabled,
        makes_router=settings.ip_forwarding == "Enabled",
        chain_insert=settings.chain_insert,
        allows_ipip=settings.allow_ipip,
        allows_vxlan=settings.allow_vxlan,
        external_peers=tuple(map(IPNetwork, settings.external_nodes)),
        drops_invalid=not settings.no_invalid_check,
        filter_allow=settings.filter_allow,
        mangle_allow=settings.mangle_allow,
        route_sources=tuple(IPAddress(each) for each in (settings.route_source_v4, settings.route_source_v6) if each),
        nat_ports=_ports(settings.nat_port_range),
        nat_address=IPAddress(settings.nat_outgoing_address) if settings.nat_outgoing_address else None,
        nat_interfaces=settings.nat_interfaces,
        nat_spares_hosts=settings.nat_exclusions == "IPPoolsAndHostIPs",
    )


def refresh_interval_s(settings: Settings) -> float:
    """Between two comparisons with the kernel; one covers all of it, so the shortest interval that is given counts.
    0: there are none."""
    given = (
        settings.refresh_interval_s,
        settings.route_refresh_interval_s,
        settings.link_refresh_interval_s,
        settings.set_refresh_interval_s,
    )
    return min((each for each in given if each > 0), default=0.0)


def cuts_denied_flows(settings: Settings) -> bool:
    """Whether connections end that policy denies by now. Where an override accepts, no packet is denied."""
    return settings.established_flows == "cut" and not _is_policy_off(settings)


def ipv6_lack(settings: Settings, sysctls: Path = _IPV6) -> str:
    """Why there is no IPv6 for workloads, or ''. Raises ``InvalidSettings``: it is demanded and the kernel has none."""
    if settings.ipv6_support == "false":
        return "Ipv6Support is false"
    if sysctls.is_dir():
        return ""
    lack = f"the kernel has no IPv6: there is no {sysctls}"
    if settings.ipv6_support == "true":
        origin = settings.origins.get("ipv6_support", "default")
        raise InvalidSettings("ipv6_support", origin, f"{lack}; give it IPv6, or say auto or false")
    return lack


def check_kernel(settings: Settings) -> None:
    """Before the dataplane is opened. Raises ``InvalidSettings``; what only someone should look at is in the log."""
    refuse_loose_rpf(settings)
    warn_of_strict_rpf(settings)
    warn_of_open_policy(settings)
    tell_ipv6(settings)


def tell_ipv6(settings: Settings) -> None:
    """Once a start, when there is none."""
    if lack := ipv6_lack(settings):
        log.warning("ipv6.off", reason=lack)


def refuse_loose_rpf(settings: Settings, path: Path = _RP_FILTER) -> None:
    """A loose reverse-path filter of "all" beats the strict one of workload interfaces, and workloads may then send
    with addresses of others. Raises ``InvalidSettings``. Source: kernel documentation, ip-sysctl, rp_filter."""
    try:
        value = path.read_text().strip()
    except OSError:
        return
    if value != _LOOSE:
        return
    if settings.ignore_loose_rpf:
        log.warning("kernel.loose_rpf", sysctl="net.ipv4.conf.all.rp_filter", value=value)
        return
    raise InvalidSettings(
        "ignore_loose_rpf",
        settings.origins.get("ignore_loose_rpf", "default"),
        "net.ipv4.conf.all.rp_filter is 2, which lets workloads send with the addresses of others: "
        "set it to 0 or 1, or IgnoreLooseRPF to true",
    )


def warn_of_strict_rpf(settings: Settings, path: Path = _RP_FILTER) -> None:
    """A reverse-path filter of "all" counts on the interfaces of workloads that may send from other prefixes, too: the
    kernel goes by the higher of the two values, and drops there what is IPv4 and not routed back."""
    if settings.source_spoofing != "Any":
        return
    with contextlib.suppress(OSError):
        if (value := path.read_text().strip()) != "0":
            log.warning(
                "kernel.strict_rpf",
                sysctl="net.ipv4.conf.all.rp_filter",
                value=value,
                reason="with it the kernel drops IPv4 that workloads send from prefixes of WorkloadSourceSpoofing: set "
                "it to 0, and the rp_filter of the host's own interfaces one by one",
            )


def warn_of_open_policy(settings: Settings) -> None:
    """Loudly: an override that accepts switches all policy off."""
    if _is_policy_off(settings):
        origin = settings.origins.get("drop_override", "default")
        log.error("policy.switched_off", drop_override=settings.drop_override, origin=origin)


def _is_policy_off(settings: Settings) -> bool:
    return settings.drop_override.endswith("ACCEPT")


def _failsafe_ports(text: str, field: str) -> tuple[FailsafePort, ...]:
    return tuple(FailsafePort(*each) for each in parse_failsafe_ports(text, field=field))


def _ports(text: str) -> tuple[int, int] | None:
    first, separator, last = text.partition(":")
    return (int(first), int(last)) if separator else None


def _metadata(settings: Settings) -> tuple[IPAddress, int] | None:
    """A name is resolved now, once."""
    if settings.metadata_address == "none":
        return None
    try:
        found = socket.getaddrinfo(settings.metadata_address, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: what is no name at all
        origin = settings.origins.get("metadata_address", "default")
        why = getattr(error, "strerror", None) or error
        reason = f"{settings.metadata_address!r} has no IPv4 address: {why}; give one, or none"
        raise InvalidSettings("metadata_address", origin, reason) from error
    return IPAddress(str(found[0][4][0])), settings.metadata_port
