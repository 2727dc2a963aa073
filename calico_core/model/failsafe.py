"""Ports of a host that no policy of its host endpoints closes, as settings write them: ``tcp:22``,
``tcp:192.0.2.0/24:2379``, ``udp:[fd00::/8]:53`` or, as older ones do, ``22`` for TCP. Source: felix specification 2.3.
"""

from __future__ import annotations

from netaddr import IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.model.addresses import parse_network
from calico_core.model.numbers import decimal
from calico_core.model.rules import PORT_PROTOCOLS, PROTOCOLS, protocol_number

Failsafe = tuple[int, int, IPNetwork | None]
"""Protocol, port at the receiving end, and whom it is open to; None: everyone."""
DEFAULT_INBOUND = "tcp:22,udp:68,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667"
DEFAULT_OUTBOUND = "udp:53,udp:67,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667"
_FORM = "PORT, PROTOCOL:PORT or PROTOCOL:CIDR:PORT"


def parse_failsafe_ports(text: str, *, field: str) -> tuple[Failsafe, ...]:
    """Separated by commas; ``none`` or nothing: no port. Raises ``InvalidRequest`` naming ``field``."""
    if text.strip().lower() == "none":
        return ()
    return tuple(_parse_one(each.strip(), field) for each in text.split(",") if each.strip())


def _parse_one(text: str, field: str) -> Failsafe:
    rest, _, last = text.rpartition(":")
    port = decimal(last)
    if port is None or not 0 < port <= 65535:
        raise InvalidRequest(field, f"{text!r} does not end in a port from 1 to 65535: write {_FORM}")
    word, _, net = rest.partition(":")
    protocol = protocol_number(word, field=field) if rest else PROTOCOLS["tcp"]
    if protocol not in PORT_PROTOCOLS:
        raise InvalidRequest(field, f"{text!r}: {word} has no ports: write {_FORM}")
    return protocol, port, parse_network(net.strip("[]"), field=field) if net else None
