"""Chains of policy: the rules of each profile and policy, and the lists of them that endpoints go through. Pure.

Lists with equal content and purpose are one chain. Chains of rules stand in the filter table; in the raw and the
mangle table only while a list there names them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.iptables import layout
from calico_core.dataplane.iptables.names import FILTER, list_chain_name, rules_chain_name
from calico_core.dataplane.iptables.render import render_rule
from calico_core.errors import InvalidRequest
from calico_core.interfaces.dataplane import DenialOrigin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from calico_core.dataplane.iptables.desired import Desired
    from calico_core.dataplane.iptables.known_sets import KnownSets
    from calico_core.dataplane.iptables.layout import Direction, Layout, Purpose
    from calico_core.dataplane.iptables.verdicts import Verdicts
    from calico_core.dataplane.reconcile import Chain, NamedSet
    from calico_core.model.hoststate import HostRules, PolicyList, RulesId, SetId

    #: A table, and a list of rules in one direction.
    _Use = tuple[str, RulesId, Direction]

_DIRECTIONS: tuple[Direction, Direction] = ("inbound", "outbound")


class PolicyChains:
    """One thread. ``problems`` and ``closed``: reasons by subject, shared with the caller."""

    def __init__(
        self, desired: Desired, sets: KnownSets, layouts: Layout, problems: dict[str, str], closed: Mapping[str, str]
    ) -> None:
        self._desired, self._sets, self._layout = desired, sets, layouts
        self._families = layouts.families
        self._problems, self._closed = problems, closed
        self._rules: dict[RulesId, HostRules] = {}
        self._set_users: defaultdict[SetId, set[RulesId]] = defaultdict(set)
        self._nets_of: dict[RulesId, frozenset[str]] = {}
        self._nets_users: Counter[str] = Counter()
        self._lists: Counter[tuple[str, str]] = Counter()
        self._named: dict[tuple[str, str], tuple[_Use, ...]] = {}
        self._uses: Counter[_Use] = Counter()
        self._counted: dict[tuple[int, RulesId, Direction], tuple[int | None, ...]] = {}

    def __contains__(self, rules_id: RulesId) -> bool:
        return rules_id in self._rules

    def counted_chains(self, family: int) -> dict[str, tuple[RulesId, Direction, tuple[int | None, ...]]]:
        """By name of a chain of rules: whose it is, and the number of the rule that each of its lines counts for
        (None: for none). They are the same in every table."""
        return {
            rules_chain_name(rules_id, direction): (rules_id, direction, numbers)
            for (of, rules_id, direction), numbers in self._counted.items()
            if of == family
        }

    # --- rules ------------------------------------------------------------------------------------

    def put(self, rules: HostRules) -> bool:
        """Whether it is the first time."""
        is_new = rules.id not in self._rules
        nets_before = self._nets_of.get(rules.id, frozenset())
        self._forget(rules.id)
        self._rules[rules.id] = rules
        for rule in (*rules.inbound, *rules.outbound):
            for set_id in (*rule.sets, *rule.port_sets):
                self._set_users[set_id].add(rules.id)
        nets: dict[str, NamedSet] = {}
        for table, direction in self._places(rules.id):
            nets |= self._write(rules, direction, table)
        self._use_nets(rules.id, nets, nets_before)
        return is_new

    def drop(self, rules_id: RulesId) -> None:
        self._forget(rules_id)
        self._use_nets(rules_id, {}, self._nets_of.get(rules_id, frozenset()))
        for table, direction in self._places(rules_id):
            self._remove(rules_id, direction, table)

    def users_of(self, set_id: SetId) -> list[HostRules]:
        """The rules that name the set."""
        return [self._rules[each] for each in sorted(self._set_users.get(set_id, ()))]

    def forget_set(self, set_id: SetId) -> None:
        if not self._set_users.get(set_id):
            self._set_users.pop(set_id, None)

    def _places(self, rules_id: RulesId) -> list[tuple[str, Direction]]:
        """The tables and directions in which its chains stand."""
        found: list[tuple[str, Direction]] = [(FILTER, direction) for direction in _DIRECTIONS]
        elsewhere = ((table, direction) for table in layout.EARLY_TABLES for direction in _DIRECTIONS)
        return found + [each for each in elsewhere if self._uses[each[0], rules_id, each[1]]]

    def _write(self, rules: HostRules, direction: Direction, table: str) -> dict[str, NamedSet]:
        """Gives the sets of networks that it names."""
        nets: dict[str, NamedSet] = {}
        name = rules_chain_name(rules.id, direction)
        for family in self._families:
            verdicts = self._layout.verdicts(family, table)
            chain = self._render(rules, direction, family, verdicts, nets)
            self._desired.put_chain((family, table), name, chain, rules.id)
        return nets

    def _render(
        self,
        rules: HostRules,
        direction: Direction,
        family: int,
        verdicts: Verdicts,
        nets: dict[str, NamedSet],
    ) -> Chain:
        if rules.id in self._closed:
            origin = DenialOrigin(reason="refused by the kernel", direction=direction, rules=rules.id)
            self._counted.pop((family, rules.id, direction), None)
            if rules.is_staged:
                return layout.chain([])
            return layout.chain(verdicts.deny("", origin, note="refused by the kernel"))
        texts: list[str] = []
        counted: list[int | None] = []
        for number, rule in enumerate(rules.inbound if direction == "inbound" else rules.outbound):
            origin = DenialOrigin(reason="rule", direction=direction, rules=rules.id, rule=number)
            try:
                rendered = render_rule(rule, family, self._sets.name, verdicts, origin, is_staged=rules.is_staged)
            except InvalidRequest as error:
                if rules.is_staged:
                    self._problems[rules.id] = f"rule {number + 1}: {error}; it is not counted"
                    continue
                self._problems[rules.id] = f"rule {number + 1}: {error}; it drops instead"
                denial = verdicts.deny("", origin, note=f"rule {number + 1} cannot be expressed")
                texts += denial
                counted += [*[None] * (len(denial) - 1), number]
                continue
            texts += rendered.rules
            counted += [number if line in rendered.counted else None for line in range(len(rendered.rules))]
            nets |= rendered.nets
        self._counted[family, rules.id, direction] = tuple(counted)
        return layout.chain(texts)

    def _remove(self, rules_id: RulesId, direction: Direction, table: str) -> None:
        name = rules_chain_name(rules_id, direction)
        for family in self._families:
            self._desired.drop_chain((family, table), name)
            if table == FILTER:
                self._counted.pop((family, rules_id, direction), None)

    def _use_nets(self, rules_id: RulesId, nets: Mapping[str, NamedSet], before: frozenset[str]) -> None:
        """Sets that stand for a list of networks inside rules; equal lists share one."""
        for name in nets.keys() - before:
            self._nets_users[name] += 1
            self._desired.put_set(name, nets[name], rules_id)
        for name in before - nets.keys():
            self._nets_users[name] -= 1
            if not self._nets_users[name]:
                del self._nets_users[name]
                self._desired.drop_set(name)
        if nets:
            self._nets_of[rules_id] = frozenset(nets)
        else:
            self._nets_of.pop(rules_id, None)

    def _forget(self, rules_id: RulesId) -> None:
        before = self._rules.pop(rules_id, None)
        self._problems.pop(rules_id, None)
        if before is None:
            return
        for rule in (*before.inbound, *before.outbound):
            for set_id in (*rule.sets, *rule.port_sets):
                self._set_users[set_id].discard(rules_id)

    # --- lists ------------------------------------------------------------------------------------

    def use_list(self, policies: PolicyList, purpose: Purpose) -> str:
        """The chain of the list, made if it is the first use. Every use ends with :meth:`free_list`."""
        name = list_chain_name(msgspec.json.encode(policies), purpose.letters)
        place = (purpose.table, name)
        self._lists[place] += 1
        if self._lists[place] == 1:
            uses = tuple((purpose.table, rules_id, purpose.direction) for rules_id in rules_in(policies))
            self._named[place] = uses
            for use in uses:
                self._uses[use] += 1
                if self._uses[use] == 1 and purpose.table != FILTER and use[1] in self._rules:
                    self._write(self._rules[use[1]], purpose.direction, purpose.table)
            for family in self._families:
                self._desired.put_chain(
                    (family, purpose.table), name, self._layout.list_chain(policies, purpose, family)
                )
        return name

    def free_list(self, name: str, purpose: Purpose) -> None:
        place = (purpose.table, name)
        self._lists[place] -= 1
        if self._lists[place]:
            return
        del self._lists[place]
        for family in self._families:
            self._desired.drop_chain((family, purpose.table), name)
        for use in self._named.pop(place):
            self._uses[use] -= 1
            if not self._uses[use]:
                del self._uses[use]
                if purpose.table != FILTER:
                    self._remove(use[1], use[2], purpose.table)


def rules_in(policies: PolicyList) -> Iterator[RulesId]:
    for tier in policies.tiers:
        yield from tier.policies
    yield from policies.profiles
