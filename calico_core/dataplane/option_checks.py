"""Options that no driver can work with are refused before anything is programmed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.errors import InvalidRequest
from calico_core.model.ids import check_interface
from calico_core.model.rules import PORT_PROTOCOLS

if TYPE_CHECKING:
    from calico_core.interfaces.dataplane import DataplaneOptions

_ALLOWED = ("ACCEPT", "RETURN")
#: By option: what it may say.
_WORDS = {
    "endpoint_to_host": ("DROP", "RETURN", "ACCEPT"),
    "deny_action": ("DROP", "REJECT"),
    "drop_override": ("DROP", "ACCEPT", "LOG-and-DROP", "LOG-and-ACCEPT"),
    "chain_insert": ("Insert", "Append"),
    "log_unit": ("second", "minute", "hour", "day"),
    "filter_allow": _ALLOWED,
    "mangle_allow": _ALLOWED,
}


def check_options(options: DataplaneOptions) -> None:
    """:raises InvalidRequest: names the option."""
    if not options.interface_prefixes:
        raise InvalidRequest("interface_prefixes", "workloads would be without policy: name one at least")
    for prefix in options.interface_prefixes:
        check_interface(prefix, field="interface_prefixes")
    for name, words in _WORDS.items():
        if getattr(options, name) not in words:
            raise InvalidRequest(name, f"{getattr(options, name)!r} is not one of {', '.join(words)}")
    if len({each.version for each in options.route_sources}) < len(options.route_sources):
        raise InvalidRequest("route_sources", "one address of each family at most")
    if options.mark_mask.bit_count() < 2 or not 0 < options.mark_mask < 1 << 32:
        raise InvalidRequest("mark_mask", f"{options.mark_mask:#x} must be 32 bits wide with two bits set at least")
    if options.max_set_size < 1:
        raise InvalidRequest("max_set_size", f"{options.max_set_size} must be 1 at least")
    if not 0 <= options.denied_group < 1 << 16:
        raise InvalidRequest("denied_group", f"{options.denied_group} must be from 0 to 65535")
    if options.log_rate < 0 or options.log_burst < 1:
        raise InvalidRequest("log_rate", f"{options.log_rate} with bursts of {options.log_burst} cannot be kept")
    if options.metadata is not None and options.metadata[0].version != 4:
        raise InvalidRequest("metadata", f"{options.metadata[0]} must be an IPv4 address, as 169.254.169.254 is")
    for each in (*options.failsafe_inbound, *options.failsafe_outbound):
        if each.protocol not in PORT_PROTOCOLS or not 0 < each.port < 1 << 16:
            raise InvalidRequest("failsafe", f"protocol {each.protocol} has no port {each.port}")
