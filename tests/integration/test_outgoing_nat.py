"""How traffic leaves the pools, from what the datastore says to what another host sees."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from calico_core.dataplane.linux import netns
from calico_core.lab.probes import probe_until
from calico_core.lab.topology import Laboratory

pytestmark = pytest.mark.needs_root

PORT = 8080


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    with Laboratory.create(f"o{uuid.uuid4().hex[:8]}", 2, datastore="sqlite", routing="none") as made:
        yield made


def seen(client: Any, server: Any) -> tuple[str, int]:
    """As whom, address and port, the host sees the workload."""
    (address, *_) = (str(each) for each in server.addresses if each.version == 4)
    descriptor = netns.open_namespace(str(server.namespace))
    try:
        listening = netns.socket_in(descriptor, socket.AF_INET, socket.SOCK_STREAM)
    finally:
        os.close(descriptor)
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, PORT))
        listening.listen()
        listening.settimeout(5)
        with client.open_socket(socket.AF_INET, socket.SOCK_STREAM) as one:
            one.settimeout(5)
            one.connect((address, PORT))
            accepted, peer = listening.accept()
            accepted.close()
    return str(peer[0]), int(peer[1])


@pytest.mark.parametrize("driver", ["nftables", "iptables"])
def test_the_node_follows_what_the_datastore_says_of_it(lab: Laboratory, driver: str) -> None:
    here, there = lab.hosts
    mine = str(here.addresses[0])
    environment = {"CALICO_DATAPLANE_DRIVER": driver, "CALICO_IPV4POOL_NAT_OUTGOING": "true"}
    there.start_node(environment=environment)
    here.calicoctl("config", "set", "NATPortRange", "50000:50007")
    here.start_node(environment=environment)
    here.install_cni()
    workload = lab.add_workload(here)
    workload.attach(network="net")
    assert probe_until(workload, there, "icmp", is_reachable=True, within_s=10).is_reachable
    address, port = seen(workload, there)
    assert (address, 50000 <= port <= 50007) == (mine, True)

    own = str(workload.addresses[0])
    there.run(("ip", "route", "replace", own, "via", mine))
    here.stop_node()
    here.calicoctl("config", "set", "NATOutgoingExclusions", "IPPoolsAndHostIPs")
    here.start_node(environment=environment)
    assert probe_until(workload, there, "icmp", is_reachable=True, within_s=10).is_reachable
    assert seen(workload, there)[0] == own

    here.stop_node()
    here.calicoctl("config", "remove", "NATOutgoingExclusions")
    here.calicoctl("config", "set", "IptablesNATOutgoingInterfaceFilter", "nowhere+")
    here.start_node(environment=environment)
    assert probe_until(workload, there, "icmp", is_reachable=True, within_s=10).is_reachable
    assert seen(workload, there)[0] == own, "it leaves by another interface"
