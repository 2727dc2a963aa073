"""How a laboratory calls CNI plugins: with a small working plugin in the place of ours."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

from calico_core.errors import ToolFailed
from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory

pytestmark = pytest.mark.needs_root

PLUGIN = """#!{python}
import json, os, sys
config = json.load(sys.stdin)
variables = {{name: value for name, value in os.environ.items() if name.startswith("CNI_")}}
inside = os.readlink("/proc/self/ns/net")
with open({calls!r}, "a") as file:
    file.write(json.dumps({{"config": config, "variables": variables, "inside": inside}}) + "\\n")
if config["name"] == "broken":
    print(json.dumps({{"cniVersion": "1.0.0", "code": 101, "msg": "no address is left", "details": "pool 10.1/16"}}))
    sys.exit(1)
if config["name"] == "mute":
    sys.exit("terminated")
if variables["CNI_COMMAND"] == "ADD":
    if config["cniVersion"] == "0.2.0":
        print(json.dumps({{"cniVersion": "0.2.0", "ip4": {{"ip": "10.1.0.9/32"}}}}))
    else:
        ips = [{{"address": each}} for each in ("10.1.0.7/32", "fd00::7/128")]
        print(json.dumps({{"cniVersion": "1.0.0", "ips": ips}}))
"""


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    with Laboratory.create(f"c{uuid.uuid4().hex[:8]}", 1) as made:
        yield made


@pytest.fixture
def calls(lab: Laboratory) -> Path:
    (host,) = lab.hosts
    plugin = host.cni_bin_directory / "calico"
    plugin.write_text(PLUGIN.format(python=sys.executable, calls=str(host.directory / "calls")))
    plugin.chmod(0o755)
    return host.directory / "calls"


def said(calls: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in calls.read_text().splitlines()]


def test_attaching_is_what_a_runtime_does(lab: Laboratory, calls: Path) -> None:
    workload = lab.add_workload("host1", "web")
    result = workload.attach(network="net", cni_args={"IP": "10.1.0.7", "K8S_POD_NAME": "p"}, config={"mtu": 1400})
    assert result["cniVersion"] == "1.0.0"
    assert workload.addresses == (IPAddress("10.1.0.7"), IPAddress("fd00::7"))
    (call,) = said(calls)
    assert call["variables"] == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": workload.container_id,
        "CNI_NETNS": str(workload.namespace),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(lab.hosts[0].cni_bin_directory),
        "CNI_ARGS": "IP=10.1.0.7;K8S_POD_NAME=p",
    }
    assert call["config"] == {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "calico",
        "ipam": {"type": "calico-ipam"},
        "mtu": 1400,
    }
    assert call["inside"] == f"net:[{lab.hosts[0].namespace.stat().st_ino}]"
    # another process sees the same
    again = Laboratory.load(lab.name).workload("web")
    assert (again.network, again.addresses, again.container_id) == ("net", workload.addresses, workload.container_id)


def test_detaching_names_the_same_attachment_and_can_be_repeated(lab: Laboratory, calls: Path) -> None:
    workload = lab.add_workload("host1")
    workload.detach()  # never attached
    workload.attach(network="net", cni_args={"A": "b"})
    workload.detach()
    workload.detach()
    assert [call["variables"]["CNI_COMMAND"] for call in said(calls)] == ["ADD", "DEL"]
    assert said(calls)[1]["variables"]["CNI_ARGS"] == "A=b"
    assert (workload.network, workload.addresses) == ("", ())
    assert lab.status().workloads[0].network == ""


def test_an_old_result_is_understood(lab: Laboratory, calls: Path) -> None:
    workload = lab.add_workload("host1")
    workload.attach(network="net", config={"cniVersion": "0.2.0"})
    assert workload.addresses == (IPAddress("10.1.0.9"),)


def test_a_refusal_carries_the_plugins_words_and_is_undone_by_detach(lab: Laboratory, calls: Path) -> None:
    workload = lab.add_workload("host1")
    with pytest.raises(ToolFailed, match=r"no address is left pool 10\.1/16 \(CNI code 101\)"):
        workload.attach(network="broken")
    assert workload.network == "broken"  # half made, for all we know
    with pytest.raises(ToolFailed):
        workload.detach()
    with pytest.raises(ToolFailed, match="terminated"):
        workload.attach(network="mute")


def test_deleting_detaches_first(lab: Laboratory, calls: Path) -> None:
    workload = lab.add_workload("host1")
    workload.attach(network="net")
    workload.delete()
    assert [call["variables"]["CNI_COMMAND"] for call in said(calls)] == ["ADD", "DEL"]
    assert not workload.namespace.exists()
    assert lab.workloads == ()


def test_other_commands_are_the_callers_to_judge(lab: Laboratory, calls: Path) -> None:
    workload = lab.add_workload("host1")
    done = workload.call_cni("CHECK", network="broken", environment={"CNI_IFNAME": "net1"})
    assert done.returncode == 1
    assert said(calls)[0]["variables"]["CNI_IFNAME"] == "net1"


def test_the_real_calicoctl_installs_the_real_plugin(lab: Laboratory) -> None:
    host: LabHost = lab.hosts[0]
    host.install_cni()
    assert {path.name for path in host.cni_bin_directory.iterdir()} >= {"calico", "calico-ipam"}
    assert list(host.cni_conf_directory.iterdir()) != []
    # Compiled where there is a compiler, a script elsewhere: the node's socket stands in both.
    assert str(host.socket).encode() in (host.cni_bin_directory / "calico").read_bytes()
    version = lab.add_workload(host).call_cni("VERSION", network="net")
    assert "1.0.0" in json.loads(version.stdout)["supportedVersions"]
