"""The chains every host has, and the shapes of the others.

::

    raw PREROUTING     calico-PREROUTING ─ workload? ─▶ calico-src… (tree) ─▶ calico-sp-<interface>: its addresses
                                                                          └▶ calico-nosource: DHCP, ND, else drop
    filter FORWARD     calico-FORWARD ─ from or to a workload ─▶ calico-wl ─ established: accept
                         ├─▶ calico-from… (tree) ─▶ calico-fl-…  (a list of policies) ─▶ calico-po-… (rules)
                         └─▶ calico-to… (tree) ───▶ calico-tl-…                       └▶ calico-pi-…
    filter INPUT       calico-INPUT ─ workload? ─▶ calico-wl-host ─ DHCP, DNS, neighbours; then as endpoint_to_host says
    nat POSTROUTING    calico-POSTROUTING ─ pool to elsewhere: masquerade (only while a pool wants it)

One jump to each of the four stands first in the kernel's chain. Traffic of the host itself to its workloads has no
chain: it passes. A tree that knows no interface of the name drops, so an interface nobody told us of is closed. What
survives both directions is accepted at once: whoever comes after us may have a policy of dropping (Docker).
Source: felix specification 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.iptables.ipsets import address_text
from calico_core.dataplane.iptables.names import readable, rules_chain_name, tag
from calico_core.dataplane.iptables.render import (
    CLEAR_MARKS,
    CLEAR_PASS,
    DROP,
    IF_ACCEPTED_RETURN,
    IF_NOT_PASSED,
)
from calico_core.dataplane.reconcile import Chain
from calico_core.model.addresses import WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import EUI

    from calico_core.model.hoststate import PolicyList

FILTER, RAW, NAT = "filter", "raw", "nat"
#: In this order: who may send is opened last.
TABLES = (FILTER, RAW, NAT)
#: By table: the kernel's chain, and ours that it leads to.
HOOKS = {
    FILTER: {"FORWARD": "calico-FORWARD", "INPUT": "calico-INPUT"},
    RAW: {"PREROUTING": "calico-PREROUTING"},
    NAT: {"POSTROUTING": "calico-POSTROUTING"},
}
FROM_ROOT, TO_ROOT, SOURCE_ROOT = "calico-from", "calico-to", "calico-src"
NAT_CHAIN = "calico-POSTROUTING"
NO_SOURCE = "calico-nosource"
MISSED = {
    FROM_ROOT: f"{DROP} # from an unknown endpoint",
    TO_ROOT: f"{DROP} # to an unknown endpoint",
    SOURCE_ROOT: f"-g {NO_SOURCE}",
}

COMMENT = "calico:"
_INVALID = f"-m conntrack --ctstate INVALID {DROP}"
_ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
# Multicast listener messages (130–132, 143), router solicitation, neighbour solicitation and advertisement.
_NEIGHBOUR_TYPES = (130, 131, 132, 133, 135, 136, 143)
_LINK_LOCAL_SOURCES = ("::/128", "fe80::/10")
_DHCP = {4: "-p 17 -m udp --sport 68 --dport 67", 6: "-p 17 -m udp --sport 546 --dport 547"}


def chain(rules: Iterable[str]) -> Chain:
    """Each rule carries its tag in its comment; what follows `` # `` in a rule's text joins it, for people."""
    texts: list[str] = []
    tags: list[str] = []
    for rule in rules:
        body, _, note = rule.partition(" # ")
        tags.append(tag(body))
        texts.append(f'{body} -m comment --comment "{COMMENT}{tags[-1]}{" " + note if note else ""}"')
    return Chain(tags=tuple(tags), rules=tuple(texts))


def jump(target: str) -> str:
    """The rule that leads from the kernel's chain to ours, as the kernel shows it."""
    return f'-m comment --comment "{COMMENT}{tag(target)}" -j {target}'


def fixed_chains(prefix: str, endpoint_to_host: str, family: int) -> dict[str, dict[str, Chain]]:
    """By table: the chains that do not depend on what the host has to do."""
    return {
        FILTER: {
            "calico-FORWARD": chain([f"-i {prefix}+ -g calico-wl", f"-o {prefix}+ -g calico-wl"]),
            "calico-wl": chain(
                [
                    _INVALID,
                    _ESTABLISHED,
                    f"-i {prefix}+ -j {FROM_ROOT}",
                    f"-o {prefix}+ -j {TO_ROOT}",
                    "-j ACCEPT",
                ]
            ),
            "calico-INPUT": chain([f"-i {prefix}+ -g calico-wl-host"]),
            "calico-wl-host": chain(_workload_to_host(endpoint_to_host, family)),
        },
        RAW: {
            "calico-PREROUTING": chain([f"-i {prefix}+ -g {SOURCE_ROOT}"]),
            NO_SOURCE: chain(_no_source(family)),
        },
        NAT: {},
    }


def _workload_to_host(action: str, family: int) -> list[str]:
    rules = [_INVALID, _ESTABLISHED]
    if family == 6:
        rules += [f"-p 58 -m icmp6 --icmpv6-type {kind} -j ACCEPT" for kind in _NEIGHBOUR_TYPES]
    rules += [f"{_DHCP[family]} -j ACCEPT", "-p 17 -m udp --dport 53 -j ACCEPT"]
    if action == "DROP":
        return [*rules, f"{DROP} # endpoint to host"]
    rules.append(f"-j {FROM_ROOT}")
    return [*rules, "-j ACCEPT"] if action == "ACCEPT" else rules


def _no_source(family: int) -> list[str]:
    """What a workload may send without an address of its own."""
    if family == 4:
        rules = [f"-s 0.0.0.0/32 {_DHCP[4]} -j RETURN"]
    else:
        rules = [
            f"-s {source} -p 58 -m icmp6 --icmpv6-type {kind} -j RETURN"
            for source in _LINK_LOCAL_SOURCES
            for kind in _NEIGHBOUR_TYPES
        ]
        rules.append(f"-s fe80::/10 {_DHCP[6]} -j RETURN")
    return [*rules, f"{DROP} # spoofed source"]


def source_chain(mac: EUI | None, addresses: Iterable[int], family: int) -> Chain:
    """``mac`` None: any."""
    sender = "" if mac is None else f"-m mac --mac-source {int(mac).to_bytes(6, 'big').hex(':')} "
    width = WIDTH[family]
    rules = [f"-s {address_text(each, family)}/{width} {sender}-j RETURN" for each in sorted(addresses)]
    return chain([*rules, f"-g {NO_SOURCE}"])


def nat_chain(masquerade_set: str, pools_set: str) -> Chain:
    from_pool = f"-m set --match-set {masquerade_set} src"
    return chain([f"{from_pool} -m set ! --match-set {pools_set} dst -j MASQUERADE --random-fully"])


def closed_chain(reason: str) -> Chain:
    """In the place of what was refused."""
    return chain([f"{DROP} # {reason}"])


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
            step = f"-j {rules_chain_name(rules_id, direction)}"
            # only after a policy may the pass mark be set
            rules += [f"{IF_NOT_PASSED} {step}" if position else step, IF_ACCEPTED_RETURN]
        if tier.default_action == "deny":
            rules.append(f"{IF_NOT_PASSED} {DROP} # end of tier {readable(tier.tier, 40)}")
    for rules_id in policies.profiles:
        rules += [f"-j {rules_chain_name(rules_id, direction)}", IF_ACCEPTED_RETURN]
    rules.append(f"{DROP} # no profile matched")
    return chain(rules)
