"""Which policies each local endpoint goes through, in order. Source: felix specification 4.5, datastore 4.4.

A policy acts at one of three hooks. At the ordinary one it judges workloads and what ends at the host; with
``apply_on_forward`` also what is forwarded through an interface of the host. Untracked and pre-DNAT policies have hooks
of their own, which only interfaces of the host have, and see everything that comes that way: asked or not, they apply
to forwarded traffic. Endpoints that match the same selectors have the same list: it is put together once for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Literal

from pyroaring import BitMap, FrozenBitMap

from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.hoststate import RulesId, TierPolicies
from calico_core.model.keys import HostEndpointKey, PolicyKey, WorkloadEndpointKey
from calico_core.model.policies import Policy, Tier, order_value
from calico_core.model.selectors import Labels, parse_selector
from calico_core.policy.dense_ids import DenseIds
from calico_core.policy.label_index import LabelIndex
from calico_core.policy.one_or_several import OneOrSeveral, each, with_one, without
from calico_core.policy.postings import Query
from calico_core.policy.rules_ids import policy_rules_id

Tiers = tuple[tuple[TierPolicies, ...], tuple[TierPolicies, ...]]
"""Inbound and outbound."""
Hook = Literal["normal", "forward", "untracked", "pre_dnat"]
EndpointKey = WorkloadEndpointKey | HostEndpointKey
_DENYING: frozenset[Hook] = frozenset({"normal", "forward"})
_NO_TIER = Tier()


def acts_at(policy: Policy, hook: Hook) -> bool:
    """A policy that is said to be both untracked and pre-DNAT is untracked."""
    if policy.untracked or policy.pre_dnat:
        return hook == ("untracked" if policy.untracked else "pre_dnat")
    return hook == "normal" or (hook == "forward" and policy.apply_on_forward)


class _Selected:
    """The policies that have one selector; ``text`` is its canonical one."""

    __slots__ = ("keys", "query", "text")

    def __init__(self, text: str, query: Query) -> None:
        self.text = text
        self.query = query
        self.keys: OneOrSeveral[PolicyKey] = None


class PolicyLists:
    """Local endpoints × policies."""

    def __init__(self) -> None:
        self._index = LabelIndex()
        self._ids: DenseIds[EndpointKey] = DenseIds()
        self._policies: dict[PolicyKey, Policy] = {}
        self._tiers: dict[str, Tier] = {}
        self._selected: dict[str, _Selected] = {}
        """By the canonical text of the selector."""
        self._by_number: dict[int, _Selected] = {}
        """The same by the number of the query."""
        self._matches: dict[int, BitMap] = {}
        self._lists: dict[tuple[Hook, FrozenBitMap], Tiers] = {}
        # Of the batch under way.
        self._relisted: set[_Selected] = set()
        self._dirty = BitMap()

    def set_profile_labels(self, profile: str, labels: Labels | None) -> None:
        self._index.set_parent(profile, labels)

    def set_tier(self, name: str, tier: Tier | None) -> None:
        """A tier without metadata still stands, last in order, while it has policies."""
        if self._tiers.get(name) == tier:
            return
        if tier is None:
            del self._tiers[name]
        else:
            self._tiers[name] = tier
        self._relisted.update(self._selected_by(policy) for key, policy in self._policies.items() if key.tier == name)

    def policy(self, key: PolicyKey) -> Policy:
        """One that is listed."""
        return self._policies[key]

    def set_policy(self, key: PolicyKey, policy: Policy | None) -> None:
        old = self._policies.get(key)
        if old is not None and policy is not None and _listing(old) == _listing(policy):
            self._policies[key] = policy
            return
        if old is not None:
            self._unlist(key)
        if policy is not None:
            self._list(key, policy)

    def update_endpoints(self, updates: Iterable[tuple[EndpointKey, WorkloadEndpoint | HostEndpoint | None]]) -> None:
        """The active local endpoints; None: gone, or not active."""
        updates = list(updates)
        self._index.expect(len(updates))
        for key, endpoint in updates:
            if endpoint is not None:
                self._index.put(self._ids.assign(key), endpoint.labels, endpoint.profile_ids)
                continue
            number = self._ids.release(key)
            if number is not None:
                self._index.remove(number)

    def flush(self) -> set[EndpointKey]:
        """The endpoints whose lists may be others now."""
        for selected in [selected for selected in self._relisted if selected.keys is None]:
            self._drop(selected)
        for query, delta in self._index.flush().items():
            self._dirty |= delta.added
            self._dirty |= delta.removed
            for item in delta.added:
                self._matches.setdefault(item, BitMap()).add(query.number)
            for item in delta.removed:
                self._unmatch(item, query)
        for selected in self._relisted:
            if selected.query.matched:
                self._dirty |= selected.query.matched
        if self._relisted:
            self._lists.clear()
        keys = {self._ids.key(item) for item in self._dirty if item not in self._ids.released}
        if len(self._lists) > 4 * len(self._ids):
            self._lists.clear()
        self._relisted.clear()
        self._dirty.clear()
        self._ids.end_batch()
        return keys

    def tiers_of(self, key: EndpointKey, hook: Hook = "normal") -> Tiers:
        """What the endpoint goes through at the hook, at the ordinary one before its profiles. Call after
        :meth:`flush`."""
        item = self._ids.find(key)
        numbers = self._matches.get(item) if item is not None else None
        if numbers is None:
            return (), ()
        same = hook, FrozenBitMap(numbers)
        lists = self._lists.get(same)
        if lists is None:
            keys = [key for number in numbers for key in each(self._by_number[number].keys)]
            keys = [key for key in keys if acts_at(self._policies[key], hook)]
            lists = self._lists[same] = self._put_in_order(keys, denies=hook in _DENYING)
        return lists

    def _put_in_order(self, keys: list[PolicyKey], *, denies: bool) -> Tiers:
        """``denies`` False: what a tier does not decide goes on, whatever the tier's own default is."""
        keys.sort(key=self._rank)
        inbound: list[TierPolicies] = []
        outbound: list[TierPolicies] = []
        for name, members in groupby(keys, lambda key: key.tier):
            default = self._tiers.get(name, _NO_TIER).default_action if denies else "pass"
            policies = [(policy_rules_id(key), self._policies[key]) for key in members]
            into = _in_tier(name, [each for each in policies if each[1].has_inbound], default)
            out = _in_tier(name, [each for each in policies if each[1].has_outbound], default)
            if into is not None:
                inbound.append(into)
            if out is not None:
                outbound.append(into if into == out and into is not None else out)
        return tuple(inbound), tuple(outbound)

    def _rank(self, key: PolicyKey) -> tuple[float, str, float, str]:
        tier = self._tiers.get(key.tier)
        tier_order = order_value(tier.order) if tier is not None else math.inf
        return tier_order, key.tier, order_value(self._policies[key].order), key.name

    def _list(self, key: PolicyKey, policy: Policy) -> None:
        selector = parse_selector(policy.selector)
        selected = self._selected.get(selector.canonical)
        if selected is None:
            selected = _Selected(selector.canonical, self._index.add_query(selector.root))
            self._selected[selected.text] = self._by_number[selected.query.number] = selected
        self._policies[key] = policy
        selected.keys = with_one(selected.keys, key)
        self._relisted.add(selected)

    def _unlist(self, key: PolicyKey) -> None:
        selected = self._selected_by(self._policies.pop(key))
        selected.keys = without(selected.keys, key)
        self._relisted.add(selected)

    def _drop(self, selected: _Selected) -> None:
        """No policy selects by it any more."""
        query = selected.query
        self._relisted.discard(selected)
        self._dirty |= query.matched
        for item in query.matched:
            self._unmatch(item, query)
        self._index.drop_query(query)
        del self._selected[selected.text], self._by_number[query.number]
        self._lists.clear()

    def _unmatch(self, item: int, query: Query) -> None:
        numbers = self._matches[item]
        numbers.discard(query.number)
        if not numbers:
            del self._matches[item]

    def _selected_by(self, policy: Policy) -> _Selected:
        return self._selected[parse_selector(policy.selector).canonical]


def _in_tier(
    name: str, policies: list[tuple[RulesId, Policy]], default: Literal["deny", "pass"]
) -> TierPolicies | None:
    """Where all of them are staged, there is nothing to end."""
    if not policies:
        return None
    decides = any(not policy.staged for _, policy in policies)
    return TierPolicies(
        tier=name, policies=tuple(rules for rules, _ in policies), default_action=default if decides else "pass"
    )


def _listing(policy: Policy) -> tuple[object, ...]:
    """What a policy's place in the lists depends on."""
    selector = parse_selector(policy.selector).canonical
    hooks = policy.untracked, policy.pre_dnat, policy.apply_on_forward
    return selector, order_value(policy.order), policy.has_inbound, policy.has_outbound, policy.staged, hooks
