"""Kubernetes on the node's runtime: the policy controller. Pods come and go through the CNI integration."""

from __future__ import annotations

import importlib.util
import threading
from typing import ClassVar

from calico_core.errors import InvalidSettings
from calico_core.interfaces.integration import API_VERSION, Integration, IntegrationContext, IntegrationInfo


class KubernetesIntegration(Integration):
    info: ClassVar[IntegrationInfo] = IntegrationInfo(name="kubernetes", api_version=API_VERSION)

    def __init__(self) -> None:
        self._context: IntegrationContext | None = None

    def prepare(self, context: IntegrationContext) -> None:
        """Nothing to do where the setting ``kubeconfig`` is empty."""
        if context.settings.kubeconfig:
            _check_client(context)
            self._context = context

    def serve(self, stop: threading.Event) -> None:
        if self._context is None:
            stop.wait()
            return
        # the client takes its time to load; only who works with Kubernetes pays for it
        from calico_kubernetes.controller import PolicyController

        context = self._context
        PolicyController(context.records.store, context.host, context.settings.kubeconfig).run(stop)


def _check_client(context: IntegrationContext) -> None:
    """The file itself may come later, or change: it is read for each connection."""
    if importlib.util.find_spec("kubernetes") is None:
        origin = context.settings.origins.get("kubeconfig", "default")
        reason = "the package kubernetes is not installed; install calico-containers[kubernetes]"
        raise InvalidSettings("kubeconfig", origin, reason)
