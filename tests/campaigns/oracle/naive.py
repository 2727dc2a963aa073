"""What becomes of a packet, read off the stored records by the letter of the specification.

Takes the datastore as paths and JSON and shares no line with the project: no index, no sets, no families compiled
away; every question is answered by looking at every record. Source: felix specification 4 and 6.
"""

from __future__ import annotations

import math
from ipaddress import ip_address, ip_network
from typing import Any, Literal, NamedTuple

from tests.campaigns.oracle.selectors import BadSelector, matches
from tests.campaigns.oracle.ways import (
    HOST,
    NOWHERE,
    TO_HOST,
    UPLINK,
    Flow,
    Place,
    Stored,
    Way,
    contains,
    holder,
    local,
    way_of,
)

Outcome = Literal["allow", "deny", "reject", "either"]
"""``either``: denied, and its sender may be told so or not."""
EVERY_INTERFACE = "*"
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "dccp": 33, "icmpv6": 58, "sctp": 132, "udplite": 136}
_MATCHES = (
    "protocol", "src_net", "dst_net", "src_nets", "dst_nets", "src_tag", "dst_tag", "src_selector", "dst_selector",
    "src_ports", "dst_ports", "icmp_type", "icmp_code",
)  # fmt: skip
_RULE_FIELDS = {"action", "ip_version", "log_prefix", *_MATCHES, *(f"!{name}" for name in _MATCHES)}
_EARLY = ("untracked", "pre_dnat")
_NEIGHBOURS = {130, 131, 132, 133, 135, 136, 143}
_DISCOVERY = {133, 134, 135, 136}


class Fate(NamedTuple):
    """Of a packet: its outcome, and the way that it takes if it is let."""

    outcome: Outcome
    way: Way


def judge(records: Stored, place: Place, flow: Flow, interface: str, mac: str) -> Fate:
    """Whether the packet gets where it is sent, as far as this host decides. ``interface``: where it came from, '' for
    the host itself. ``mac``: what it says it was sent by."""
    is_tracked = interface != UPLINK or not _is_untracked(records, place, flow)
    is_workload = interface.startswith("cali")
    way = way_of(records, place, flow, is_tracked=is_tracked, is_from_workload=is_workload)
    if is_workload:
        return Fate(_from_workload(records, place, flow, way, interface, mac), way)
    outcome = _from_elsewhere(records, place, flow, way, interface)
    if outcome == "reject" and not is_tracked:
        outcome = "either"  # the answer belongs to no connection, so policy of what the host sends may drop it
    return Fate(outcome, way)


def judge_stray(records: Stored, place: Place, flow: Flow, interface: str) -> Fate:
    """What connection tracking calls invalid (6.1, 6.5, 6.11): nobody lets it pass, but a host without host endpoint
    that it is for."""
    way = way_of(records, place, flow)
    is_free = interface == UPLINK and way.to == TO_HOST and _uplink_endpoint(records, place) is None
    return Fate("allow" if is_free else "deny", way)


def _from_elsewhere(records: Stored, place: Place, flow: Flow, way: Way, interface: str) -> Outcome:
    is_to_host = way.to == TO_HOST
    if not is_to_host and way.receiver is None:
        if not interface and way.to != NOWHERE:
            return _at_uplink(records, place, flow, way.flow, "outbound", is_forwarded=False)
        # policy that comes before routes are looked at may say so to the sender
        return "either" if interface and place.answers_early else "deny"
    if interface:
        found = _at_uplink(records, place, flow, way.flow, "inbound", is_forwarded=not is_to_host)
        if is_to_host and found == "allow" and not place.is_without(flow) and _is_tunnelled(records, flow):
            return "allow" if flow.src in _hosts(records) else "deny"
        if found != "allow" or is_to_host:
            return found
        return _at_workload(records, way.receiver, "inbound", way.flow)
    return "allow"


