"""One policy rule as iptables text, for one family. Source: felix specification 6.4.

Allow sets the accept mark and returns, pass the pass mark; deny drops. The text is what follows ``-A <chain>``. A list
of networks becomes a set named by its content, so that it is one match, negated or not. A multiport match takes 15
ports, a range counts as two: a longer positive list becomes several rules, a longer negated one several matches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.iptables.ipsets import net_elements, net_text, nets_set
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import WIDTH
from calico_core.model.rules import PORT_PROTOCOLS, PROTOCOLS, clean_log_prefix

if TYPE_CHECKING:
    from collections.abc import Callable

    from netaddr import IPNetwork

    from calico_core.dataplane.reconcile import NamedSet
    from calico_core.model.hoststate import HostRule, SetId
    from calico_core.model.rules import PortRange

    #: The kernel's name of a set for a family; raises ``InvalidRequest`` for one that was never brought.
    SetNames = Callable[[SetId, int], str]

ACCEPT_MARK, PASS_MARK = 0x01000000, 0x02000000
DROP = "-j DROP"
SET_ACCEPT = f"-j MARK --set-xmark {ACCEPT_MARK:#x}/{ACCEPT_MARK:#x}"
SET_PASS = f"-j MARK --set-xmark {PASS_MARK:#x}/{PASS_MARK:#x}"
IF_ACCEPTED_RETURN = f"-m mark --mark {ACCEPT_MARK:#x}/{ACCEPT_MARK:#x} -j RETURN"
IF_PASSED_RETURN = f"-m mark --mark {PASS_MARK:#x}/{PASS_MARK:#x} -j RETURN"
IF_NOT_PASSED = f"-m mark --mark 0x0/{PASS_MARK:#x}"
CLEAR_PASS = f"-j MARK --set-xmark 0x0/{PASS_MARK:#x}"
CLEAR_MARKS = f"-j MARK --set-xmark 0x0/{ACCEPT_MARK | PASS_MARK:#x}"

_PORTS_A_MATCH = 15
_LOG_NOTICE = 5
_ICMP_ANY = 255  # iptables takes this type for "every type"
_ACTIONS = {
    "allow": (SET_ACCEPT, IF_ACCEPTED_RETURN),
    "pass": (SET_PASS, IF_PASSED_RETURN),
    "deny": (DROP, ""),
    "log": ("", ""),
}


class Rendered(msgspec.Struct, frozen=True):
    """The rules, and the sets of networks they name. No rules: no packet of the family can match."""

    rules: tuple[str, ...] = ()
    nets: tuple[tuple[str, NamedSet], ...] = ()


class _NeverMatches(Exception):
    """No packet of the family can match; control flow inside this module, no error."""


def render_rule(rule: HostRule, family: int, set_names: SetNames, *, log_prefix: str) -> Rendered:
    """:raises InvalidRequest: what the rule asks for cannot be expressed; the caller closes in its place."""
    _check(rule)
    if not _is_for(rule, family):
        return Rendered()
    nets: list[tuple[str, NamedSet]] = []
    try:
        matches = _matches(rule, family, set_names, nets)
    except _NeverMatches:
        return Rendered()
    rules: list[str] = []
    if rule.action == "log" or rule.log_prefix is not None:
        prefix = clean_log_prefix(rule.log_prefix if rule.log_prefix is not None else log_prefix)
        log = f'-j LOG --log-prefix "{prefix}: " --log-level {_LOG_NOTICE}'
        rules += [f"{match} {log}".lstrip() for match in matches]
    verdict, finish = _ACTIONS[rule.action]
    if verdict:
        rules += [f"{match} {verdict}".lstrip() for match in matches]
    if finish:
        rules.append(finish)
    return Rendered(tuple(rules), tuple(nets))


def _check(rule: HostRule) -> None:
    if rule.action not in _ACTIONS:
        raise InvalidRequest("action", f"{rule.action!r} is not allow, deny, pass or log")
    ports = (rule.src_ports, rule.not_src_ports, rule.dst_ports, rule.not_dst_ports)
    if any(ports) and rule.protocol not in PORT_PROTOCOLS:
        raise InvalidRequest("ports", "ports need a protocol that has them")
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
        plain = _networks(option, side, positive, family, nets)
        # only one match by address may be written without a set
        parts += plain + _not_networks(option, side, negative, family, nets, may_be_plain=not plain)
    for side, sets, not_sets in (("src", rule.src_sets, rule.not_src_sets), ("dst", rule.dst_sets, rule.not_dst_sets)):
        parts += [_in_set(set_names(each, family), side) for each in sets]
        parts += [_not_in_set(set_names(each, family), side) for each in not_sets]
    parts += _icmp(rule)
    for option, ports in (("--sports", rule.not_src_ports), ("--dports", rule.not_dst_ports)):
        parts += [f"-m multiport ! {option} {chunk}" for chunk in _chunks(ports)]
    alternatives = [" ".join(parts)]
    for option, ports in (("--sports", rule.src_ports), ("--dports", rule.dst_ports)):
        if ports:
            alternatives = [
                f"{each} -m multiport {option} {chunk}" for each in alternatives for chunk in _chunks(ports)
            ]
    return alternatives


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
    for low, high in sorted(set(ports)):
        size = 1 if low == high else 2
        if size > room:
            chunks.append([])
            room = _PORTS_A_MATCH
        chunks[-1].append(str(low) if low == high else f"{low}:{high}")
        room -= size
    return [",".join(chunk) for chunk in chunks]


def _icmp(rule: HostRule) -> list[str]:
    module, option = ("icmp", "--icmp-type") if rule.protocol == PROTOCOLS["icmp"] else ("icmp6", "--icmpv6-type")
    parts: list[str] = []
    for negation, icmp in (("", rule.icmp), ("! ", rule.not_icmp)):
        if icmp is not None:
            kind, code = icmp
            parts.append(f"-m {module} {negation}{option} {kind}{'' if code is None else f'/{code}'}")
    return parts
