"""``calicoctl explain endpoint E``: everything that applies to an endpoint, in the order in which it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from calico_core.cli.context import CliContext
from calico_core.cli.failure import Missing
from calico_core.cli.flow_words import find_party
from calico_core.cli.output import answer_one
from calico_core.cli.rule_words import render_rule
from calico_core.errors import InvalidRequest
from calico_core.model.keys import HostEndpointKey, WorkloadEndpointKey
from calico_core.policy.applied import Applied, applied_to
from calico_core.policy.flows import Cluster

_LAST = {
    ("normal", "deny"): "what none of them decides is denied",
    ("forward", "pass"): "what all of them pass on is forwarded",
    ("untracked", "pass"): "what none of them decides goes on",
    ("pre_dnat", "pass"): "what none of them decides goes on",
}


def answer_endpoint(context: CliContext, cluster: Cluster, word: str) -> None:
    """``word``: as ``--from`` takes an endpoint, or ``host:NAME/ENDPOINT`` for a host endpoint."""
    key = _find(cluster, word)
    found = [_json(each) for each in applied_to(cluster, key)]
    place: dict[str, Any] = {"host": key.host, "endpoint": key.endpoint}
    if isinstance(key, WorkloadEndpointKey):
        place["workload"] = key.workload
        prefixes = cluster.endpoints[key].allowed_source_prefixes
        place["source_prefixes"] = [str(each) for each in prefixes]
        place["may_use_source_prefixes"] = bool(prefixes) and cluster.lets_spoof(key.host)
    else:
        place["kind"] = "host endpoint"
    answer_one(context, {**place, "applied": found}, "\n".join(_lines(place, found)))


def _find(cluster: Cluster, word: str) -> WorkloadEndpointKey | HostEndpointKey:
    kind, separator, rest = word.partition(":")
    host, slash, name = rest.partition("/")
    if separator and kind == "host" and slash:
        key = HostEndpointKey(host, name)
        if key not in cluster.host_endpoints:
            raise Missing("host endpoint", f"{host}/{name}", "calicoctl host-endpoint show lists them")
        return key
    party = find_party(word, cluster.endpoints, cluster.hosts)
    if party.key is not None:
        return party.key
    keys = cluster.carriers(party.addresses[0])
    if not keys:
        raise Missing("endpoint", word, "calicoctl endpoint show --detailed lists them")
    if len(keys) > 1:
        raise InvalidRequest("ENDPOINT", f"{len(keys)} endpoints have the address {word}: name one by its id")
    return keys[0]


def _json(applied: Applied) -> dict[str, Any]:
    return {
        "direction": applied.direction,
        "hook": applied.hook,
        "interface": applied.interface,
        "lists": [
            {
                "tier": each.tier,
                "kind": each.kind,
                "name": each.name,
                "missing": each.rules is None,
                "rules": [render_rule(rule) for rule in each.rules or ()],
                "closed": {str(number + 1): reason for number, reason in each.closed.items()},
                "tier_default": each.tier_default,
                "staged": each.is_staged,
            }
            for each in applied.lists
        ],
        "end": applied.end,
    }


def _lines(place: dict[str, Any], found: list[dict[str, Any]]) -> Iterator[str]:
    what = f"workload {place['workload']}" if "workload" in place else "the host itself"
    yield f"endpoint {place['endpoint']} of {what} on host {place['host']}"
    if place.get("source_prefixes"):
        end = "" if place["may_use_source_prefixes"] else ": without effect, WorkloadSourceSpoofing is Disabled there"
        yield f"may also send from {', '.join(place['source_prefixes'])}{end}"
    for applied in found:
        hook = "" if applied["hook"] == "normal" else f", {applied['hook'].replace('_', '-')}"
        interface = f", interface {applied['interface']}" if applied["interface"] else ""
        yield ""
        yield f"{applied['direction']}{hook}{interface}:"
        for each in applied["lists"]:
            tier = f"tier {each['tier']} → " if each["tier"] is not None else ""
            note = ": not there, or invalid: denies" if each["missing"] else ""
            note += ": staged, its rules are counted and decide nothing" if each["staged"] else ""
            yield f"  {tier}{each['kind']} {each['name']}{note}"
            for number, text in enumerate(each["rules"], 1):
                reason = each["closed"].get(str(number))
                yield f"    {number:3} {text}" + (f": denies everything: {reason}" if reason else "")
            if each["tier_default"] is not None:
                yield f"  end of tier {each['tier']}: {each['tier_default']}"
        yield f"  {_LAST[applied['hook'], applied['end']]}"
