"""A real etcd of one or more members on loopback, with TLS when asked for: its members can be killed, paused and
restored from a snapshot one by one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.doubles.certificates import Authority
from tests.doubles.ports import free_ports

START_TIMEOUT_S = 30.0
_ENVIRONMENT = {"ETCDCTL_API": "3", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class Member:
    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.client_port, self.peer_port, self.metrics_port = free_ports(3)
        self.endpoint = f"127.0.0.1:{self.client_port}"
        self.peer_url = f"http://127.0.0.1:{self.peer_port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_healthy(self) -> bool:
        """It serves, and knows a leader."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except (OSError, urllib.error.URLError):
            return False

    def kill(self) -> None:
        """As by a crash. Gone already is fine."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


class EtcdCluster:
    """``authority``: clients must show a certificate of it. ``folder`` holds everything."""

    def __init__(self, folder: Path, size: int = 1, *, authority: Authority | None = None) -> None:
        self.folder = folder
        self.authority = authority
        self.members = [Member(f"m{number}", folder / f"m{number}") for number in range(size)]
        for member in self.members:
            member.folder.mkdir(parents=True)
        self._initial = ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoints(self) -> str:
        return ",".join(member.endpoint for member in self.members)

    @property
    def url(self) -> str:
        return f"{'etcd3s' if self.authority else 'etcd3'}://{self.endpoints}"

    def start(self) -> None:
        """Every member that does not run; returns when all are healthy."""
        started = [member for member in self.members if member.process is None]
        try:
            for member in started:
                self._spawn(member)
            self._wait_healthy(started)
        except BaseException:  # who gets no cluster stops none
            self.stop()
            raise

    def stop(self) -> None:
        for member in self.members:
            member.kill()

    def leader(self) -> Member:
        """Who leads now."""
        for member in self.members:
            if member.process is not None:
                status = self.etcdctl("endpoint", "status", "-w", "fields", member=member)
                numbers = dict(line.split(" : ") for line in status.splitlines() if " : " in line)
                if numbers['"MemberID"'] == numbers['"Leader"']:
                    return member
        raise AssertionError("no member leads")

    def etcdctl(self, *arguments: str, member: Member | None = None) -> str:
        return subprocess.run(
            ["etcdctl", f"--endpoints={(member or self.members[0]).endpoint}", *self._client_tls(), *arguments],
            check=True,
            env=_ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout

    def save(self, file: Path) -> None:
        """A snapshot of the first member."""
        self.etcdctl("snapshot", "save", str(file))

    def restore(self, file: Path) -> None:
        """The whole cluster starts again from the snapshot, as an operator would after a loss."""
        self.stop()
        for member in self.members:
            (member.folder / "data").rename(member.folder / f"lost-{time.monotonic_ns()}")
            subprocess.run(
                ["etcdctl", "snapshot", "restore", str(file), "--name", member.name,
                 "--data-dir", str(member.folder / "data"), "--initial-cluster", self._initial,
                 "--initial-advertise-peer-urls", member.peer_url],
                check=True, env=_ENVIRONMENT, capture_output=True, timeout=30,
            )  # fmt: skip
        self.start()

    def _wait_healthy(self, members: Sequence[Member]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        for member in members:
            while not member.is_healthy:
                assert member.process is not None
                assert member.process.poll() is None, self.log_of(member)
                assert time.monotonic() < deadline, self.log_of(member)
                time.sleep(0.05)

    def log_of(self, member: Member) -> str:
        return (member.folder / "log").read_text()[-3000:]

    def _spawn(self, member: Member) -> None:
        scheme = "https" if self.authority else "http"
        with (member.folder / "log").open("ab") as log:
            member.process = subprocess.Popen(
                ["etcd", "--name", member.name, "--data-dir", str(member.folder / "data"), "--unsafe-no-fsync",
                 "--listen-client-urls", f"{scheme}://{member.endpoint}",
                 "--advertise-client-urls", f"{scheme}://{member.endpoint}",
                 "--listen-peer-urls", member.peer_url, "--initial-advertise-peer-urls", member.peer_url,
                 "--initial-cluster", self._initial, "--log-level", "warn",
                 "--listen-metrics-urls", f"http://127.0.0.1:{member.metrics_port}", *self._server_tls(member)],
                stdout=log, stderr=log, env={name: value for name, value in os.environ.items() if "ETCD" not in name},
            )  # fmt: skip

    def _server_tls(self, member: Member) -> Sequence[str]:
        if self.authority is None:
            return ()
        pair = self.authority.issue(f"{member.name}-server", is_server=True)
        return (
            *("--cert-file", str(pair.certificate), "--key-file", str(pair.key)),
            *("--client-cert-auth", "--trusted-ca-file", str(self.authority.certificate)),
        )

    def _client_tls(self) -> Sequence[str]:
        if self.authority is None:
            return ()
        pair = self.authority.issue("etcdctl")
        return (f"--cacert={self.authority.certificate}", f"--cert={pair.certificate}", f"--key={pair.key}")
