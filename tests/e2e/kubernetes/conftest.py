"""One cluster for all tests here: it takes half a minute to come up."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from tests.e2e.kubernetes.build import missing
from tests.e2e.kubernetes.cluster import Cluster

LOOPBACK = Path("/usr/lib/cni/loopback")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    programs = Path(os.environ.get("KUBERNETES_BIN", "/nowhere"))
    lacking = missing(programs)
    if lacking:
        pytest.skip(f"KUBERNETES_BIN names no folder with {', '.join(lacking)}; nox -s kubernetes builds them")
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    for program in ("etcd", "containerd", "ctr", "runc", "bird", "openssl", "busybox"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if not LOOPBACK.exists():
        pytest.skip(f"{LOOPBACK} is not there: the reference CNI plugins are not installed")
    with tempfile.TemporaryDirectory(prefix="kube-") as name:
        folder = Path(name)
        environment = {"CALICO_KUBECONFIG": str(folder / "node-kubeconfig")}
        lab = Laboratory.create(f"k{os.getpid() % 100000}", 2, routing="bird", environment=environment)
        with lab:
            made = Cluster(lab, programs, folder)
            try:
                for host in lab.hosts:
                    host.start_node()
                    _install(host, made)
                made.start()
                yield made
            finally:
                made.stop()


def _install(host: LabHost, cluster: Cluster) -> None:
    host.install_cni()
    (host.cni_bin_directory / "loopback").symlink_to(LOOPBACK)  # containerd runs it for every pod
    for path in host.cni_conf_directory.iterdir():
        path.unlink()
    plugin = {
        "type": "calico",
        "ipam": {"type": "calico-ipam"},
        "policy": {"type": "k8s"},
        "kubernetes": {"kubeconfig": str(cluster.node_kubeconfig)},
    }
    conflist = {"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [plugin]}
    (host.cni_conf_directory / "10-calico.conflist").write_text(json.dumps(conflist))
