"""What the datastore configures for each host, as its agent would read it: what :mod:`flows` has to know beside policy.

Environment and files of hosts come before the datastore, and only the hosts know them. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netaddr import IPAddress
from netaddr.core import AddrFormatError

from calico_core.errors import CalicoError
from calico_core.model.addresses import contains, parse_network
from calico_core.model.failsafe import Failsafe, parse_failsafe_ports
from calico_core.model.keys import GlobalConfigKey, HostConfigKey, Key
from calico_core.policy.explain import Direction
from calico_core.setting_fields import FIELDS
from calico_core.settings import Settings

ENDPOINT_TO_HOST, SOURCE_SPOOFING, MAX_SET_SIZE = (
    "DefaultEndpointToHostAction",
    "WorkloadSourceSpoofing",
    "MaxIpsetSize",
)
DROP_OVERRIDE, IPV6_SUPPORT = "DropActionOverride", "Ipv6Support"
_FIELDS = {field.name: field for field in FIELDS}


class HostSettings:
    """``defaults``: where the records say nothing. A value that cannot be used counts as not there, or as one that says
    the default, as it does for a node that starts."""

    def __init__(self, records: Mapping[Key, Any], defaults: Settings) -> None:
        self._records, self._defaults = records, defaults

    def _setting(self, host: str, name: str) -> Any:
        field, default = _FIELDS[name], getattr(self._defaults, name)
        keys = [HostConfigKey(host, each) for each in field.config]
        for key in (*keys, *map(GlobalConfigKey, field.config)):
            text = self._records.get(key)
            if not text:
                continue
            try:
                return field.parse(text)
            except CalicoError:
                if field.has_fallback:
                    break
        return default

    def failsafe_ports(self, host: str, direction: Direction) -> tuple[Failsafe, ...]:
        name = f"failsafe_{direction}"
        return parse_failsafe_ports(self._setting(host, name), field=name)

    def interface_prefixes(self, host: str) -> tuple[str, ...]:
        """What the names of its workloads' interfaces begin with."""
        return tuple(self._setting(host, "interface_prefix").split(","))

    def lets_spoof(self, host: str) -> bool:
        """Whether workloads of the host may send from the prefixes that their records allow."""
        return bool(self._setting(host, "source_spoofing") == "Any")

    def has_floating(self, host: str) -> bool:
        return bool(self._setting(host, "floating_ips") == "Enabled")

    def has_ipv6(self, host: str) -> bool:
        """Whether workloads and policy of the host know IPv6; where that is its kernel's to say, it is taken to."""
        return bool(self._setting(host, "ipv6_support") != "false")

    def action_to_host(self, host: str) -> str:
        """What becomes of packets that its workloads send to it."""
        return str(self._setting(host, "endpoint_to_host"))

    def max_set_size(self, host: str) -> int:
        """Members of one set."""
        return int(self._setting(host, "max_set_size"))

    def is_policy_off(self, host: str) -> bool:
        """Whether it lets through what policy denies."""
        return str(self._setting(host, "drop_override")).endswith("ACCEPT")

    def lets_tunnel(self, host: str, kind: str) -> bool:
        """Whether its workloads may send packets of that encapsulation."""
        return bool(self._setting(host, {"IPIP": "allow_ipip", "VXLAN": "allow_vxlan"}[kind]))

    def is_external_node(self, host: str, address: IPAddress) -> bool:
        """Whether the host takes the address for one of a host of the cluster."""
        return any(contains(net, address) for net in map(parse_network, self._setting(host, "external_nodes")))

    def metadata(self, host: str) -> tuple[IPAddress | str, int] | None:
        """Where the metadata address leads, and the port; a name that only the host can resolve as it is. None:
        nowhere."""
        text, port = self._setting(host, "metadata_address"), self._setting(host, "metadata_port")
        if text == "none":
            return None
        try:
            return IPAddress(text), port
        except (AddrFormatError, ValueError):
            return text, port

    def nat_address(self, host: str, version: int) -> IPAddress | None:
        """What it masquerades behind, if not an address of its own choice."""
        text = self._setting(host, "nat_outgoing_address")
        address = IPAddress(text) if text else None
        return address if address is not None and address.version == version else None

    def nat_spares_hosts(self, host: str) -> bool:
        """Whether what goes to hosts is not masqueraded."""
        return bool(self._setting(host, "nat_exclusions") == "IPPoolsAndHostIPs")
