"""Sets beyond their limit, read off the stored records: which rules name one (ADR 11).

Shares no line with the project, as :mod:`naive`.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

from tests.campaigns.oracle.naive import is_valid, labels_of, nets_of, number_of, tags_of
from tests.campaigns.oracle.selectors import matches
from tests.campaigns.oracle.ways import Stored


def with_closed_rules(records: Stored, limit: int) -> Stored:
    """The records with a denial in the place of each rule that names a set of more than ``limit`` members (ADR 11)."""
    found = dict(records)
    for path, lists in records.items():
        is_policy = path.startswith("/calico/v1/policy/") and ("/policy/" in path[18:] or path.endswith("/rules"))
        if is_policy and is_valid(lists):
            found[path] = {
                field: [{"action": "deny"} if _is_beyond(records, rule, limit) else rule for rule in value]
                if field.endswith("_rules")
                else value
                for field, value in lists.items()
            }
    return found


def _is_beyond(records: Stored, rule: Any, limit: int) -> bool:
    """A rule that no packet can match is in no kernel."""
    if not _families(rule):
        return False
    for side in ("src", "dst"):
        for sign in ("", "!"):
            tag, selector = rule.get(f"{sign}{side}_tag"), rule.get(f"{sign}{side}_selector")
            if tag is not None and _size(nets_of(each) for each in _members(records, tag, None)) > limit:
                return True
            if selector is not None and _size(nets_of(each) for each in _members(records, None, selector)) > limit:
                return True
            among = _members(records, rule.get(f"{side}_tag"), rule.get(f"{side}_selector"))
            for name in rule.get(f"{sign}{side}_ports") or ():
                if not str(name).partition(":")[0].isdigit() and _port_count(among, rule, name) > limit:
                    return True
    return False


def _families(rule: Any) -> set[int]:
    """Those of which a packet can match."""
    found = {4, 6} if rule.get("ip_version") is None else {rule["ip_version"]}
    found &= {"icmp": {4}, "icmpv6": {6}}.get(str(rule.get("protocol")), {4, 6})
    for side in ("src", "dst", "!src", "!dst"):
        nets = [*filter(None, [rule.get(f"{side}_net")]), *(rule.get(f"{side}_nets") or ())]
        found &= {ip_network(each).version for each in nets} if nets else found
    return found


def _members(records: Stored, tag: str | None, selector: str | None) -> list[Any]:
    """Endpoints of any host and network sets that have both."""
    return [
        record
        for path, record in records.items()
        if ("/endpoint/" in path or path.startswith("/calico/v1/netset/"))
        and (tag is None or tag in tags_of(records, record))
        and (selector is None or matches(selector, labels_of(records, record)))
    ]


def _size(members: Iterable[list[str]]) -> int:
    """In the family with the most: addresses, and networks that are in no other. All addresses count as two halves."""
    nets = {ip_network(net) for each in members for net in each}
    single = {net for net in nets if net.prefixlen == net.max_prefixlen}
    wide = {
        net
        for net in nets - single
        if not any(net != other and other.version == net.version and net.subnet_of(other) for other in nets)  # type: ignore[arg-type]
    }
    counts = {4: 0, 6: 0}
    for net in (*single, *wide):
        counts[net.version] += 1 if net.prefixlen else 2
    return max(counts.values())


def _port_count(members: list[Any], rule: Any, name: str) -> int:
    offers = {
        (ip_network(net).version, net, port["port"])
        for each in members
        for net in nets_of(each)
        for port in each.get("ports", ())
        if port["name"] == name and number_of(port["protocol"]) == number_of(rule["protocol"])
    }
    return max(sum(1 for version, _, _ in offers if version == family) for family in (4, 6))
