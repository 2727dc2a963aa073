"""Typed keys ⇄ datastore paths. A key class knows the record type it leads to.

Source of the paths: datastore specification, section 2. ``parse_key(key.path) == key`` for every key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.model import ids
from calico_core.model.addresses import network_from_segment, network_to_segment, parse_address
from calico_core.model.bgp import BgpPeer, NodeMesh
from calico_core.model.blocks import Affinity, Block, Handle, IpamConfig, Reservation
from calico_core.model.endpoints import EndpointStatus, HostEndpoint, WorkloadEndpoint
from calico_core.model.hosts import AddressClaim, FelixStatus, NodeStatus
from calico_core.model.policies import NetworkSet, Policy, Tier
from calico_core.model.pools import Pool
from calico_core.model.rules import RuleLists

ROOT = "/calico/"
V1 = "/calico/v1/"
HOSTS = "/calico/v1/host/"
PROFILES = "/calico/v1/policy/profile/"
TIERS = "/calico/v1/policy/tier/"
NETWORK_SETS = "/calico/v1/netset/"
POOLS = "/calico/v1/ipam/"
BGP = "/calico/bgp/v1/"
BGP_HOSTS = "/calico/bgp/v1/host/"
IPAM = "/calico/ipam/v2/"
BLOCKS = "/calico/ipam/v2/assignment/"
AFFINITIES = "/calico/ipam/v2/host/"
HANDLES = "/calico/ipam/v2/handle/"
RESERVATIONS = "/calico/ipam/v2/reservation/"
FELIX_STATUS = "/calico/felix/v1/host/"
NODE_STATUS = "/calico/node/v1/host/"


class Key(msgspec.Struct, frozen=True):
    """A place in the datastore. ``record_type`` is what its value decodes to; ``str`` means raw text."""

    record_type: ClassVar[Any] = str

    @property
    def path(self) -> str:
        raise NotImplementedError


# --- policy and endpoints ------------------------------------------------------------------------------------


class ReadyKey(Key, frozen=True):
    """Raw ``true`` once the datastore may be used."""

    @property
    def path(self) -> str:
        return "/calico/v1/Ready"


class GlobalConfigKey(Key, frozen=True):
    name: str

    @property
    def path(self) -> str:
        return f"/calico/v1/config/{self.name}"


class HostConfigKey(Key, frozen=True):
    """``Labels`` is a JSON map: what pools select hosts by."""

    host: str
    name: str

    @property
    def path(self) -> str:
        return f"/calico/v1/host/{self.host}/config/{self.name}"


class HostIpKey(Key, frozen=True):
    """The host's IPv4 address, as text."""

    host: str

    @property
    def path(self) -> str:
        return f"/calico/v1/host/{self.host}/bird_ip"


class WorkloadEndpointKey(Key, frozen=True):
    record_type: ClassVar[Any] = WorkloadEndpoint
    host: str
    orchestrator: str
    workload: str
    endpoint: str

    @property
    def path(self) -> str:
        workload, endpoint = ids.escape(self.workload), ids.escape(self.endpoint)
        return f"/calico/v1/host/{self.host}/workload/{self.orchestrator}/{workload}/endpoint/{endpoint}"


class HostEndpointKey(Key, frozen=True):
    record_type: ClassVar[Any] = HostEndpoint
    host: str
    endpoint: str

    @property
    def path(self) -> str:
        return f"/calico/v1/host/{self.host}/endpoint/{ids.escape(self.endpoint)}"


class ProfileRulesKey(Key, frozen=True):
    record_type: ClassVar[Any] = RuleLists
    profile: str

    @property
    def path(self) -> str:
        return f"/calico/v1/policy/profile/{ids.escape(self.profile)}/rules"


class ProfileTagsKey(Key, frozen=True):
    record_type: ClassVar[Any] = tuple[ids.Tag, ...]
    profile: str

    @property
    def path(self) -> str:
        return f"/calico/v1/policy/profile/{ids.escape(self.profile)}/tags"


class ProfileLabelsKey(Key, frozen=True):
    record_type: ClassVar[Any] = dict[ids.Label, str]
    profile: str

    @property
    def path(self) -> str:
        return f"/calico/v1/policy/profile/{ids.escape(self.profile)}/labels"


class TierKey(Key, frozen=True):
    record_type: ClassVar[Any] = Tier
    tier: str

    @property
    def path(self) -> str:
        return f"/calico/v1/policy/tier/{ids.escape(self.tier)}/metadata"


class PolicyKey(Key, frozen=True):
    record_type: ClassVar[Any] = Policy
    tier: str
    name: str

    @property
    def path(self) -> str:
        return f"/calico/v1/policy/tier/{ids.escape(self.tier)}/policy/{ids.escape(self.name)}"


class NetworkSetKey(Key, frozen=True):
    record_type: ClassVar[Any] = NetworkSet
    name: str

    @property
    def path(self) -> str:
        return f"/calico/v1/netset/{ids.escape(self.name)}"


class PoolKey(Key, frozen=True):
    record_type: ClassVar[Any] = Pool
    cidr: IPNetwork

    @property
    def path(self) -> str:
        return f"/calico/v1/ipam/v{self.cidr.version}/pool/{network_to_segment(self.cidr)}"


