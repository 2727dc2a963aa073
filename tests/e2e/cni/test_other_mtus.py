"""``calicoctl cni status`` lists interfaces whose MTU an attach would not give them now."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import containers
from tests.e2e.observing import MakeLab

pytestmark = pytest.mark.needs_root


def listed(host: LabHost) -> list[dict[str, Any]]:
    found = host.calicoctl(
        *("cni", "status", "-o", "json"),
        *("--bin-dir", str(host.cni_bin_directory), "--conf-dir", str(host.cni_conf_directory)),
        *("--socket", str(host.socket)),
    )
    mtus: list[dict[str, Any]] = json.loads(found.stdout)["other_mtus"]
    return mtus


def test_those_from_before_it_was_changed(make_lab: MakeLab) -> None:
    host: LabHost = make_lab(1).hosts[0]
    with containers(host, 2) as (old, new):
        interface = old.call("ADD")["interfaces"][0]["name"]
        assert listed(host) == []  # neither the list nor the node names one
        host.stop_node()
        host.start_node(environment={"CALICO_MTU": "1400"})
        new.call("ADD")
        (found,) = listed(host)
        assert (found["interface"], found["mtu_bytes"], found["would_be_bytes"]) == (interface, 1500, 1400)
        assert old.id in found["endpoint"]
        network = host.cni_conf_directory / "10-calico.conflist"
        whole = json.loads(network.read_text())
        whole["plugins"][0]["mtu"] = 1500
        network.write_text(json.dumps(whole))
        assert [each["mtu_bytes"] for each in listed(host)] == [1400]
        for container in (old, new):
            container.call("DEL")
        assert listed(host) == []


def test_without_a_node_nothing_is_known(make_lab: MakeLab) -> None:
    host: LabHost = make_lab(1).hosts[0]
    host.stop_node()
    status = host.calicoctl("cni", "status", "-o", "json", check=False)
    assert json.loads(status.stdout)["other_mtus"] == []
