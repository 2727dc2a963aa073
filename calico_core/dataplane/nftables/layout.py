"""The fixed part of the table: base chains, anti-spoofing, dispatch; and the chains that endpoints share.

::

    prerouting/raw  raw_prerouting ─ workload? ─▶ workload_source ─ (interface, MAC, address) known? else drop
    forward         forward ─ established: accept ─▶ from_workload ─ wl_from: interface ─▶ from_… (a list of policies)
                                                 └─▶ to_workload ── wl_to: interface ──▶ to_…      └▶ po_…, pi_… (rules)
    input           input ─ workload? ─▶ workload_to_host ─ DHCP, DNS, neighbours; then as endpoint_to_host says
    postrouting/nat nat_postrouting ─ pool to elsewhere: masquerade (only while a pool wants it)

Traffic of the host itself to its workloads has no chain: it passes. A lookup that misses falls to a drop, so an
interface nobody told us of is closed. Source: felix specification 6 and 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.nftables.names import kernel_name, readable, tag
from calico_core.dataplane.nftables.rules import (
    CLEAR_MARKS,
    CLEAR_PASS,
    DROP,
    IF_ACCEPTED_RETURN,
    IF_NOT_PASSED,
)
from calico_core.dataplane.reconcile import Chain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from calico_core.model.hoststate import PolicyList, RulesId

VXLAN_PORT = 4789
IPIP_PROTOCOL = 4
RAW_PREROUTING = "filter prerouting -300"
FORWARD = "filter forward 0"
INPUT = "filter input 0"
POSTROUTING = "nat postrouting 100"

FROM_MAP, TO_MAP = "wl_from", "wl_to"
NAT_CHAIN = "nat_postrouting"
SOURCE_KINDS = {4: ("source4", "source_mac4"), 6: ("source6", "source_mac6")}

_STATE = "ct state vmap { established : accept, related : accept, invalid : drop }"


def chain(rules: Iterable[str], hook: str = "") -> Chain:
    """Each rule carries its tag as comment; what follows `` # `` in a rule's text joins the comment, for people."""
    texts: list[str] = []
    tags: list[str] = []
    for rule in rules:
        body, _, note = rule.partition(" # ")
        tags.append(tag(body))
        texts.append(f'{body} comment "{tags[-1]}{" " + note if note else ""}"')
    return Chain(tags=tuple(tags), rules=tuple(texts), hook=hook)


def source_set(kind: str) -> str:
    """The one set of this kind."""
    return {"source4": "src_any4", "source6": "src_any6", "source_mac4": "src_mac4", "source_mac6": "src_mac6"}[kind]


def fixed_chains(prefix: str, endpoint_to_host: str, families: Sequence[int]) -> dict[str, Chain]:
    """All chains that do not depend on what the host has to do."""
    is_v6 = 6 in families
    return {
        "raw_prerouting": chain([f'iifname "{prefix}*" goto workload_source'], RAW_PREROUTING),
        "workload_source": chain(_workload_source(families)),
        "forward": chain(
            [
                f'iifname != "{prefix}*" oifname != "{prefix}*" return',
                _STATE,
                f'iifname "{prefix}*" jump from_workload',
                f'oifname "{prefix}*" jump to_workload',
            ],
            FORWARD,
        ),
        "from_workload": chain([f"iifname vmap @{FROM_MAP}", f"{DROP} # from an unknown endpoint"]),
        "to_workload": chain([f"oifname vmap @{TO_MAP}", f"{DROP} # to an unknown endpoint"]),
        "input": chain([f'iifname "{prefix}*" goto workload_to_host'], INPUT),
        "workload_to_host": chain(_workload_to_host(endpoint_to_host, is_v6=is_v6)),
    }


def _workload_source(families: Sequence[int]) -> list[str]:
    # A workload that could send into the hosts' tunnels would come out beyond all policy.
    rules = [
        f"udp dport {VXLAN_PORT} {DROP} # VXLAN from a workload",
        f"meta l4proto {IPIP_PROTOCOL} {DROP} # IPIP from a workload",
        "iifname . ether saddr . ip saddr @src_mac4 return",
        "iifname . ip saddr @src_any4 return",
    ]
    if 6 in families:
        rules += [
            "iifname . ether saddr . ip6 saddr @src_mac6 return",
            "iifname . ip6 saddr @src_any6 return",
        ]
    rules.append("ip saddr 0.0.0.0 udp sport 68 udp dport 67 return")
    if 6 in families:
        rules += [
            "ip6 saddr { ::, fe80::/10 } icmpv6 type { 130, 131, 132, 133, 135, 136, 143 } return",
            "ip6 saddr fe80::/10 udp sport 546 udp dport 547 return",
        ]
    return [*rules, f"{DROP} # spoofed source"]


def _workload_to_host(action: str, *, is_v6: bool) -> list[str]:
    rules = [_STATE]
    if is_v6:
        rules.append("icmpv6 type { 130, 131, 132, 133, 135, 136, 143 } accept")
    rules.append("udp sport 68 udp dport 67 accept")
    if is_v6:
        rules.append("udp sport 546 udp dport 547 accept")
    rules.append("udp dport 53 accept")
    if action == "DROP":
        return [*rules, f"{DROP} # endpoint to host"]
    # RETURN and ACCEPT end alike here: an accept of ours does not overrule the tables of others
    rules.append("jump from_workload")
    return [*rules, "accept"] if action == "ACCEPT" else rules


def nat_chain(families: Sequence[int]) -> Chain:
    rules = ["ip saddr @masq4 ip daddr != @pools4 masquerade fully-random"]
    if 6 in families:
        rules.append("ip6 saddr @masq6 ip6 daddr != @pools6 masquerade fully-random")
    return chain(rules, POSTROUTING)


def closed_chain(reason: str) -> Chain:
    """In the place of what cannot be rendered or was refused."""
    return chain([f"{DROP} # {reason}"])


def rules_chain_name(rules_id: RulesId, direction: str) -> str:
    """``direction`` is ``in`` (towards the workload) or ``out``."""
    return kernel_name("pi" if direction == "in" else "po", rules_id)


def list_chain(policies: PolicyList, direction: str) -> Chain:
    """Tiers in order, profiles in order, drop. "Accept" is to return with the accept mark set: the caller may have
    the other end's policy to ask."""
    rules = [CLEAR_MARKS]
    passed_before = False
    for tier in policies.tiers:
        if not tier.policies:
            continue
        if passed_before:
            rules.append(CLEAR_PASS)
        passed_before = True
        for position, rules_id in enumerate(tier.policies):
            jump = f"jump {rules_chain_name(rules_id, direction)}"
            # only after a policy may the pass mark be set
            rules += [f"{IF_NOT_PASSED} {jump}" if position else jump, IF_ACCEPTED_RETURN]
        if tier.default_action == "deny":
            rules.append(f"{IF_NOT_PASSED} {DROP} # end of tier {readable(tier.tier, 40)}")
    for rules_id in policies.profiles:
        rules += [f"jump {rules_chain_name(rules_id, direction)}", IF_ACCEPTED_RETURN]
    rules.append(f"{DROP} # no profile matched")
    return chain(rules)
