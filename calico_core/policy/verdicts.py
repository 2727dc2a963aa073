"""What :mod:`flows` answers: steps that name the records and rules people wrote."""

from __future__ import annotations

from typing import Literal

from netaddr import IPAddress

from calico_core.model.keys import HostEndpointKey, PolicyKey, ProfileRulesKey, WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.model.rules import Rule
from calico_core.policy.explain import Direction, Outcome, Packet, Step
from calico_core.policy.policy_lists import Hook

Place = Literal["workload", "host", "interface", "outside", "unknown"]


class RuleStep(Value, frozen=True):
    """One decision. ``kind`` and ``name`` tell the record, ``position`` (from 1) and ``rule`` the rule in it; without
    them an end was reached and the drop is an implied one. ``is_closed``: the rule denies whatever it says, and
    ``reason`` tells why."""

    outcome: Outcome
    reason: str
    tier: str | None = None
    kind: Literal["policy", "profile"] | None = None
    name: str | None = None
    position: int | None = None
    rule: Rule | None = None
    hook: Hook = "normal"
    is_rejected: bool = False
    is_closed: bool = False


class PassedOver(Value, frozen=True):
    """A rule that was asked before the decision; ``field``: the first of its matches that fails."""

    kind: Literal["policy", "profile"]
    name: str
    position: int
    rule: Rule
    field: str
    tier: str | None = None
    hook: Hook = "normal"


class Side(Value, frozen=True):
    """One end, or an ``interface`` of a host that the packet is forwarded through. ``unknown``: no endpoint has the
    address, though it lies in a pool. ``outcome`` None: policy has no say there, ``reason`` says why. With
    ``host_endpoint`` its policy was asked, for the interface named; whether the packet goes that way only the host
    knows, unless ``is_interface_certain``."""

    direction: Direction
    address: IPAddress
    place: Place
    outcome: Literal["allow", "deny"] | None
    reason: str = ""
    host: str | None = None
    workload: WorkloadEndpointKey | None = None
    host_endpoint: HostEndpointKey | None = None
    interface: str | None = None
    is_interface_certain: bool = True
    steps: tuple[RuleStep, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()


class FlowVerdict(Value, frozen=True):
    """``unaffected``: policy has no say at either end nor between."""

    outcome: Literal["allow", "deny", "unaffected"]
    packet: Packet
    sides: tuple[Side, ...]


def implied_drop(step: Step) -> str:
    """Names the drop nobody wrote."""
    if step.tier is not None and step.hook in {"untracked", "pre_dnat"}:
        return "end of tier: none of its policies that apply decides, and at this hook that passes on"
    if step.tier is not None:
        return f"end of tier: none of its policies that apply decides, its default is {step.outcome}"
    return step.reason


def without_steps(side: Side, outcome: Literal["deny"] | None, reason: str) -> Side:
    return Side(
        direction=side.direction,
        address=side.address,
        place=side.place,
        outcome=outcome,
        reason=reason,
        host=side.host,
        workload=side.workload,
    )


def kind_and_name(key: PolicyKey | ProfileRulesKey) -> tuple[Literal["policy", "profile"], str]:
    return ("profile", key.profile) if isinstance(key, ProfileRulesKey) else ("policy", key.name)
