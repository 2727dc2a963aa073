"""The kernel of a host as the agent's benchmark sees it, by kind of dataplane: whether all is there, how to forget it,
and when a change arrives.

Changes of rules are seen by ``nft monitor``, of nftables and of iptables alike (its nft back end); members of an
ipset have no events, so the set is asked again and again.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from typing import Any

from pyroute2 import IPSet

from tests.benchmarks import nft

CHANGED_WITHIN_S = 20.0
#: Between two writes at least this; a transaction is over when nothing was printed for so long.
PAUSE_S = 0.7
_POLL_S = 0.0002


class Kernel(ABC):
    """That of the namespace the benchmark stands in."""

    mark: bytes
    """What stands in every line of ``nft monitor`` about something of ours."""

    @abstractmethod
    def forget(self) -> None:
        """Nothing of ours is left."""

    @abstractmethod
    def check(self, endpoints: int) -> None:
        """:raises RuntimeError: not every endpoint and policy is in the kernel."""

    @abstractmethod
    def yardstick(self) -> dict[str, float]:
        """Seconds the programs take to list what is there, and to write it."""

    @abstractmethod
    def member_watch(self, monitor: Monitor, record: bytes, others: list[bytes]) -> MemberWatch | Monitor:
        """Who sees that the endpoint of ``record`` joins or leaves the set that those of ``others`` are in."""


class Nftables(Kernel):
    mark = b"inet calico"

    def forget(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            nft.nft("delete", "table", *nft.TABLE)

    def check(self, endpoints: int) -> None:
        text = nft.nft("list", "table", *nft.TABLE)
        chains = sum(line.strip().startswith("chain pi_") for line in text.splitlines())
        if chains < 100 or text.count("goto to_") < endpoints:
            raise RuntimeError(f"ready, but the kernel has {chains} chains of policies")

    def yardstick(self) -> dict[str, float]:
        return nft.yardstick()

    def member_watch(self, monitor: Monitor, record: bytes, others: list[bytes]) -> MemberWatch | Monitor:
        return monitor


class Iptables(Kernel):
    mark = b"calico-"

    def __init__(self) -> None:
        version = _run("iptables", "--version")
        if "nf_tables" not in version:
            raise RuntimeError(f"nft monitor shows nothing of this back end: {version.strip()}")

    def forget(self) -> None:
        nft.nft("flush", "ruleset")  # the namespace is the benchmark's own
        _run("ipset", "destroy")

    def check(self, endpoints: int) -> None:
        text = _run("iptables-save")
        chains = len(re.findall(r"^:calico-pi-", text, re.MULTILINE))
        ways = len(re.findall(r" -g calico-tl-", text))
        if chains < 100 or ways < endpoints:
            raise RuntimeError(f"ready, but the kernel has {chains} chains of policies and {ways} endpoints")

    def yardstick(self) -> dict[str, float]:
        listing, loading = [], []
        text = ""
        for _ in range(3):
            started = time.perf_counter()
            text = _run("iptables-save")
            listing.append(time.perf_counter() - started)
            started = time.perf_counter()
            _run("iptables-restore", stdin=text)
            loading.append(time.perf_counter() - started)
        return {"list_s": round(min(listing), 5), "load_s": round(min(loading), 5), "lines": text.count("\n")}

    def member_watch(self, monitor: Monitor, record: bytes, others: list[bytes]) -> MemberWatch | Monitor:
        members: dict[str, set[str]] = {}
        for line in _run("ipset", "save").splitlines():
            verb, name, rest = line.split(" ", 2)
            if verb == "add":
                members.setdefault(name, set()).add(rest)
        wanted = {_address(each) for each in others}
        return MemberWatch([name for name, each in members.items() if each == wanted], _address(record))


KERNELS: dict[str, type[Kernel]] = {"nftables": Nftables, "iptables": Iptables}


class Monitor:
    """``nft monitor``: when it printed a line with ``mark``."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._process = subprocess.Popen(["nft", "monitor"], stdout=subprocess.PIPE)
        self._lines: queue.Queue[tuple[float, bytes]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._await_ready()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((time.perf_counter(), line))

    def _await_ready(self) -> None:
        """A table that comes and goes is printed: it listens."""
        while True:
            for command in ("add", "delete"):
                nft.nft(command, "table", "inet", "bench_ready")
            with contextlib.suppress(queue.Empty):
                self._lines.get(timeout=0.3)
                break
        self.drain()

    def drain(self) -> tuple[float, int]:
        """Wait until nothing came for the pause: when the last line of ours came, and how many did."""
        last, count = 0.0, 0
        while True:
            try:
                at, line = self._lines.get(timeout=PAUSE_S)
            except queue.Empty:
                return last, count
            if self._mark in line:
                last, count = at, count + 1

    def first(self) -> float:
        while True:
            at, line = self._lines.get(timeout=CHANGED_WITHIN_S)
            if self._mark in line:
                return at

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class MemberWatch:
    """When an ipset begins or ends to have an address. ``names``: any of these sets."""

    def __init__(self, names: list[str], address: str) -> None:
        self._names, self._address = names, address
        self._socket = IPSet()
        self._has = self._ask()

    def drain(self) -> tuple[float, int]:
        """As :meth:`Monitor.drain`: there is one change, and no more to come."""
        time.sleep(PAUSE_S)
        return 0.0, 0

    def first(self) -> float:
        deadline = time.perf_counter() + CHANGED_WITHIN_S
        while time.perf_counter() < deadline:
            has = self._ask()
            if has != self._has:
                self._has = has
                return time.perf_counter()
            time.sleep(_POLL_S)
        raise TimeoutError(f"{', '.join(self._names)} did not change")

    def _ask(self) -> bool:
        return any(self._socket.test(name, self._address) for name in self._names)


def _address(record: bytes) -> str:
    fields: dict[str, Any] = json.loads(record)
    return str(fields["ipv4_nets"][0]).partition("/")[0]


def _run(*argv: str, stdin: str | None = None) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, input=stdin).stdout