# --- routing ---------------------------------------------------------------------------------------------------


class BgpGlobalAsKey(Key, frozen=True):
    @property
    def path(self) -> str:
        return "/calico/bgp/v1/global/as_num"


class BgpMeshKey(Key, frozen=True):
    record_type: ClassVar[Any] = NodeMesh

    @property
    def path(self) -> str:
        return "/calico/bgp/v1/global/node_mesh"


class BgpGlobalLogLevelKey(Key, frozen=True):
    @property
    def path(self) -> str:
        return "/calico/bgp/v1/global/loglevel"


class BgpGlobalPeerKey(Key, frozen=True):
    record_type: ClassVar[Any] = BgpPeer
    ip: IPAddress

    @property
    def path(self) -> str:
        return f"/calico/bgp/v1/global/peer_v{self.ip.version}/{self.ip}"


class BgpHostAddressKey(Key, frozen=True):
    """A host's own address of one family, as text; empty means no session of that family."""

    host: str
    version: int

    @property
    def path(self) -> str:
        return f"/calico/bgp/v1/host/{self.host}/ip_addr_v{self.version}"


class BgpHostAsKey(Key, frozen=True):
    host: str

    @property
    def path(self) -> str:
        return f"/calico/bgp/v1/host/{self.host}/as_num"


class BgpHostLogLevelKey(Key, frozen=True):
    host: str

    @property
    def path(self) -> str:
        return f"/calico/bgp/v1/host/{self.host}/loglevel"


class BgpHostPeerKey(Key, frozen=True):
    record_type: ClassVar[Any] = BgpPeer
    host: str
    ip: IPAddress

    @property
    def path(self) -> str:
        return f"/calico/bgp/v1/host/{self.host}/peer_v{self.ip.version}/{self.ip}"


# --- addresses -------------------------------------------------------------------------------------------------


class IpamConfigKey(Key, frozen=True):
    record_type: ClassVar[Any] = IpamConfig

    @property
    def path(self) -> str:
        return "/calico/ipam/v2/config"


class BlockKey(Key, frozen=True):
    record_type: ClassVar[Any] = Block
    cidr: IPNetwork

    @property
    def path(self) -> str:
        return f"/calico/ipam/v2/assignment/ipv{self.cidr.version}/block/{network_to_segment(self.cidr)}"


class AffinityKey(Key, frozen=True):
    record_type: ClassVar[Any] = Affinity
    host: str
    cidr: IPNetwork

    @property
    def path(self) -> str:
        return f"/calico/ipam/v2/host/{self.host}/ipv{self.cidr.version}/block/{network_to_segment(self.cidr)}"


class HandleKey(Key, frozen=True):
    record_type: ClassVar[Any] = Handle
    handle: str

    @property
    def path(self) -> str:
        return f"/calico/ipam/v2/handle/{ids.escape(self.handle)}"


class ReservationKey(Key, frozen=True):
    record_type: ClassVar[Any] = Reservation
    name: str

    @property
    def path(self) -> str:
        return f"/calico/ipam/v2/reservation/{ids.escape(self.name)}"


# --- status ----------------------------------------------------------------------------------------------------


class FelixStatusKey(Key, frozen=True):
    """Liveness of the agent, under a lease."""

    record_type: ClassVar[Any] = FelixStatus
    host: str

    @property
    def path(self) -> str:
        return f"/calico/felix/v1/host/{self.host}/status"


class FelixLastStatusKey(Key, frozen=True):
    record_type: ClassVar[Any] = FelixStatus
    host: str

    @property
    def path(self) -> str:
        return f"/calico/felix/v1/host/{self.host}/last_reported_status"


class WorkloadStatusKey(Key, frozen=True):
    record_type: ClassVar[Any] = EndpointStatus
    host: str
    orchestrator: str
    workload: str
    endpoint: str

    @property
    def path(self) -> str:
        workload, endpoint = ids.escape(self.workload), ids.escape(self.endpoint)
        return f"/calico/felix/v1/host/{self.host}/workload/{self.orchestrator}/{workload}/endpoint/{endpoint}"


class HostEndpointStatusKey(Key, frozen=True):
    record_type: ClassVar[Any] = EndpointStatus
    host: str
    endpoint: str

    @property
    def path(self) -> str:
        return f"/calico/felix/v1/host/{self.host}/endpoint/{ids.escape(self.endpoint)}"


class NodeStatusKey(Key, frozen=True):
    record_type: ClassVar[Any] = NodeStatus
    host: str

    @property
    def path(self) -> str:
        return f"/calico/node/v1/host/{self.host}/status"


class AddressClaimKey(Key, frozen=True):
    record_type: ClassVar[Any] = AddressClaim
    ip: IPAddress

    @property
    def path(self) -> str:
        return f"/calico/node/v1/address/{self.ip}"


class PolicyControllerKey(Key, frozen=True):
    """The name of the node whose policy controller writes what Kubernetes wants, under a lease."""

    @property
    def path(self) -> str:
        return "/calico/kubernetes/v1/controller"


# --- parsing ---------------------------------------------------------------------------------------------------

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
