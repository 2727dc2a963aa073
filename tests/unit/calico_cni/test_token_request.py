"""Tokens of the CNI plugin's own service account, from a server that speaks that part of the API."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from calico_cni import integration as integration_module
from calico_cni import service_account
from calico_cni.integration import CniIntegration
from calico_cni.kubeconfig import AccessReader, Source
from calico_cni.service_account import Refresher, kubeconfig_text
from calico_cni.token_request import LIFE_S, TokenRequester
from calico_core import log as logging_setup
from calico_core.errors import InvalidSettings, NotReady
from calico_core.interfaces.integration import IntegrationContext
from calico_core.settings import Settings
from tests.doubles.cni import CniSetup
from tests.doubles.kubernetes_api import KubernetesApi

NAME = "calico-cni-plugin"


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logging_setup.configure(level="debug", stream=stream)
    yield stream
    logging_setup.configure(level="error")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    made = KubernetesApi(tmp_path)
    made.put("service_accounts", NAME, "calico-system")
    made.put("service_accounts", "other", "elsewhere")
    yield made
    made.stop()


@pytest.fixture
def account(tmp_path: Path, api: KubernetesApi) -> Path:
    """The pod's own."""
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text(api.token)
    (folder / "namespace").write_text("calico-system\n")
    return folder


@pytest.fixture
def cluster(api: KubernetesApi) -> dict[str, str]:
    return {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(api.port),
        "KUBERNETES_SERVICE_PROTOCOL": "http",
        "SKIP_TLS_VERIFY": "true",
    }


@pytest.fixture
def kubeconfig(tmp_path: Path, account: Path, cluster: dict[str, str]) -> Path:
    """As the installer leaves it."""
    path = tmp_path / "calico-kubeconfig"
    path.write_bytes(kubeconfig_text(cluster, account))
    path.chmod(0o600)
    return path


class Time:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


def requester(account: Path, cluster: dict[str, str], clock: Time, name: str = NAME, **settings: str) -> TokenRequester:
    return TokenRequester(Settings(cni_service_account=name, **settings), account, cluster, clock=clock)


def token_in(path: Path) -> str:
    return AccessReader(Source(kubeconfig=str(path))).read().token


def test_a_token_is_renewed_after_about_two_thirds_of_its_life(
    api: KubernetesApi, account: Path, cluster: dict[str, str], clock: Time
) -> None:
    tokens = requester(account, cluster, clock)
    first = tokens.token()
    assert api.issued == [(f"calico-system/{NAME}", first)]
    began = clock.now
    for part, is_due in ((0.1, False), (0.56, False), (0.67, True)):
        clock.now = began + part * LIFE_S
        assert tokens.is_due == is_due
    second = tokens.token()
    assert second != first
    assert tokens.token() == second
    assert len(api.issued) == 2


def test_a_server_that_gives_less(api: KubernetesApi, account: Path, cluster: dict[str, str], clock: Time) -> None:
    api.token_life_s = 600
    tokens = requester(account, cluster, clock)
    tokens.token()
    clock.now += 401
    assert tokens.is_due


def test_an_account_elsewhere_by_a_kubeconfig(api: KubernetesApi, tmp_path: Path, clock: Time) -> None:
    """A node on the host itself has no account of a pod."""
    path = api.kubeconfig()
    tokens = requester(tmp_path / "none", {}, clock, "elsewhere/other", kubeconfig=path)
    assert api.issued == [("elsewhere/other", tokens.token())]


