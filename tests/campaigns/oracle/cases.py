"""Random cases of the oracle: what the datastore holds, in one or two steps, and the packets to ask about.

Records are JSON by path, as they are stored, so that a case can be printed, kept in a file and asked again.
"""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import strategies as st
from netaddr import IPNetwork

from tests.campaigns.oracle.policies import (
    NETS,
    PROFILES,
    TAGS,
    kept,
    labels,
    named_ports,
    open_or_not,
    policies,
    rule_lists,
    rules,
    some,
    tiers,
)
from tests.campaigns.oracle.ways import HOST, Flow

WORKLOADS, PROBES = 4, 160
PAIRS = [([f"10.65.{n}.1", f"10.65.{n}.2"], [f"fd65:{n + 1}::1", f"fd65:{n + 1}::2"]) for n in range(WORKLOADS)]
"""The addresses of each workload that its endpoint may be given; its container has them all."""
OWN_NETS = ("10.65.0.0/16", "fd65::/16")
FLOATING = (["198.51.100.50", "198.51.100.51"], ["2001:db8:7::50", "2001:db8:7::51"])
REMOTE = (["10.66.0.1", "10.66.0.2", "10.66.0.3"], ["fd66::1", "fd66::2", "fd66::3"])
OUTSIDE = (["198.51.100.7"], ["2001:db8:7::7"])
KNOWN_HOST = ("192.0.2.1", "2001:db8::1")
PEER = ("192.0.2.9", "2001:db8::9")
OTHER_HOST = ("203.0.113.1", "2001:db8:1::1")
"""An address that the records name, one of another host, and one more that only the host knows of."""
FAILSAFE_IN, FAILSAFE_OUT = ((6, 443, None), (17, 53, IPNetwork("10.66.0.0/31"))), ((17, 90, None),)
FAILSAFE_TEXTS = "tcp:443,udp:10.66.0.0/31:53", "udp:90"
"""The same twice: for the driver, and as settings say it."""
LOOPBACK = "127.0.0.1"
SET_LIMIT = "/calico/v1/config/MaxIpsetSize"
METADATA_SERVER, METADATA_PORT, METADATA = "/calico/v1/config/MetadataAddr", 8775, "169.254.169.254"
IPV6_SUPPORT = "/calico/v1/config/Ipv6Support"
"""What a node reads once stands from the beginning, where it does: how many members a set may have, where the metadata
address leads, and that there is no IPv6."""
OWN_MAC, OTHER_MAC = "02:00:00:00:65:0{}", "02:00:00:00:99:09"
_PREFIXES = (
    "10.66.0.0/31", "10.65.0.0/16", "10.65.2.0/25", "198.51.100.0/24", "0.0.0.0/1",
    "fd66::2/127", "fd65::/16", "fd00::/8",
)  # fmt: skip
"""What workloads may be let send from; none holds an address of the host, which the kernel believes from nobody."""
_PORTS = [80, 80, 443, 443, 90, 5000, 53, 4789]
_SOURCE_PORTS = [1000, 1001, 1002, 1003, 2000, 2001]

_profile_ids = st.one_of(
    st.just(["p0"]), some(PROFILES, 3).map(lambda some: ["p0", *some[:2]]), some((*PROFILES, "missing"), 3)
).map(lambda names: list(dict.fromkeys(names)))


@st.composite
def _workload(draw: st.DrawFn, number: int) -> dict[str, Any]:
    v4, v6 = PAIRS[number]
    record: dict[str, Any] = {
        "state": draw(st.sampled_from(["active"] * 7 + ["inactive"])),
        "name": f"cali{number}",
        "profile_ids": draw(_profile_ids),
        "ipv4_nets": [f"{each}/32" for each in draw(st.sampled_from([v4, v4, v4[:1], v4[1:], []]))],
        "ipv6_nets": [f"{each}/128" for each in draw(st.sampled_from([v6, v6, v6[:1], []]))],
        "labels": draw(labels),
        "ports": draw(named_ports),
    }
    if draw(st.booleans()):
        record["allow_spoofed_source_ips"] = draw(some(_PREFIXES))
    if draw(st.booleans()):
        record["mac"] = OWN_MAC.format(number)
    for family, version, width in ((0, 4, 32), (1, 6, 128)):
        nets = record[f"ipv{version}_nets"]
        if draw(st.integers(0, 5)) == 5:
            nets.append(f"{shared_with(number)[family][0]}/{width}")
        if nets and draw(st.integers(0, 3)) == 3:
            record[f"ipv{version}_nat"] = [
                {"ext_ip": external, "int_ip": draw(st.sampled_from(nets)).partition("/")[0]}
                for external in draw(some(FLOATING[family], 2))
            ]
    return record


