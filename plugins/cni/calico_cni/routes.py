"""Which destinations a container reaches through its interface, all of them by the one next hop.

``ipam.routes`` in a configuration take the place of the default routes; ``gw`` in them is ignored. Source: cni
specification 3.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from netaddr import IPNetwork

from calico_cni.wire import NetworkConfiguration
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import parse_network

_FIELD = "ipam.routes"


class ContainerRoutes(NamedTuple):
    """``others``: beside the default route of each family."""

    has_default: bool
    others: tuple[IPNetwork, ...] = ()


class _IpamRoute(msgspec.Struct, frozen=True):
    dst: str


def container_routes(configuration: NetworkConfiguration) -> ContainerRoutes:
    """``default_route`` false goes before everything; ``auto`` is yes: a default route that the container has already
    is left alone.

    :raises InvalidRequest: naming the key.
    """
    may_have_default = str(configuration.default_route).lower() != "false"
    raw = bytes(configuration.ipam.routes)
    if raw in {b"", b"null"}:
        return ContainerRoutes(may_have_default)
    try:
        listed = msgspec.json.decode(raw, type=list[_IpamRoute])
    except msgspec.DecodeError as error:
        raise InvalidRequest(_FIELD, str(error)) from error
    networks = [parse_network(route.dst, field=f"{_FIELD}[{number}].dst") for number, route in enumerate(listed)]
    has_default = not networks or configuration.include_default_routes or any(not each.prefixlen for each in networks)
    others = tuple(dict.fromkeys(each for each in networks if each.prefixlen))
    return ContainerRoutes(may_have_default and has_default, others)
