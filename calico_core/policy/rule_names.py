"""From what a host calls a list of rules, or one of them, back to the record that people wrote."""

from __future__ import annotations

from calico_core.model.hoststate import RulesId
from calico_core.model.ids import unescape
from calico_core.model.keys import PolicyKey, ProfileRulesKey


def record_key(rules_id: RulesId) -> PolicyKey | ProfileRulesKey:
    kind, _, rest = rules_id.partition("/")
    if kind == "profile":
        return ProfileRulesKey(rest)
    tier, _, name = rest.partition("/")
    return PolicyKey(unescape(tier), unescape(name))
