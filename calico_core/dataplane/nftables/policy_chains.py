"""The chains of policies and profiles, and of the lists that workloads go through. Pure.

Workloads with equal lists share one chain, named by the list's content; it goes with the last that uses it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.nftables import layout
from calico_core.dataplane.nftables.names import digest
from calico_core.dataplane.nftables.rules import guard, render_rule
from calico_core.errors import InvalidRequest
from calico_core.interfaces.dataplane import DenialOrigin
from calico_core.model.hoststate import RulesId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from calico_core.dataplane.nftables.desired import Desired
    from calico_core.dataplane.nftables.known_sets import KnownSets
    from calico_core.dataplane.nftables.verdicts import Verdicts
    from calico_core.dataplane.reconcile import Chain
    from calico_core.model.hoststate import HostRules, PolicyList, SetId

_DIRECTIONS: tuple[tuple[layout.Direction, Literal["inbound", "outbound"]], ...] = (
    ("in", "inbound"),
    ("out", "outbound"),
)
_WORTH_A_GUARD = 4
"""Lines: the guard is one more for a packet that it does not turn back."""


class CountedChain(msgspec.Struct, frozen=True):
    """Whose rules a chain renders: the number of the rule behind each of its lines, None behind the guard."""

    rules: RulesId
    direction: Literal["inbound", "outbound"]
    numbers: tuple[int | None, ...]


class _List(msgspec.Struct, frozen=True):
    """What a list comes to: the names of its chains, and the rules it names."""

    policies: PolicyList
    to_name: str
    from_name: str
    rules: frozenset[RulesId]


class PolicyChains:
    """One thread. ``problems`` and ``closed``: reasons by subject, shared with the caller; closed rules deny.
    ``counted`` by chain."""

    def __init__(
        self,
        desired: Desired,
        sets: KnownSets,
        families: Sequence[int],
        verdicts: Verdicts,
        problems: dict[str, str],
        closed: Mapping[str, str],
    ) -> None:
        self._desired, self._sets, self._families, self._verdicts = desired, sets, families, verdicts
        self._problems, self._closed = problems, closed
        self.counted: dict[str, CountedChain] = {}
        self._rules: dict[RulesId, HostRules] = {}
        self._set_users: defaultdict[SetId, set[RulesId]] = defaultdict(set)
        self._lists: Counter[str] = Counter()
        # by identity, so each is held as long as it stands here
        self._looked_at: dict[int, _List] = {}

    def __contains__(self, rules_id: RulesId) -> bool:
        return rules_id in self._rules

    def users_of(self, set_id: SetId) -> set[RulesId]:
        """The rules that name the set."""
        return set(self._set_users.get(set_id, ()))

    def put(self, rules: HostRules) -> bool:
        """Whether they are new: until now what names them was closed."""
        is_new = rules.id not in self._rules
        self._forget(rules.id)
        self._rules[rules.id] = rules
        for set_id in _sets_in(rules):
            self._set_users[set_id].add(rules.id)
        for direction, side in _DIRECTIONS:
            name = layout.rules_chain_name(rules.id, direction)
            chain, numbers = self._render(rules, side)
            self.counted[name] = CountedChain(rules.id, side, numbers)
            self._desired.put_chain(name, chain, rules.id)
        return is_new

    def drop(self, rules_id: RulesId) -> None:
        self._forget(rules_id)
        for direction, _ in _DIRECTIONS:
            name = layout.rules_chain_name(rules_id, direction)
            self.counted.pop(name, None)
            self._desired.drop_chain(name)

    def use_list(self, policies: PolicyList, direction: layout.Direction, subject: str) -> str:
        """The chain of the list, which stands until each use is freed."""
        found = self._look_at(policies)
        name = found.to_name if direction == "in" else found.from_name
        if not self._lists[name]:
            chain = layout.chain(layout.list_rules(policies, direction, self._verdicts))
            self._desired.put_chain(name, chain, subject)
        self._lists[name] += 1
        return name

    def rules_in(self, policies: PolicyList) -> frozenset[RulesId]:
        """All that the list names."""
        return self._look_at(policies).rules

    def missing(self, named: frozenset[RulesId]) -> list[RulesId]:
        """Those of them that nobody has given."""
        return [] if named <= self._rules.keys() else sorted(named.difference(self._rules))

    def end_batch(self) -> None:
        """Lists may be made anew after this."""
        self._looked_at.clear()

    def _look_at(self, policies: PolicyList) -> _List:
        """Equal lists are mostly one object: its content is looked at once a batch."""
        known = self._looked_at.get(id(policies))
        if known is None:
            content = digest(msgspec.json.encode(policies), 8)
            rules = frozenset(policies.profiles).union(*(tier.policies for tier in policies.tiers))
            known = self._looked_at[id(policies)] = _List(policies, f"to_{content}", f"from_{content}", rules)
        return known

    def free_list(self, name: str) -> None:
        self._lists[name] -= 1
        if not self._lists[name]:
            del self._lists[name]
            self._desired.drop_chain(name)

    def _render(self, rules: HostRules, side: Literal["inbound", "outbound"]) -> tuple[Chain, tuple[int | None, ...]]:
        """The chain, and the number of the rule behind each line."""
        if rules.id in self._closed:
            if rules.is_staged:
                return layout.chain([]), ()
            origin = DenialOrigin(reason="refused by the kernel", direction=side, rules=rules.id)
            return layout.closed_chain("refused by the kernel", origin, self._verdicts), ()
        texts: list[str] = []
        numbers: list[int | None] = []
        of_side = rules.inbound if side == "inbound" else rules.outbound
        turn_back = guard(of_side)
        for number, rule in enumerate(of_side):
            origin = DenialOrigin(reason="rule", direction=side, rules=rules.id, rule=number)
            try:
                lines = render_rule(
                    rule,
                    self._sets.name,
                    families=self._families,
                    verdicts=self._verdicts,
                    origin=origin,
                    is_staged=rules.is_staged,
                )
            except InvalidRequest as error:
                if rules.is_staged:
                    self._problems[rules.id] = f"rule {number + 1}: {error}; it is not counted"
                    continue
                turn_back = None  # it denies whatever the port
                self._problems[rules.id] = f"rule {number + 1}: {error}; it drops instead"
                lines = self._verdicts.deny("", origin, f"rule {number + 1} cannot be expressed")
            texts += lines
            numbers += [number] * len(lines)
        if turn_back is not None and len(texts) >= _WORTH_A_GUARD:
            texts.insert(0, turn_back)
            numbers.insert(0, None)
        return layout.chain(texts), tuple(numbers)

    def _forget(self, rules_id: RulesId) -> None:
        before = self._rules.pop(rules_id, None)
        self._problems.pop(rules_id, None)
        for set_id in _sets_in(before) if before is not None else ():
            self._set_users[set_id].discard(rules_id)
            if not self._set_users[set_id]:
                del self._set_users[set_id]


def _sets_in(rules: HostRules) -> set[SetId]:
    return {set_id for rule in (*rules.inbound, *rules.outbound) for set_id in (*rule.sets, *rule.port_sets)}