def test_pauses_grow_and_the_old_token_stays(
    api: KubernetesApi, account: Path, cluster: dict[str, str], clock: Time, log_text: io.StringIO
) -> None:
    tokens = requester(account, cluster, clock)
    first = tokens.token()
    clock.now += LIFE_S * 0.7
    api.refuse = 403
    began, asked = clock.now, len(api.requests)
    while clock.now < began + 900:
        assert tokens.token() == first
        clock.now += 1
    # 5, 10, 20 … 300 s, each a little shorter
    assert 8 <= len(api.requests) - asked <= 10
    api.refuse = 0
    clock.now += 300
    assert tokens.token() != first
    clock.now += LIFE_S * 0.7
    api.refuse = 403
    asked = len(api.requests)
    for _ in range(6):  # and it begins anew
        tokens.token()
        clock.now += 1
    assert len(api.requests) - asked == 2
    assert "status 403" in log_text.getvalue()
    assert api.token not in log_text.getvalue()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nobody", "/api/v1/namespaces/calico-system/serviceaccounts/nobody/token: status 404"),
        ("../x", "namespaces/../serviceaccounts/x/token: status 404"),
    ],
)
def test_an_account_that_is_not_there(
    account: Path, cluster: dict[str, str], clock: Time, name: str, says: str
) -> None:
    with pytest.raises(NotReady, match=says):
        requester(account, cluster, clock, name).token()


def test_what_is_missing_is_named(account: Path, cluster: dict[str, str], clock: Time, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="needs the service account of a pod, or the setting kubeconfig"):
        requester(account, {}, clock).token()
    (account / "namespace").unlink()
    with pytest.raises(NotReady, match="namespace cannot be read"):
        requester(account, cluster, clock).token()


def test_the_file_gets_them(
    api: KubernetesApi,
    account: Path,
    cluster: dict[str, str],
    clock: Time,
    kubeconfig: Path,
    log_text: io.StringIO,
) -> None:
    refresher = Refresher(kubeconfig, account, requester(account, cluster, clock))
    api.refuse = 500
    for _ in range(3):
        refresher.turn()
        assert token_in(kubeconfig) == api.token  # the pod's own, until there is another
    assert log_text.getvalue().count("kubeconfig.not_refreshed") == 1
    api.refuse = 0
    clock.now += 5
    refresher.turn()
    first = token_in(kubeconfig)
    assert first == api.issued[0][1]
    assert kubeconfig.stat().st_mode & 0o777 == 0o600
    before = kubeconfig.stat().st_mtime_ns
    (account / "token").write_text(api.token)  # the kubelet renews the pod's own: no business of this file
    refresher.turn()
    assert kubeconfig.stat().st_mtime_ns == before
    kubeconfig.write_bytes(kubeconfig_text(cluster, account))  # the installer runs again
    refresher.turn()
    assert token_in(kubeconfig) == first
    clock.now += LIFE_S * 0.7
    refresher.turn()
    assert token_in(kubeconfig) == api.issued[1][1]
    assert api.token not in log_text.getvalue()


def test_by_the_node(
    api: KubernetesApi,
    account: Path,
    cluster: dict[str, str],
    kubeconfig: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_account, "ACCOUNT_DIRECTORY", account)
    monkeypatch.setattr(integration_module, "REPLAY_INTERVAL_S", 0.01)
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    base = CniSetup(-1, state=tmp_path).context
    settings = Settings(state_directory=str(tmp_path), cni_kubeconfig=str(kubeconfig), cni_service_account=NAME)
    found = CniIntegration()
    found.prepare(
        IntegrationContext(
            workloads=base.workloads, ipam=base.ipam, records=base.records, settings=settings, host=base.host
        )
    )
    stop = threading.Event()
    thread = threading.Thread(target=found.serve, args=(stop,))
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not api.issued or token_in(kubeconfig) != api.issued[0][1]:
            assert time.monotonic() < deadline
            stop.wait(0.01)
    finally:
        stop.set()
        thread.join(10)
    assert len(api.issued) == 1


def test_an_account_without_a_file(tmp_path: Path) -> None:
    base = CniSetup(-1, state=tmp_path).context
    settings = Settings(state_directory=str(tmp_path), cni_service_account=NAME)
    context = IntegrationContext(
        workloads=base.workloads, ipam=base.ipam, records=base.records, settings=settings, host=base.host
    )
    with pytest.raises(InvalidSettings, match="cni_kubeconfig"):
        CniIntegration().prepare(context)