def shared_with(number: int) -> tuple[list[str], list[str]]:
    """The addresses of which a workload may have the first, too."""
    return PAIRS[(number + 1) % WORKLOADS]


@st.composite
def _remote(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "state": "active",
        "name": "cali77",
        "profile_ids": draw(some(PROFILES)),
        "ipv4_nets": [f"{each}/32" for each in draw(some(REMOTE[0]))],
        "ipv6_nets": [f"{each}/128" for each in draw(some(REMOTE[1], 1))],
        "labels": draw(labels),
    }


_host_endpoints = st.fixed_dictionaries(
    {"expected_ipv4_addrs": some(REMOTE[0]), "profile_ids": some(PROFILES), "labels": labels}
).map(lambda record: {**record, "name": "eth9"})
_own_host_endpoints = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["up0", "up0", "up9", "*", "*", None]),
        "expected_ipv4_addrs": st.sampled_from([[], [KNOWN_HOST[0]], ["192.0.2.77"]]),
        "profile_ids": some(PROFILES),
        "labels": labels,
    }
).map(kept).filter(lambda record: "name" in record or record["expected_ipv4_addrs"])  # fmt: skip
_early = st.fixed_dictionaries(
    {
        "selector": st.just("all()"),
        "inbound_rules": st.tuples(rules(), st.just({"action": "allow"})).map(list),
        "outbound_rules": rule_lists,
        "untracked": st.just(True),
        "apply_on_forward": st.just(True),
    }
)
_to_some = st.sampled_from(["198.51.100.0/24", "10.65.0.0/16"]).map(
    lambda net: {"inbound_rules": [{"action": "allow", "dst_net": net}], "outbound_rules": [{"action": "allow"}]}
)
_floating = {
    "state": "active", "name": "cali0", "profile_ids": ["p0"],
    "ipv4_nets": [f"{each}/32" for each in PAIRS[0][0]], "ipv6_nets": [],
    "ipv4_nat": [{"ext_ip": each, "int_ip": PAIRS[0][0][0]} for each in FLOATING[0]],
}  # fmt: skip
_open_early = st.fixed_dictionaries(
    {
        f"/calico/v1/host/{HOST}/endpoint/e0": st.just(
            {"name": "up0", "expected_ipv4_addrs": [], "profile_ids": ["p0"]}
        ),
        "/calico/v1/policy/tier/default/policy/early": _early,
        "/calico/v1/policy/profile/p0/rules": _to_some,
        f"/calico/v1/host/{HOST}/workload/k8s/w0/endpoint/eth0": st.just(_floating),
    }
)
"""Most of what comes over the uplink is let in untracked, and so never translated; whether it is, policy can tell, for
nothing else has a say."""
_network_sets = st.fixed_dictionaries({"nets": some(NETS, 4), "labels": labels})


def workload_path(number: int, host: str = HOST) -> str:
    return f"/calico/v1/host/{host}/workload/k8s/w{number}/endpoint/eth0"


_OWN_POOLS = ("10.65.0.0/23", "10.65.2.0/23", "fd65::/30", "fd65:4::/30")
_REMOTE_POOLS = ("10.66.0.0/26", "fd66::/122")
"""An address of a workload may be in no pool: then what is masqueraded is so on its way there, too."""


TUNNEL_POOLS = ("10.99.0.0/16", "10.98.0.0/16")
"""Nobody's: hosts with such pools take encapsulated packets from one another."""
_ENCAPSULATIONS: list[dict[str, Any]] = [{"ipip": "tunl0"}, {"ipip_mode": "cross-subnet"}, {"vxlan_mode": "always"}]


def _pool_path(cidr: str) -> str:
    return f"/calico/v1/ipam/v{6 if ':' in cidr else 4}/pool/{cidr.replace('/', '-')}"


