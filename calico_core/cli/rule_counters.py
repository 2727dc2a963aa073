"""``calicoctl policy counters`` and ``calicoctl profile counters``: how often this host's rules have matched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calico_core.cli.context import CliContext
from calico_core.cli.denied import stored_rule
from calico_core.cli.failure import Refused
from calico_core.cli.output import answer
from calico_core.cli.running import ask_node
from calico_core.model.hoststate import RulesId
from calico_core.model.keys import PolicyKey, ProfileRulesKey
from calico_core.policy.rules_ids import record_key


def print_counters(
    context: CliContext, is_wanted: Callable[[PolicyKey | ProfileRulesKey], bool], *, kind: str, name: str | None
) -> None:
    """Of all rules in force on this host, or of one list; raises ``Refused`` when that one is not in force."""
    found = [each for each in ask_node("counters") if is_wanted(record_key(RulesId(each["rules"])))]
    if name is not None and not found:
        reason = f"{kind} {name} has no rules in force on {context.host}"
        raise Refused(reason, f"no endpoint here uses it, or there is none of that name: calicoctl {kind} show")
    columns = {"Name": "name", "Direction": "direction", "Rule": "position", "Text": "text", "Packets": "packets"}
    columns |= {"Bytes": "bytes"}
    columns = {"Tier": "tier", **columns} if kind == "policy" else columns
    answer(context, [_row(context, each) for each in found], columns)


def _row(context: CliContext, count: dict[str, Any]) -> dict[str, Any]:
    key = record_key(RulesId(count["rules"]))
    stored = stored_rule(context, count["rules"], count["direction"], count["rule"])
    return {
        "tier": getattr(key, "tier", None),
        "name": key.profile if isinstance(key, ProfileRulesKey) else key.name,
        "direction": count["direction"],
        "position": stored["position"] if stored else None,
        "text": stored["text"] if stored else None,
        "packets": count["packets"],
        "bytes": count["bytes"],
    }
