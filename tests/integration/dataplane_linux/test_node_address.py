"""Which address a node finds for itself, among real interfaces."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from netaddr import IPAddress

from calico_core.dataplane.linux import netns
from calico_core.model.interface_names import parse_interface_names
from calico_core.node.addresses import node_address

pytestmark = pytest.mark.needs_root

SERVICES, OWN = "203.0.113.1", "192.0.2.1"


def found(host: Any, excluded: str) -> IPAddress | None:
    is_excluded = parse_interface_names(excluded)
    return netns.run_in(host.fd, lambda: node_address("autodetect", 4, is_excluded=is_excluded))


def test_an_excluded_interface_gives_the_host_no_address(host: Any) -> None:
    def run(*argv: str) -> None:
        subprocess.run(("ip", "-n", host.name, *argv), check=True)

    run("link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "far0")
    run("link", "add", "eth0", "type", "veth", "peer", "name", "far1")
    for device, address in (("kube-ipvs0", SERVICES), ("eth0", OWN)):
        run("address", "add", f"{address}/24", "dev", device)
        run("link", "set", device, "up")
    assert found(host, "") == IPAddress(SERVICES), "the first in the kernel's order"
    assert found(host, "kube-ipvs0") == IPAddress(OWN)
    assert found(host, "/^kube-/,eth0") is None
    # the way to the world leads over it, too
    run("route", "add", "default", "via", "203.0.113.9", "dev", "kube-ipvs0")
    assert found(host, "eth1") == IPAddress(SERVICES)
    assert found(host, "kube-ipvs0") == IPAddress(OWN)
    run("route", "replace", "default", "via", "192.0.2.9", "dev", "eth0")
    assert found(host, "") == IPAddress(OWN), "where the default route leads comes first"
