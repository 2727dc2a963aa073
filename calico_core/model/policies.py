"""Tiers, policies and network sets. Profiles are three keys of their own (``rules.RuleLists``, tags, labels).

Source: datastore specification 4.4.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
from netaddr import IPNetwork

from calico_core.errors import InvalidRequest, InvalidSelector
from calico_core.model.ids import Label
from calico_core.model.record import Record
from calico_core.model.rules import Rule
from calico_core.model.selectors import parse_selector

Order = float | Literal["default"] | None
DEFAULT_TIER = "default"


def order_value(order: Order) -> float:
    """Absent and ``"default"`` come last."""
    return math.inf if order is None or order == "default" else float(order)


class Tier(Record, frozen=True):
    """Tier metadata. Tiers sort by (order, name)."""

    order: Order = None
    default_action: Literal["deny", "pass"] = msgspec.field(default="deny", name="defaultAction")


class Policy(Record, frozen=True, omit_defaults=False):
    """A policy of a tier: applies to endpoints its selector matches; sorts by (order, name).

    ``types`` absent: both directions. ``staged``: counted, not enforced. The other three are for host endpoints:
    ``apply_on_forward``: forwarded traffic too; ``untracked``: before connection tracking; ``pre_dnat``: before
    destinations are translated, inbound only.
    """

    selector: str
    order: Order = None
    inbound_rules: tuple[Rule, ...] = ()
    outbound_rules: tuple[Rule, ...] = ()
    types: tuple[Literal["ingress", "egress"], ...] | None = None
    untracked: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False
    staged: bool = False
    id: str | None = None

    def __post_init__(self) -> None:
        try:
            parse_selector(self.selector)
        except InvalidSelector as error:
            raise ValueError(f"selector: {error}") from error

    @property
    def has_inbound(self) -> bool:
        return self.types is None or "ingress" in self.types

    @property
    def has_outbound(self) -> bool:
        return self.types is None or "egress" in self.types


def check_hooks(policy: Policy) -> None:
    """What a person who writes a policy must not mean; one that is stored all the same is read as
    :mod:`calico_core.policy.policy_lists` says. Raises ``InvalidRequest``."""
    if policy.untracked and policy.pre_dnat:
        raise InvalidRequest("pre_dnat", "a policy is untracked or before DNAT, not both")
    for field in ("untracked", "pre_dnat"):
        if getattr(policy, field) and not policy.apply_on_forward:
            reason = f"goes with {field}: such a policy sees forwarded traffic too, and has to say so"
            raise InvalidRequest("apply_on_forward", reason)
    if policy.pre_dnat and policy.outbound_rules:
        raise InvalidRequest("outbound_rules", "a policy before DNAT has only inbound rules")
    if policy.pre_dnat and policy.types is not None and "egress" in policy.types:
        raise InvalidRequest("types", "a policy before DNAT is of type ingress only")


class NetworkSet(Record, frozen=True):
    """Labelled CIDRs that selectors match as if they were endpoints."""

    nets: tuple[IPNetwork, ...] = ()
    labels: dict[Label, str] = msgspec.field(default_factory=dict)
