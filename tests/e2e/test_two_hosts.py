"""Two hosts on a real etcd, routes by BIRD: reachability across, and policy that follows a change elsewhere."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from calico_core.lab.probes import probe, probe_until
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from tests.e2e.observing import MakeLab

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd-server is not installed"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="bird2 is not installed"),
]

CHANGES = 200


@pytest.fixture
def lab(make_lab: MakeLab) -> Laboratory:
    return make_lab(2, datastore="etcd", routing="bird")


def _pair(lab: Laboratory) -> tuple[LabWorkload, LabWorkload]:
    workloads = []
    for host in lab.hosts:
        workload = lab.add_workload(host)
        workload.attach(network="net1")
        workloads.append(workload)
    return workloads[0], workloads[1]


def test_workloads_reach_each_other_across_hosts(lab: Laboratory) -> None:
    first, second = _pair(lab)
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable
    for kind in ("tcp", "udp", "icmp"):
        assert probe(first, second, kind).is_reachable, kind
        assert probe(second, first, kind).is_reachable, kind
    routes = lab.hosts[0].run(["ip", "-j", "route", "show", "proto", "bird"]).stdout
    assert any(route["gateway"] == str(lab.hosts[1].addresses[0]) for route in json.loads(routes) if "gateway" in route)
    status = json.loads(lab.hosts[0].calicoctl("status", "-o", "json").stdout)
    assert [peer["state"] for peer in status["routing"]["peers"]] == ["Established"]


def test_a_label_changed_on_one_host_opens_and_closes_the_other(
    lab: Laboratory, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = _pair(lab)
    assert probe_until(first, second, "icmp", is_reachable=True, within_s=20).is_reachable
    host = lab.hosts[1]
    host.calicoctl("profile", "net1", "rule", "remove", "inbound", "--at=1")
    host.calicoctl("profile", "net1", "rule", "add", "inbound", "allow", "udp", "from", "selector", "role == 'web'")
    endpoints = json.loads(host.calicoctl("endpoint", "show", "-o", "json").stdout)
    endpoint = next(entry["endpoint"] for entry in endpoints if entry["addresses"] == [str(first.addresses[0])])
    with _Writer(lab, endpoint) as change, _Prober(first, second) as prober:
        roles = ["web", "db"] * (CHANGES // 2)
        delays = [prober.delay(change(role), is_open=role == "web") for role in roles]
    milliseconds = sorted(delay * 1000 for delay in delays)
    p99 = milliseconds[int(0.99 * len(milliseconds))]
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(milliseconds)} changes on another host: median {statistics.median(milliseconds):.1f} ms, "
            f"p99 {p99:.1f} ms, largest {milliseconds[-1]:.1f} ms\n"
        )
    assert len(milliseconds) == CHANGES


class _Writer:
    """Writes labels from the first host; gives the time of each write."""

    def __init__(self, lab: Laboratory, endpoint: str) -> None:
        host = lab.hosts[0]
        script = Path(__file__).with_name("label_writer.py")
        self._process = subprocess.Popen(
            ["nsenter", f"--net={host.namespace}", sys.executable, str(script), endpoint],
            env=host.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def __call__(self, role: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{role}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


class _Prober:
    """New flows, one a millisecond, each from a source port of its own: conntrack must not decide for policy."""

    SILENCE_S = 0.03

    def __init__(self, source: LabWorkload, target: LabWorkload) -> None:
        self._source = source
        self._server = target.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server.bind((str(target.addresses[0]), 9000))
        self._address = (str(target.addresses[0]), 9000)
        self._arrivals: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        self._server.close()

    def delay(self, written: float, *, is_open: bool) -> float:
        """Seconds from the write to the first packet let in, or to the last one."""
        deadline = written + 20
        while time.monotonic() < deadline:
            arrivals = [at for at in self._arrivals if at >= written]
            if is_open and arrivals:
                self._arrivals.clear()
                return arrivals[0] - written
            last = arrivals[-1] if arrivals else written
            if not is_open and time.monotonic() - last > self.SILENCE_S:
                self._arrivals.clear()
                return last - written
            time.sleep(0.001)
        raise AssertionError(f"no effect within 20 s of a change to {'open' if is_open else 'closed'}")

    def _send(self) -> None:
        while not self._stop.is_set():
            with self._source.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
                flow.setblocking(False)
                with contextlib.suppress(OSError):  # the queue is full
                    flow.sendto(b"probe", self._address)
            time.sleep(0.001)

    def _receive(self) -> None:
        while not self._stop.is_set():
            if select.select([self._server], [], [], 0.1)[0]:
                self._server.recv(64)
                self._arrivals.append(time.monotonic())
