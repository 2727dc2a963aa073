"""Encapsulated pools on two hosts without any routing daemon: what crosses the fabric, and what does not."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe, probe_until
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from tests import waiting
from tests.e2e.observing import MakeLab

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd-server is not installed"),
]

POOL = "10.77.0.0/16"
_FABRIC_MTU = 1500
_NO_POOLS = {"NO_DEFAULT_POOLS": "true"}


def test_vxlan_carries_traffic_between_subnets(make_lab: MakeLab) -> None:
    lab = make_lab(2, datastore="etcd", fabric="router", environment=_NO_POOLS)
    lab.hosts[0].calicoctl("pool", "add", POOL, "--vxlan")
    first, second = _pair(lab)
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable
    before = [_packets(host) for host in lab.hosts]
    for kind in ("tcp", "udp", "icmp"):
        assert probe(first, second, kind).is_reachable, kind
        assert probe(second, first, kind).is_reachable, kind
    for host, (sent, received) in zip(lab.hosts, before, strict=True):
        now = _packets(host)
        assert now[0] > sent
        assert now[1] > received
        assert _link(host, "vxlan.calico")["mtu"] == _FABRIC_MTU - 50
    inside = first.run(["ip", "-j", "link", "show", "eth0"])
    assert json.loads(inside.stdout)[0]["mtu"] == _FABRIC_MTU - 50
    full = ["ping", "-c", "1", "-W", "10", "-M", "do", "-s", str(_FABRIC_MTU - 50 - 28), str(second.addresses[0])]
    assert first.run(full).returncode == 0

    lab.hosts[0].calicoctl("pool", "add", POOL, "--no-vxlan")
    eventually(lambda: all("vxlan.calico" not in _links(host) for host in lab.hosts))
    assert not probe(first, second, "icmp").is_reachable, "the router of the fabric knows no workloads"
    assert all(_tunnel_handles(host) == [] for host in lab.hosts)


@pytest.mark.skipif(shutil.which("bird") is None, reason="bird2 is not installed")
def test_bird_leaves_the_pool_alone_until_it_is_plain(make_lab: MakeLab) -> None:
    lab = make_lab(2, datastore="etcd", fabric="bridge", routing="bird", environment=_NO_POOLS)
    lab.hosts[0].calicoctl("pool", "add", POOL, "--vxlan")
    first, second = _pair(lab)
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable
    eventually(lambda: [peer["state"] for peer in _status(lab.hosts[0])["routing"]["peers"]] == ["Established"])
    before = _packets(lab.hosts[0])
    assert probe(first, second, "tcp").is_reachable
    assert _packets(lab.hosts[0]) > before
    assert not any(destination.startswith("10.77.") for destination in _destinations(lab.hosts[0], "bird"))

    lab.hosts[0].calicoctl("pool", "add", POOL, "--no-vxlan")
    eventually(lambda: all("vxlan.calico" not in _links(host) for host in lab.hosts))
    eventually(lambda: any(each.startswith("10.77.") for each in _destinations(lab.hosts[0], "bird")))
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable


def test_what_somebody_else_broke_is_healed(make_lab: MakeLab) -> None:
    lab = make_lab(
        2, datastore="etcd", fabric="router", environment={**_NO_POOLS, "FELIX_IPTABLESREFRESHINTERVAL": "2"}
    )
    lab.hosts[0].calicoctl("pool", "add", POOL, "--vxlan")
    first, second = _pair(lab)
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable
    broken = _link(lab.hosts[0], "vxlan.calico")["ifindex"]
    lab.hosts[0].run(["ip", "link", "delete", "vxlan.calico"])
    # The node may be quicker than the next probe: a device of another index is the proof that this one was gone.
    eventually(lambda: _links(lab.hosts[0]) >= {"vxlan.calico"})
    assert _link(lab.hosts[0], "vxlan.calico")["ifindex"] != broken
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable
    eventually(lambda: "tunnels.healed" in lab.hosts[0].node_log.read_text())


def test_cross_subnet_goes_plainly_on_one_subnet(make_lab: MakeLab) -> None:
    lab = make_lab(2, datastore="etcd", fabric="bridge", environment=_NO_POOLS)
    _put_pool(lab, {"cidr": POOL, "vxlan_mode": "cross-subnet"})
    first, second = _pair(lab)
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable
    routes = json.loads(lab.hosts[0].run(["ip", "-j", "route", "show", "proto", "80"]).stdout)
    via = [route for route in routes if route.get("gateway") == str(lab.hosts[1].addresses[0])]
    assert [route["dev"] for route in via] == ["eth0"]
    before = _packets(lab.hosts[0])
    assert probe(first, second, "tcp").is_reachable
    assert _packets(lab.hosts[0]) == before


def test_cross_subnet_goes_through_the_tunnel_between_subnets(make_lab: MakeLab) -> None:
    lab = make_lab(2, datastore="etcd", fabric="router", environment=_NO_POOLS)
    _put_pool(lab, {"cidr": POOL, "vxlan_mode": "cross-subnet"})
    first, second = _pair(lab)
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable
    assert _packets(lab.hosts[0])[0] > 0


def test_ipip_or_the_missing_module_is_named(make_lab: MakeLab) -> None:
    lab = make_lab(2, datastore="etcd", fabric="router", environment=_NO_POOLS)
    lab.hosts[0].calicoctl("pool", "add", POOL, "--ipip")
    first, second = _pair(lab)
    eventually(lambda: bool(_tunnels(lab.hosts[0])["devices"]))
    if "tunl0" not in _links(lab.hosts[0]):
        reason = str(_tunnels(lab.hosts[0])["last_error"])
        assert "lacks the module 'ipip'" in reason
        pytest.skip(reason)
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable
    assert _packets(lab.hosts[0], "tunl0")[0] > 0


def _pair(lab: Laboratory) -> tuple[LabWorkload, LabWorkload]:
    workloads = []
    for host in lab.hosts:
        eventually(lambda host=host: bool(_tunnels(host)["devices"]))  # type: ignore[misc]
        workload = lab.add_workload(host)
        workload.attach(network="net1")
        workloads.append(workload)
    return workloads[0], workloads[1]


def _tunnels(host: LabHost) -> dict[str, Any]:
    found: dict[str, Any] = _status(host)["tunnels"]
    return found


def _status(host: LabHost) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.calicoctl("status", "-o", "json").stdout)
    return found


def _destinations(host: LabHost, protocol: str) -> list[str]:
    """Unicast routes only: BIRD keeps blackholes of its own for blocks of plain pools."""
    routes = json.loads(host.run(["ip", "-j", "route", "show", "proto", protocol]).stdout)
    return [route["dst"] for route in routes if route.get("type", "unicast") == "unicast"]


def _put_pool(lab: Laboratory, pool: dict[str, Any]) -> None:
    key = f"/calico/v1/ipam/v4/pool/{pool['cidr'].replace('/', '-')}"
    endpoint = lab.record.datastore.partition("://")[2]
    lab.hosts[0].run(
        ["etcdctl", f"--endpoints={endpoint}", "put", key, json.dumps(pool)], environment={"ETCDCTL_API": "3"}
    )


def _tunnel_handles(host: LabHost) -> list[str]:
    endpoint = host.environment["CALICO_DATASTORE"].partition("://")[2]
    listed = host.run(
        ["etcdctl", f"--endpoints={endpoint}", "get", "--prefix", "--keys-only", "/calico/ipam/v2/handle/"],
        environment={"ETCDCTL_API": "3"},
    )
    return [line for line in listed.stdout.split() if "tunnel-addr" in line]


def _links(host: LabHost) -> set[str]:
    return {link["ifname"] for link in json.loads(host.run(["ip", "-j", "link"]).stdout)}


def _link(host: LabHost, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.run(["ip", "-j", "-s", "link", "show", name]).stdout)[0]
    return found


def _packets(host: LabHost, device: str = "vxlan.calico") -> tuple[int, int]:
    """Sent and received by a tunnel device."""
    counters = _link(host, device)["stats64"]
    return counters["tx"]["packets"], counters["rx"]["packets"]


eventually = partial(waiting.eventually, every_s=0.1)
