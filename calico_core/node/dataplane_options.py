"""What the settings say to a dataplane driver, and what of the kernel has to be right before one starts."""

from __future__ import annotations

import socket
from pathlib import Path

from netaddr import IPAddress

from calico_core.errors import InvalidSettings
from calico_core.interfaces.dataplane import DataplaneOptions, FailsafePort
from calico_core.log import get_logger
from calico_core.model.failsafe import parse_failsafe_ports
from calico_core.settings import Settings

log = get_logger(__name__)

_RP_FILTER = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
_LOOSE = "2"


def dataplane_options(settings: Settings, host: str) -> DataplaneOptions:
    """Raises ``InvalidSettings`` for a metadata address that no resolver knows."""
    has_ipv6 = Path("/proc/sys/net/ipv6").exists()
    return DataplaneOptions(
        host=host,
        interface_prefix=settings.interface_prefix,
        endpoint_to_host=settings.endpoint_to_host,
        is_ipv6_enabled=settings.ipv6_support == "true" or (settings.ipv6_support == "auto" and has_ipv6),
        route_protocol=settings.route_protocol,
        log_prefix=settings.log_prefix,
        log_rate=settings.log_rate,
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
    )


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


def warn_of_open_policy(settings: Settings) -> None:
    """Loudly: an override that accepts switches all policy off."""
    if settings.drop_override.endswith("ACCEPT"):
        origin = settings.origins.get("drop_override", "default")
        log.error("policy.switched_off", drop_override=settings.drop_override, origin=origin)


def _failsafe_ports(text: str, field: str) -> tuple[FailsafePort, ...]:
    return tuple(FailsafePort(*each) for each in parse_failsafe_ports(text, field=field))


def _metadata(settings: Settings) -> tuple[IPAddress, int] | None:
    """A name is resolved now, once."""
    if settings.metadata_address == "none":
        return None
    try:
        found = socket.getaddrinfo(settings.metadata_address, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        origin = settings.origins.get("metadata_address", "default")
        reason = f"{settings.metadata_address!r} has no IPv4 address: {error.strerror or error}; give one, or none"
        raise InvalidSettings("metadata_address", origin, reason) from error
    return IPAddress(str(found[0][4][0])), settings.metadata_port
