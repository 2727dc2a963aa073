"""Every key has a path, and the path leads back to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_core.model import keys
from calico_core.model.addresses import parse_address, parse_network
from calico_core.model.key_paths import parse_key

KEYS = [
    (keys.ReadyKey(), "/calico/v1/Ready"),
    (keys.GlobalConfigKey("InterfacePrefix"), "/calico/v1/config/InterfacePrefix"),
    (keys.HostConfigKey("h1", "marker"), "/calico/v1/host/h1/config/marker"),
    (keys.HostIpKey("h1"), "/calico/v1/host/h1/bird_ip"),
    (
        keys.WorkloadEndpointKey("h1", "k8s", "default.web", "eth0"),
        "/calico/v1/host/h1/workload/k8s/default.web/endpoint/eth0",
    ),
    (keys.HostEndpointKey("h1", "eth0"), "/calico/v1/host/h1/endpoint/eth0"),
    (keys.ProfileRulesKey("web"), "/calico/v1/policy/profile/web/rules"),
    (keys.ProfileTagsKey("web"), "/calico/v1/policy/profile/web/tags"),
    (keys.ProfileLabelsKey("web"), "/calico/v1/policy/profile/web/labels"),
    (keys.TierKey("t"), "/calico/v1/policy/tier/t/metadata"),
    (keys.PolicyKey("t", "p"), "/calico/v1/policy/tier/t/policy/p"),
    (keys.NetworkSetKey("n"), "/calico/v1/netset/n"),
    (keys.PoolKey(parse_network("10.0.0.0/16")), "/calico/v1/ipam/v4/pool/10.0.0.0-16"),
    (
        keys.PoolKey(parse_network("fd80:24e2:f998:72d6::/64")),
        "/calico/v1/ipam/v6/pool/fd80:24e2:f998:72d6::-64",
    ),
    (keys.BgpGlobalAsKey(), "/calico/bgp/v1/global/as_num"),
    (keys.BgpMeshKey(), "/calico/bgp/v1/global/node_mesh"),
    (keys.BgpGlobalLogLevelKey(), "/calico/bgp/v1/global/loglevel"),
    (keys.BgpGlobalPeerKey(parse_address("192.0.2.1")), "/calico/bgp/v1/global/peer_v4/192.0.2.1"),
    (keys.BgpHostAddressKey("h1", 6), "/calico/bgp/v1/host/h1/ip_addr_v6"),
    (keys.BgpHostAsKey("h1"), "/calico/bgp/v1/host/h1/as_num"),
    (keys.BgpHostLogLevelKey("h1"), "/calico/bgp/v1/host/h1/loglevel"),
    (keys.BgpHostPeerKey("h1", parse_address("fd00::1")), "/calico/bgp/v1/host/h1/peer_v6/fd00::1"),
    (keys.IpamConfigKey(), "/calico/ipam/v2/config"),
    (
        keys.BlockKey(parse_network("10.0.0.64/26")),
        "/calico/ipam/v2/assignment/ipv4/block/10.0.0.64-26",
    ),
    (
        keys.AffinityKey("h1", parse_network("fd80::40/122")),
        "/calico/ipam/v2/host/h1/ipv6/block/fd80::40-122",
    ),
    (keys.HandleKey("net.c1"), "/calico/ipam/v2/handle/net.c1"),
    (keys.FelixStatusKey("h1"), "/calico/felix/v1/host/h1/status"),
    (keys.FelixLastStatusKey("h1"), "/calico/felix/v1/host/h1/last_reported_status"),
    (keys.HostEndpointStatusKey("h1", "eth0/a"), "/calico/felix/v1/host/h1/endpoint/eth0%2fa"),
    (
        keys.WorkloadStatusKey("h1", "cni", "w", "e"),
        "/calico/felix/v1/host/h1/workload/cni/w/endpoint/e",
    ),
    (keys.NodeStatusKey("h1"), "/calico/node/v1/host/h1/status"),
    (keys.AddressClaimKey(parse_address("10.0.0.1")), "/calico/node/v1/address/10.0.0.1"),
    (keys.PolicyControllerKey(), "/calico/kubernetes/v1/controller"),
]


@pytest.mark.parametrize(("key", "path"), KEYS, ids=lambda value: type(value).__name__)
def test_path_and_back(key: keys.Key, path: str) -> None:
    assert key.path == path
    assert parse_key(path) == key


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/calico",
        "/other/v1/Ready",
        "/calico/v9/Ready",
        "/calico/v1/ipam/v4/pool/10.0.0.0",
        "/calico/v1/ipam/v4/pool/fd00::-64",
        "/calico/v1/ipam/v6/pool/10.0.0.0-16",
        "/calico/bgp/v1/global/peer_v4/ten",
        "/calico/v1/host/h1/workload/k8s/w/endpoint",
        "/calico/v1/policy/profile/web/colour",
    ],
)
def test_unknown_paths_are_nobody(path: str) -> None:
    assert parse_key(path) is None


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_name_survives_escaping(workload: str, endpoint: str) -> None:
    key = keys.WorkloadEndpointKey("h1", "namespace", workload, endpoint)
    assert parse_key(key.path) == key
