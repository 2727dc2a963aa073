"""One policy rule as nft text. Source: felix specification 6.4 and 10.

What allow, pass and deny do is :mod:`verdicts`'. A rule with addresses is written once for each family it can match,
never wider; one whose ports are ranges or named is written once for each way to match.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.nftables.elements import merge_ranges, range_text
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import WIDTH
from calico_core.model.rules import PORT_PROTOCOLS, PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netaddr import IPNetwork

    from calico_core.dataplane.nftables.verdicts import Verdicts
    from calico_core.interfaces.dataplane import DenialOrigin
    from calico_core.model.hoststate import HostRule, SetId
    from calico_core.model.rules import PortRange

    #: The kernel's name of a set for a family; raises ``InvalidRequest`` for one that was never brought.
    SetNames = Callable[[SetId, int], str]

_ACTIONS = ("allow", "deny", "reject", "pass", "log")
_KEYWORD = {4: "ip", 6: "ip6"}
_SIDES = {"sport": "saddr", "dport": "daddr"}


class _NeverMatches(Exception):
    """No packet of the family can match; control flow inside this module, no error."""


def render_rule(
    rule: HostRule,
    set_names: SetNames,
    *,
    families: Sequence[int],
    verdicts: Verdicts,
    origin: DenialOrigin,
    is_staged: bool = False,
) -> list[str]:
    """The nft rules; none when no packet can match. ``origin`` is the rule itself, as those who ask shall see it.
    ``is_staged``: it is counted, and decides nothing.

    :raises InvalidRequest: what the rule asks for cannot be expressed; the caller closes in its place.
    """
    _check(rule)
    for each in (*rule.sets, *rule.port_sets):
        # one that cannot be asked for closes the rule, whatever else it says (ADR 11)
        set_names(each, families[0])
    rendered: list[str] = []
    for family in _families(rule, families):
        try:
            ways = _matches(rule, family, set_names)
        except _NeverMatches:
            continue
        for match in ways:
            rendered += _count(rule, match) if is_staged else _act(rule, match, verdicts, origin)
    return rendered


def guard(rules: Sequence[HostRule]) -> str | None:
    """The nft rule at the top of a chain that turns back whom none of these can match: by the destination port, beyond
    the span of all that they name. None: one of them may match whatever the port.

    It asks for no protocol. Of what has no ports those bytes are others, and it is turned back, rightly, or put to the
    rules; what is too short to have any (a fragment) matches no comparison, so that it is put to the rules as well.
    """
    if not rules or not all(rule.dst_ports and not rule.dst_port_sets for rule in rules):
        return None
    first = min(low for rule in rules for low, _ in rule.dst_ports)
    last = max(high for rule in rules for _, high in rule.dst_ports)
    return f"{_not_ports('dport', ((first, last),))[0]} return"


def _act(rule: HostRule, match: str, verdicts: Verdicts, origin: DenialOrigin) -> list[str]:
    if rule.action == "log":
        return [f"{match} counter {verdicts.log(rule.log_prefix)}".lstrip()]
    lines = [f"{match} {verdicts.log(rule.log_prefix)}".lstrip()] if rule.log_prefix is not None else []
    match rule.action:
        case "deny":
            return lines + verdicts.deny(match, origin)
        case "reject":
            return lines + verdicts.refuse(match, origin)
        case "pass":
            return [*lines, f"{match} {verdicts.pass_on}".lstrip()]
        case _:
            return [*lines, f"{match} {verdicts.allow}".lstrip()]


def _count(rule: HostRule, match: str) -> list[str]:
    """As if it acted: what it would decide is put to no rule after it."""
    return [f"{match} counter{'' if rule.action == 'log' else ' return'}".lstrip()]


def _check(rule: HostRule) -> None:
    if rule.action not in _ACTIONS:
        raise InvalidRequest("action", f"{rule.action!r} is not {', '.join(_ACTIONS[:-1])} or {_ACTIONS[-1]}")
    ports = (rule.src_ports, rule.not_src_ports, rule.dst_ports, rule.not_dst_ports)
    if any(ports) and rule.protocol not in PORT_PROTOCOLS:
        raise InvalidRequest("ports", "ports need a protocol that has them")
    if rule.icmp or rule.not_icmp:
        family = {PROTOCOLS["icmp"]: 4, PROTOCOLS["icmpv6"]: 6}.get(rule.protocol or 0)
        if family is None:
            raise InvalidRequest("icmp", "needs protocol icmp or icmpv6")
        if rule.ip_version not in (None, family):
            raise InvalidRequest("icmp", f"cannot match IPv{rule.ip_version} packets")


def _families(rule: HostRule, families: Sequence[int]) -> list[int]:
    """0 stands for "any family": nothing in the rule depends on it."""
    only = rule.ip_version
    if rule.icmp or rule.not_icmp:
        only = 4 if rule.protocol == PROTOCOLS["icmp"] else 6
    if only is not None:
        return [only] if only in families else []
    nets = rule.src_nets + rule.not_src_nets + rule.dst_nets + rule.not_dst_nets
    return list(families) if nets or rule.sets or rule.port_sets else [0]


def _matches(rule: HostRule, family: int, set_names: SetNames) -> list[str]:
    """Each way to match: one, unless a port may be in a range or have a name."""
    parts: list[str] = []
    sets: list[str] = []
    if family:
        # last: a look-up costs several comparisons, and most packets fail at the port
        sets = [
            *_sets("saddr", family, rule.src_sets, rule.not_src_sets, set_names),
            *_sets("daddr", family, rule.dst_sets, rule.not_dst_sets, set_names),
        ]
        parts += _addresses("saddr", family, rule.src_nets, rule.not_src_nets)
        parts += _addresses("daddr", family, rule.dst_nets, rule.not_dst_nets)
        if not parts and not sets:  # an address match implies its family
            parts.append(f"meta nfproto ipv{family}")
    if rule.protocol is not None:
        parts.append(f"meta l4proto {rule.protocol}")
    if rule.not_protocol is not None:
        parts.append(f"meta l4proto != {rule.not_protocol}")
    named = _NamedPorts(family, set_names)
    not_source = _not_ports("sport", rule.not_src_ports) + named.none_of("sport", rule.not_src_port_sets)
    not_destination = _not_ports("dport", rule.not_dst_ports) + named.none_of("dport", rule.not_dst_port_sets)
    sources = _ports("sport", rule.src_ports) + named.any_of("sport", rule.src_port_sets)
    destinations = _ports("dport", rule.dst_ports) + named.any_of("dport", rule.dst_port_sets)
    return [
        " ".join(filter(None, (*parts, source, *not_source, destination, *not_destination, *_icmp(rule), *sets)))
        for source in sources or [""]
        for destination in destinations or [""]
    ]


def _addresses(side: str, family: int, nets: tuple[IPNetwork, ...], not_nets: tuple[IPNetwork, ...]) -> list[str]:
    keyword = _KEYWORD[family]
    parts: list[str] = []
    if nets:
        ranges = _ranges(nets, family)
        if not ranges:
            raise _NeverMatches
        parts.append(_any_address(keyword, side, ranges, family) or f"meta nfproto ipv{family}")
    if not_nets and (ranges := _ranges(not_nets, family)):
        match = _any_address(keyword, side, ranges, family, "!= ")
        if match is None:
            raise _NeverMatches
        parts.append(match)
    return parts


def _any_address(keyword: str, side: str, ranges: list[tuple[int, int]], family: int, operator: str = "") -> str | None:
    """None: the ranges are the whole family."""
    if ranges == [(0, (1 << WIDTH[family]) - 1)]:
        return None
    texts = [range_text(first, last, family) for first, last in ranges]
    value = texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"
    return f"{keyword} {side} {operator}{value}"


def from_any_of(nets: tuple[IPNetwork, ...], family: int) -> str:
    """What matches packets of the family that come from one of these; empty when none is of it."""
    ranges = _ranges(nets, family)
    return (_any_address(_KEYWORD[family], "saddr", ranges, family) or f"meta nfproto ipv{family}") if ranges else ""


def _ranges(nets: tuple[IPNetwork, ...], family: int) -> list[tuple[int, int]]:
    return merge_ranges((net.first, net.last) for net in nets if net.version == family)


def _sets(
    side: str, family: int, sets: tuple[SetId, ...], not_sets: tuple[SetId, ...], set_names: SetNames
) -> list[str]:
    keyword = _KEYWORD[family]
    parts = [f"{keyword} {side} @{set_names(each, family)}" for each in sets]
    return parts + [f"{keyword} {side} != @{set_names(each, family)}" for each in not_sets]


class _NamedPorts:
    """Matches of (address, protocol, port) of one family against sets of them."""

    def __init__(self, family: int, set_names: SetNames) -> None:
        self._family, self._set_names = family, set_names

    def any_of(self, side: str, sets: tuple[SetId, ...]) -> list[str]:
        return [f"{self._key(side)} @{self._set_names(each, self._family)}" for each in sets]

    def none_of(self, side: str, sets: tuple[SetId, ...]) -> list[str]:
        return [f"{self._key(side)} != @{self._set_names(each, self._family)}" for each in sets]

    def _key(self, side: str) -> str:
        return f"{_KEYWORD[self._family]} {_SIDES[side]} . meta l4proto . th {side}"


def _ports(side: str, ports: tuple[PortRange, ...]) -> list[str]:
    return [f"th {side} {_port_set(ports)}"] if ports else []


def _not_ports(side: str, ports: tuple[PortRange, ...]) -> list[str]:
    if not ports:
        return []
    value = _port_set(ports)
    if value.isdigit():
        # libnftables (1.0.6) makes of "sport != a dport != b" one comparison, "not (a and b)"; of a range it does not
        value = f"{value}-{value}"
    return [f"th {side} != {value}"]


def _port_set(ports: tuple[PortRange, ...]) -> str:
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in merge_ranges(ports)]
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"


def _icmp(rule: HostRule) -> list[str]:
    keyword = "icmp" if rule.protocol == PROTOCOLS["icmp"] else "icmpv6"
    parts: list[str] = []
    if rule.icmp is not None:
        kind, code = rule.icmp
        parts += [f"{keyword} type {kind}", *([] if code is None else [f"{keyword} code {code}"])]
    if rule.not_icmp is not None:
        kind, code = rule.not_icmp
        # a negated pair is one match: "not (type and code)"
        pair = f"{keyword} type . {keyword} code != {{ {kind} . {code} }}"
        parts.append(f"{keyword} type != {kind}" if code is None else pair)
    return parts
