"""Valid values for tests of routing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.routing import Peer, RoutingState


def _networks(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(IPNetwork(text) for text in texts)


def _peer(ip: str, as_number: int, origin: str, description: str = "", *, is_passive: bool = False) -> Peer:
    return Peer(
        ip=IPAddress(ip), as_number=as_number, origin=origin, description=description, is_passive=is_passive,
    )  # fmt: skip


@pytest.fixture
def a_state() -> Callable[..., RoutingState]:
    """The complete host of the node specification 2.3; keywords replace fields."""

    def make(**fields: Any) -> RoutingState:
        defaults: dict[str, Any] = {
            "host": "node-1",
            "as_number": 64511,
            "ipv4": IPAddress("10.0.0.1"),
            "ipv6": IPAddress("fd00::1"),
            "router_id": IPAddress("10.0.0.1"),
            "peers": (
                _peer("10.0.0.2", 64511, "mesh", "node-2", is_passive=True),
                _peer("fd00::2", 64511, "mesh", "node-2", is_passive=True),
                _peer("10.0.0.254", 65000, "global"),
                _peer("fd00::fe", 4200000000, "node"),
            ),
            "blocks": _networks("192.168.10.0/26", "fd80:24e2:f998:72d6::a00/122"),
            "pools": _networks("192.168.0.0/16", "172.30.0.0/16", "fd80:24e2:f998:72d6::/64"),
            "encapsulated": _networks("172.30.0.0/16"),
            "unexported": _networks("10.99.0.0/16"),
        }
        return RoutingState(**{**defaults, **fields})

    return make
