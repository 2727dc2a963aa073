"""One policy rule as nft text. Source: felix specification 6.4 and 10.

Allow sets the accept mark and returns, pass the pass mark; deny drops. A rule with addresses is written once for each
family it can match, never wider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.nftables.elements import merge_ranges, range_text
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import WIDTH
from calico_core.model.rules import PORT_PROTOCOLS, PROTOCOLS, clean_log_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netaddr import IPNetwork

    from calico_core.model.hoststate import HostRule, SetId
    from calico_core.model.rules import PortRange

    #: The kernel's name of a set for a family; raises ``InvalidRequest`` for one that was never brought.
    SetNames = Callable[[SetId, int], str]

ACCEPT_MARK, PASS_MARK = 0x01000000, 0x02000000
ACCEPT = f"meta mark set meta mark | {ACCEPT_MARK:#010x} return"
PASS = f"meta mark set meta mark | {PASS_MARK:#010x} return"
IF_ACCEPTED_RETURN = f"meta mark & {ACCEPT_MARK:#010x} != 0 return"
IF_NOT_PASSED = f"meta mark & {PASS_MARK:#010x} == 0"
CLEAR_PASS = f"meta mark set meta mark & {0xFFFFFFFF ^ PASS_MARK:#010x}"
CLEAR_MARKS = f"meta mark set meta mark & {0xFFFFFFFF ^ ACCEPT_MARK ^ PASS_MARK:#010x}"
DROP = "counter drop"

_ACTIONS = {"allow": ACCEPT, "pass": PASS, "deny": DROP}
_KEYWORD = {4: "ip", 6: "ip6"}


class _NeverMatches(Exception):
    """No packet of the family can match; control flow inside this module, no error."""


def render_rule(rule: HostRule, set_names: SetNames, *, families: Sequence[int], log_prefix: str) -> list[str]:
    """The nft rules; none when no packet can match.

    :raises InvalidRequest: what the rule asks for cannot be expressed; the caller closes in its place.
    """
    _check(rule)
    rendered: list[str] = []
    for family in _families(rule, families):
        try:
            match = " ".join(_matches(rule, family, set_names))
        except _NeverMatches:
            continue
        prefix = rule.log_prefix if rule.log_prefix is not None else log_prefix
        if rule.action == "log" or rule.log_prefix is not None:
            rendered.append(f'{match} log prefix "{clean_log_prefix(prefix)}: " level notice'.lstrip())
        if rule.action != "log":
            rendered.append(f"{match} {_ACTIONS[rule.action]}".lstrip())
    return rendered


def _check(rule: HostRule) -> None:
    if rule.action not in _ACTIONS and rule.action != "log":
        raise InvalidRequest("action", f"{rule.action!r} is not allow, deny, pass or log")
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
    return list(families) if nets or rule.sets else [0]


def _matches(rule: HostRule, family: int, set_names: SetNames) -> list[str]:
    parts: list[str] = []
    if family:
        sides = [
            *_addresses("saddr", family, rule.src_nets, rule.not_src_nets),
            *_sets("saddr", family, rule.src_sets, rule.not_src_sets, set_names),
            *_addresses("daddr", family, rule.dst_nets, rule.not_dst_nets),
            *_sets("daddr", family, rule.dst_sets, rule.not_dst_sets, set_names),
        ]
        # an address match implies its family
        parts += sides or [f"meta nfproto ipv{family}"]
    if rule.protocol is not None:
        parts.append(f"meta l4proto {rule.protocol}")
    if rule.not_protocol is not None:
        parts.append(f"meta l4proto != {rule.not_protocol}")
    parts += _ports("sport", rule.src_ports, rule.not_src_ports)
    parts += _ports("dport", rule.dst_ports, rule.not_dst_ports)
    parts += _icmp(rule)
    return parts


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


def _ranges(nets: tuple[IPNetwork, ...], family: int) -> list[tuple[int, int]]:
    return merge_ranges((net.first, net.last) for net in nets if net.version == family)


def _sets(
    side: str, family: int, sets: tuple[SetId, ...], not_sets: tuple[SetId, ...], set_names: SetNames
) -> list[str]:
    keyword = _KEYWORD[family]
    parts = [f"{keyword} {side} @{set_names(each, family)}" for each in sets]
    return parts + [f"{keyword} {side} != @{set_names(each, family)}" for each in not_sets]


def _ports(side: str, ports: tuple[PortRange, ...], not_ports: tuple[PortRange, ...]) -> list[str]:
    return [f"th {side} {_port_set(ports)}"] * bool(ports) + [f"th {side} != {_port_set(not_ports)}"] * bool(not_ports)


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
