"""Rules as the datastore holds them → rules as the kernel can hold them.

Names of protocols become numbers; tags, selectors and names of ports become sets. A rule is never wider than written: a
list of networks restricts the rule to the families it names, so ``!src_net: 10.0.0.0/8`` says nothing of IPv6. A rule
that can match no packet is left out. Source: felix specification 4.1, 6.4; datastore specification 4.3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Literal

import msgspec
from netaddr import IPNetwork

from calico_core.model.hoststate import HostRule, HostRules, RulesId, SetId
from calico_core.model.rules import PROTOCOLS, PortRange, Rule, clean_log_prefix, parse_rule_port, protocol_number
from calico_core.model.selectors import Has, Node, parse_selector


class NamedPort(msgspec.Struct, frozen=True):
    """The ports of this name and protocol. ``among``: of endpoints that match all of these; empty: of all."""

    name: str
    protocol: int
    among: tuple[Node, ...] = ()


Source = Node | NamedPort
"""What a set is made of: a set of addresses, or of addresses with their ports."""
Sources = tuple[tuple[SetId, Source], ...]
Nets = tuple[IPNetwork, ...]
_FAMILY = {PROTOCOLS["icmp"]: 4, PROTOCOLS["icmpv6"]: 6}


class CompiledRule(msgspec.Struct, frozen=True):
    """``rule`` None: it can match nothing. ``sets``: what its sets are made of."""

    rule: HostRule | None
    sets: Sources


def tag_label(tag: str) -> str:
    """Tags are kept as labels that profiles give; no label of a record can be spelled so."""
    return f"\0tag/{tag}"


def port_label(name: str, protocol: int) -> str:
    """Likewise of an endpoint with a port of the name and protocol."""
    return f"\0port/{protocol}/{name}"


def selector_set(text: str) -> tuple[SetId, Node]:
    selector = parse_selector(text)
    return SetId(f"sel-{selector.id}"), selector.root


@lru_cache(maxsize=4096)
def tag_set(tag: str) -> tuple[SetId, Node]:
    digest = hashlib.sha256(tag.encode()).hexdigest()[:16]
    return SetId(f"tag-{digest}"), Has(tag_label(tag))


@lru_cache(maxsize=4096)
def port_set(name: str, protocol: int, among: Sources) -> tuple[SetId, NamedPort]:
    """``among``: sets of addresses that name the endpoints meant."""
    text = " ".join([f"{protocol}/{name}", *sorted(set_id for set_id, _ in among)])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    nodes = tuple(source for _, source in among if not isinstance(source, NamedPort))
    return SetId(f"npt-{digest}"), NamedPort(name, protocol, nodes)


def compile_rules(
    rules_id: RulesId, inbound: Iterable[Rule], outbound: Iterable[Rule], *, of_profile: bool, is_staged: bool = False
) -> tuple[HostRules, dict[SetId, Source]]:
    """The rules in order, and what the sets they name are made of."""
    sets: dict[SetId, Source] = {}
    directions: list[tuple[HostRule, ...]] = []
    for rules in (inbound, outbound):
        compiled = [_compile(rule, of_profile) for rule in rules]
        directions.append(tuple(each.rule for each in compiled if each.rule is not None))
        for each in compiled:
            sets.update(each.sets)
    return HostRules(id=rules_id, inbound=directions[0], outbound=directions[1], is_staged=is_staged), sets


def compile_rule(rule: Rule, *, of_profile: bool) -> CompiledRule:
    """In a profile, passing on and allowing are the same: nothing comes after the profiles."""
    return _compile(rule, of_profile)


def stored_position(rules: Sequence[Rule], index: int, *, of_profile: bool) -> int:
    """Where the rule stands in its record (from 0) that is number ``index`` of what :func:`compile_rules` made of
    ``rules``: those that can match nothing are not there."""
    kept = (at for at, rule in enumerate(rules) if _compile(rule, of_profile).rule is not None)
    return next(islice(kept, index, None))


def sources_of(rule: Rule) -> dict[SetId, Source]:
    """What the sets that it names are made of."""
    return dict(_compile(rule, False).sets)


# Many policies carry the same rules; each is compiled once and held once.
@lru_cache(maxsize=8192)
def _compile(rule: Rule, of_profile: bool) -> CompiledRule:
    protocol = None if rule.protocol is None else protocol_number(rule.protocol)
    src_nets = _both(rule.src_net, rule.src_nets)
    dst_nets = _both(rule.dst_net, rule.dst_nets)
    not_src_nets = _either(rule.not_src_net, rule.not_src_nets)
    not_dst_nets = _either(rule.not_dst_net, rule.not_dst_nets)
    families = {4, 6} if rule.ip_version is None else {rule.ip_version}
    if protocol in _FAMILY:
        families &= {_FAMILY[protocol]}
    for nets in (src_nets, dst_nets, not_src_nets, not_dst_nets):
        if nets is not None:
            families &= {net.version for net in nets}
    if not families:
        return CompiledRule(None, ())

    def of_families(nets: Nets | None) -> Nets:
        return tuple(net for net in nets or () if net.version in families)

    src, not_src = _sets(rule.src_tag, rule.src_selector), _sets(rule.not_src_tag, rule.not_src_selector)
    dst, not_dst = _sets(rule.dst_tag, rule.dst_selector), _sets(rule.not_dst_tag, rule.not_dst_selector)
    # a negated name is narrowed by the positive selector too: "none of those that the others offer under this name"
    src_ports, src_port_sets = _ports(rule.src_ports, protocol, src)
    not_src_ports, not_src_port_sets = _ports(rule.not_src_ports, protocol, src)
    dst_ports, dst_port_sets = _ports(rule.dst_ports, protocol, dst)
    not_dst_ports, not_dst_port_sets = _ports(rule.not_dst_ports, protocol, dst)
    port_sets = src_port_sets + not_src_port_sets + dst_port_sets + not_dst_port_sets
    host_rule = HostRule(
        action=_action(rule, of_profile=of_profile),
        ip_version=None if len(families) > 1 else 4 if 4 in families else 6,
        protocol=protocol,
        not_protocol=None if rule.not_protocol is None else protocol_number(rule.not_protocol),
        src_nets=of_families(src_nets),
        not_src_nets=of_families(not_src_nets),
        src_sets=_ids(src),
        not_src_sets=_ids(not_src),
        src_ports=src_ports,
        not_src_ports=not_src_ports,
        src_port_sets=_ids(src_port_sets),
        not_src_port_sets=_ids(not_src_port_sets),
        dst_nets=of_families(dst_nets),
        not_dst_nets=of_families(not_dst_nets),
        dst_sets=_ids(dst),
        not_dst_sets=_ids(not_dst),
        dst_ports=dst_ports,
        not_dst_ports=not_dst_ports,
        dst_port_sets=_ids(dst_port_sets),
        not_dst_port_sets=_ids(not_dst_port_sets),
        icmp=None if rule.icmp_type is None else (rule.icmp_type, rule.icmp_code),
        not_icmp=None if rule.not_icmp_type is None else (rule.not_icmp_type, rule.not_icmp_code),
        log_prefix=None if rule.log_prefix is None else clean_log_prefix(rule.log_prefix),
    )
    return CompiledRule(host_rule, src + not_src + dst + not_dst + port_sets)


def _action(rule: Rule, *, of_profile: bool) -> Literal["allow", "deny", "reject", "pass", "log"]:
    action = "pass" if rule.action == "next-tier" else rule.action
    return "allow" if of_profile and action == "pass" else action


def _both(single: IPNetwork | None, several: Nets | None) -> Nets | None:
    """Where both are given both must match: the overlaps. None: no such match. An empty list is one not given, as
    other writers leave it out when they encode it."""
    if single is None or not several:
        return several or (None if single is None else (single,))
    inside = [narrower for net in several if (narrower := _overlap(single, net)) is not None]
    return tuple(dict.fromkeys(inside))


def _overlap(one: IPNetwork, other: IPNetwork) -> IPNetwork | None:
    """Of two networks that overlap, one lies within the other."""
    if one.version != other.version:
        return None
    narrow, wide = (one, other) if one.prefixlen >= other.prefixlen else (other, one)
    return narrow if wide.first <= narrow.first <= wide.last else None


def _either(single: IPNetwork | None, several: Nets | None) -> Nets | None:
    nets = (() if single is None else (single,)) + (several or ())
    return tuple(dict.fromkeys(nets)) or None


def _ids(sets: Sources) -> tuple[SetId, ...]:
    return tuple(set_id for set_id, _ in sets)


def _sets(tag: str | None, selector: str | None) -> Sources:
    return (() if tag is None else (tag_set(tag),)) + (() if selector is None else (selector_set(selector),))


def _ports(
    ports: tuple[int | str, ...] | None, protocol: int | None, among: Sources
) -> tuple[tuple[PortRange, ...], Sources]:
    """The numbers, and the sets of the names."""
    ranges: list[PortRange] = []
    sets: list[tuple[SetId, Source]] = []
    for port in dict.fromkeys(map(parse_rule_port, ports or ())):
        if isinstance(port, str):
            assert protocol is not None  # a rule with ports has one
            sets.append(port_set(port, protocol, among))
        else:
            ranges.append(port)
    return tuple(ranges), tuple(sets)
