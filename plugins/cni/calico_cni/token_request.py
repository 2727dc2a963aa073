"""Tokens of a service account of the CNI plugin's own, asked of the Kubernetes API in the name of the pod's.

The pod's account may do what the node needs, which is more than a call needs, and a kubeconfig lies on the host's disk.
One thread asks, once in two thirds of a token's life. No token is logged or part of an error.
Source: Kubernetes API reference, TokenRequest; cni specification 7.2.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from calico_cni.kubernetes_api import KubernetesApi
from calico_cni.kubernetes_source import source_for_programs
from calico_core.errors import CalicoError, InvalidRequest, NotReady
from calico_core.log import get_logger
from calico_core.settings import Settings

LIFE_S = 24 * 3600
"""What is asked for; the API may give less."""
RENEWED_AFTER = 2 / 3
_SPREAD = 0.1  # of the life, at most: nodes that started together shall not ask together
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 300.0

log = get_logger(__name__)


def since_boot_s() -> float:
    """A clock that goes on while the machine sleeps, as the token's does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TokenRequester:
    """Of the account that the setting ``cni_service_account`` names: ``NAME`` in the pod's namespace, or
    ``NAMESPACE/NAME``. ``directory`` is the pod's own account."""

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        environment: Mapping[str, str] = os.environ,
        *,
        clock: Callable[[], float] = since_boot_s,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._environment = environment
        self._clock = clock
        self._token = ""
        self._due_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._reason = ""

    @property
    def is_due(self) -> bool:
        return self._clock() >= self._due_at

    def token(self) -> str:
        """The one that is good now. One whose time has come is replaced; while that fails it is still given, and after
        a pause that doubles each time the API is asked again.

        :raises NotReady: there was none yet, and there is none to be had.
        """
        if self.is_due:
            try:
                self._renew()
            except (CalicoError, OSError) as error:
                self._due_at = self._clock() + self._pause_s * random.uniform(0.8, 1.0)
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
                self._reason = str(error)
                if self._token:
                    log.warning("token.not_renewed", account=self._settings.cni_service_account, reason=self._reason)
        if not self._token:
            raise NotReady(f"no token of service account {self._settings.cni_service_account}: {self._reason}")
        return self._token

    def _renew(self) -> None:
        namespace, name = self._account()
        source = source_for_programs(self._environment, self._settings, self._directory)
        if source is None:
            raise InvalidRequest("cni_service_account", "needs the service account of a pod, or the setting kubeconfig")
        api = KubernetesApi(source)
        try:
            self._token, life_s = api.request_token(namespace, name, life_s=LIFE_S)
        finally:
            api.close()
        self._pause_s = _FIRST_PAUSE_S
        self._due_at = self._clock() + life_s * (RENEWED_AFTER - random.uniform(0, _SPREAD))
        log.info("token.renewed", account=f"{namespace}/{name}", life_s=life_s)

    def _account(self) -> tuple[str, str]:
        namespace, slash, name = self._settings.cni_service_account.rpartition("/")
        if not slash:
            path = self._directory / "namespace"
            try:
                namespace = path.read_text().strip()
            except OSError as error:
                reason = f"{name!r} is in the pod's namespace, and {path} cannot be read: {error.strerror}"
                raise InvalidRequest("cni_service_account", reason) from error
        return namespace, name
