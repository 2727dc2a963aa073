"""Why a rule does not match a packet: the first of its matches that fails. Pure; for people, not for the fast path.

Each match is put to the one evaluator alone, so that this can never disagree with it.
"""

from __future__ import annotations

from typing import Any

from calico_core.model.hoststate import HostRule, HostState
from calico_core.policy.explain import Packet, rule_matches

# In the order of the words of ``calicoctl profile NAME rule show``.
_MATCHES = {
    "ip_version": "ip",
    "protocol": "protocol",
    "not_protocol": "not protocol",
    "icmp": "type and code",
    "not_icmp": "not type and code",
    "src_ports": "from ports",
    "src_nets": "from cidr",
    "src_sets": "from tag or selector",
    "not_src_ports": "from not ports",
    "not_src_nets": "from not cidr",
    "not_src_sets": "from not tag or selector",
    "dst_ports": "to ports",
    "dst_nets": "to cidr",
    "dst_sets": "to tag or selector",
    "not_dst_ports": "to not ports",
    "not_dst_nets": "to not cidr",
    "not_dst_sets": "to not tag or selector",
}


def first_mismatch(state: HostState, rule: HostRule, packet: Packet) -> str | None:
    """The words of the match that fails; None: the rule matches."""
    if rule_matches(state, rule, packet):
        return None
    for field, words in _MATCHES.items():
        # ranges and sets of ports are one match
        fields = (field, field.replace("ports", "port_sets")) if field.endswith("_ports") else (field,)
        alone: dict[str, Any] = {name: value for name in fields if (value := getattr(rule, name))}
        if alone and not rule_matches(state, HostRule(action=rule.action, **alone), packet):
            return words
    return "its matches together"
