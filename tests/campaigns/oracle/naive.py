"""The verdict as the specification says it, read straight from the datastore's records.

Slow and plain on purpose: no set, no index, no compiled rule, a selector evaluator of its own. It shares the record
types with the product and nothing of its calculation. Source: felix specification 4 and 6; datastore specification 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.keys import (
    Key,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
    TierKey,
    WorkloadEndpointKey,
)
from calico_core.model.policies import NetworkSet, Policy
from calico_core.model.rules import Rule
from tests.campaigns.oracle.flows import Flow

Records = dict[Key, Any]
Outcome = Literal["allow", "deny", "reject"]
_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "dccp": 33, "icmpv6": 58, "sctp": 132, "udplite": 136}
_WITH_PORTS = {6, 17, 33, 132, 136}
_FAMILY_OF = {1: 4, 58: 6}

# --- selectors -------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(\|\||&&|==|!=|!|\(|\)|\{|\}|,|'[^']*'|\"[^\"]*\"|has\(|all\(|global\(|[A-Za-z0-9_./-]+)")


def selects(selector: str, labels: dict[str, str]) -> bool:
    """Blank selects everything."""
    tokens = _TOKEN.findall(selector)
    return not tokens or _Reader(tokens, labels).either()


class _Reader:
    """One pass over the tokens that evaluates as it goes; both sides of an operator are always read."""

    def __init__(self, tokens: list[str], labels: dict[str, str]) -> None:
        self._tokens, self._labels = [*tokens, ""], labels

    def _next(self) -> str:
        return self._tokens.pop(0)

    def _skip(self, token: str) -> bool:
        if self._tokens[0] == token:
            self._next()
            return True
        return False

    def either(self) -> bool:
        result = self.both()
        while self._skip("||"):
            result = self.both() or result
        return result

    def both(self) -> bool:
        result = self.one()
        while self._skip("&&"):
            result = self.one() and result
        return result

    def one(self) -> bool:
        token = self._next()
        if token == "!":
            return not self.one()
        if token == "(":
            result = self.either()
            self._next()
            return result
        if token in ("all(", "global("):
            self._next()
            return True
        if token == "has(":
            label = self._next()
            self._next()
            return label in self._labels
        return self._compare(self._labels.get(token))

    def _compare(self, value: str | None) -> bool:
        operator = self._next()
        if operator in ("starts", "ends"):
            self._next()  # with
        if operator == "not":
            self._next()  # in
            return value is None or value not in self._values()
        if operator == "in":
            return value in self._values()
        text = self._next()[1:-1]
        if operator == "!=":
            return value != text
        if value is None:
            return False
        return {
            "==": value == text,
            "contains": text in value,
            "starts": value.startswith(text),
            "ends": value.endswith(text),
        }[operator]

    def _values(self) -> set[str]:
        self._next()
        values = set()
        while not self._skip("}"):
            token = self._next()
            if token != ",":
                values.add(token[1:-1])
        return values


# --- membership ------------------------------------------------------------------------------------------------


def labels_of(records: Records, record: Any) -> dict[str, str]:
    """The last profile that is listed wins; the endpoint's own come before all."""
    merged: dict[str, str] = {}
    for profile in _profiles(record):
        merged.update(records.get(ProfileLabelsKey(profile), {}))
    return {**merged, **record.labels}


def _profiles(record: Any) -> tuple[str, ...]:
    return tuple(getattr(record, "profile_ids", ()))


def nets_of(record: Any) -> list[IPNetwork]:
    if isinstance(record, WorkloadEndpoint):
        return [*record.ipv4_nets, *record.ipv6_nets]
    if isinstance(record, HostEndpoint):
        return [IPNetwork(each) for each in (*record.expected_ipv4_addrs, *record.expected_ipv6_addrs)]
    return list(record.nets)


def _holders(records: Records, address: IPAddress) -> Iterator[Any]:
    for record in records.values():
        is_holder = isinstance(record, WorkloadEndpoint | HostEndpoint | NetworkSet)
        if is_holder and any(address in net for net in nets_of(record)):
            yield record


def _has_tag(records: Records, address: IPAddress, tag: str) -> bool:
    return any(
        tag in records.get(ProfileTagsKey(profile), ())
        for record in _holders(records, address)
        for profile in _profiles(record)
    )


def _is_selected(records: Records, address: IPAddress, selector: str) -> bool:
    return any(selects(selector, labels_of(records, record)) for record in _holders(records, address))


# --- rules -----------------------------------------------------------------------------------------------------


def _number(protocol: str | int) -> int:
    return _NUMBERS[protocol.lower()] if isinstance(protocol, str) and not protocol.isdigit() else int(protocol)


def rule_matches(records: Records, rule: Rule, flow: Flow) -> bool:
    version = flow.src.version
    if rule.ip_version not in (None, version):
        return False
    if rule.protocol is not None:
        number = _number(rule.protocol)
        if number != flow.protocol or _FAMILY_OF.get(number, version) != version:
            return False
    if rule.not_protocol is not None and _number(rule.not_protocol) == flow.protocol:
        return False
    return (
        _icmp_matches(rule.icmp_type, rule.icmp_code, flow, is_wanted=True)
        and _icmp_matches(rule.not_icmp_type, rule.not_icmp_code, flow, is_wanted=False)
        and _side_matches(records, rule, "src", flow, flow.src, flow.src_port)
        and _side_matches(records, rule, "dst", flow, flow.dst, flow.dst_port)
    )


