"""From a datastore path to its typed key: ``parse_key(key.path) == key`` for every key.

Source of the paths: datastore specification, section 2.
"""

from __future__ import annotations

from collections.abc import Callable

from calico_core.errors import InvalidRequest
from calico_core.model import ids
from calico_core.model.addresses import network_from_segment, parse_address
from calico_core.model.keys import (
    AddressClaimKey,
    AffinityKey,
    BgpGlobalAsKey,
    BgpGlobalLogLevelKey,
    BgpGlobalPeerKey,
    BgpHostAddressKey,
    BgpHostAsKey,
    BgpHostLogLevelKey,
    BgpHostPeerKey,
    BgpMeshKey,
    BlockKey,
    FelixLastStatusKey,
    FelixStatusKey,
    GlobalConfigKey,
    HandleKey,
    HostConfigKey,
    HostEndpointKey,
    HostEndpointStatusKey,
    HostIpKey,
    IpamConfigKey,
    Key,
    NetworkSetKey,
    NodeStatusKey,
    PolicyControllerKey,
    PolicyKey,
    PoolKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
    ReadyKey,
    ReservationKey,
    TierKey,
    WorkloadEndpointKey,
    WorkloadStatusKey,
)

_Parts = list[str]


def parse_key(path: str) -> Key | None:
    """The typed key of a path, or None for a path we do not know (other versions, other systems)."""
    parts = path.split("/")
    if len(parts) < 4 or parts[1] != "calico":
        return None
    parser = _TREES.get((parts[2], parts[3])) or _TREES.get((parts[2], ""))
    if parser is None:
        return None
    try:
        return parser(parts)
    except (InvalidRequest, IndexError, ValueError):
        return None


def _v1(p: _Parts) -> Key | None:
    match p[3:]:
        case ["Ready"]:
            return ReadyKey()
        case ["config", name]:
            return GlobalConfigKey(name)
        case ["host", host, "workload", orchestrator, workload, "endpoint", endpoint]:
            return WorkloadEndpointKey(host, orchestrator, ids.unescape(workload), ids.unescape(endpoint))
        case ["host", host, "endpoint", endpoint]:
            return HostEndpointKey(host, ids.unescape(endpoint))
        case ["host", host, "config", name]:
            return HostConfigKey(host, name)
        case ["host", host, "bird_ip"]:
            return HostIpKey(host)
        case ["policy", "profile", profile, leaf] if leaf in _PROFILE_LEAVES:
            return _PROFILE_LEAVES[leaf](ids.unescape(profile))
        case ["policy", "tier", tier, "metadata"]:
            return TierKey(ids.unescape(tier))
        case ["policy", "tier", tier, "policy", name]:
            return PolicyKey(ids.unescape(tier), ids.unescape(name))
        case ["ipam", "v4" | "v6", "pool", cidr]:
            return _same_version(PoolKey(network_from_segment(cidr)), p[4])
        case ["netset", name]:
            return NetworkSetKey(ids.unescape(name))
    return None


def _bgp(p: _Parts) -> Key | None:
    match p[4:]:
        case ["global", "as_num"]:
            return BgpGlobalAsKey()
        case ["global", "node_mesh"]:
            return BgpMeshKey()
        case ["global", "loglevel"]:
            return BgpGlobalLogLevelKey()
        case ["global", "peer_v4" | "peer_v6", ip]:
            return BgpGlobalPeerKey(parse_address(ip))
        case ["host", host, "ip_addr_v4" | "ip_addr_v6" as leaf]:
            return BgpHostAddressKey(host, int(leaf[-1]))
        case ["host", host, "as_num"]:
            return BgpHostAsKey(host)
        case ["host", host, "loglevel"]:
            return BgpHostLogLevelKey(host)
        case ["host", host, "peer_v4" | "peer_v6", ip]:
            return BgpHostPeerKey(host, parse_address(ip))
    return None


def _ipam(p: _Parts) -> Key | None:
    match p[4:]:
        case ["config"]:
            return IpamConfigKey()
        case ["assignment", "ipv4" | "ipv6", "block", cidr]:
            return _same_version(BlockKey(network_from_segment(cidr)), p[5])
        case ["host", host, "ipv4" | "ipv6", "block", cidr]:
            return _same_version(AffinityKey(host, network_from_segment(cidr)), p[6])
        case ["handle", handle]:
            return HandleKey(ids.unescape(handle))
        case ["reservation", name]:
            return ReservationKey(ids.unescape(name))
    return None


def _felix(p: _Parts) -> Key | None:
    match p[4:]:
        case ["host", host, "status"]:
            return FelixStatusKey(host)
        case ["host", host, "last_reported_status"]:
            return FelixLastStatusKey(host)
        case ["host", host, "endpoint", endpoint]:
            return HostEndpointStatusKey(host, ids.unescape(endpoint))
        case ["host", host, "workload", orchestrator, workload, "endpoint", endpoint]:
            return WorkloadStatusKey(host, orchestrator, ids.unescape(workload), ids.unescape(endpoint))
    return None


def _node(p: _Parts) -> Key | None:
    match p[4:]:
        case ["host", host, "status"]:
            return NodeStatusKey(host)
        case ["address", ip]:
            return AddressClaimKey(parse_address(ip))
    return None


def _kubernetes(p: _Parts) -> Key | None:
    return PolicyControllerKey() if p[4:] == ["controller"] else None


def _same_version(key: PoolKey | BlockKey | AffinityKey, segment: str) -> Key | None:
    return key if str(key.cidr.version) == segment[-1] else None


_PROFILE_LEAVES: dict[str, Callable[[str], Key]] = {
    "rules": ProfileRulesKey,
    "tags": ProfileTagsKey,
    "labels": ProfileLabelsKey,
}
_TREES: dict[tuple[str, str], Callable[[_Parts], Key | None]] = {
    ("v1", ""): _v1,
    ("bgp", "v1"): _bgp,
    ("ipam", "v2"): _ipam,
    ("felix", "v1"): _felix,
    ("node", "v1"): _node,
    ("kubernetes", "v1"): _kubernetes,
}
