"""What rules are called towards the dataplane: by the policy or the profile that they are of."""

from __future__ import annotations

from calico_core.model.hoststate import RulesId
from calico_core.model.ids import escape, unescape
from calico_core.model.keys import PolicyKey, ProfileRulesKey


def policy_rules_id(key: PolicyKey) -> RulesId:
    # escaped as in the datastore: a slash within a name must not make two policies one
    return RulesId(f"policy/{escape(key.tier)}/{escape(key.name)}")


def profile_rules_id(profile: str) -> RulesId:
    return RulesId(f"profile/{profile}")


def record_key(rules_id: RulesId) -> PolicyKey | ProfileRulesKey:
    """The way back."""
    kind, _, rest = rules_id.partition("/")
    if kind == "profile":
        return ProfileRulesKey(rest)
    tier, _, name = rest.partition("/")
    return PolicyKey(unescape(tier), unescape(name))