def _from_workload(records: Stored, place: Place, flow: Flow, way: Way, interface: str, mac: str) -> Outcome:
    sender = next((each for each in local(records) if each["name"] == interface), None)
    if sender is None or sender["state"] != "active" or _is_tunnel(flow) or place.is_without(flow):
        return "deny"
    prefixes = sender.get("allow_spoofed_source_ips", ()) if place.lets_spoof else ()
    if contains("127.0.0.0/8", flow.dst):
        return "deny"  # the host's own talk with itself, but for what it leads there (6.7)
    # 6.8: what it is sent from must lead back there
    if holder(records, flow.src) is not sender and not any(contains(each, flow.src) for each in prefixes):
        return "deny"
    if sender.get("mac") not in (None, mac):
        return "deny"
    if way.to == TO_HOST:
        return _to_host(records, place, sender, way.flow)
    if way.to == NOWHERE:
        return "deny"  # no route, so policy is not even asked
    found = _at_workload(records, sender, "outbound", way.flow)
    if found != "allow":
        return found
    if way.receiver is not None:
        return _at_workload(records, way.receiver, "inbound", way.flow)
    return _at_uplink(records, place, flow, way.flow, "outbound", is_forwarded=True)


def _is_tunnel(flow: Flow) -> bool:
    """A workload must not speak into the hosts' tunnels (2.3: AllowVXLANPacketsFromWorkloads, …IPIP…)."""
    return (flow.protocol == 17 and flow.dport == 4789) or flow.protocol == 4


def _is_tunnelled(records: Stored, flow: Flow) -> bool:
    """Whether the pools want a tunnel that it could belong to."""
    pools = [record for path, record in records.items() if "/pool/" in path]
    if flow.protocol == 4 and flow.version == 4:
        return any(pool.get("ipip") or pool.get("ipip_mode") for pool in pools)
    return (flow.protocol, flow.dport) == (17, 4789) and any(pool.get("vxlan_mode") for pool in pools)


def _hosts(records: Stored) -> set[str]:
    return {record for path, record in records.items() if path.endswith(("/bird_ip", "/ip_addr_v6"))}


def _to_host(records: Stored, place: Place, sender: Any, flow: Flow) -> Outcome:
    """6.5: what every workload may ask its host, then as configured."""
    if flow.version == 6 and flow.icmp is not None and flow.icmp[0] in _NEIGHBOURS:
        return "allow"
    dhcp = {4: (68, 67), 6: (546, 547)}[flow.version]
    if flow.protocol == 17 and (flow.dport == 53 or (flow.sport, flow.dport) == dhcp):
        return "allow"
    if flow.protocol == 6 and (flow.dst, flow.dport) == place.metadata:
        return "allow"
    return "deny" if place.to_host == "DROP" else _at_workload(records, sender, "outbound", flow)


# --- 6.11, 4.5.6: host endpoints -----------------------------------------------------------------------------------


def _at_uplink(
    records: Stored, place: Place, flow: Flow, inner: Flow, direction: str, *, is_forwarded: bool
) -> Outcome:
    """The hooks of the uplink's host endpoint, one after the other. What one allows is not asked at the next.
    ``inner``: translated, as the later hooks see it."""
    endpoint = _uplink_endpoint(records, place)
    if endpoint is None:
        return "allow"
    is_safe = _is_safe(place, flow, direction)
    if place.is_without(flow) and not is_forwarded:
        return "allow" if is_safe else "deny"
    hooks = ["forward" if is_forwarded else "normal"]
    if direction == "inbound":
        hooks = ["untracked", "pre_dnat", *hooks]
    elif not is_forwarded:
        hooks = ["untracked", *hooks]
    if not is_forwarded and _is_tunnelled(records, flow):
        # 6.5: hosts take it from one another, and from nobody else
        is_let = direction == "inbound" or flow.dst in _hosts(records)
        hooks = [hook for hook in hooks if hook in _EARLY or not is_let]
    for hook in hooks:
        if is_safe and hook != "forward":
            continue
        asked = flow if hook in _EARLY else inner
        action = _tiers_say(records, endpoint, direction, asked, hook)
        if action is None and hook == "normal":
            action = _profiles_say(records, endpoint, direction, asked)
        if action == "reject" and hook == "untracked" and place.answers_early:
            return "either"  # the answer belongs to no connection, so policy of what the host sends may drop it
        if action == "reject" and hook in _EARLY and not place.answers_early:
            return "deny"
        if action is not None:
            return action
    return "allow"


def _is_untracked(records: Stored, place: Place, flow: Flow) -> bool:
    """Whether policy before connection tracking lets it in, which keeps it out of that."""
    endpoint = _uplink_endpoint(records, place)
    if endpoint is None or _is_safe(place, flow, "inbound") or place.is_without(flow):
        return False
    return _tiers_say(records, endpoint, "inbound", flow, "untracked") == "allow"


