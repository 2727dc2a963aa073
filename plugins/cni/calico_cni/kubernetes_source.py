"""Where the Kubernetes API is, for what runs without a network configuration: from a kubeconfig, or from the service
account of the pod that we run in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calico_cni.kubeconfig import Source
from calico_cni.service_account import ACCOUNT_DIRECTORY, has_account, server_address
from calico_core.settings import IN_CLUSTER, Settings


def source_for_programs(
    environment: Mapping[str, str], settings: Settings, directory: Path = ACCOUNT_DIRECTORY
) -> Source | None:
    """The variable ``KUBECONFIG``, the node's settings, the service account in ``directory``; None: nothing names one.

    :raises InvalidRequest: variables of the service account are wrong.
    """
    named = environment.get("KUBECONFIG", "")
    if named:
        return Source(kubeconfig=named)
    if settings.kubeconfig and settings.kubeconfig != IN_CLUSTER:
        return Source(kubeconfig=settings.kubeconfig)
    return account_source(environment, directory)


def account_source(environment: Mapping[str, str], directory: Path) -> Source | None:
    """As the account's files are now; None: there is no account, or no API is named."""
    if not has_account(directory) or not environment.get("KUBERNETES_SERVICE_HOST"):
        return None
    authority = Path(environment.get("KUBE_CA_FILE", "") or directory / "ca.crt")
    return Source(
        api_root=server_address(environment),
        token=(directory / "token").read_text().strip(),
        certificate_authority=str(authority) if authority.is_file() else "",
    )