def _icmp_matches(kind: int | None, code: int | None, flow: Flow, *, is_wanted: bool) -> bool:
    if kind is None:
        return True
    if flow.icmp is None:
        return False
    return (flow.icmp[0] == kind and code in (None, flow.icmp[1])) is is_wanted


def _side_matches(records: Records, rule: Rule, side: str, flow: Flow, address: IPAddress, port: int) -> bool:
    def given(name: str) -> Any:
        return getattr(rule, name)

    single, several = given(f"{side}_net"), given(f"{side}_nets")
    if single is not None and address not in single:
        return False
    if several and not any(address in net for net in several):
        return False
    excluded = [*([given(f"not_{side}_net")] if given(f"not_{side}_net") else []), *(given(f"not_{side}_nets") or ())]
    if excluded and all(net.version != address.version for net in excluded):
        return False  # written for the other family
    if any(address in net for net in excluded):
        return False
    for polarity, is_wanted in (("", True), ("not_", False)):
        tag, selector = given(f"{polarity}{side}_tag"), given(f"{polarity}{side}_selector")
        if tag is not None and _has_tag(records, address, tag) is not is_wanted:
            return False
        if selector is not None and _is_selected(records, address, selector) is not is_wanted:
            return False
        ports = given(f"{polarity}{side}_ports")
        if ports and _has_port(records, ports, flow, address, port) is not is_wanted:
            return False
    return True


def _has_port(records: Records, ports: Iterable[int | str], flow: Flow, address: IPAddress, port: int) -> bool | None:
    """None: the packet has no ports, so neither form can match."""
    if flow.protocol not in _WITH_PORTS:
        return None
    return any(_is_port(records, each, flow, address, port) for each in ports)


def _is_port(records: Records, wanted: int | str, flow: Flow, address: IPAddress, port: int) -> bool:
    if isinstance(wanted, int) or wanted[0].isdigit():
        low, _, high = str(wanted).partition(":")
        return int(low) <= port <= int(high or low)
    return any(
        (each.name, _number(each.protocol), each.port) == (wanted, flow.protocol, port)
        for record in _holders(records, address)
        for each in getattr(record, "ports", ())
    )


# --- endpoints -------------------------------------------------------------------------------------------------


def _first(records: Records, rules: tuple[Rule, ...], flow: Flow) -> str | None:
    for rule in rules:
        if rule.action != "log" and rule_matches(records, rule, flow):
            return "pass" if rule.action == "next-tier" else rule.action
    return None


def _order(record: Any) -> float:
    order = getattr(record, "order", None)
    return math.inf if order is None or order == "default" else float(order)


def _tiers(records: Records, policies: Iterable[tuple[Any, Policy]]) -> list[tuple[str, list[Policy]]]:
    """In order, with their policies in order."""
    found: dict[str, list[tuple[float, str, Policy]]] = {}
    for key, policy in policies:
        found.setdefault(key.tier, []).append((_order(policy), key.name, policy))
    names = sorted(found, key=lambda name: (_order(records.get(TierKey(name))), name))
    return [(name, [policy for *_, policy in sorted(found[name], key=lambda each: each[:2])]) for name in names]


def _walk(records: Records, tiers: list[tuple[str, list[Policy]]], direction: str, flow: Flow) -> str | None:
    """None: every tier passed on, or there is none."""
    for name, policies in tiers:
        action = None
        for policy in policies:
            action = _first(records, getattr(policy, f"{direction}_rules"), flow)
            if action is not None:
                break
        if action is None:
            tier = records.get(TierKey(name))
            action = "deny" if tier is None else tier.default_action
        if action != "pass":
            return action
    return None


def _of_direction(policy: Policy, direction: str) -> bool:
    return policy.types is None or {"inbound": "ingress", "outbound": "egress"}[direction] in policy.types


def workload_says(records: Records, endpoint: WorkloadEndpoint, direction: str, flow: Flow) -> Outcome:
    if endpoint.state != "active":
        return "deny"
    labels = labels_of(records, endpoint)
    policies = [
        (key, record)
        for key, record in records.items()
        if isinstance(record, Policy)
        and not (record.staged or record.untracked or record.pre_dnat)
        and _of_direction(record, direction)
        and selects(record.selector, labels)
    ]
    action = _walk(records, _tiers(records, policies), direction, flow)
    if action is not None:
        return action  # type: ignore[return-value]
    for profile in endpoint.profile_ids:
        rules = records.get(ProfileRulesKey(profile))
        action = "deny" if rules is None else _first(records, getattr(rules, f"{direction}_rules"), flow)
        if action is not None:
            return "allow" if action == "pass" else action  # type: ignore[return-value]
    return "deny"


def holder_of(records: Records, host: str, address: IPAddress) -> WorkloadEndpoint | None:
    """The host's workload that the address is routed to."""
    for key, record in records.items():
        is_here = isinstance(key, WorkloadEndpointKey) and key.host == host
        if is_here and any(address in net for net in nets_of(record)):
            found: WorkloadEndpoint = record
            return found
    return None