_FIXED: dict[str, Any] = {
    f"/calico/v1/host/{HOST}/bird_ip": KNOWN_HOST[0],
    f"/calico/bgp/v1/host/{HOST}/ip_addr_v6": KNOWN_HOST[1],
    "/calico/v1/host/there/bird_ip": PEER[0],
    "/calico/bgp/v1/host/there/ip_addr_v6": PEER[1],
}
_choices: list[tuple[list[str], st.SearchStrategy[Any]]] = [
    ([workload_path(n, "there") for n in range(2)], _remote()),
    (["/calico/v1/host/there/endpoint/e"], _host_endpoints),
    ([f"/calico/v1/host/{HOST}/endpoint/{each}" for each in ("e0", "e1")], _own_host_endpoints),
    (["/calico/v1/netset/s0", "/calico/v1/netset/s1"], _network_sets),
    ([f"/calico/v1/policy/profile/{each}/rules" for each in PROFILES], open_or_not),
    ([f"/calico/v1/policy/profile/{each}/labels" for each in PROFILES], labels),
    ([f"/calico/v1/policy/profile/{each}/tags" for each in PROFILES], some(TAGS)),
    ([f"/calico/v1/policy/tier/{tier}/policy/{name}" for tier in ("default", "t1", "t2") for name in ("n1", "n2")],
     policies),
    ([f"/calico/v1/policy/tier/{tier}/metadata" for tier in ("default", "t1", "t2")], tiers),
]  # fmt: skip


@st.composite
def _step(draw: st.DrawFn, *, is_first: bool) -> dict[str, Any]:
    """What is written; None: deleted."""
    found: dict[str, Any] = dict(_FIXED) if is_first else {}
    for number in range(WORKLOADS):
        if draw(st.integers(0, 11)) < (11 if is_first else 3):
            found[workload_path(number)] = draw(_workload(number))
        elif not is_first and draw(st.integers(0, 7)) == 0:
            found[workload_path(number)] = None
    if is_first:
        found["/calico/v1/policy/profile/p0/rules"] = draw(open_or_not)
        limit = draw(st.sampled_from([None, None, None, "1", "3", "5", "9"]))
        found |= {} if limit is None else {SET_LIMIT: limit}
        server = draw(st.sampled_from([None, None, KNOWN_HOST[0], LOOPBACK, OUTSIDE[0][0], REMOTE[0][0]]))
        found |= {} if server is None else {METADATA_SERVER: server}
        found |= {IPV6_SUPPORT: "false"} if draw(st.integers(0, 7)) == 0 else {}
        for cidr in draw(some(TUNNEL_POOLS, 2)):
            found[_pool_path(cidr)] = {"cidr": cidr, **draw(st.sampled_from(_ENCAPSULATIONS))}
    for cidr in (*_OWN_POOLS, *_REMOTE_POOLS):
        likely = 9 if cidr in _OWN_POOLS else 4
        if draw(st.integers(0, 9)) >= 10 - (likely if is_first else 1):
            found[_pool_path(cidr)] = {"cidr": cidr, "masquerade": draw(st.booleans())}
        elif not is_first and draw(st.integers(0, 9)) == 0:
            found[_pool_path(cidr)] = None
    for paths, records in _choices:
        for path in draw(some(paths, 3 if is_first else 1)):
            found[path] = draw(records) if is_first or draw(st.integers(0, 3)) else None
    if is_first and draw(st.integers(0, 7)) == 0:
        others = ("/calico/v1/policy/tier/", f"/calico/v1/host/{HOST}/endpoint/")
        found = {path: record for path, record in found.items() if not path.startswith(others)} | draw(_open_early)
    return found


