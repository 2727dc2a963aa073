"""containerd's CRI service, on which a kubelet makes its pods: the pods come up with our network, and nothing of them
is left. ``CALICO_CRI_PODS`` says how many; they are made and ended sixteen at once."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import REFERENCE, assert_settles, records, whole_state
from tests.e2e.cni.cri import Cri
from tests.e2e.observing import MakeLab

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(shutil.which("containerd") is None, reason="containerd is not installed"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed"),
    pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference CNI plugins are not installed"),
    pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="busybox-static is not installed"),
]

PODS = int(os.environ.get("CALICO_CRI_PODS", "24"))
AT_ONCE = 16
PAUSE = "registry.k8s.io/pause:3.6"
_START_S = 30.0

CONFIGURATION = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin_dir}"
    conf_dir = "{conf_dir}"
"""


def pause_archive(target: Path) -> None:
    """A docker-archive with an image that sleeps: busybox and nothing else."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "100000"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]
    members = {
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
        "layer.tar": layer.getvalue(),
    }
    with tarfile.open(target, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


class Containerd:
    """One daemon inside a laboratory host, with storage, state and configuration of its own."""

    def __init__(self, host: LabHost, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.socket = folder / "containerd.sock"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        # the runtime adds the loopback by itself, with the reference plugin
        (host.cni_bin_directory / "loopback").symlink_to(REFERENCE / "loopback")
        (folder / "config.toml").write_text(
            CONFIGURATION.format(
                folder=folder, pause=PAUSE, bin_dir=host.cni_bin_directory, conf_dir=host.cni_conf_directory
            )
        )

    def start(self) -> Cri:
        """Returns when it serves and its network is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("nsenter", f"--net={self.host.namespace}", "--"),
                    *("containerd", "--config", str(self.folder / "config.toml")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
                start_new_session=True,
            )
        cri = Cri(self.socket)
        deadline = time.monotonic() + _START_S
        try:
            while not self._is_ready(cri):
                assert time.monotonic() < deadline, "containerd does not start: " + self._log.read_text()[-3000:]
                assert self._process.poll() is None, "containerd ended: " + self._log.read_text()[-3000:]
                time.sleep(0.05)
        except BaseException:  # who gets no daemon ends none
            cri.close()
            self.kill()
            raise
        return cri

    def load_pause(self) -> None:
        archive = self.folder / "pause.tar"
        pause_archive(archive)
        subprocess.run(
            ["ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "import", "--snapshotter=native", str(archive)],
            check=True,
            capture_output=True,
        )

    def kill(self) -> None:
        """As by a crash; its pods live on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def remove(self) -> None:
        """The daemon, and whatever shims and mounts it left below its folder."""
        self.kill()
        for pid in self._below():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((each for each in mounts if each.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)

    def _below(self) -> list[int]:
        """Processes that were started with our socket or our folder in their arguments."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.folder).encode() in line and b"containerd" in line:
                    found.append(int(entry.name))
        return found

    def _is_ready(self, cri: Cri) -> bool:
        try:
            return self.socket.exists() and cri.is_network_ready()
        except grpc.RpcError:
            return False


@pytest.fixture
def containerd(make_lab: MakeLab) -> Iterator[tuple[Containerd, Cri]]:
    host: LabHost = make_lab(1).hosts[0]
    with tempfile.TemporaryDirectory(prefix="cri", ignore_cleanup_errors=True) as folder:
        daemon = Containerd(host, Path(folder))
        try:
            with contextlib.closing(daemon.start()) as cri:
                daemon.load_pause()
                yield daemon, cri
        finally:
            daemon.remove()


def test_pods_come_and_go(containerd: tuple[Containerd, Cri], capsys: pytest.CaptureFixture[str]) -> None:
    daemon, cri = containerd
    before = whole_state(daemon.host)
    times: list[float] = []

    def make(number: int) -> str:
        started = time.monotonic()
        pod = cri.run(f"pod-{number}")
        times.append((time.monotonic() - started) * 1000)
        return pod

    with ThreadPoolExecutor(AT_ONCE) as pool:
        started = time.monotonic()
        pods = list(pool.map(make, range(PODS)))
        made = time.monotonic()
        addresses = list(pool.map(cri.address, pods))
        assert len(set(addresses)) == PODS
        state = records(daemon.host)
        assert len(state["in use"]) == PODS
        assert {pod for pod in pods if not any(f"/{pod}/endpoint/" in key for key in state)} == set()
        assert reaches(daemon.host, addresses[-1])
        ending = time.monotonic()
        list(pool.map(end, [(cri, pod) for pod in pods]))
        ended = time.monotonic()
    assert_settles(daemon.host, before)
    with capsys.disabled():
        print(
            f"\n{PODS} pods, {AT_ONCE} at once: made in {made - started:.1f} s "
            f"(median {statistics.median(times):.0f} ms each), ended in {ended - ending:.1f} s"
        )


def test_a_pod_made_anew_and_a_daemon_that_crashed(containerd: tuple[Containerd, Cri]) -> None:
    daemon, cri = containerd
    before = whole_state(daemon.host)
    first = cri.run("web", attempt=0)
    cri.stop(first)
    second = cri.run("web", attempt=1)
    cri.remove(first)
    assert reaches(daemon.host, cri.address(second))
    daemon.kill()
    daemon.host.kill_node()
    daemon.host.start_node()
    with contextlib.closing(daemon.start()) as again:
        assert reaches(daemon.host, again.address(second))
        again.stop(second)
        again.remove(second)
    assert_settles(daemon.host, before)


def end(which: tuple[Cri, str]) -> None:
    cri, pod = which
    cri.stop(pod)
    cri.remove(pod)


def reaches(host: LabHost, address: str) -> bool:
    return host.run(["ping", "-c", "1", "-W", "10", address], check=False).returncode == 0
