"""An etcd cluster whose members live in network namespaces of their own, so that one can be cut off from all others.

The namespace of whoever calls is the hub: it has the bridge that everything goes over. That must not be the machine's
own; :func:`run_in_hub` runs a command in a fresh one and cleans up after it. Needs root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

START_TIMEOUT_S = 30.0
HUB = "CALICO_TORTURE_HUB"
_NETWORK = "10.250.0."


def run_in_hub(argv: Sequence[str]) -> int:
    """The command's exit code. Its namespaces, and those of its members, are gone afterwards."""
    hub = f"tort{os.getpid()}"
    _ip("netns", "add", hub)
    try:
        return subprocess.run(["ip", "netns", "exec", hub, *argv], env={**os.environ, HUB: hub}, check=False).returncode
    finally:
        for name in [entry.name for entry in Path("/run/netns").iterdir()]:
            if name == hub or name.startswith(f"{hub}-"):
                _ip("netns", "delete", name)


class Island:
    """One member."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name = f"m{number}"
        self.namespace = f"{os.environ[HUB]}-{self.name}"
        self.link = f"v{number}"
        self.address = f"{_NETWORK}{10 + number}"
        self.endpoint = f"{self.address}:2379"
        self.peer_url = f"http://{self.address}:2380"
        self.folder = folder / self.name
        self.process: subprocess.Popen[bytes] | None = None

    def connect(self) -> None:
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", self.link, "master", "hub0", "up")
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        _ip("-n", self.namespace, "link", "set", "lo", "up")

    def cut_off(self) -> None:
        """From the other members and from every client; its process knows nothing of it."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        _ip("link", "set", self.link, "up")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except (OSError, urllib.error.URLError):
            return False


class Archipelago:
    """As ``EtcdCluster``, as far as the campaign uses it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.members = [Island(number, folder) for number in range(size)]
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "hub0", "type", "bridge")
        _ip("address", "add", f"{_NETWORK}1/24", "dev", "hub0")
        _ip("link", "set", "hub0", "up")
        for member in self.members:
            member.folder.mkdir(parents=True)
            member.connect()

    @property
    def url(self) -> str:
        return "etcd3://" + ",".join(member.endpoint for member in self.members)

    def start(self) -> None:
        started = [member for member in self.members if member.process is None]
        try:
            for member in started:
                self._spawn(member)
            self._await_health(started)
        except BaseException:  # who gets no cluster stops none
            self.stop()
            raise

    def stop(self) -> None:
        for member in self.members:
            member.kill()

    def _await_health(self, members: Sequence[Island]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        for member in members:
            while not member.is_healthy:
                if time.monotonic() > deadline or member.process is None or member.process.poll() is not None:
                    raise TimeoutError("etcd does not start: " + (member.folder / "log").read_text()[-2000:])
                time.sleep(0.05)

    def _spawn(self, member: Island) -> None:
        client = f"http://{member.endpoint}"
        initial = ",".join(f"{each.name}={each.peer_url}" for each in self.members)
        with (member.folder / "log").open("ab") as log:
            member.process = subprocess.Popen(
                ["ip", "netns", "exec", member.namespace, "etcd", "--name", member.name,
                 "--data-dir", str(member.folder / "data"), "--unsafe-no-fsync",
                 "--listen-client-urls", client, "--advertise-client-urls", client,
                 "--listen-peer-urls", member.peer_url, "--initial-advertise-peer-urls", member.peer_url,
                 "--initial-cluster", initial, "--log-level", "warn"],
                stdout=log, stderr=log,
            )  # fmt: skip


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
