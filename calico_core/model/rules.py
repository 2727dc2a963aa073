"""Policy rules as the datastore holds them. Source: datastore specification 4.3.

A rule is an AND of its matches; the ``not_`` fields are written with a leading ``!``. An unknown key makes the rule
invalid, because it might be a match that narrows it. One invalid rule invalidates the whole list it stands in.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from netaddr import IPNetwork

from calico_core.errors import CalicoError, InvalidRequest, InvalidSelector
from calico_core.model.ids import check_name
from calico_core.model.numbers import decimal
from calico_core.model.selectors import check_selector

Action = Literal["allow", "deny", "reject", "next-tier", "pass", "log"]
"""``reject`` is a deny that answers, by an ICMP error: administratively prohibited. ``pass`` is ``next-tier``."""
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "dccp": 33, "icmpv6": 58, "sctp": 132, "udplite": 136}
PORT_PROTOCOLS = frozenset({6, 17, 33, 132, 136})
_PORT_RANGE = re.compile(r"([0-9]{1,5})(?::([0-9]{1,5}))?")
_PORT_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_.-]{1,128}")
_LOG_PREFIX_OTHER = re.compile(r"[^A-Za-z0-9_:-]")
LOG_PREFIX_LENGTH = 27

PortRange = tuple[int, int]
IcmpType = Annotated[int, msgspec.Meta(ge=0, le=254)]
IcmpCode = Annotated[int, msgspec.Meta(ge=0, le=255)]

_NEGATED = (
    "protocol", "src_net", "dst_net", "src_nets", "dst_nets", "src_tag", "dst_tag", "src_selector", "dst_selector",
    "src_ports", "dst_ports", "icmp_type", "icmp_code",
)  # fmt: skip


class Rule(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    rename={f"not_{name}": f"!{name}" for name in _NEGATED},
):
    """One rule. Ports are ints, ``"lo:hi"`` or names of endpoints' ports; protocols names of :data:`PROTOCOLS` or
    1–255."""

    action: Action = "allow"
    ip_version: Literal[4, 6] | None = None
    protocol: str | int | None = None
    not_protocol: str | int | None = None
    src_net: IPNetwork | None = None
    not_src_net: IPNetwork | None = None
    src_nets: tuple[IPNetwork, ...] | None = None
    not_src_nets: tuple[IPNetwork, ...] | None = None
    src_tag: str | None = None
    not_src_tag: str | None = None
    src_selector: str | None = None
    not_src_selector: str | None = None
    src_ports: tuple[int | str, ...] | None = None
    not_src_ports: tuple[int | str, ...] | None = None
    dst_net: IPNetwork | None = None
    not_dst_net: IPNetwork | None = None
    dst_nets: tuple[IPNetwork, ...] | None = None
    not_dst_nets: tuple[IPNetwork, ...] | None = None
    dst_tag: str | None = None
    not_dst_tag: str | None = None
    dst_selector: str | None = None
    not_dst_selector: str | None = None
    dst_ports: tuple[int | str, ...] | None = None
    not_dst_ports: tuple[int | str, ...] | None = None
    icmp_type: IcmpType | None = None
    not_icmp_type: IcmpType | None = None
    icmp_code: IcmpCode | None = None
    not_icmp_code: IcmpCode | None = None
    log_prefix: str | None = None

    def __post_init__(self) -> None:
        try:
            self._check()
        except CalicoError as error:
            raise ValueError(str(error)) from error

    def _check(self) -> None:
        protocol = _check_protocol(self.protocol, "protocol")
        _check_protocol(self.not_protocol, "!protocol")
        for field, ports in self._ports():
            if ports is None:
                continue
            if protocol not in PORT_PROTOCOLS:
                raise InvalidRequest(field, "ports need a protocol of tcp, udp, sctp, udplite or dccp")
            for port in ports:
                parse_rule_port(port, field=field)
        for field in ("src_tag", "dst_tag"):
            for name, tag in ((field, getattr(self, field)), (f"!{field}", getattr(self, f"not_{field}"))):
                if tag is not None:
                    check_name(tag, field=name)
        for field in ("src_selector", "dst_selector"):
            for name, selector in ((field, getattr(self, field)), (f"!{field}", getattr(self, f"not_{field}"))):
                if selector is not None:
                    _check_selector(selector, name)
        if self.icmp_code is not None and self.icmp_type is None:
            raise InvalidRequest("icmp_code", "needs an icmp_type")
        if self.not_icmp_code is not None and self.not_icmp_type is None:
            raise InvalidRequest("!icmp_code", "needs an !icmp_type")
        self._check_versions(protocol)

    def _check_versions(self, protocol: int | None) -> None:
        if self.ip_version == 6 and protocol == PROTOCOLS["icmp"]:
            raise InvalidRequest("protocol", "icmp is IPv4 only; with ip_version 6 write icmpv6")
        if self.ip_version == 4 and protocol == PROTOCOLS["icmpv6"]:
            raise InvalidRequest("protocol", "icmpv6 is IPv6 only; with ip_version 4 write icmp")
        icmp = any(value is not None for value in (self.icmp_type, self.not_icmp_type))
        if icmp and protocol not in {PROTOCOLS["icmp"], PROTOCOLS["icmpv6"]}:
            raise InvalidRequest("icmp_type", "needs protocol icmp or icmpv6")
        if self.ip_version is None:
            return
        # of a list, what is of the other family is left out
        for field in ("src_net", "dst_net"):
            for name, net in ((field, getattr(self, field)), (f"!{field}", getattr(self, f"not_{field}"))):
                if net is not None and net.version != self.ip_version:
                    raise InvalidRequest(name, f"{net} is not an IPv{self.ip_version} network")

    def _ports(self) -> tuple[tuple[str, tuple[int | str, ...] | None], ...]:
        return (
            ("src_ports", self.src_ports),
            ("!src_ports", self.not_src_ports),
            ("dst_ports", self.dst_ports),
            ("!dst_ports", self.not_dst_ports),
        )


class RuleLists(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The rules of a profile: ``/calico/v1/policy/profile/<p>/rules``. Evaluated in order."""

    inbound_rules: tuple[Rule, ...] = ()
    outbound_rules: tuple[Rule, ...] = ()
    id: str | None = None


