"""What becomes of a packet, read off the stored records by the letter of the specification.

Takes the datastore as paths and JSON and shares no line with the project: no index, no sets, no families compiled
away; every question is answered by looking at every record. Source: felix specification 4 and 6.
"""

from __future__ import annotations

import math
from ipaddress import ip_address, ip_network
from typing import Any, Literal, NamedTuple

from tests.campaigns.oracle.selectors import BadSelector, matches

Stored = dict[str, Any]
Failsafe = tuple[int, int, str | None]
Outcome = Literal["allow", "deny", "reject", "either"]
"""``either``: denied, and its sender may be told so or not."""
HOST, UPLINK, EVERY_INTERFACE = "here", "up0", "*"
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "dccp": 33, "icmpv6": 58, "sctp": 132, "udplite": 136}
_MATCHES = (
    "protocol", "src_net", "dst_net", "src_nets", "dst_nets", "src_tag", "dst_tag", "src_selector", "dst_selector",
    "src_ports", "dst_ports", "icmp_type", "icmp_code",
)  # fmt: skip
_RULE_FIELDS = {"action", "ip_version", "log_prefix", *_MATCHES, *(f"!{name}" for name in _MATCHES)}
_LOCAL = f"/calico/v1/host/{HOST}/workload/"
_EARLY = ("untracked", "pre_dnat")
_NEIGHBOURS = {130, 131, 132, 133, 135, 136, 143}


class Flow(NamedTuple):
    """The first packet of one."""

    src: str
    dst: str
    protocol: int
    sport: int | None = None
    dport: int | None = None
    icmp: tuple[int, int] | None = None

    @property
    def version(self) -> int:
        return ip_address(self.src).version


class Place(NamedTuple):
    """What the records do not say: the host's own addresses, those of its uplink, what it does with packets of
    workloads to them, its fail-safe ports as (protocol, port, whom), whether its kernel can answer before
    connection tracking and translation: iptables rejects in its filter table only (iptables-extensions(8)), and whether
    it lets workloads send from the prefixes that their records allow."""

    host_addresses: frozenset[str]
    uplink_addresses: frozenset[str]
    to_host: str
    failsafe_in: tuple[Failsafe, ...]
    failsafe_out: tuple[Failsafe, ...]
    answers_early: bool = True
    lets_spoof: bool = False


def judge(records: Stored, place: Place, flow: Flow, interface: str, mac: str) -> Outcome:
    """Whether the packet gets where it is sent, as far as this host decides. ``interface``: where it came from, '' for
    the host itself. ``mac``: what it says it was sent by."""
    if interface.startswith("cali"):
        return _from_workload(records, place, flow, interface, mac)
    is_to_host = flow.dst in place.host_addresses
    receiver = _holder(records, flow.dst)
    if not is_to_host and receiver is None:
        if not interface and not _is_nowhere(records, flow.dst):
            return _at_uplink(records, place, flow, "outbound", is_forwarded=False)
        # policy that comes before routes are looked at may say so to the sender
        return "either" if interface and place.answers_early else "deny"
    if interface:
        found = _at_uplink(records, place, flow, "inbound", is_forwarded=not is_to_host)
        if found != "allow" or is_to_host:
            return found
    assert receiver is not None
    if receiver["state"] != "active":
        return "deny"
    return _at_workload(records, receiver, "inbound", flow) if interface else "allow"


def _from_workload(records: Stored, place: Place, flow: Flow, interface: str, mac: str) -> Outcome:
    sender = next((each for each in _local(records) if each["name"] == interface), None)
    if sender is None or sender["state"] != "active" or _is_tunnel(flow):
        return "deny"
    prefixes = sender.get("allow_spoofed_source_ips", ()) if place.lets_spoof else ()
    if flow.src not in _addresses(sender) and not any(_in(flow.src, each) for each in prefixes):
        return "deny"
    if sender.get("mac") not in (None, mac):
        return "deny"
    if flow.dst in place.host_addresses:
        return _to_host(records, place, sender, flow)
    receiver = _holder(records, flow.dst)
    if _is_nowhere(records, flow.dst) if receiver is None else receiver["state"] != "active":
        return "deny"  # no route, so policy is not even asked
    found = _at_workload(records, sender, "outbound", flow)
    if found != "allow":
        return found
    if receiver is not None:
        return _at_workload(records, receiver, "inbound", flow)
    return _at_uplink(records, place, flow, "outbound", is_forwarded=True)


def _is_tunnel(flow: Flow) -> bool:
    """A workload must not speak into the hosts' tunnels (2.3: AllowVXLANPacketsFromWorkloads, …IPIP…)."""
    return (flow.protocol == 17 and flow.dport == 4789) or flow.protocol == 4


def _is_nowhere(records: Stored, address: str) -> bool:
    """What lies in a pool and has no endpoint leads nowhere: the pools here are this host's."""
    return any(_in(address, pool["cidr"]) for path, pool in records.items() if "/pool/" in path)


def _to_host(records: Stored, place: Place, sender: Any, flow: Flow) -> Outcome:
    """6.5: what every workload may ask its host, then as configured."""
    if flow.version == 6 and flow.icmp is not None and flow.icmp[0] in _NEIGHBOURS:
        return "allow"
    if flow.protocol == 17 and (flow.dport == 53 or (flow.sport, flow.dport) in {(68, 67), (546, 547)}):
        return "allow"
    return "deny" if place.to_host == "DROP" else _at_workload(records, sender, "outbound", flow)


