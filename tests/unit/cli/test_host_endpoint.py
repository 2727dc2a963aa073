"""``calicoctl host-endpoint`` and ``calicoctl network-set``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import EndpointPort, HostEndpoint
from calico_core.model.keys import HostEndpointKey, NetworkSetKey
from calico_core.model.policies import NetworkSet

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl

ADD = (
    "host-endpoint", "add", "uplink", "--host", "rack-a", "--interface", "eth0", "--address", "192.0.2.1",
    "--address", "fd00::1", "--profile", "web", "--label", "role=edge", "--port", "http:tcp:80",
)  # fmt: skip


def test_add_show_remove(calicoctl: Calicoctl, records: TypedRecords) -> None:
    assert calicoctl.ok(*ADD) == "host endpoint uplink of host rack-a created\n"
    assert calicoctl.ok(*ADD) == "host endpoint uplink of host rack-a unchanged\n"
    found = records.get(HostEndpointKey("rack-a", "uplink"))
    assert found is not None
    assert found.record == HostEndpoint(
        name="eth0",
        expected_ipv4_addrs=(IPAddress("192.0.2.1"),),
        expected_ipv6_addrs=(IPAddress("fd00::1"),),
        profile_ids=("web",),
        labels={"role": "edge"},
        ports=(EndpointPort(name="http", protocol="tcp", port=80),),
    )
    everywhere = ("host-endpoint", "add", "all", "--host", "rack-b", "--interface", "*")
    assert calicoctl.ok(*everywhere) == "host endpoint all of host rack-b created\n"
    rows = calicoctl("host-endpoint", "show", "-o", "json").json
    assert [(row["host"], row["name"], row["interface"], row["ports"]) for row in rows] == [
        ("rack-a", "uplink", "eth0", ["http:tcp:80"]),
        ("rack-b", "all", "*", []),
    ]
    assert "192.0.2.1" in calicoctl.ok("host-endpoint", "show", "--host", "rack-a")
    assert calicoctl.ok(*ADD[:-2]).endswith("updated\n")
    remove = ("host-endpoint", "remove", "uplink", "--host", "rack-a")
    assert calicoctl.ok(*remove) == "host endpoint uplink of host rack-a removed\n"
    assert calicoctl(*remove).code == 4
    assert "nothing to remove" in calicoctl.ok(*remove, "--ignore-missing")
    assert calicoctl.ok("host-endpoint", "add", "vlan", "--interface", "eth0.100").endswith("created\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--interface: name the interface, or give an --address it has"),
        (("--interface", "eth 0"), "--interface"),
        (("--address", "10"), "--address"),
        (("--address", "192.0.2.1", "--label", "role"), "--label: 'role' is not NAME=VALUE"),
        (("--address", "192.0.2.1", "--port", "http:80"), "--port: 'http:80' is not NAME:PROTOCOL:PORT"),
        (("--address", "192.0.2.1", "--port", "http:icmp:80"), "tcp, udp"),
        (("--address", "192.0.2.1", "--profile", "a b"), "--profile"),
    ],
)
def test_refusals(calicoctl: Calicoctl, options: tuple[str, ...], says: str) -> None:
    done = calicoctl("host-endpoint", "add", "uplink", "--host", "rack-a", *options)
    assert done.code == 2
    assert says in done.err


def test_network_sets(calicoctl: Calicoctl, records: TypedRecords) -> None:
    add = ("network-set", "add", "office", "192.0.2.0/24", "fd00::/8", "192.0.2.0/24", "--label", "site=north")
    assert calicoctl.ok(*add) == "network set office created\n"
    assert calicoctl.ok(*add) == "network set office unchanged\n"
    found = records.get(NetworkSetKey("office"))
    assert found is not None
    nets = (IPNetwork("192.0.2.0/24"), IPNetwork("fd00::/8"))
    assert found.record == NetworkSet(nets=nets, labels={"site": "north"})
    assert calicoctl("network-set", "show", "-o", "json").json == [
        {"name": "office", "nets": ["192.0.2.0/24", "fd00::/8"], "labels": {"site": "north"}}
    ]
    assert "site=north" in calicoctl.ok("network-set", "show", "office")
    assert calicoctl("network-set", "show", "none").code == 4
    assert calicoctl("network-set", "add", "office", "192.0.2.0/33").code == 2
    assert calicoctl.ok("network-set", "remove", "office") == "network set office removed\n"
    assert calicoctl("network-set", "remove", "office").code == 4
    assert "nothing to remove" in calicoctl.ok("network-set", "remove", "office", "--ignore-missing")
