"""Rules that name a set beyond ``MaxIpsetSize``: in their place every dataplane denies everything (ADR 11). Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from calico_core.model.hoststate import HostRule, HostState, RulesId, SetId
from calico_core.model.record import Value
from calico_core.model.rules import Rule
from calico_core.model.set_size import address_count, port_count
from calico_core.policy.explain import Direction
from calico_core.policy.rules import NamedPort, selector_set, sources_of, tag_set

_CLOSED = HostRule(action="deny")


class SetsBeyond(Value, frozen=True):
    """A host's. ``sizes``: how many members each has. ``named``: by list and direction, the numbers of the rules that
    name one, and which."""

    sizes: Mapping[SetId, int]
    named: Mapping[tuple[RulesId, Direction], Mapping[int, SetId]]


def sets_beyond(state: HostState, most: int) -> dict[SetId, int]:
    """Those with more than ``most`` members, and how many they have."""
    sizes = {set_id: size for set_id, members in state.sets.items() if (size := address_count(members)) > most}
    for set_id, ports in state.port_sets.items():
        if len(ports) > most and (size := port_count(ports)) > most:
            sizes[set_id] = size
    return sizes


def close_rules(state: HostState, most: int) -> SetsBeyond:
    """Put denials into the state in the place of rules that name a set with more than ``most`` members."""
    sizes = sets_beyond(state, most)
    named: dict[tuple[RulesId, Direction], Mapping[int, SetId]] = {}
    for rules in list(state.rules.values()) if sizes else ():
        if rules.is_staged:
            continue
        inbound, named[rules.id, "inbound"] = _closed(rules.inbound, sizes)
        outbound, named[rules.id, "outbound"] = _closed(rules.outbound, sizes)
        state.rules[rules.id] = msgspec.structs.replace(rules, inbound=inbound, outbound=outbound)
    return SetsBeyond(sizes=sizes, named=named)


def _closed(rules: tuple[HostRule, ...], sizes: Collection[SetId]) -> tuple[tuple[HostRule, ...], dict[int, SetId]]:
    named: dict[int, SetId] = {}
    for index, rule in enumerate(rules):
        beyond = next((each for each in (*rule.sets, *rule.port_sets) if each in sizes), None)
        if beyond is not None:
            named[index] = beyond
    return tuple(_CLOSED if index in named else rule for index, rule in enumerate(rules)), named


def set_words(rule: Rule, set_id: SetId) -> str:
    """What of the rule, as people wrote it, the set stands for."""
    for tag in (rule.src_tag, rule.not_src_tag, rule.dst_tag, rule.not_dst_tag):
        if tag is not None and tag_set(tag)[0] == set_id:
            return f"tag {tag}"
    for text in (rule.src_selector, rule.not_src_selector, rule.dst_selector, rule.not_dst_selector):
        if text is not None and selector_set(text)[0] == set_id:
            return f"selector {text or 'all()'}"
    source = sources_of(rule).get(set_id)
    return f"port {source.name}" if isinstance(source, NamedPort) else f"{set_id}"
