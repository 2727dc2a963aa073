"""Everything that applies to an endpoint: at each hook, the lists of rules in the order in which they are asked, as
people wrote them. Used by ``calicoctl explain endpoint``. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from calico_core.model.hoststate import HostInterface, PolicyList, RulesId
from calico_core.model.keys import HostEndpointKey, WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.model.rules import Rule
from calico_core.policy.explain import Direction
from calico_core.policy.flows import Cluster
from calico_core.policy.policy_lists import Hook

_OF_INTERFACE: tuple[tuple[Direction, Hook, str], ...] = (
    ("inbound", "untracked", "untracked_inbound"),
    ("inbound", "pre_dnat", "pre_dnat"),
    ("inbound", "normal", "inbound"),
    ("inbound", "forward", "forward_inbound"),
    ("outbound", "untracked", "untracked_outbound"),
    ("outbound", "normal", "outbound"),
    ("outbound", "forward", "forward_outbound"),
)


class AppliedList(Value, frozen=True):
    """The rules of a policy or profile in one direction; None: there is no such record. ``tier_default``: set on the
    last policy of a tier, what becomes of a packet that none of them decides. ``closed``: why rules deny whatever they
    say, by their number (from 0). ``is_staged``: they are counted, and decide nothing."""

    kind: Literal["policy", "profile"]
    name: str
    rules: tuple[Rule, ...] | None
    tier: str | None = None
    tier_default: Literal["deny", "pass"] | None = None
    closed: Mapping[int, str] = msgspec.field(default_factory=dict)
    is_staged: bool = False


class Applied(Value, frozen=True):
    """One hook. ``end``: what becomes of what nothing decides."""

    direction: Direction
    hook: Hook
    lists: tuple[AppliedList, ...]
    end: Literal["deny", "pass"]
    interface: str | None = None


def applied_to(cluster: Cluster, key: WorkloadEndpointKey | HostEndpointKey) -> list[Applied]:
    """Of a host endpoint, for each interface that it is in force on; hooks at which nothing applies are left out, but
    for the ordinary one."""
    state = cluster.state(key.host)
    if isinstance(key, WorkloadEndpointKey):
        workload = state.workloads.get(key)
        if workload is None or not workload.is_active:
            return []
        sides: tuple[tuple[Direction, PolicyList], ...] = (
            ("inbound", workload.inbound),
            ("outbound", workload.outbound),
        )
        return [_applied(cluster, key.host, direction, "normal", policies) for direction, policies in sides]
    return [
        applied
        for interface in state.interfaces.values()
        if interface.key == key
        for applied in _of_interface(cluster, interface)
    ]


def _of_interface(cluster: Cluster, interface: HostInterface) -> Iterator[Applied]:
    for direction, hook, field in _OF_INTERFACE:
        policies: PolicyList = getattr(interface, field)
        if policies.tiers or hook == "normal":
            yield _applied(cluster, interface.key.host, direction, hook, policies, interface.interface)


def _applied(
    cluster: Cluster, host: str, direction: Direction, hook: Hook, policies: PolicyList, interface: str | None = None
) -> Applied:
    lists: list[AppliedList] = []
    for tier in policies.tiers:
        for rules_id in tier.policies:
            default = tier.default_action if rules_id == tier.policies[-1] else None
            lists.append(_list(cluster, host, direction, rules_id, tier.tier, default))
    lists += [_list(cluster, host, direction, rules_id) for rules_id in policies.profiles]
    end: Literal["deny", "pass"] = "deny" if hook == "normal" else "pass"
    return Applied(direction=direction, hook=hook, lists=tuple(lists), end=end, interface=interface)


def _list(
    cluster: Cluster,
    host: str,
    direction: Direction,
    rules_id: RulesId,
    tier: str | None = None,
    tier_default: Literal["deny", "pass"] | None = None,
) -> AppliedList:
    kind, name, rules = cluster.rules_of(rules_id, direction)
    return AppliedList(
        kind=kind,
        name=name,
        rules=rules,
        tier=tier,
        tier_default=tier_default,
        closed=cluster.why_closed(host, rules_id, direction),
        is_staged=cluster.state(host).rules[rules_id].is_staged,
    )
