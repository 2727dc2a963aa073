"""Typed keys of the datastore. A key class knows its path and the record type it leads to.

Source of the paths: datastore specification, section 2. ``key_paths.parse_key`` is the way back.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.model import ids
from calico_core.model.addresses import network_to_segment
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
