"""What a call wants of an attachment: which addresses, which MAC. Source: cni specification 2.7 and 5.6.

The first place that names an address wins: ``runtimeConfig.ips``, ``args.cni.ips``, ``IP`` in CNI_ARGS.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from netaddr import EUI, IPAddress, IPNetwork

from calico_cni.environment import Invocation
from calico_cni.wire import CommonConfiguration
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import parse_address, parse_mac, parse_network
from calico_core.model.workloads import AddressRequest

_NAME = re.compile(r"(?=.*[g-zG-Z-])[A-Za-z0-9][A-Za-z0-9.-]*")  # of a pool: no address has such a letter
_GROUP_BIT = 1 << 40  # first bit on the wire: multicast


def address_request(
    configuration: CommonConfiguration,
    invocation: Invocation,
    *,
    handle: str,
    host: str,
    orchestrator: str = "",
    interface: str = "",
) -> AddressRequest:
    """Exactly the addresses named anywhere; where there are none, one of each family that is switched on.
    ``orchestrator`` and ``interface`` are of the endpoint record that will carry them, empty when there will be none.

    :raises InvalidRequest: naming the key.
    """
    ipam = configuration.ipam
    requested = requested_addresses(configuration, invocation)
    if requested:
        versions = [address.version for address in requested]
        num_v4, num_v6 = versions.count(4), versions.count(6)
    else:
        num_v4, num_v6 = int(ipam.assign_ipv4), int(ipam.assign_ipv6)
    if not num_v4 and not num_v6:
        raise InvalidRequest("ipam.assign_ipv4", "false, and assign_ipv6 is not true: no address is asked for")
    return AddressRequest(
        handle=handle,
        num_v4=num_v4,
        num_v6=num_v6,
        requested=requested,
        pools_v4=_pools(ipam.ipv4_pools, 4),
        pools_v6=_pools(ipam.ipv6_pools, 6),
        attributes=_attributes(configuration, invocation, host, orchestrator, interface),
    )


def requested_addresses(configuration: CommonConfiguration, invocation: Invocation) -> tuple[IPAddress, ...]:
    """At most one of each family, IPv4 first; a prefix length is accepted and dropped."""
    by_argument = [text for text in invocation.arguments.get("IP", "").split(",") if text.strip()]
    for field, texts in (
        ("runtimeConfig.ips", configuration.runtime_config.ips),
        ("args.cni.ips", configuration.args.cni.ips),
        ("CNI_ARGS.IP", by_argument),
    ):
        if texts:
            return _one_of_each(field, [_address(text.strip(), field) for text in texts])
    return ()


def requested_mac(configuration: CommonConfiguration, invocation: Invocation) -> EUI | None:
    for field, text in (
        ("runtimeConfig.mac", configuration.runtime_config.mac),
        ("CNI_ARGS.MAC", invocation.arguments.get("MAC", "")),
    ):
        if text:
            return parse_unicast_mac(text, field=field)
    return None


def parse_unicast_mac(text: str, *, field: str) -> EUI:
    mac = parse_mac(text, field=field)
    if int(mac) & _GROUP_BIT or int(mac) == 0:
        raise InvalidRequest(field, f"{text!r} cannot belong to an interface: give a unicast MAC address")
    return mac


def _address(text: str, field: str) -> IPAddress:
    parse_network(text, field=field)  # the length, if there is one, must make sense
    return parse_address(text.partition("/")[0], field=field)


def _one_of_each(field: str, addresses: list[IPAddress]) -> tuple[IPAddress, ...]:
    for version in (4, 6):
        same = [str(address) for address in addresses if address.version == version]
        if len(same) > 1:
            raise InvalidRequest(field, f"{', '.join(same)}: only one IPv{version} address can be requested")
    return tuple(sorted(addresses, key=lambda address: int(address.version)))


def parse_pool(text: str, *, field: str, version: int) -> IPNetwork:
    """The CIDR of a pool. The reference plugin also takes names; pools here have none."""
    if _NAME.fullmatch(text):
        raise InvalidRequest(field, f"{text!r}: pools have no names here, give the CIDR as calicoctl pool show has it")
    return parse_network(text, field=field, version=version)


def _pools(texts: tuple[str, ...] | None, version: int) -> tuple[IPNetwork, ...]:
    field = f"ipam.ipv{version}_pools"
    return tuple(parse_pool(text, field=field, version=version) for text in texts or ())


def _attributes(
    configuration: CommonConfiguration, invocation: Invocation, host: str, orchestrator: str, interface: str
) -> dict[str, Any]:
    return address_notes(
        host=host,
        network=configuration.name,
        container_id=invocation.container_id,
        ifname=invocation.interface,
        orchestrator=orchestrator,
        interface=interface,
        namespace=invocation.arguments.get("K8S_POD_NAMESPACE", ""),
        pod=invocation.arguments.get("K8S_POD_NAME", ""),
    )


def address_notes(
    *,
    host: str,
    network: str,
    container_id: str,
    ifname: str,
    orchestrator: str = "",
    interface: str = "",
    namespace: str = "",
    pod: str = "",
) -> dict[str, Any]:
    """What ``calicoctl ipam`` shows of an address, and GC goes by; what is empty is left out. Source: cni specification
    4."""
    attributes = {
        "node": host,
        "orchestrator": orchestrator,
        "interface": interface,
        "network": network,
        "container": container_id,
        "ifname": ifname,
        "namespace": namespace,
        "pod": pod,
        "timestamp": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    return {name: value for name, value in attributes.items() if value}