def _is_safe(place: Place, flow: Flow, direction: str) -> bool:
    if flow.version == 6 and flow.icmp is not None and flow.icmp[0] in _DISCOVERY:
        return True
    other = flow.src if direction == "inbound" else flow.dst
    ports = place.failsafe_in if direction == "inbound" else place.failsafe_out
    return any(
        (flow.protocol, flow.dport) == (protocol, port) and (net is None or contains(net, other))
        for protocol, port, net in ports
    )


def _uplink_endpoint(records: Stored, place: Place) -> Any:
    """By name, or by an address; of several the first by its id. One of all interfaces is for those without."""
    every = None
    prefix = f"/calico/v1/host/{HOST}/endpoint/"
    for path in sorted(path for path in records if path.startswith(prefix)):
        record = records[path]
        expected = {*record.get("expected_ipv4_addrs", ()), *record.get("expected_ipv6_addrs", ())}
        if record.get("name") == UPLINK or (record.get("name") is None and expected & place.uplink_addresses):
            return record
        if record.get("name") == EVERY_INTERFACE and every is None:
            every = record
    return every


# --- 4.5: tiers, then profiles, then drop ------------------------------------------------------------------------


def _at_workload(records: Stored, endpoint: Any, direction: str, flow: Flow) -> Outcome:
    action = _tiers_say(records, endpoint, direction, flow, "normal")
    return action or _profiles_say(records, endpoint, direction, flow)


def _tiers_say(records: Stored, endpoint: Any, direction: str, flow: Flow, hook: str) -> Outcome | None:
    """None: every tier passed on, or none applies."""
    labels = labels_of(records, endpoint)
    tiers: dict[str, list[tuple[float, str, Any]]] = {}
    for path, policy in records.items():
        parts = path.split("/")
        if parts[3:5] != ["policy", "tier"] or parts[6] != "policy" or not is_valid(policy) or policy.get("staged"):
            continue
        if not _is_of_hook(policy, hook) or not matches(policy["selector"], labels):
            continue
        types = policy.get("types")
        if types is None or {"inbound": "ingress", "outbound": "egress"}[direction] in types:
            tiers.setdefault(parts[5], []).append((_order(policy), parts[7], policy))

    def metadata(tier: str) -> Any:
        return records.get(f"/calico/v1/policy/tier/{tier}/metadata") or {}

    for tier in sorted(tiers, key=lambda name: (_order(metadata(name)), name)):
        action = None
        for _, _, policy in sorted(tiers[tier], key=lambda each: each[:2]):
            action = action or _first_action(records, policy.get(f"{direction}_rules", ()), flow)
        if action is None:
            action = "pass" if hook in _EARLY else metadata(tier).get("defaultAction", "deny")
        if action in ("allow", "deny", "reject"):
            return action  # type: ignore[return-value]
    return None


def _is_of_hook(policy: Any, hook: str) -> bool:
    if policy.get("untracked") or policy.get("pre_dnat"):
        return bool(policy.get(hook))
    return hook == "normal" or (hook == "forward" and bool(policy.get("apply_on_forward")))


def _profiles_say(records: Stored, endpoint: Any, direction: str, flow: Flow) -> Outcome:
    for profile in endpoint.get("profile_ids", ()):
        rules = records.get(f"/calico/v1/policy/profile/{profile}/rules")
        if rules is None or not is_valid(rules):
            return "deny"  # 4.5.7: a missing profile is closed at its place
        action = _first_action(records, rules.get(f"{direction}_rules", ()), flow)
        if action is not None:
            return action if action in ("deny", "reject") else "allow"  # type: ignore[return-value]
    return "deny"


def _order(record: Any) -> float:
    order = record.get("order")
    return math.inf if order in (None, "default") else float(order)


def is_valid(lists: Any) -> bool:
    """4.1: an unknown key, or a selector that is none, takes the whole record away."""
    for rule in (*lists.get("inbound_rules", ()), *lists.get("outbound_rules", ())):
        if not _RULE_FIELDS.issuperset(rule):
            return False
        for field in ("src_selector", "dst_selector", "!src_selector", "!dst_selector"):
            try:
                matches(rule.get(field) or "", {})
            except BadSelector:
                return False
    return True


def _first_action(records: Stored, rules: Any, flow: Flow) -> str | None:
    for rule in rules:
        action: str = rule.get("action", "allow")
        if action != "log" and _matches(records, rule, flow):
            return action
    return None


