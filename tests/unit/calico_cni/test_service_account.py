"""The kubeconfig of a pod's service account: what is written, what is kept current, and nothing tells the token."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import threading
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from calico_cni import service_account
from calico_cni.cli import cni
from calico_cni.integration import CniIntegration
from calico_cni.kubeconfig import AccessReader, Source
from calico_cni.service_account import Refresher, credentials_in, file_mode, kubeconfig_text, refresh
from calico_core.cli.main import calicoctl
from calico_core.errors import InvalidRequest
from calico_core.settings import Settings
from tests.doubles.certificates import Authority
from tests.doubles.cni import CniSetup
from tests.unit.calico_cni.conftest import told

TOKEN = "hunter2-first"
CLUSTER = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def account(tmp_path: Path) -> Path:
    directory = tmp_path / "account"
    directory.mkdir()
    (directory / "token").write_text(f"{TOKEN}\n")
    (directory / "ca.crt").write_text(an_authority(tmp_path, "first"))
    return directory


def an_authority(folder: Path, name: str) -> str:
    return Path(Authority(folder, name).certificate).read_text()


def a_token(expires: float) -> str:
    """Signed by nobody."""
    parts = ({"alg": "none"}, {"exp": expires})
    return ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in parts) + ".x"


def install(tmp_path: Path, account: Path, *arguments: str, **environment: str) -> Result:
    command = ["install", "--root", str(tmp_path / "host"), "--shim", "python", "--service-account", str(account)]
    return CliRunner().invoke(cni, [*command, *arguments], env={**CLUSTER, **environment})


def kubeconfig_in(tmp_path: Path) -> Path:
    return tmp_path / "host/etc/cni/net.d/calico-kubeconfig"


def test_what_is_written_is_what_the_plugin_reads(tmp_path: Path, account: Path) -> None:
    done = install(tmp_path, account)
    path = kubeconfig_in(tmp_path)
    assert (done.exit_code, str(path) in done.output) == (0, True), done.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    access = AccessReader(Source(kubeconfig=str(path))).read()
    assert (access.host, access.port, access.token) == ("10.96.0.1", 443, TOKEN)
    assert access.context is not None
    assert access.context.check_hostname
    assert len(access.context.get_ca_certs()) == 1
    assert TOKEN not in done.output
    assert install(tmp_path, account).output == "everything is installed already\n"


def test_it_comes_before_the_list(tmp_path: Path, account: Path) -> None:
    said = install(tmp_path, account).output.splitlines()
    assert [line.rpartition("/")[2] for line in said][-2:] == ["calico-kubeconfig", "10-calico.conflist"]


@pytest.mark.parametrize(
    ("environment", "server"),
    [
        (CLUSTER, "https://10.96.0.1:443"),
        ({**CLUSTER, "KUBERNETES_SERVICE_HOST": "fd00::1"}, "https://[fd00::1]:443"),
        ({**CLUSTER, "KUBERNETES_SERVICE_HOST": "api.example"}, "https://api.example:443"),
        ({**CLUSTER, "KUBERNETES_SERVICE_PROTOCOL": "http"}, "http://10.96.0.1:443"),
    ],
)
def test_the_server(account: Path, environment: dict[str, str], server: str) -> None:
    assert f"    server: {json.dumps(server)}\n" in kubeconfig_text(environment, account).decode()


@pytest.mark.parametrize(
    ("environment", "field"),
    [
        ({"KUBERNETES_SERVICE_PORT": "443"}, "KUBERNETES_SERVICE_HOST"),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "KUBERNETES_SERVICE_PORT"),
        ({**CLUSTER, "KUBERNETES_SERVICE_PORT": "https"}, "KUBERNETES_SERVICE_PORT"),
        ({**CLUSTER, "KUBERNETES_SERVICE_PROTOCOL": "ftp"}, "KUBERNETES_SERVICE_PROTOCOL"),
        ({**CLUSTER, "KUBE_CA_FILE": "/does/not/exist"}, "KUBE_CA_FILE"),
        ({**CLUSTER, "SKIP_TLS_VERIFY": "perhaps"}, "SKIP_TLS_VERIFY"),
    ],
)
def test_what_is_refused(account: Path, environment: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        kubeconfig_text(environment, account)
    assert caught.value.field == field
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("token", ["", "two\nlines", "\x00"])
def test_a_token_that_is_none(account: Path, token: str) -> None:
    (account / "token").write_text(token)
    with pytest.raises(InvalidRequest, match="does not hold a token") as caught:
        kubeconfig_text(CLUSTER, account)
    assert "lines" not in str(caught.value)


def test_a_cluster_that_is_not_named_installs_nothing(tmp_path: Path, account: Path) -> None:
    done = install(tmp_path, account, KUBERNETES_SERVICE_HOST="")
    code, output = told(done)
    assert (code, "KUBERNETES_SERVICE_HOST" in output) == (2, True)
    assert not (tmp_path / "host").exists()


def test_without_a_service_account_there_is_none(tmp_path: Path) -> None:
    assert install(tmp_path, tmp_path / "none").exit_code == 0
    assert not kubeconfig_in(tmp_path).exists()


def test_whom_it_believes_is_said(tmp_path: Path, account: Path) -> None:
    (account / "ca.crt").unlink()
    done = install(tmp_path, account, SKIP_TLS_VERIFY="true")
    assert (done.exit_code, "warning: SKIP_TLS_VERIFY" in done.output) == (0, True), done.output
    assert "insecure-skip-tls-verify: true" in kubeconfig_in(tmp_path).read_text()


def test_the_mode(tmp_path: Path, account: Path) -> None:
    assert install(tmp_path, account, KUBECONFIG_MODE="0640").exit_code == 0
    assert stat.S_IMODE(kubeconfig_in(tmp_path).stat().st_mode) == 0o640
    for bad in ("rw", "0888", "7777", "6"):
        with pytest.raises(InvalidRequest, match="KUBECONFIG_MODE"):
            file_mode(bad)


def test_uninstall_takes_it_along_and_leaves_another(tmp_path: Path, account: Path) -> None:
    install(tmp_path, account)
    command = ["uninstall", "--root", str(tmp_path / "host")]
    assert CliRunner().invoke(cni, command).exit_code == 0
    assert not kubeconfig_in(tmp_path).exists()
    kubeconfig_in(tmp_path).write_text("apiVersion: v1\n")
    assert CliRunner().invoke(cni, command).exit_code == 0
    assert kubeconfig_in(tmp_path).exists()


# --- kept current ------------------------------------------------------------------------------------------------


def test_a_new_token_takes_the_place_of_the_old_one(tmp_path: Path, account: Path) -> None:
    install(tmp_path, account, KUBECONFIG_MODE="0640")
    path = kubeconfig_in(tmp_path)
    reader = AccessReader(Source(kubeconfig=str(path)))
    before = reader.read()
    assert not refresh(path, account)
    (account / "token").write_text('second "quoted" \\1')
    (account / "ca.crt").write_text(an_authority(tmp_path, "second"))
    assert refresh(path, account)
    after = reader.read()
    assert after.token == 'second "quoted" \\1'
    assert after.context is not None
    assert before.context is not None
    assert after.context.get_ca_certs() != before.context.get_ca_certs()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not refresh(path, account)


def test_what_is_not_ours_or_not_there_stays_so(tmp_path: Path, account: Path) -> None:
    path = tmp_path / "kubeconfig"
    assert not refresh(path, account)
    assert not path.exists()
    path.write_text('users:\n- name: calico\n  user:\n    token: "theirs"\n')
    before = path.read_text()
    assert not refresh(path, account)
    assert path.read_text() == before
    assert credentials_in(path) is None


def test_the_node_keeps_it_current(
    namespace_fd: int, tmp_path: Path, account: Path, log_text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, account)
    path = kubeconfig_in(tmp_path)
    monkeypatch.setattr("calico_cni.integration.REPLAY_INTERVAL_S", 0.01)
    monkeypatch.setattr(service_account, "ACCOUNT_DIRECTORY", account)
    base = CniSetup(namespace_fd, state=tmp_path).context
    settings = Settings(state_directory=str(tmp_path), cni_kubeconfig=str(path))
    integration = CniIntegration()
    integration.prepare(msgspec.structs.replace(base, settings=settings))
    stop = threading.Event()
    thread = threading.Thread(target=integration.serve, args=(stop,))
    thread.start()
    try:
        for token in ("hunter2-second", "hunter2-third"):
            replaced = account / "..new"
            replaced.write_text(token)
            replaced.rename(account / "token")  # as the kubelet does
            deadline = time.monotonic() + 10
            while token not in path.read_text():
                assert time.monotonic() < deadline
                stop.wait(0.01)
    finally:
        stop.set()
        thread.join(10)
    said = log_text.getvalue()
    assert said.count("kubeconfig.refreshed") == 2
    assert "hunter2" not in said


def test_how_old_they_are_is_told_for_metrics(namespace_fd: int, tmp_path: Path, account: Path) -> None:
    path = kubeconfig_in(tmp_path)
    base = CniSetup(namespace_fd, state=tmp_path).context
    settings = Settings(state_directory=str(tmp_path), cni_kubeconfig=str(path))
    integration = CniIntegration()
    integration.prepare(msgspec.structs.replace(base, settings=settings))

    def told() -> dict[str, float]:
        return {each.name: each.value for each in integration.gauges()}

    assert told() == {}, "there is no file yet"
    install(tmp_path, account)
    assert told().keys() == {"credentials_age_seconds"}, "the token does not say when it ends"
    for left_s in (3600, -60):
        (account / "token").write_text(a_token(time.time() + left_s))
        refresh(path, account)
        os.utime(path, (0, time.time() - 500))
        assert told() == pytest.approx({"credentials_age_seconds": 500, "credentials_left_seconds": left_s}, abs=30)
    path.write_text("apiVersion: v1\n")
    assert told() == {}, "somebody else's"


def test_a_token_that_comes_during_a_turn_is_for_the_next_one(
    tmp_path: Path, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, account)
    path = kubeconfig_in(tmp_path)
    (account / "token").write_text("second")
    real = service_account.refresh

    def overtaken(path: Path, directory: Path) -> bool:
        is_changed = real(path, directory)
        (account / "token").write_text("the third")
        return is_changed

    refresher = service_account.Refresher(path, account)
    monkeypatch.setattr(service_account, "refresh", overtaken)
    refresher.turn()
    assert "second" in path.read_text()
    monkeypatch.setattr(service_account, "refresh", real)
    refresher.turn()
    assert "the third" in path.read_text()


def test_a_token_that_is_gone_or_spoilt_is_said_once(tmp_path: Path, account: Path, log_text: io.StringIO) -> None:
    install(tmp_path, account)
    path = kubeconfig_in(tmp_path)
    before = path.read_bytes()
    refresher = Refresher(path, account)
    (account / "token").write_text("hunter2\nhunter2")
    for _ in range(3):
        refresher.turn()
    (account / "token").unlink()
    refresher.turn()
    assert path.read_bytes() == before
    assert log_text.getvalue().count("kubeconfig.not_refreshed") == 1
    assert "hunter2" not in log_text.getvalue()
    (account / "token").write_text("third")
    refresher.turn()
    assert b"third" in path.read_bytes()


# --- how old it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_s", "state", "said"),
    [
        (3000, "current", "valid for 50 min"),
        (-7300, "expired", "expired 2 h ago"),
        (None, "current", "(written 10 min ago)"),
    ],
)
def test_status_says_how_old_it_is(tmp_path: Path, account: Path, left_s: float | None, state: str, said: str) -> None:
    now = time.time()
    if left_s is not None:
        (account / "token").write_text(a_token(now + left_s + 5))
    install(tmp_path, account)
    path = kubeconfig_in(tmp_path)
    os.utime(path, (now - 605, now - 605))
    command = ["cni", "status", "--root", str(tmp_path / "host"), "--socket", str(tmp_path / "none")]
    text = CliRunner().invoke(calicoctl, command).output
    (line,) = [each for each in text.splitlines() if each.startswith(str(path))]
    assert state in line
    assert said in line
    assert "written 10 min ago" in line
    shape = json.loads(CliRunner().invoke(calicoctl, ["-o", "json", *command]).output)
    assert shape[str(path)] == state
    assert shape["credentials"][str(path)]["age_s"] in range(604, 620)
    assert (account / "token").read_text().strip() not in text


def test_an_expired_one_is_amiss(tmp_path: Path, account: Path) -> None:
    (account / "token").write_text(a_token(time.time() - 5))
    install(tmp_path, account)
    found = credentials_in(kubeconfig_in(tmp_path))
    assert found is not None
    assert found.is_expired
    assert credentials_in(kubeconfig_in(tmp_path), now=time.time() - 60).is_expired is False
