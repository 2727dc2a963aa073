"""Datastore records as no careful writer would leave them: of every key the agent watches, whole and broken."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

HOST = "here"
_RULES: list[dict[str, Any]] = [
    {"action": "allow", "protocol": "tcp", "dst_ports": [80, "8000:8080", "http"], "src_selector": "has(role)"},
    {"action": "deny", "src_net": "10.0.0.0/8", "!src_tag": "web", "log_prefix": "no"},
    {"action": "next-tier", "protocol": "icmpv6", "icmp_type": 128, "icmp_code": 0},
    {"action": "log", "ip_version": 6, "!dst_nets": ["fd00::/8", "2001:db8::1"]},
    {"!protocol": "udp", "!src_selector": "a in {'b', 'c'} && !has(d)", "dst_tag": "db"},
]
_WORKLOAD: dict[str, Any] = {
    "state": "active",
    "name": "cali0",
    "mac": "02:00:00:00:00:01",
    "profile_ids": ["web", "absent"],
    "ipv4_nets": ["10.65.0.2/32"],
    "ipv6_nets": ["fd65::2/128"],
    "ipv4_gateway": "169.254.1.1",
    "ipv4_nat": [{"int_ip": "10.65.0.2", "ext_ip": "192.0.2.7"}],
    "labels": {"role": "db", "a": "b"},
    "ports": [{"name": "http", "protocol": "tcp", "port": 8080}],
    "allow_spoofed_source_ips": ["10.99.0.0/16"],
}
_BLOCK: dict[str, Any] = {
    "cidr": "10.65.0.0/30",
    "affinity": "host:there",
    "allocations": [0, None, None, None],
    "unallocated": [1, 2, 3],
    "attributes": [{"handle_id": "vxlan-tunnel-addr-there", "secondary": {"node": "here"}}],
}
#: By path: what a good writer puts there. Texts that are no JSON stand as text.
GOOD: dict[str, Any] = {
    f"/calico/v1/host/{HOST}/workload/cni/pod-a/endpoint/eth0": _WORKLOAD,
    f"/calico/v1/host/{HOST}/workload/cni/pod-b/endpoint/eth0": {
        **_WORKLOAD, "name": "cali1", "ipv4_nets": ["10.65.0.3"], "ipv4_nat": [], "ipv6_nets": [],
    },
    "/calico/v1/host/there/workload/cni/pod-c/endpoint/eth0": {**_WORKLOAD, "name": "cali9"},
    f"/calico/v1/host/{HOST}/endpoint/up": {"name": "eth0", "profile_ids": ["web"], "labels": {"role": "uplink"}},
    f"/calico/v1/host/{HOST}/endpoint/all": {"name": "*", "labels": {"role": "any"}},
    f"/calico/v1/host/{HOST}/endpoint/found": {"expected_ipv4_addrs": ["192.0.2.1"], "labels": {}},
    "/calico/v1/policy/profile/web/rules": {"inbound_rules": _RULES, "outbound_rules": [{"action": "allow"}]},
    "/calico/v1/policy/profile/web/tags": ["web", "db"],
    "/calico/v1/policy/profile/web/labels": {"role": "web"},
    "/calico/v1/policy/tier/default/metadata": {"order": 100},
    "/calico/v1/policy/tier/first/metadata": {"order": "default", "defaultAction": "pass"},
    "/calico/v1/policy/tier/default/policy/p": {
        "selector": "has(role)", "order": 1.5, "inbound_rules": _RULES, "outbound_rules": _RULES, "types": ["ingress"],
    },
    "/calico/v1/policy/tier/first/policy/early": {
        "selector": "role in {'uplink', 'any'}", "inbound_rules": [{"action": "allow"}],
        "untracked": True, "apply_on_forward": True,
    },
    "/calico/v1/policy/tier/first/policy/before": {
        "selector": "role == 'any'", "inbound_rules": _RULES[:2], "pre_dnat": True, "apply_on_forward": True,
    },
    "/calico/v1/netset/outside": {"nets": ["198.51.100.0/24", "2001:db8::/32"], "labels": {"role": "net"}},
    "/calico/v1/ipam/v4/pool/10.65.0.0-16": {"cidr": "10.65.0.0/16", "masquerade": True, "ipip": "tunl0"},
    "/calico/v1/ipam/v6/pool/fd65::-64": {"cidr": "fd65::/64", "masquerade": True},
    f"/calico/v1/host/{HOST}/bird_ip": "192.0.2.1",
    "/calico/v1/host/there/bird_ip": "192.0.2.2",
    "/calico/bgp/v1/host/there/ip_addr_v6": "2001:db8::2",
    f"/calico/bgp/v1/host/{HOST}/ip_addr_v4": "192.0.2.1",
    f"/calico/bgp/v1/host/{HOST}/as_num": "64512",
    f"/calico/bgp/v1/host/{HOST}/loglevel": "debug",
    f"/calico/bgp/v1/host/{HOST}/peer_v4/192.0.2.9": {"ip": "192.0.2.9", "as_num": "64513"},
    "/calico/bgp/v1/host/there/ip_addr_v4": "192.0.2.2",
    "/calico/bgp/v1/host/there/as_num": "1.10",
    "/calico/bgp/v1/global/as_num": "64511",
    "/calico/bgp/v1/global/node_mesh": {"enabled": True},
    "/calico/bgp/v1/global/loglevel": "none",
    "/calico/bgp/v1/global/peer_v6/2001:db8::9": {"ip": "2001:db8::9", "as_num": "65000"},
    "/calico/ipam/v2/assignment/ipv4/block/10.65.0.0-30": _BLOCK,
    f"/calico/ipam/v2/host/{HOST}/ipv4/block/10.65.0.64-26": {"state": "confirmed"},
    "/calico/v1/ipam/v4/pool/10.66.0.0-16": {"cidr": "10.66.0.0/16", "vxlan_mode": "cross-subnet"},
    f"/calico/v1/host/{HOST}/config/LogSeverityScreen": "info",
    "/calico/v1/config/InterfacePrefix": "cali",
}  # fmt: skip

_ODD_TEXTS = st.sampled_from([
    "", " ", "*", "all()", "!", "\0", "a\nb", "%", "%2f", "../..", "'", '"', "\\", "{}", "☂", "é" * 300, "x" * 70_000,
    "0.0.0.0", "0.0.0.0/0", "::", "::/0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "fe80::1", "ff02::1", "::1",
    "::ffff:10.0.0.1", "10.0.0.1/33", "010.1.1.1", "1e3", "TCP", "9" * 5000, "1." + "9" * 5000,
    "0x" + "f" * 5000, "0", "65536", "9:1", "lo", "cali", "calixx", "default",
    "-" * 15, "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "01:00:5e:00:00:01", "a == 'b' || a != 'b'", "has(a)",
])  # fmt: skip
_ODD_NUMBERS = st.sampled_from([0, -1, 1, 255, 256, 65535, 65536, 2**31, 2**32, 2**63, 2**64, 10**40, -0.0, 0.5, 1e308])
_NAMES = _ODD_TEXTS | st.sampled_from(["action", "labels"])
_JUNK = st.recursive(
    st.none() | st.booleans() | _ODD_NUMBERS | _ODD_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=6,
)
_RAW = st.sampled_from([
    b"", b"null", b"\xff\xfe", b"{", b"[]", b'"', b"NaN", b'{"order":1e999}', b'"\\ud800"', b"1" * 5000,
    b"[" * 100_000, b'{"a":' * 100_000, b'{"a":null,"b":' + b'{"a":' * 100_000, b'{"labels":' + b"[" * 100_000,
])  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a document something stands: the whole of it first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for name, each in inside for place in _places(each, (*at, name)))]


def _with(value: Any, place: tuple[Any, ...], junk: Any) -> Any:
    if not place:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _with(value[place[0]], place[1:], junk)
    return copy


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for name in place:
        value = value[name]
    return value


@st.composite
def _broken(draw: st.DrawFn, good: Any) -> bytes:
    """One that is wrong in a place or two; by chance it may be right."""
    value = good
    for _ in range(draw(st.integers(1, 2))):
        places = _places(value)
        leaves = [place for place in places if not isinstance(_at(value, place), dict | list)]
        place = draw(st.sampled_from(leaves or places) | st.sampled_from(places))
        found = _at(value, place)
        of_its_kind = {str: _ODD_TEXTS, int: _ODD_NUMBERS}
        if isinstance(found, list):
            of_its_kind[list] = st.just(found + found)
        value = _with(value, place, draw(of_its_kind.get(type(found), _JUNK) | _JUNK))
        if isinstance(value, dict) and draw(st.integers(0, 9)) == 0:
            value = {**value, draw(_ODD_TEXTS): draw(_JUNK)}
    return value.encode(errors="surrogatepass") if isinstance(value, str) else json.dumps(value).encode()


def records() -> st.SearchStrategy[dict[str, bytes]]:
    """The state of a cluster: most keys hold what is good, a few do not."""

    def whole(broken: dict[str, bytes]) -> dict[str, bytes]:
        return {path: text(value) for path, value in GOOD.items()} | broken

    one = st.sampled_from(sorted(GOOD)).flatmap(lambda path: st.tuples(st.just(path), _RAW | _broken(GOOD[path])))
    elsewhere = st.tuples(_odd_paths(), st.sampled_from(sorted(GOOD)).flatmap(lambda path: _broken(GOOD[path])))
    return st.lists(one | elsewhere, min_size=1, max_size=4).map(lambda pairs: whole(dict(pairs)))


def text(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def _odd_paths() -> st.SearchStrategy[str]:
    """Paths of known kinds with names that nobody should use; datastores take no NUL."""
    names = _ODD_TEXTS.filter(lambda name: "\0" not in name and len(name) < 1000)
    kinds = st.sampled_from([
        "/calico/v1/host/{0}/workload/cni/{1}/endpoint/eth0", f"/calico/v1/host/{HOST}/workload/{{0}}/{{1}}/endpoint/e",
        f"/calico/v1/host/{HOST}/endpoint/{{0}}", "/calico/v1/policy/profile/{0}/rules",
        "/calico/v1/policy/profile/{0}/tags", "/calico/v1/policy/tier/{0}/metadata",
        "/calico/v1/policy/tier/default/policy/{0}", "/calico/v1/policy/tier/{0}/policy/{1}", "/calico/v1/netset/{0}",
        "/calico/v1/ipam/v4/pool/{0}", "/calico/v1/ipam/{0}/pool/{1}", "/calico/v1/host/{0}/bird_ip",
        "/calico/bgp/v1/host/{0}/ip_addr_v6", "/calico/bgp/v1/host/{0}/as_num", "/calico/bgp/v1/global/peer_v4/{0}",
        "/calico/ipam/v2/assignment/ipv4/block/{0}", f"/calico/ipam/v2/host/{HOST}/ipv4/block/{{0}}",
        f"/calico/v1/host/{HOST}/config/{{0}}", "/calico/v1/{0}", "/calico/v1/",
    ])  # fmt: skip
    return st.tuples(kinds, names, names).map(lambda parts: parts[0].format(parts[1], parts[2]))