# --- 4.1: a rule is an AND of what it names ------------------------------------------------------------------------


def _matches(records: Stored, rule: Any, flow: Flow) -> bool:
    if rule.get("ip_version") not in (None, flow.version):
        return False
    wanted, unwanted = rule.get("protocol"), rule.get("!protocol")
    if wanted is not None and (
        number_of(wanted) != flow.protocol or (number_of(wanted), flow.version) in {(1, 6), (58, 4)}
    ):
        return False
    if unwanted is not None and number_of(unwanted) == flow.protocol:
        return False
    for sign in ("", "!"):
        kind, code = rule.get(f"{sign}icmp_type"), rule.get(f"{sign}icmp_code")
        if kind is None:
            continue
        if flow.icmp is None or (flow.icmp[0] == kind and code in (None, flow.icmp[1])) is bool(sign):
            return False
    return _side_matches(records, rule, "src", flow) and _side_matches(records, rule, "dst", flow)


def _side_matches(records: Stored, rule: Any, side: str, flow: Flow) -> bool:
    address, port = (flow.src, flow.sport) if side == "src" else (flow.dst, flow.dport)
    net, nets = rule.get(f"{side}_net"), rule.get(f"{side}_nets")
    if (net and not contains(net, address)) or (nets and not any(contains(each, address) for each in nets)):
        return False
    other = [*filter(None, [rule.get(f"!{side}_net")]), *(rule.get(f"!{side}_nets") or ())]
    if any(contains(each, address) for each in other):
        return False
    if other and all(ip_network(each).version != ip_address(address).version for each in other):
        return False  # 6.4: a CIDR of the other family, the rule is not for this one
    for sign in ("", "!"):
        tag, selector = rule.get(f"{sign}{side}_tag"), rule.get(f"{sign}{side}_selector")
        if tag is not None and _has_tag(records, address, tag) is bool(sign):
            return False
        if selector is not None and _is_selected(records, address, selector) is bool(sign):
            return False
        ports = rule.get(f"{sign}{side}_ports")
        if ports and (port is None or _has_port(records, ports, flow, address, port) is bool(sign)):
            return False
    return True


def number_of(protocol: str | int) -> int:
    return PROTOCOLS[protocol] if protocol in PROTOCOLS else int(protocol)


def _has_port(records: Stored, ports: Any, flow: Flow, address: str, port: int) -> bool:
    """4.4: a name is what the endpoints that have the address call their ports."""
    named = {
        (each["name"], number_of(each["protocol"]), each["port"])
        for carrier in _carriers(records, address)
        for each in carrier.get("ports", ())
    }
    for wanted in ports:
        low, _, high = str(wanted).partition(":")
        if low.isdigit() and int(low) <= port <= int(high or low):
            return True
        if (wanted, flow.protocol, port) in named:
            return True
    return False


# --- 4.2 and 4.4: labels, and who has an address -------------------------------------------------------------------


def labels_of(records: Stored, endpoint: Any) -> dict[str, str]:
    """The last listed profile wins over the ones before it, the endpoint over all."""
    labels: dict[str, str] = {}
    for profile in endpoint.get("profile_ids", ()):
        labels |= records.get(f"/calico/v1/policy/profile/{profile}/labels") or {}
    return {**labels, **endpoint.get("labels", {})}


def _carriers(records: Stored, address: str) -> list[Any]:
    """Endpoints of any host and network sets."""
    found = []
    for path, record in records.items():
        is_one = "/endpoint/" in path or path.startswith("/calico/v1/netset/")
        if is_one and any(contains(net, address) for net in nets_of(record)):
            found.append(record)
    return found


def _is_selected(records: Stored, address: str, selector: str) -> bool:
    return any(matches(selector, labels_of(records, each)) for each in _carriers(records, address))


def _has_tag(records: Stored, address: str, tag: str) -> bool:
    return any(tag in tags_of(records, each) for each in _carriers(records, address))


def tags_of(records: Stored, endpoint: Any) -> set[str]:
    profiles = endpoint.get("profile_ids", ())
    return {tag for each in profiles for tag in records.get(f"/calico/v1/policy/profile/{each}/tags") or ()}


def nets_of(record: Any) -> list[str]:
    """Of an endpoint or a network set."""
    fields = ("ipv4_nets", "ipv6_nets", "expected_ipv4_addrs", "expected_ipv6_addrs", "nets")
    return [net for field in fields for net in record.get(field, ())]