def protocol_number(protocol: str | int, *, field: str = "protocol") -> int:
    """1–255. Raises ``InvalidRequest`` for anything else."""
    number = _check_protocol(protocol, field)
    assert number is not None
    return number


def parse_port_range(port: int | str, *, field: str = "ports") -> PortRange:
    """``80`` → (80, 80), ``"80:90"`` → (80, 90)."""
    if isinstance(port, int):
        low, high = port, port
    else:
        match = _PORT_RANGE.fullmatch(port)
        if match is None:
            raise InvalidRequest(field, f"{port!r} is not a port or a range such as 8000:8080")
        low = int(match[1])
        high = int(match[2]) if match[2] is not None else low
        if match[2] is not None and low >= high:
            raise InvalidRequest(field, f"range {port!r} must run from the lower to the higher port")
    if not (0 <= low <= 65535 and high <= 65535):
        raise InvalidRequest(field, f"port {port} is not between 0 and 65535")
    return low, high


def parse_rule_port(port: int | str, *, field: str = "ports") -> PortRange | str:
    """A range as :func:`parse_port_range` gives it, or the name of a port that endpoints carry."""
    if isinstance(port, str) and _PORT_NAME.fullmatch(port):
        return port
    try:
        return parse_port_range(port, field=field)
    except InvalidRequest as error:
        if isinstance(port, str) and not _PORT_RANGE.fullmatch(port):
            reason = f"{port!r} is not a port, a range such as 8000:8080, or the name of a port such as http"
            raise InvalidRequest(field, reason) from error
        raise


def check_port_name(text: str, *, field: str = "name") -> str:
    """Anything with a letter in it, so that no name can be taken for a number or a range."""
    if not _PORT_NAME.fullmatch(text):
        reason = f"{text!r} is not the name of a port: up to 128 letters, digits, '_', '.' or '-', one of them a letter"
        raise InvalidRequest(field, reason)
    return text


def clean_log_prefix(prefix: str) -> str:
    """What may stand in a kernel log prefix: other characters become ``_``, cut to 27."""
    return _LOG_PREFIX_OTHER.sub("_", prefix)[:LOG_PREFIX_LENGTH]


def _check_selector(selector: str, field: str) -> None:
    try:
        check_selector(selector)
    except InvalidSelector as error:
        raise InvalidRequest(field, str(error)) from error


def _check_protocol(protocol: str | int | None, field: str) -> int | None:
    if protocol is None:
        return None
    if isinstance(protocol, str) and protocol.lower() in PROTOCOLS:
        return PROTOCOLS[protocol.lower()]
    number = decimal(protocol) or 0 if isinstance(protocol, str) else protocol
    if not 1 <= number <= 255:
        names = ", ".join(sorted(PROTOCOLS))
        raise InvalidRequest(field, f"{protocol!r} is not one of {names} or a number from 1 to 255")
    return number
