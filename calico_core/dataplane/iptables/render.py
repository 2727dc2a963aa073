"""One policy rule as iptables text, for one family. Source: felix specification 6.4.

Allow sets the accept mark and returns, pass the pass mark; deny drops. The text is what follows ``-A <chain>``. A list
of networks becomes a set named by its content, so that it is one match, negated or not. A multiport match takes 15
ports, a range counts as two: a longer positive list becomes several rules, a longer negated one several matches. A
packet matches at most one of the rules that a rule becomes.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.iptables import ipsets
from calico_core.dataplane.iptables.ipsets import net_elements, net_text, nets_set
from calico_core.dataplane.iptables.verdicts import RETURN
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import WIDTH
from calico_core.model.rules import PORT_PROTOCOLS, PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable

    from netaddr import IPNetwork

    from calico_core.dataplane.iptables.verdicts import Verdicts
    from calico_core.dataplane.reconcile import NamedSet
    from calico_core.interfaces.dataplane import DenialOrigin
    from calico_core.model.hoststate import HostRule, SetId
    from calico_core.model.rules import PortRange

    #: The kernel's name of a set for a family; raises ``InvalidRequest`` for one that was never brought.
    SetNames = Callable[[SetId, int], str]

_PORTS_A_MATCH = 15
#: Matches of excluded ports that one rule may carry; iptables takes 255 words a line.
_NEGATIONS_A_RULE = 20
_EVERY_PORT: tuple[PortRange, ...] = ((0, 65535),)
_ICMP_ANY = 255  # iptables takes this type for "every type"
_ACTIONS = ("allow", "deny", "reject", "pass", "log")


class Rendered(msgspec.Struct, frozen=True):
    """The rules, and the sets of networks they name. No rules: no packet of the family can match. ``counted``: the
    positions of those whose counters add up to what the rule matched."""

    rules: tuple[str, ...] = ()
    nets: tuple[tuple[str, NamedSet], ...] = ()
    counted: tuple[int, ...] = ()


class _NeverMatches(Exception):
    """No packet of the family can match; control flow inside this module, no error."""


def render_rule(
    rule: HostRule,
    family: int,
    set_names: SetNames,
    verdicts: Verdicts,
    origin: DenialOrigin,
    *,
    is_staged: bool = False,
) -> Rendered:
    """``origin``: what a packet is told by that the rule denies. ``is_staged``: it is counted, and decides nothing.

    :raises InvalidRequest: what the rule asks for cannot be expressed; the caller closes in its place.
    """
    _check(rule)
    for each in (*rule.sets, *rule.port_sets):
        # one that cannot be asked for closes the rule, whatever else it says (ADR 11)
        set_names(each, family)
    if not _is_for(rule, family):
        return Rendered()
    nets: list[tuple[str, NamedSet]] = []
    try:
        matches = _matches(rule, family, set_names, nets)
    except _NeverMatches:
        return Rendered()
    if is_staged:
        # as if it acted: what it would decide is put to no rule after it
        texts = [f"{match} {RETURN}".lstrip() if rule.action != "log" else match for match in matches]
        return Rendered(tuple(texts), tuple(nets), tuple(range(len(texts))))
    rules: list[str] = []
    counted: list[int] = []
    for match in matches:
        if rule.action == "log" or rule.log_prefix is not None:
            rules.append(verdicts.log(match, rule.log_prefix))
        if rule.action in ("deny", "reject"):
            rules += verdicts.deny(match, origin, is_reject=rule.action == "reject")
        elif rule.action != "log":
            mark = verdicts.set_accept if rule.action == "allow" else verdicts.set_pass
            rules.append(f"{match} {mark}".lstrip())
        counted.append(len(rules) - 1)
    if rule.action == "allow":
        rules.append(f"{verdicts.if_accepted} {RETURN}")
    elif rule.action == "pass":
        rules.append(f"{verdicts.if_passed} {RETURN}")
    return Rendered(tuple(rules), tuple(nets), tuple(counted))


def _check(rule: HostRule) -> None:
    if rule.action not in _ACTIONS:
        raise InvalidRequest("action", f"{rule.action!r} is not allow, deny, reject, pass or log")
    ports = (rule.src_ports, rule.not_src_ports, rule.dst_ports, rule.not_dst_ports)
    if any(ports) and rule.protocol not in PORT_PROTOCOLS:
        raise InvalidRequest("ports", "ports need a protocol that has them")
    if rule.port_sets and rule.protocol is not None and rule.protocol not in ipsets.PORT_PROTOCOLS:
        raise InvalidRequest("ports", f"ipset has no named ports of protocol {rule.protocol}")
    for icmp in (rule.icmp, rule.not_icmp):
        if icmp is None:
            continue
        family = {PROTOCOLS["icmp"]: 4, PROTOCOLS["icmpv6"]: 6}.get(rule.protocol or 0)
        if family is None:
            raise InvalidRequest("icmp", "needs protocol icmp or icmpv6")
        if rule.ip_version not in (None, family):
            raise InvalidRequest("icmp", f"cannot match IPv{rule.ip_version} packets")
        if icmp[0] >= _ICMP_ANY:
            raise InvalidRequest("icmp", "the type must be below 255")


def _is_for(rule: HostRule, family: int) -> bool:
    if rule.icmp or rule.not_icmp:
        return family == (4 if rule.protocol == PROTOCOLS["icmp"] else 6)
    return rule.ip_version in (None, family)


def _matches(rule: HostRule, family: int, set_names: SetNames, nets: list[tuple[str, NamedSet]]) -> list[str]:
    """The packets the rule is about, as one or several conditions."""
    parts: list[str] = []
    if rule.protocol is not None and rule.protocol == rule.not_protocol:
        raise _NeverMatches
    if rule.protocol is not None:
        parts.append(f"-p {rule.protocol}")
    elif rule.not_protocol is not None:
        parts.append(f"! -p {rule.not_protocol}")
    for option, side, positive, negative in (
        ("-s", "src", rule.src_nets, rule.not_src_nets),
        ("-d", "dst", rule.dst_nets, rule.not_dst_nets),
    ):
        plain = _networks(option, side, positive, family, nets) if positive else []
        # only one match by address may be written without a set
        parts += plain
        if negative:
            parts += _not_networks(option, side, negative, family, nets, may_be_plain=not plain)
    for side, sets, not_sets in (("src", rule.src_sets, rule.not_src_sets), ("dst", rule.dst_sets, rule.not_dst_sets)):
        if sets:
            parts += [_in_set(set_names(each, family), side) for each in sets]
        if not_sets:
            parts += [_not_in_set(set_names(each, family), side) for each in not_sets]
    if rule.icmp is not None or rule.not_icmp is not None:
        parts += _icmp(rule)
    return _with_ports(rule, family, set_names, parts)


def _with_ports(rule: HostRule, family: int, set_names: SetNames, parts: list[str]) -> list[str]:
    """The matches by port added to the others: one way for each that a wanted port may go."""
    alternatives: list[list[str]] = []
    for option, side, ports, sets, not_ports, not_sets in (
        ("--sports", "src,src", rule.src_ports, rule.src_port_sets, rule.not_src_ports, rule.not_src_port_sets),
        ("--dports", "dst,dst", rule.dst_ports, rule.dst_port_sets, rule.not_dst_ports, rule.not_dst_port_sets),
    ):
        wanted, excluded = ports, _chunks(not_ports) if not_ports else []
        if len(excluded) > _NEGATIONS_A_RULE and not sets:
            # a rule has no room for so many matches: what is left is so many rules
            wanted, excluded = _without(ports or _EVERY_PORT, not_ports), []
            if not wanted:
                raise _NeverMatches
        parts += [f"-m multiport ! {option} {chunk}" for chunk in excluded]
        if not_sets:
            parts += [_not_in_set(set_names(each, family), side) for each in not_sets]
        if wanted or sets:
            alternatives.append(_port_ways(option, side, wanted, [set_names(each, family) for each in sets]))
    matches = [" ".join(parts)]
    for ways in alternatives:
        matches = [f"{each} {way}".lstrip() for each in matches for way in ways]
    return matches


def _port_ways(option: str, side: str, ports: tuple[PortRange, ...], sets: list[str]) -> list[str]:
    """The port is in one of the ranges or sets: so many ways, of which a packet goes one."""
    chunks = _chunks(ports)
    ways = [f"-m multiport {option} {chunk}" for chunk in chunks]
    not_before = [f"-m multiport ! {option} {chunk}" for chunk in chunks]
    for name in sets:
        ways.append(" ".join([*not_before, _in_set(name, side)]))
        not_before.append(_not_in_set(name, side))
    return ways


def _networks(
    option: str, side: str, wanted: tuple[IPNetwork, ...], family: int, nets: list[tuple[str, NamedSet]]
) -> list[str]:
    own = [net for net in wanted if net.version == family]
    if wanted and not own:
        raise _NeverMatches
    if not own or _is_all(own, family):
        return []
    if len(own) == 1:
        return [f"{option} {net_text(own[0])}"]
    made = nets_set(own, family)
    nets.append(made)
    return [_in_set(made[0], side)]


def _not_networks(
    option: str,
    side: str,
    excluded: tuple[IPNetwork, ...],
    family: int,
    nets: list[tuple[str, NamedSet]],
    *,
    may_be_plain: bool,
) -> list[str]:
    own = [net for net in excluded if net.version == family]
    if not own:
        return []
    if _is_all(own, family):
        raise _NeverMatches
    if len(own) == 1 and may_be_plain:
        return [f"! {option} {net_text(own[0])}"]
    made = nets_set(own, family)
    nets.append(made)
    return [_not_in_set(made[0], side)]


def _is_all(nets: list[IPNetwork], family: int) -> bool:
    halves = {(0, 1), (1 << (WIDTH[family] - 1), 1)}
    return halves <= net_elements(nets, family)


def _in_set(name: str, side: str) -> str:
    return f"-m set --match-set {name} {side}"


def _not_in_set(name: str, side: str) -> str:
    return f"-m set ! --match-set {name} {side}"


def _chunks(ports: tuple[PortRange, ...]) -> list[str]:
    """Lists that fit into one multiport match each."""
    chunks: list[list[str]] = []
    room = 0
    for low, high in _merged(ports):
        size = 1 if low == high else 2
        if size > room:
            chunks.append([])
            room = _PORTS_A_MATCH
        chunks[-1].append(str(low) if low == high else f"{low}:{high}")
        room -= size
    return [",".join(chunk) for chunk in chunks]


def _merged(ports: tuple[PortRange, ...]) -> list[PortRange]:
    """The same ports in ranges that neither overlap nor touch."""
    merged: list[PortRange] = []
    for low, high in sorted(set(ports)):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _without(ports: tuple[PortRange, ...], excluded: tuple[PortRange, ...]) -> tuple[PortRange, ...]:
    """The ports that are in none of the excluded ranges."""
    left: list[PortRange] = []
    holes = _merged(excluded)
    ends = [high for _, high in holes]
    for first, last in _merged(ports):
        at = first
        for low, high in holes[bisect_left(ends, first) :]:
            if low > last:
                break
            if low > at:
                left.append((at, low - 1))
            at = high + 1
        if at <= last:
            left.append((at, last))
    return tuple(left)


def _icmp(rule: HostRule) -> list[str]:
    module, option = ("icmp", "--icmp-type") if rule.protocol == PROTOCOLS["icmp"] else ("icmp6", "--icmpv6-type")
    parts: list[str] = []
    for negation, icmp in (("", rule.icmp), ("! ", rule.not_icmp)):
        if icmp is not None:
            kind, code = icmp
            parts.append(f"-m {module} {negation}{option} {kind}{'' if code is None else f'/{code}'}")
    return parts
