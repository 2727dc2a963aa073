"""CHECK finds what was damaged behind our back, and nothing where a later plugin did its work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import Container, a_network, records, whole_state

pytestmark = pytest.mark.needs_root


class Damaged:
    """One container, and ways to hurt what its ADD made."""

    def __init__(self, container: Container, result: dict[str, Any]) -> None:
        self.container = container
        self.host = container.host
        self.link: str = result["interfaces"][0]["name"]
        self.address: str = result["ips"][0]["address"].partition("/")[0]

    def on_host(self, *argv: str) -> None:
        self.host.run(argv)

    def write(self, path: str, value: str) -> None:
        self.on_host("sh", "-c", f"echo {value} > /proc/sys/net/{path}")

    def drop_route(self) -> None:
        """Until it stays away: the node looks at a new interface once more, a moment after the attach."""
        route = f"{self.address}/32"
        deadline = time.monotonic() + 10
        while self.host.run(("ip", "route", "show", route)).stdout:
            assert time.monotonic() < deadline
            self.on_host("ip", "route", "delete", route)
            time.sleep(0.2)

    def release(self) -> None:
        self.host.calicoctl("ipam", "release", "--force", self.address)


DAMAGES: dict[str, tuple[Callable[[Damaged], object], str]] = {
    "host interface": (lambda it: it.on_host("ip", "link", "delete", it.link), "is missing"),
    "host interface down": (lambda it: it.on_host("ip", "link", "set", it.link, "down"), "is down"),
    "host MAC": (lambda it: it.on_host("ip", "link", "set", it.link, "address", "02:00:00:00:00:01"), "MAC"),
    "host route": (lambda it: it.drop_route(), "host route"),
    "proxy ARP": (lambda it: it.write(f"ipv4/conf/{it.link}/proxy_arp", "0"), "proxy_arp"),
    "forwarding": (lambda it: it.write(f"ipv4/conf/{it.link}/forwarding", "0"), "forwarding"),
    "container interface renamed": (
        lambda it: [
            it.container.ip("link", "set", "eth0", "down"),
            it.container.ip("link", "set", "eth0", "name", "x"),
        ],
        "eth0 is missing",
    ),
    "container interface down": (lambda it: it.container.ip("link", "set", "eth0", "down"), "is down"),
    "address": (lambda it: it.container.ip("address", "flush", "dev", "eth0"), "address"),
    "default route": (lambda it: it.container.ip("route", "delete", "default"), "0.0.0.0/0"),
    "route to the next hop": (
        lambda it: [it.container.ip("route", "delete", "default"), it.container.ip("route", "delete", "169.254.1.1")],
        "169.254.1.1",
    ),
    "address released": (lambda it: it.release(), "does not hold"),
}


@pytest.mark.parametrize("kind", list(DAMAGES))
def test_damage_is_found_and_named(shared_host: LabHost, shared_container: Container, kind: str) -> None:
    before = whole_state(shared_host)
    damage, says = DAMAGES[kind]
    result = shared_container.call("ADD")
    with_result = a_network(prevResult=result)
    assert shared_container.call("CHECK", with_result) is None
    try:
        damage(Damaged(shared_container, result))
        error = shared_container.refused("CHECK", with_result)
        assert says in error["msg"], error
        assert error["code"] == 100
    finally:
        shared_container.ip("link", "delete", "x") if kind == "container interface renamed" else None
        shared_container.call("DEL", with_result)
    assert records(shared_host) == before["store"]


def test_the_interface_of_another_pair(shared_container: Container) -> None:
    result = shared_container.call("ADD")
    shared_container.ip("link", "delete", "eth0")
    shared_container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far")
    error = shared_container.refused("CHECK", a_network(prevResult=result))
    assert "is missing" in error["msg"]
    shared_container.ip("link", "delete", "eth0")
    shared_container.call("DEL")


def test_the_record_of_another_container(shared_container: Container) -> None:
    result = shared_container.call("ADD")
    error = shared_container.refused("CHECK", a_network(prevResult=result), container_id="somebody-else")
    assert "is missing" in error["msg"]
    shared_container.call("DEL")
    assert "is missing" in shared_container.refused("CHECK", a_network(prevResult=result))["msg"]


def test_what_later_plugins_change_is_no_damage(shared_host: LabHost, shared_container: Container) -> None:
    result = shared_container.call("ADD")
    shared_container.ip("link", "set", "eth0", "address", "02:00:00:00:00:99")
    shared_container.ip("link", "set", "eth0", "mtu", "1300")
    shared_container.ip("route", "add", "10.250.0.0/16", "via", "169.254.1.1")
    shared_container.ip("link", "set", "eth0", "promisc", "on")
    result["routes"].append({"dst": "10.250.0.0/16", "gw": "169.254.1.1"})
    assert shared_container.call("CHECK", a_network(prevResult=json.loads(json.dumps(result)))) is None
    shared_container.call("DEL")
    assert records(shared_host)["in use"] == []