def _local(records: Stored) -> list[Any]:
    return [record for path, record in records.items() if path.startswith(_LOCAL)]


def _holder(records: Stored, address: str) -> Any:
    """The endpoint of this host's that has the address."""
    return next((each for each in _local(records) if address in _addresses(each)), None)


def _addresses(endpoint: Any) -> set[str]:
    nets = [*endpoint.get("ipv4_nets", ()), *endpoint.get("ipv6_nets", ())]
    return {str(ip_network(net).network_address) for net in nets}


# --- 6.11, 4.5.6: host endpoints -----------------------------------------------------------------------------------


def _at_uplink(records: Stored, place: Place, flow: Flow, direction: str, *, is_forwarded: bool) -> Outcome:
    """The hooks of the uplink's host endpoint, one after the other. What one allows is not asked at the next."""
    endpoint = _uplink_endpoint(records, place)
    if endpoint is None:
        return "allow"
    other = flow.src if direction == "inbound" else flow.dst
    ports = place.failsafe_in if direction == "inbound" else place.failsafe_out
    is_safe = any(
        (flow.protocol, flow.dport) == (protocol, port) and (net is None or _in(other, net))
        for protocol, port, net in ports
    )
    hooks = ["forward" if is_forwarded else "normal"]
    if direction == "inbound":
        hooks = ["untracked", "pre_dnat", *hooks]
    elif not is_forwarded:
        hooks = ["untracked", *hooks]
    for hook in hooks:
        if is_safe and hook != "forward":
            continue
        action = _tiers_say(records, endpoint, direction, flow, hook)
        if action is None and hook == "normal":
            action = _profiles_say(records, endpoint, direction, flow)
        if action == "reject" and hook == "untracked" and place.answers_early:
            return "either"  # the answer belongs to no connection, so policy of what the host sends may drop it
        if action == "reject" and hook in _EARLY and not place.answers_early:
            return "deny"
        if action is not None:
            return action
    return "allow"


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
    labels = _labels(records, endpoint)
    tiers: dict[str, list[tuple[float, str, Any]]] = {}
    for path, policy in records.items():
        parts = path.split("/")
        if parts[3:5] != ["policy", "tier"] or parts[6] != "policy" or not _is_valid(policy) or policy.get("staged"):
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
        if rules is None or not _is_valid(rules):
            return "deny"  # 4.5.7: a missing profile is closed at its place
        action = _first_action(records, rules.get(f"{direction}_rules", ()), flow)
        if action is not None:
            return action if action in ("deny", "reject") else "allow"  # type: ignore[return-value]
    return "deny"


def _order(record: Any) -> float:
    order = record.get("order")
    return math.inf if order in (None, "default") else float(order)


def _is_valid(lists: Any) -> bool:
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
        _number(wanted) != flow.protocol or (_number(wanted), flow.version) in {(1, 6), (58, 4)}
    ):
        return False
    if unwanted is not None and _number(unwanted) == flow.protocol:
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
    if (net and not _in(address, net)) or (nets and not any(_in(address, each) for each in nets)):
        return False
    other = [*filter(None, [rule.get(f"!{side}_net")]), *(rule.get(f"!{side}_nets") or ())]
    if any(_in(address, each) for each in other):
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


def _number(protocol: str | int) -> int:
    return PROTOCOLS[protocol] if protocol in PROTOCOLS else int(protocol)


def _has_port(records: Stored, ports: Any, flow: Flow, address: str, port: int) -> bool:
    """4.4: a name is what the endpoints that have the address call their ports."""
    named = {
        (each["name"], _number(each["protocol"]), each["port"])
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


def _in(address: str, net: str) -> bool:
    return ip_address(address) in ip_network(net)


# --- 4.2 and 4.4: labels, and who has an address -------------------------------------------------------------------


def _labels(records: Stored, endpoint: Any) -> dict[str, str]:
    """The last listed profile wins over the ones before it, the endpoint over all."""
    labels: dict[str, str] = {}
    for profile in endpoint.get("profile_ids", ()):
        labels |= records.get(f"/calico/v1/policy/profile/{profile}/labels") or {}
    return labels | endpoint.get("labels", {})


def _carriers(records: Stored, address: str) -> list[Any]:
    """Endpoints of any host and network sets."""
    found = []
    for path, record in records.items():
        if "/workload/" in path:
            nets = [*record.get("ipv4_nets", ()), *record.get("ipv6_nets", ())]
        elif "/endpoint/" in path:
            nets = [*record.get("expected_ipv4_addrs", ()), *record.get("expected_ipv6_addrs", ())]
        else:
            nets = record.get("nets", ()) if path.startswith("/calico/v1/netset/") else ()
        if any(_in(address, net) for net in nets):
            found.append(record)
    return found


def _is_selected(records: Stored, address: str, selector: str) -> bool:
    return any(matches(selector, _labels(records, each)) for each in _carriers(records, address))


def _has_tag(records: Stored, address: str, tag: str) -> bool:
    profiles = {profile for each in _carriers(records, address) for profile in each.get("profile_ids", ())}
    return any(tag in (records.get(f"/calico/v1/policy/profile/{each}/tags") or ()) for each in profiles)