def _probe(dice: random.Random) -> dict[str, Any]:
    family = dice.choice((0, 0, 1))
    via = dice.choice([*(f"cali{n}" for n in range(WORKLOADS))] * 3 + ["up0"] * 5 + [""])
    own = int(via[4:]) if via.startswith("cali") else None
    others = [each for n in range(WORKLOADS) if n != own for each in PAIRS[n][family]]
    away = [*REMOTE[family], *OUTSIDE[family], PEER[family]]
    hosts = [KNOWN_HOST[family], OTHER_HOST[family]]
    probe: dict[str, Any] = {"via": via}
    if own is None:
        probe["src"] = dice.choice(away if via else hosts[:1])
        known = [*others, *FLOATING[family]]
        probe["dst"] = dice.choice([*known, *hosts, *hosts] if via else [*known, *away])
    else:
        mine = [*PAIRS[own][family] * 4, shared_with(own)[family][0]]
        foreign = [*others, *away, *hosts[:1], *FLOATING[family]]
        probe["src"] = dice.choice(foreign if _one_in(dice, 7) else mine)
        probe["dst"] = dice.choice([*others, *away, *FLOATING[family], *hosts])
        if _one_in(dice, 12):
            probe["mac"] = OTHER_MAC
        if family == 0 and _one_in(dice, 12):
            probe["dst"] = LOOPBACK
        if family == 0 and _one_in(dice, 15):
            return {**probe, "dst": METADATA, "protocol": 6, "sport": dice.choice(_SOURCE_PORTS), "dport": 80}
        if probe["dst"] in hosts and _one_in(dice, 8):
            sport, dport = dice.choice([(68, 67), (546, 547), (9, METADATA_PORT)])
            return {**probe, "protocol": 6 if dport == METADATA_PORT else 17, "sport": sport, "dport": dport}
    protocol = dice.choice((6, 6, 17, 17, 132, 200, 1 if family == 0 else 58))
    if _one_in(dice, 25):
        is_ipip = dice.choice((True, False))
        where = {} if is_ipip else {"sport": 4789, "dport": 4789}
        return {**probe, "protocol": 4 if is_ipip else 17, **where}
    probe["protocol"] = protocol
    if protocol in (6, 17, 132):
        probe["sport"] = dice.choice(_SOURCE_PORTS)
        probe["dport"] = dice.choice(_PORTS)
    if protocol in (1, 58):
        probe["icmp"] = dice.choice([[8, 0], [8, 0], [8, 1], [13, 0]] if family == 0 else [[128, 0], [128, 1]])
        if family == 1 and via == "up0" and probe["dst"] in hosts and _one_in(dice, 3):
            return {**probe, "icmp": dice.choice([[135, 0], [136, 0]])}
    if protocol in (1, 6, 58) and via and _one_in(dice, 12):
        probe["stray"] = True
    elif via and probe["dst"] not in (*hosts, LOOPBACK):
        follow = dice.choice((None, "reply", "unreachable", "too big"))
        if follow is not None:
            probe["follow"] = follow
    return probe


def _one_in(dice: random.Random, count: int) -> bool:
    return dice.randrange(count) == 0


def probes_of(chosen_seed: int) -> list[dict[str, Any]]:
    """No two are of one connection, and none is to where it comes from."""
    dice = random.Random(chosen_seed)
    found = {connection_of(flow_of(probe)): probe for probe in (_probe(dice) for _ in range(PROBES))}
    return [probe for probe in found.values() if probe["src"] != probe["dst"]]


def flow_of(probe: dict[str, Any]) -> Flow:
    icmp = probe.get("icmp")
    return Flow(
        src=probe["src"],
        dst=probe["dst"],
        protocol=probe["protocol"],
        sport=probe.get("sport"),
        dport=probe.get("dport"),
        icmp=tuple(icmp) if icmp is not None else None,
    )


def connection_of(flow: Flow) -> tuple[Any, ...]:
    """No two packets of a case may be taken for one connection. Of what the kernel may not know the ports of, only the
    addresses count; echoes have an identifier each."""
    if flow.protocol in (1, 58):
        return flow.protocol, object()
    ends = sorted([(flow.src, flow.sport), (flow.dst, flow.dport)], key=str)
    return flow.protocol, str(ends if flow.protocol in (6, 17) else [address for address, _ in ends])


cases: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "to_host": st.sampled_from(["RETURN", "RETURN", "ACCEPT", "DROP"]),
        "spoofing": st.sampled_from(["Any", "Any", "Disabled"]),
        "steps": st.one_of(
            st.tuples(_step(is_first=True)),
            st.tuples(_step(is_first=True), _step(is_first=False)),
            st.tuples(_step(is_first=True), _step(is_first=False), _step(is_first=False)),
        ).map(list),
        "probes": st.integers(0, 2**32 - 1).map(probes_of),
    }
)


def merged(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """What is stored in the end."""
    records: dict[str, Any] = {}
    for step in steps:
        records |= step
    return {path: record for path, record in records.items() if record is not None}


def stored_bytes(path: str, record: Any) -> bytes:
    """As the datastore holds it: addresses of hosts are bare text."""
    return record.encode() if isinstance(record, str) else json.dumps(record).encode()
