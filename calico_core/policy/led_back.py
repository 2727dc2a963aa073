"""From what a host was told back to the records: which rule decided, and which were asked before it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from calico_core.policy.mismatch import first_mismatch
from calico_core.policy.rules import stored_position
from calico_core.policy.rules_ids import record_key
from calico_core.policy.verdicts import PassedOver, RuleStep, implied_drop, kind_and_name

if TYPE_CHECKING:
    from calico_core.model.hoststate import HostState, PolicyList, RulesId
    from calico_core.policy.explain import Direction, Packet, Step
    from calico_core.policy.policy_lists import Hook
    from calico_core.policy.snapshot import Snapshot


def lead_back(snapshot: Snapshot, step: Step) -> RuleStep:
    """To the record and the rule that people wrote."""
    if step.rules is None or step.rule is None:
        return RuleStep(outcome=step.outcome, reason=implied_drop(step), tier=step.tier, hook=step.hook)
    stored = _stored(snapshot, step.rules, step.direction, step.rule)
    if stored is not None:
        closed = snapshot.why_closed(step.endpoint.host, step.rules, step.direction)
        why = closed.get(stored["position"] - 1)
        return RuleStep(
            outcome=step.outcome,
            reason=why or step.reason,
            tier=step.tier,
            hook=step.hook,
            is_rejected=step.is_rejected,
            is_closed=why is not None,
            **stored,
        )
    key = record_key(step.rules)
    kind, name = kind_and_name(key)
    why = snapshot.why_bad(key)
    reason = f"invalid {kind}: {why}" if why else f"missing {kind}: nothing is stored under its name"
    return RuleStep(outcome=step.outcome, reason=reason, tier=step.tier, kind=kind, name=name, hook=step.hook)


def passed_over(
    snapshot: Snapshot,
    state: HostState,
    policies: PolicyList,
    direction: Direction,
    packet: Packet,
    steps: Sequence[Step],
    hook: Hook = "normal",
) -> Iterator[PassedOver]:
    """In the order in which they were asked. Each tier made one step, and all profiles together one."""
    groups = [(tier.tier, tier.policies) for tier in policies.tiers]
    for (tier, lists), step in zip([*groups, (None, policies.profiles)], steps, strict=False):
        for rules_id in lists:
            rules = state.rules[rules_id]
            if rules.is_staged:
                continue
            for index, rule in enumerate(rules.inbound if direction == "inbound" else rules.outbound):
                if (rules_id, index) == (step.rules, step.rule):
                    break
                field = first_mismatch(state, rule, packet)
                stored = _stored(snapshot, rules_id, direction, index)
                if field is not None and stored is not None:
                    yield PassedOver(tier=tier, field=field, hook=hook, **stored)
            if rules_id == step.rules:
                break


def _stored(snapshot: Snapshot, rules_id: RulesId, direction: Direction, index: int) -> dict[str, Any] | None:
    """What names the rule that a host knows as number ``index``; None: no record stands behind it."""
    kind, name, rules = snapshot.rules_of(rules_id, direction)
    if rules is None:
        return None
    position = stored_position(rules, index, of_profile=kind == "profile")
    return {"kind": kind, "name": name, "position": position + 1, "rule": rules[position]}
