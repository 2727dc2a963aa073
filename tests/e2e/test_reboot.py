"""A host that was started anew: nothing of ours is in its kernel or in /run, its containers ended, and the datastore
and the disk are as they were. CNI specification 9, row 63."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from netaddr import IPAddress

from calico_core.lab.fabric import create_stub
from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe, probe_until
from calico_core.lab.station import PlainStation
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from tests import waiting
from tests.e2e.observing import MakeLab, workload_keys

pytestmark = pytest.mark.needs_root

#: The first word of a driver: there is policy of ours, and nobody in it.
CLOSED = {"nftables": "table.created", "iptables": "iptables.closed"}
START_S = 90.0
eventually = partial(waiting.eventually, within_s=30.0, every_s=0.1)


@pytest.mark.parametrize("driver", ["nftables", "iptables"])
def test_a_rebooted_host_is_closed_first_and_then_as_its_records_say(make_lab: MakeLab, driver: str) -> None:
    lab = make_lab(1, nodes=False, environment={"CALICO_DATAPLANE_DRIVER": driver})
    (host,) = lab.hosts
    host.start_node(timeout_s=START_S)
    host.install_cni()
    back, ended, other = (attached(lab, network) for network in ("net", "net", "other"))
    assert probe_until(back, ended, "tcp", is_reachable=True, within_s=10).is_reachable
    held = addresses_of(back, ended, other)

    said = host.node_log.stat().st_size
    lab.reboot(host)
    assert ours(host) == ""
    stray, its_host = a_stray(lab, host)
    assert probe_until(stray, its_host, "udp", is_reachable=True, within_s=10).is_reachable, "nobody is there to judge"
    host.start_node(timeout_s=START_S)
    assert not probe(stray, its_host, "udp").is_reachable, "it is called as a workload, and nobody knows it"
    log = host.node_log.read_text()[said:]
    assert log.index(CLOSED[driver]) < log.index("engine.in_sync"), "closed before it knew what is allowed"

    eventually(lambda: statuses(host) == dict.fromkeys(held, "down"))
    assert routed(host) == set()
    assert codes(host) == {"endpoint-without-interface", "interface-without-endpoint"}
    new = attached(lab, "net")
    assert addresses_of(new).isdisjoint(held), "containers that ended hold theirs until they are deleted"
    create_stub(back.namespace.name)  # this one its runtime starts again under the same name
    back.attach(network="net")
    assert addresses_of(back) <= held
    assert probe_until(new, back, "tcp", is_reachable=True, within_s=10).is_reachable
    foreign = attached(lab, "other")
    assert not probe(foreign, back, "tcp").is_reachable
    for gone in (ended, other):
        gone.detach()
    eventually(lambda: statuses(host) == dict.fromkeys(addresses_of(back, new, foreign), "up"))
    assert routed(host) == addresses_of(back, new, foreign)

    host.run(["ip", "link", "del", "cali-stray"])
    assert codes(host) == set()
    for each in (back, new, foreign):
        each.detach()
    assert workload_keys(host) == []
    assert routed(host) == set()


def attached(lab: Laboratory, network: str) -> LabWorkload:
    workload = lab.add_workload(lab.hosts[0])
    workload.attach(network=network)
    return workload


def addresses_of(*workloads: LabWorkload) -> set[str]:
    return {str(address) for workload in workloads for address in workload.addresses}


def ours(host: LabHost) -> str:
    """What of policy is in the kernel, whoever's."""
    return host.run(["nft", "list", "ruleset"]).stdout + host.run(["ipset", "save"]).stdout


def routed(host: LabHost) -> set[str]:
    """Addresses that the host leads to workloads of its own."""
    routes: list[dict[str, Any]] = json.loads(host.run(["ip", "-j", "-4", "route"]).stdout)
    return {route["dst"] for route in routes if route.get("dev", "").startswith("cali") and "/" not in route["dst"]}


def codes(host: LabHost) -> set[str]:
    return {row["code"] for row in json.loads(host.calicoctl("ipam", "check", "-o", "json").stdout)}


def statuses(host: LabHost) -> dict[str, str]:
    endpoints = json.loads(host.calicoctl("endpoint", "show", "-o", "json").stdout)
    return {endpoint["addresses"][0]: endpoint["status"] for endpoint in endpoints}


def a_stray(lab: Laboratory, host: LabHost) -> tuple[PlainStation, PlainStation]:
    """A container that is wired by hand, by a link that is called as workloads' are; and its host, as it sees it."""
    made = lab.add_workload(host)
    host.run(["ip", "link", "add", "cali-stray", "type", "veth", "peer", "name", "eth0", "netns", made.namespace.name])
    for run, device, last in ((host.run, "cali-stray", 1), (made.run, "eth0", 2)):
        run(["ip", "address", "add", f"198.51.100.{last}/24", "dev", device])
        run(["ip", "link", "set", device, "up"])
    return (
        PlainStation(name="stray", namespace=made.namespace, addresses=(IPAddress("198.51.100.2"),)),
        PlainStation(name="its host", namespace=host.namespace, addresses=(IPAddress("198.51.100.1"),)),
    )
