"""What tests of every room may use: a real etcd on loopback, one a session, its keys wiped before each test."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.interfaces.datastore import DatastoreOptions
from calico_core.log import PACKAGES
from tests.doubles.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

START_TIMEOUT_S = 20.0
# How fast a busy machine draws examples says nothing about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n 2``, as CI asks, what uses the host's daemons stays in one process, in its order; the other one takes
    the rest, file by file. Tests of dataplanes live in namespaces of their own."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class HostInOneProcess(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            is_apart = nodeid.startswith("tests/integration/dataplane_")
            is_of_host = nodeid.startswith(("tests/e2e/", "tests/integration/")) and not is_apart
            file = nodeid.partition("::")[0]
            if file.endswith("_kernel_log.py"):  # they set what the whole machine's kernel logs
                return "kernel log"
            return "host" if is_of_host else file

    return HostInOneProcess(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ``CALICO_NO_SKIPS`` a test that cannot run is a failure: who asked for it by name hears what it lacks."""
    report = yield
    if report.skipped and os.environ.get("CALICO_NO_SKIPS"):
        _, _, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, str(report.longrepr))
        report.outcome, report.longrepr = "failed", f"not run: {reason.removeprefix('Skipped: ')}"
    return report


class _Leftovers:
    """What a failed test left open is part of its failure: the collector must not find it in the middle of another
    test, which would fail for it."""

    def __init__(self) -> None:
        self._any = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._any = self._any or report.outcome not in ("passed", "skipped")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if not self._any:
            return
        self._any = False
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):  # pytest keeps the failure here
            vars(sys).pop(name, None)
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            gc.collect()
        finally:
            sys.unraisablehook = hook


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Leftovers())


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Logging is the process's: a test that configures it must not change what the next one sees."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    packages = [logging.getLogger(name) for name in PACKAGES]
    levels = [package.level for package in packages]
    yield
    root.handlers[:], root.level = handlers, level
    for package, before in zip(packages, levels, strict=True):
        package.setLevel(before)


class EtcdServer:
    """``url`` opens it through our driver, ``endpoint`` is ``host:port``. Its data survive a stop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._peer_port = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"127.0.0.1:{self._port}"
        self.url = f"etcd3://{self.endpoint}"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Returns when it answers. Running already is fine."""
        if self._process is not None:
            return
        peer = f"http://127.0.0.1:{self._peer_port}"
        client = f"http://{self.endpoint}"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["etcd", "--name", "test", "--data-dir", str(self._folder / "data"), "--unsafe-no-fsync",
                 "--listen-client-urls", client, "--advertise-client-urls", client,
                 "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                 "--initial-cluster", f"test={peer}", "--log-level", "warn"],
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_healthy():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                pytest.fail("etcd did not start: " + (self._folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def stop(self) -> None:
        """Killed, as by a crash. Stopped already is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def pause(self) -> None:
        """Connected, and deaf: as when its machine hangs. Undone by :meth:`resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        threads = list(Path(f"/proc/{self._process.pid}/task").iterdir())
        deadline = time.monotonic() + START_TIMEOUT_S
        while any((thread / "stat").read_text().rpartition(")")[2].split()[0] != "T" for thread in threads):
            assert time.monotonic() < deadline, "etcd does not stop"
            time.sleep(0.005)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Remove every key of ours, whoever wrote it."""
        store = Etcd3Datastore.open(self.url, DatastoreOptions())
        try:
            store.delete_prefix("/calico/")
        finally:
            store.close()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except OSError:
            return False


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    if shutil.which("etcd") is None:
        pytest.skip("the etcd binary is not installed")
    with tempfile.TemporaryDirectory(prefix="calico-etcd-") as folder:
        server = EtcdServer(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def etcd(etcd_server: EtcdServer) -> EtcdServer:
    """Running, with nothing under ``/calico``. A test may stop and start it."""
    etcd_server.start()
    etcd_server.wipe()
    return etcd_server
