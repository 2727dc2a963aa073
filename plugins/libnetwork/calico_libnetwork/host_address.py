"""Addresses as Docker writes them: with the prefix length of their network."""

from __future__ import annotations

from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.model.addresses import parse_address, parse_network


def parse_host_address(text: str, *, field: str, version: int | None = None) -> tuple[IPAddress, IPNetwork]:
    """``10.99.0.2/24`` → the address and the network. Raises ``InvalidRequest``."""
    network = parse_network(text, field=field, version=version)
    return parse_address(text.partition("/")[0], field=field), network


def is_dummy_gateway(text: str) -> bool:
    """What our own IPAM answered in place of a gateway: all zero, address and prefix length."""
    try:
        address, network = parse_host_address(text, field="Gateway")
    except InvalidRequest:
        return False
    return int(address) == 0 and network.prefixlen == 0
