"""A real Kubernetes in a laboratory: control plane on the fabric, containerd and a kubelet on every host, our CNI.

The programs are those of a folder, made by ``build.py``. Source of the flags: their own ``--help`` and the
configuration API of the kubelet, version 1.33.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netaddr import IPAddress

from calico_core.lab.host import LabHost
from calico_core.lab.processes import entering, tail
from calico_core.lab.station import PlainStation
from calico_core.lab.topology import Laboratory

TOKEN = "admintoken"
NODE_TOKEN = "nodetoken"
"""Of the user ``calico-node``, who may do what the guide says and nothing else."""
GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "kubernetes.md"
PAUSE_IMAGE = "registry.k8s.io/pause:3.6"
IMAGE = "docker.io/library/bb:1"
_PROGRAMS_OF_BUSYBOX = ("sh", "ip", "ping", "nc", "httpd", "sleep", "cat", "ls")


class Cluster:
    """``lab`` is up. :meth:`start` may take half a minute. ``kubeconfig`` may do anything; ``node_kubeconfig`` is there
    from the beginning, so that nodes can be told of it before the API runs."""

    def __init__(self, lab: Laboratory, programs: Path, folder: Path) -> None:
        self.lab = lab
        self._programs = programs
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._address = lab.fabric.addresses[0]
        self.server = f"https://{self._address}:6443"
        self.kubeconfig = folder / "kubeconfig"
        self.node_kubeconfig = folder / "node-kubeconfig"
        self._write_credentials()

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._start_etcd()
        self.start_api()
        self.kubectl("apply", "-f", "-", stdin=rights_of_a_node())
        self._start("kube-controller-manager", *self._controller_manager())
        self._start("kube-scheduler", "--kubeconfig", str(self.kubeconfig), "--leader-elect=false")
        archive = self._image_archive()
        for host in self.lab.hosts:
            self._start_containerd(host, archive)
            self._start_kubelet(host)

    def start_api(self) -> None:
        self._start("kube-apiserver", *self._api_server())
        self.await_(self.is_api_ready, "the API server", within_s=60)

    def kill_api(self) -> None:
        process = self._running.pop("kube-apiserver")
        process.kill()
        process.wait(20)

    def freeze_api(self) -> None:
        """Connected, and deaf."""
        self._running["kube-apiserver"].send_signal(signal.SIGSTOP)

    def thaw_api(self) -> None:
        self._running["kube-apiserver"].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Pods first, so that no shim stays behind; what is left of them is ended by containerd's own tool."""
        if "kube-apiserver" in self._running:
            self.thaw_api()
            self.kubectl("delete", "pods", "-A", "--all", "--force", "--grace-period=0", "--wait=false", check=False)
            self._await_quietly(lambda: not any(self._tasks(host) for host in self.lab.hosts), within_s=20)
        for what in [name for name in self._running if name.startswith("kube")]:
            self._end(what)
        for host in self.lab.hosts:
            if f"containerd-{host.name}" not in self._running:
                continue
            for task in self._tasks(host):
                self._ctr(host, "tasks", "delete", "--force", task)
        for what in list(self._running):
            self._end(what)

    # --- what tests ask -----------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True, timeout_s: float = 60) -> str:
        done = subprocess.run(
            entering(
                self.lab.fabric.namespace,
                [str(self._programs / "kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments],
            ),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
            check=False,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(listed))

    def is_api_ready(self) -> bool:
        return self.kubectl("get", "--raw", "/readyz", "--request-timeout=2s", check=False) == "ok"

    def ready_nodes(self) -> set[str]:
        return {
            node["metadata"]["name"]
            for node in self.get("nodes")["items"]
            if any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
        }

    def station(self, namespace: str, name: str, *, within_s: float = 60) -> PlainStation:
        """A running pod as a place that packets leave from and arrive at."""
        found: list[PlainStation] = []

        def is_running() -> bool:
            pod = self.get("pod", "-n", namespace, name)
            status = pod["status"]
            containers = status.get("containerStatuses") or [{}]
            if not (status.get("podIP") and containers[0].get("ready")):
                return False
            container = containers[0]["containerID"].removeprefix("containerd://")
            pid = self._find_pid(pod["spec"]["nodeName"], container)
            if not pid:  # the API has not heard yet that this one is gone
                return False
            found.append(
                PlainStation(
                    name=f"{namespace}/{name}",
                    namespace=Path(f"/proc/{pid}/ns/net"),
                    addresses=(IPAddress(status["podIP"]),),
                )
            )
            return True

        self.await_(is_running, f"pod {namespace}/{name}", within_s=within_s)
        return found[0]

    def exec(self, namespace: str, pod: str, *argv: str) -> bool:
        """Whether the program in the pod ends well."""
        marker = "it-ended-well"
        line = " ".join(argv)
        said = self.kubectl("exec", "-n", namespace, pod, "--", "sh", "-c", f"{line} && echo {marker}", check=False)
        return marker in said

    def kill_sandbox(self, node: str, name: str) -> None:
        """As if the pod's sandbox had crashed: the kubelet detaches it and makes another."""
        wanted = f'labels."io.kubernetes.pod.name"=={name},labels."io.cri-containerd.kind"==sandbox'
        sandboxes = self._ctr(self.lab.host(node), "containers", "list", "-q", wanted).split()
        assert sandboxes, f"{node} has no sandbox of {name}"
        for sandbox in sandboxes:
            self._ctr(self.lab.host(node), "tasks", "kill", "--signal", "SIGKILL", sandbox)

    def await_(self, condition: Callable[[], object], what: str, *, within_s: float = 30) -> None:
        deadline = time.monotonic() + within_s
        while True:
            if condition():
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not in {within_s:g} s\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The ends of all logs, for a test that failed."""
        files = [*self._folder.glob("*.log"), *(host.node_log for host in self.lab.hosts)]
        return "\n".join(f"--- {path.name} ---\n{tail(path)}" for path in files)

    # --- parts --------------------------------------------------------------------------------------------------

    def _start(self, what: str, *arguments: str, namespace: Path | None = None, name: str = "") -> None:
        """``name`` where the program runs more than once."""
        program = shutil.which(what, path=str(self._programs)) or shutil.which(what)
        assert program is not None, f"{what} is not installed"
        argv = [program, *arguments]
        if namespace is not None:  # of a node: its mounts must not be the machine's
            argv = ["unshare", "-m", *argv]
        with (self._folder / f"{name or what}.log").open("ab") as log:
            self._running[name or what] = subprocess.Popen(
                entering(namespace or self.lab.fabric.namespace, argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
            )

    def _end(self, what: str) -> None:
        process = self._running.pop(what)
        process.terminate()
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(8)

    def _write_credentials(self) -> None:
        users = f'{TOKEN},admin,1,"system:masters"\n{NODE_TOKEN},calico-node,2\n'
        (self._folder / "tokens.csv").write_text(users)
        key = self._folder / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        subprocess.run(
            ["openssl", "rsa", "-in", key, "-pubout", "-out", self._folder / "sa.pub"], check=True, capture_output=True
        )
        for path, token in ((self.kubeconfig, TOKEN), (self.node_kubeconfig, NODE_TOKEN)):
            path.write_text(json.dumps(self._kubeconfig_of(token)))

    def _kubeconfig_of(self, token: str) -> dict[str, Any]:
        authority = str(self._folder / "apiserver.crt")
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
            "clusters": [{"name": "lab", "cluster": {"server": self.server, "certificate-authority": authority}}],
            "users": [{"name": "user", "user": {"token": token}}],
        }

    def _start_etcd(self) -> None:
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self._start(
            "etcd",
            *("--data-dir", str(self._folder / "etcd"), "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer),
            *("--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"),
        )

    def _api_server(self) -> tuple[str, ...]:
        return (
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            f"--advertise-address={self._address}",
            f"--cert-dir={self._folder}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._folder / 'sa.pub'}",
            f"--service-account-signing-key-file={self._folder / 'sa.key'}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP,Hostname",
        )

    def _controller_manager(self) -> tuple[str, ...]:
        return (
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self._folder / 'sa.key'}",
            f"--root-ca-file={self._folder / 'apiserver.crt'}",
            "--leader-elect=false",
        )

    def _start_containerd(self, host: LabHost, archive: Path) -> None:
        folder = self._folder / host.name
        folder.mkdir()
        config = folder / "containerd.toml"
        config.write_text(f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{self._socket(host)}"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "{host.addresses[0]}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  sandbox_image = "{PAUSE_IMAGE}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{host.cni_bin_directory}"
    conf_dir = "{host.cni_conf_directory}"
""")
        self._start("containerd", "--config", str(config), namespace=host.namespace, name=f"containerd-{host.name}")
        self.await_(self._socket(host).exists, f"containerd of {host.name}")
        self._ctr(host, "images", "import", str(archive))

    def _start_kubelet(self, host: LabHost) -> None:
        folder = self._folder / host.name
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "containerRuntimeEndpoint": f"unix://{self._socket(host)}",
            "resolvConf": "",
            "nodeStatusUpdateFrequency": "2s",
            "syncFrequency": "10s",
        }
        path = folder / "kubelet.json"
        path.write_text(json.dumps(config))
        self._start(
            "kubelet",
            *("--config", str(path), "--kubeconfig", str(self.kubeconfig), "--root-dir", str(folder / "kubelet")),
            *("--hostname-override", host.name, "--node-ip", str(host.addresses[0])),
            namespace=host.namespace,
            name=f"kubelet-{host.name}",
        )

    def _socket(self, host: LabHost) -> Path:
        return self._folder / host.name / "c.sock"

    def _ctr(self, host: LabHost, *arguments: str) -> str:
        argv = ["ctr", "-a", str(self._socket(host)), "-n", "k8s.io", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout

    def _tasks(self, host: LabHost) -> list[str]:
        return self._ctr(host, "tasks", "list", "-q").split()

    def _find_pid(self, node: str, container: str) -> int:
        """0: there is no such container (any more)."""
        for line in self._ctr(self.lab.host(node), "tasks", "list").splitlines():
            if line.startswith(container):
                return int(line.split()[1])
        return 0

    def _await_quietly(self, condition: Callable[[], bool], *, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _image_archive(self) -> Path:
        """An image of nothing but busybox, under both names: no registry is in reach."""
        rootfs = self._folder / "rootfs"
        for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
            (rootfs / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", rootfs / "bin" / "busybox")
        for program in _PROGRAMS_OF_BUSYBOX:
            (rootfs / "bin" / program).symlink_to("busybox")
        work = self._folder / "image"
        work.mkdir()
        with tarfile.open(work / "layer.tar", "w") as layer:
            layer.add(rootfs, arcname=".")
        digest = subprocess.run(["sha256sum", work / "layer.tar"], check=True, capture_output=True, text=True).stdout
        config = {
            "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
            "os": "linux",
            "config": {"Entrypoint": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest.split()[0]}"]},
        }
        (work / "config.json").write_text(json.dumps(config))
        manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE, IMAGE], "Layers": ["layer.tar"]}]
        (work / "manifest.json").write_text(json.dumps(manifest))
        archive = self._folder / "image.tar"
        with tarfile.open(archive, "w") as tar:
            for name in ("manifest.json", "config.json", "layer.tar"):
                tar.add(work / name, arcname=name)
        return archive


def rights_of_a_node() -> str:
    """As people are told to give them."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    return str(text)


# --- objects --------------------------------------------------------------------------------------------------------


def a_namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def a_pod(
    namespace: str,
    name: str,
    host: str,
    *,
    ports: dict[str, int] | None = None,
    command: str = "exec sleep 1000000",
    **labels: str,
) -> dict[str, Any]:
    """``ports`` are names of TCP ports."""
    listed = [{"name": port, "containerPort": number} for port, number in (ports or {}).items()]
    container = {
        "name": "c",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", command],
        "ports": listed,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": host},  # by way of the scheduler
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        },
    }


def a_policy(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }
