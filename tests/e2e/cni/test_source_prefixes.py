"""A pod that sends for others, from its annotation to the packets, with the real node and the real CNI programs."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from calico_core.dataplane.linux import netns
from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import Container, assert_settles, containers, whole_state
from tests.e2e.cni.test_pods import OPEN, PREFIX, a_pod, a_pod_network, addresses_in, api_in
from tests.e2e.observing import MakeLab

pytestmark = pytest.mark.needs_root

HEARD_S, UNHEARD_S = 4.0, 0.4
INSIDE, BESIDE = ("203.0.113.7", "2001:db8:7::7"), ("203.0.114.7", "2001:db8:8::7")
PREFIXES = ("203.0.113.0/24", "2001:db8:7::/64")
SPOOFING = {"FELIX_WORKLOADSOURCESPOOFING": "Any"}


def is_heard(sender: Container, source: str, receiver: Container, address: str, within_s: float) -> bool:
    """Whether a datagram from this source arrives as from it."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    opened: list[socket.socket] = []
    for container in (receiver, sender):
        descriptor = netns.open_namespace(str(container.namespace))
        opened.append(netns.socket_in(descriptor, family, socket.SOCK_DGRAM))
        os.close(descriptor)
    listening, sending = opened
    with listening, sending:
        listening.bind((address, 4000))
        listening.settimeout(within_s)
        sending.bind((source, 0))
        # one that asked in vain for its gateway waits a second before it asks again
        sender.ip("-6", "neighbour", "flush", "dev", "eth0", "nud", "all")
        sending.sendto(b"probe", (address, 4000))
        try:
            return bool(listening.recvfrom(64)[1][0] == source)
        except TimeoutError:
            return False


def assert_heard(gateway: Container, client: Container, addresses: list[str], *, are_let: bool) -> None:
    for inside, beside, address in zip(INSIDE, BESIDE, addresses, strict=True):
        assert is_heard(gateway, inside, client, address, HEARD_S if are_let else UNHEARD_S) is are_let, inside
        assert not is_heard(gateway, beside, client, address, UNHEARD_S), beside


def told(host: LabHost) -> int:
    return host.node_log.read_text().count("endpoint.source_prefixes_ignored")


def test_a_pod_sends_for_others_where_its_node_lets_it(make_lab: MakeLab, tmp_path: Path) -> None:
    host: LabHost = make_lab(1, ipv6=True).hosts[0]
    before = whole_state(host)
    host.calicoctl("policy", "add", "default", "open", "--selector", "all()", *OPEN)
    with api_in(host, tmp_path) as api, containers(host, 2, prefix="s") as (gateway, client):
        asked = {f"{PREFIX}allowedSourcePrefixes": json.dumps(PREFIXES)}
        api.put("pods", "gateway", "shop", annotations=asked, spec={})
        api.put("pods", "client", "shop", spec={})
        network = a_pod_network(api, ipam={"type": "calico-ipam", "assign_ipv6": "true"})
        gateway.call("ADD", network, environment=a_pod("gateway"))
        addresses = addresses_in(client.call("ADD", network, environment=a_pod("client")))
        for source in (*INSIDE, *BESIDE):
            nodad = ("nodad",) if ":" in source else ()
            gateway.ip("address", "add", f"{source}/{128 if nodad else 32}", "dev", "eth0", *nodad)
        rows = json.loads(host.calicoctl("endpoint", "show", "-o", "json").stdout)
        (endpoint,) = [row["endpoint"] for row in rows if row["source_prefixes"] == list(PREFIXES)]
        assert_heard(gateway, client, addresses, are_let=False)
        assert told(host) == 1

        host.stop_node()
        host.start_node(environment=SPOOFING)
        assert_heard(gateway, client, addresses, are_let=True)
        assert not is_heard(client, addresses[0], gateway, INSIDE[0], UNHEARD_S), "nothing leads back"
        host.calicoctl("endpoint", endpoint, "source-prefix", "set", PREFIXES[1])
        assert_follows(gateway, client, addresses, is_let=False)
        assert is_heard(gateway, INSIDE[1], client, addresses[1], HEARD_S)
        host.calicoctl("endpoint", endpoint, "source-prefix", "set", *PREFIXES)
        assert_follows(gateway, client, addresses, is_let=True)
        assert_heard(gateway, client, addresses, are_let=True)
        assert told(host) == 1

        host.stop_node()
        host.start_node()
        assert_heard(gateway, client, addresses, are_let=False)
        assert told(host) == 2
        gateway.call("DEL", network, environment=a_pod("gateway"))
        client.call("DEL", network, environment=a_pod("client"))
    host.calicoctl("policy", "remove", "default", "open")
    assert_settles(host, before)


def assert_follows(gateway: Container, client: Container, addresses: list[str], *, is_let: bool) -> None:
    """The node hears of a record in its own time; packets say when it has."""
    for _attempt in range(20):
        if is_heard(gateway, INSIDE[0], client, addresses[0], UNHEARD_S) is is_let:
            return
    pytest.fail(f"packets from {INSIDE[0]} are {'not ' if is_let else ''}let through")
