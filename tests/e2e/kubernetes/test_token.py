"""A node that asks the real API for tokens of the CNI plugin's own account, and pods that start with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calico_cni.kubeconfig import AccessReader, Source
from calico_cni.service_account import credentials_in, kubeconfig_text
from tests.e2e.kubernetes.cluster import NODE_TOKEN, Cluster, a_namespace, a_pod

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

NAME = "calico-cni-plugin"
DAY_S = 24 * 3600


def an_account(name: str) -> list[dict[str, object]]:
    """What an ADD needs, and no more."""
    rbac = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get"]}]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "kube-system"}},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}],
        },
    ]


def installed(cluster: Cluster, folder: Path) -> Path:
    """A kubeconfig as the installer writes it, of an account with the rights of a node."""
    account = folder / "account"
    account.mkdir()
    (account / "token").write_text(NODE_TOKEN)
    (account / "ca.crt").write_bytes((cluster.kubeconfig.parent / "apiserver.crt").read_bytes())
    host, _, port = cluster.server.removeprefix("https://").rpartition(":")
    path = folder / "calico-kubeconfig"
    path.write_bytes(kubeconfig_text({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}, account))
    path.chmod(0o600)
    return path


def test_pods_start_with_tokens_of_the_plugins_own(cluster: Cluster, tmp_path: Path) -> None:
    cluster.await_(lambda: len(cluster.ready_nodes()) == 2, "nodes are ready", within_s=120)
    cluster.apply(*an_account(NAME), a_namespace("tokens"))
    cluster.await_(lambda: cluster.get("serviceaccounts", "-n", "tokens")["items"], "the default service account")
    host = cluster.lab.host("host2")
    path = installed(cluster, tmp_path)
    conflist = host.cni_conf_directory / "10-calico.conflist"
    before = conflist.read_text()
    changed = json.loads(before)
    changed["plugins"][0]["kubernetes"]["kubeconfig"] = str(path)
    host.stop_node()
    try:
        environment = {"CALICO_CNI_SERVICE_ACCOUNT": f"kube-system/{NAME}", "CALICO_CNI_KUBECONFIG": str(path)}
        host.start_node(environment=environment)
        conflist.write_text(json.dumps(changed))

        def token() -> str:
            return AccessReader(Source(kubeconfig=str(path))).read().token

        cluster.await_(lambda: token() != NODE_TOKEN, "a token of the account")
        who = json.loads(cluster.kubectl("--token", token(), "auth", "whoami", "-o", "json"))
        assert who["status"]["userInfo"]["username"] == f"system:serviceaccount:kube-system:{NAME}"
        credentials = credentials_in(path)
        assert credentials is not None
        assert credentials.left_s is not None
        assert DAY_S - 600 < credentials.left_s <= DAY_S
        cluster.apply(a_pod("tokens", "a", "host2"))
        cluster.station("tokens", "a")
        log = host.node_log.read_text()
        assert "token.renewed" in log
        assert token() not in log
    finally:
        conflist.write_text(before)
        host.stop_node()
        host.start_node()
    cluster.kubectl("delete", "namespace", "tokens", "--wait=true", timeout_s=120)
