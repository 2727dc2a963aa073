"""podman, network backend CNI: the closest living thing to rkt. Source of the set-up: its own documentation."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from tests.e2e.observing import MakeLab, kernel_state, workload_keys
from tests.waiting import eventually

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed"),
    pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="busybox-static is not installed"),
]


class Podman:
    """podman inside a laboratory host, with storage and configuration of its own."""

    def __init__(self, host: LabHost, folder: Path) -> None:
        self._host = host
        self._folder = folder
        networks = folder / "net.d"
        networks.mkdir()
        for name in ("blue", "green"):
            conflist = {
                "cniVersion": "0.4.0",
                "name": name,
                "plugins": [{"type": "calico", "ipam": {"type": "calico-ipam"}}],
            }
            (networks / f"10-{name}.conflist").write_text(json.dumps(conflist))
        (folder / "containers.conf").write_text(
            f'[network]\nnetwork_backend = "cni"\ncni_plugin_dirs = ["{host.cni_bin_directory}"]\n'
            f'network_config_dir = "{networks}"\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
            "[containers]\ndefault_sysctls = []\n"
        )

    def __call__(self, *arguments: str, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return self._host.run(
            [
                *("podman", "--root", f"{self._folder}/root", "--runroot", f"{self._folder}/run"),
                *("--storage-driver", "vfs", *arguments),
            ],
            environment={"CONTAINERS_CONF": f"{self._folder}/containers.conf"},
            check=check,
            timeout_s=timeout_s,
        )

    def run(self, name: str, network: str, *options: str) -> str:
        """Start a container that sleeps; its address in the network."""
        self(
            *("run", "-d", "--name", name, "--network", network, *options),
            *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "bb:1", "/bin/sleep", "600"),
        )
        address = self.networks(name)[network]["IPAddress"]
        assert isinstance(address, str)
        return address

    def networks(self, name: str) -> dict[str, Any]:
        """As podman has them of a container, by name of the network."""
        return dict(json.loads(self("inspect", name).stdout)[0]["NetworkSettings"]["Networks"])

    def inside(self, name: str, *argv: str) -> str:
        return self("exec", name, *argv).stdout

    def pings(self, name: str, address: str, *, within_s: int = 10) -> bool:
        argv = ("/bin/ping", "-c", "1", "-W", str(within_s), address)
        return self("exec", name, *argv, check=False).returncode == 0


@pytest.fixture
def podman(make_lab: MakeLab) -> Iterator[tuple[LabHost, Podman]]:
    host = make_lab(1).hosts[0]
    with tempfile.TemporaryDirectory(prefix="pm") as folder:  # podman refuses long paths
        yield from _podman(host, Path(folder))


def _podman(host: LabHost, tmp_path: Path) -> Iterator[tuple[LabHost, Podman]]:
    runner = Podman(host, tmp_path)
    root = tmp_path / "rootfs" / "bin"
    root.mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "busybox")
    for program in ("sh", "ip", "ping", "sleep"):
        (root / program).symlink_to("busybox")
    archive = tmp_path / "bb.tar"
    subprocess.run(["tar", "-C", tmp_path / "rootfs", "-cf", archive, "."], check=True)
    runner("import", str(archive), "bb:1")
    yield host, runner
    runner("rm", "-f", "-a", "-t", "0", check=False)
    runner("rmi", "-f", "bb:1", check=False)


def test_two_containers_denied_then_allowed_and_nothing_left(podman: tuple[LabHost, Podman]) -> None:
    host, run = podman
    suffix = uuid.uuid4().hex[:6]
    before = kernel_state(host)
    first, second = f"a{suffix}", f"b{suffix}"
    address = run.run(first, "blue")
    run.run(second, "green")
    assert len(workload_keys(host)) == 3  # two endpoints and a pool in use
    assert not run.pings(second, address, within_s=1)

    host.calicoctl("profile", "blue", "rule", "add", "inbound", "allow", "from", "tag", "green")
    eventually(lambda: run.pings(second, address, within_s=1))

    run("rm", "-f", "-t", "0", first)
    host.calicoctl("ipam", "show", address)
    assert "not assigned" in host.calicoctl("ipam", "show", address).stdout
    run("rm", "-f", "-t", "0", second)
    assert workload_keys(host) == []
    assert kernel_state(host) == before


def test_one_network_talks(podman: tuple[LabHost, Podman]) -> None:
    _, run = podman
    suffix = uuid.uuid4().hex[:6]
    address = run.run(f"a{suffix}", "blue")
    run.run(f"b{suffix}", "blue")
    assert run.pings(f"b{suffix}", address)


def test_a_container_in_two_networks(podman: tuple[LabHost, Podman]) -> None:
    """An interface and an address of each; one network can be left, and joined again."""
    host, run = podman
    before = kernel_state(host)
    name = f"t{uuid.uuid4().hex[:6]}"
    run.run(name, "blue", "--network", "green")
    addresses = {network: found["IPAddress"] for network, found in run.networks(name).items()}
    assert len(set(addresses.values())) == 2

    def has(network: str) -> bool:
        return f"inet {addresses[network]}/32" in run.inside(name, "/bin/ip", "-4", "address")

    assert (has("blue"), has("green")) == (True, True)
    run("network", "disconnect", "green", name)
    assert (has("blue"), has("green")) == (True, False)
    assert "not assigned" in host.calicoctl("ipam", "show", addresses["green"]).stdout
    run("network", "connect", "green", name)
    addresses["green"] = run.networks(name)["green"]["IPAddress"]
    assert (has("blue"), has("green")) == (True, True)
    run("rm", "-f", "-t", "0", name)
    assert workload_keys(host) == []
    assert kernel_state(host) == before


def test_an_address_and_a_mac_of_ones_own_and_a_restart(podman: tuple[LabHost, Podman]) -> None:
    host, run = podman
    name = f"s{uuid.uuid4().hex[:6]}"
    wanted, mac = "192.168.99.7", "02:00:5e:00:00:63"
    assert run.run(name, "blue", "--ip", wanted, "--mac-address", mac) == wanted
    for _ in range(2):
        assert mac in run.inside(name, "/bin/ip", "link", "show", "eth0")
        assert wanted in host.calicoctl("ipam", "show", wanted).stdout
        assert host.run(["ping", "-c", "1", "-W", "10", wanted], check=False).returncode == 0
        run("restart", "-t", "0", name)
    run("rm", "-f", "-t", "0", name)
    assert workload_keys(host) == []
