"""Words that name a flow: ``SRC:PORT,DST:PORT,PROTO``, protocols, ICMP types, and who is meant by A and B. Pure.

Source: calicoctl specification 5.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from netaddr import IPAddress

from calico_core.cli.failure import Missing, Refused
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import first_address, parse_address
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.numbers import decimal
from calico_core.model.rules import PORT_PROTOCOLS, PROTOCOLS, protocol_number

_MIN_PREFIX = 4
_ECHO_REQUEST = {4: (8, 0), 6: (128, 0)}
_ICMP = {4: PROTOCOLS["icmp"], 6: PROTOCOLS["icmpv6"]}
_NAMES = {number: name for name, number in PROTOCOLS.items()}


class FlowWords(NamedTuple):
    """``protocol`` as written, ports None where none stand."""

    source: str
    source_port: int | None
    destination: str
    port: int | None
    protocol: str


class Party(NamedTuple):
    """``key`` None: an address that was given as such."""

    addresses: tuple[IPAddress, ...]
    key: WorkloadEndpointKey | None = None


def parse_flow(text: str) -> FlowWords:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(parts):
        raise InvalidRequest("--flow", f"{text!r} is not SRC:PORT,DST:PORT,PROTO or SRC,DST,icmp")
    source, source_port = _split_port(parts[0])
    destination, port = _split_port(parts[1])
    return FlowWords(source, source_port, destination, port, parts[2])


def parse_port(text: str, *, field: str) -> int:
    port = decimal(text)
    if port is None or port > 65535:
        raise InvalidRequest(field, f"{text!r} is not a port from 0 to 65535")
    return port


def parse_icmp(text: str) -> tuple[int, int]:
    """``8`` or ``8/0``."""
    first, slash, second = text.partition("/")
    kind, code = decimal(first), decimal(second) if slash else 0
    if kind is None or kind > 255 or code is None or code > 255:
        raise InvalidRequest("--icmp", f"{text!r} is not TYPE or TYPE/CODE, each from 0 to 255")
    return kind, code


def protocol_of(word: str | None, *, has_port: bool, icmp: tuple[int, int] | None, version: int) -> int:
    """Unnamed: ICMP when ``icmp`` is given, else TCP. ``icmp`` means ICMPv6 between IPv6 addresses."""
    if word is None:
        return _ICMP[version] if icmp is not None else PROTOCOLS["tcp"]
    number = protocol_number(word)
    number = _ICMP[version] if number == PROTOCOLS["icmp"] else number
    if number in _ICMP.values() and number != _ICMP[version]:
        raise InvalidRequest("--protocol", f"{word} is not spoken between IPv{version} addresses")
    if icmp is not None and number != _ICMP[version]:
        raise InvalidRequest("--icmp", f"{word} has no ICMP types")
    if has_port and number not in PORT_PROTOCOLS:
        raise InvalidRequest("--port", f"{word} has no ports")
    return number


def icmp_of(protocol: int, icmp: tuple[int, int] | None, version: int) -> tuple[int, int] | None:
    """An echo request where nothing is named."""
    return (icmp or _ECHO_REQUEST[version]) if protocol == _ICMP[version] else None


def protocol_word(number: int) -> str:
    return _NAMES.get(number, f"protocol {number}")


def find_party(
    word: str, endpoints: Mapping[WorkloadEndpointKey, WorkloadEndpoint], hosts: Mapping[IPAddress, str]
) -> Party:
    """By address, ``host:NAME``, endpoint id, workload name, or the beginning of an endpoint id if it is unique.

    Raises ``Missing``, ``Refused`` when several are meant."""
    try:
        return Party((parse_address(word),))
    except InvalidRequest:
        pass
    kind, separator, name = word.partition(":")
    if separator and kind == "host":
        found = tuple(address for address, host in hosts.items() if host == name)
        if not found:
            raise Missing("host", name, "calicoctl node show lists them")
        return Party(found)
    keys = [key for key in endpoints if key.endpoint == word] or [key for key in endpoints if key.workload == word]
    if not keys and len(word) >= _MIN_PREFIX:
        keys = [key for key in endpoints if key.endpoint.startswith(word) or key.workload.startswith(word)]
    if not keys:
        raise Missing("endpoint, workload or address", word, "calicoctl endpoint show --detailed lists them")
    if len(keys) > 1:
        names = ", ".join(sorted(f"{key.host}/{key.workload}/{key.endpoint}" for key in keys)[:5])
        raise Refused(f"{word!r} means {len(keys)} endpoints: {names}", "give an address or more of the endpoint's id")
    addresses = tuple(first_address(net) for net in endpoints[keys[0]].nets)
    if not addresses:
        raise Refused(f"endpoint {keys[0].endpoint} has no address")
    return Party(addresses, keys[0])


def common_addresses(source: Party, destination: Party, version: int | None) -> tuple[IPAddress, IPAddress]:
    """Of one family: IPv4 if both have it and ``version`` names none."""
    for family in (version,) if version is not None else (4, 6):
        sends = next((each for each in source.addresses if each.version == family), None)
        receives = next((each for each in destination.addresses if each.version == family), None)
        if sends is not None and receives is not None:
            return sends, receives
    wanted = f"IPv{version} address" if version is not None else "address family"
    raise InvalidRequest("--to", f"the two ends have no {wanted} in common")


def _split_port(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        return address, parse_port(rest[1:], field="--flow") if rest.startswith(":") else None
    name, separator, port = text.rpartition(":")
    if not separator or ":" in name or not port.isdigit():
        return text, None  # an IPv6 address has more than one colon, host:NAME no number
    return name, parse_port(port, field="--flow")
