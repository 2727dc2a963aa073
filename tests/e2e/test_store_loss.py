"""The cluster's etcd goes away, deaf or dead, and comes back: an attach is told to try again, what runs goes on, and
everything heals without a restart of the node."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import msgspec
import pytest

from calico_core.errors import ToolFailed
from calico_core.lab import etcd, processes
from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe, probe_until
from calico_core.lab.record import ProcessRecord
from calico_core.lab.stream import Stream
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from tests.e2e.observing import MakeLab, kernel_handles, kernel_state
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root

TRY_AGAIN = 11
"""CNI specification 1.0.0, error codes: try again later."""
ATTACH_DEADLINE_S = 30.0
"""IPAM gives a write whose answer was lost 20 s to become certain; an orchestrator waits at least 45."""
HEALED_WITHIN_S = 20.0
_MOST_BUSY = 0.05
"""Of a processor, for a node that waits. Measured: 0.6 % at most."""


class Store:
    """The laboratory's etcd. Back at the end of the block, whatever happened inside."""

    def __init__(self, lab: Laboratory, blow: str) -> None:
        self._lab, self._blow = lab, blow
        self._is_gone = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def lose(self) -> None:
        """``deaf``: connections stay, nobody answers, as when its machine hangs. ``dead``: kill -9."""
        self._is_gone = True
        if self._blow == "deaf":
            os.kill(self._process.pid, signal.SIGSTOP)
        else:
            processes.kill(self._process)

    def restore(self) -> None:
        if not self._is_gone:
            return
        self._is_gone = False
        if self._blow == "deaf":
            os.kill(self._process.pid, signal.SIGCONT)
            return
        process = etcd.start(self._lab.fabric, self._lab.directory)
        others = tuple(each for each in self._lab.record.processes if each.what != "etcd")
        self._lab._journal.update(lambda now: msgspec.structs.replace(now, processes=(*others, process)))
        etcd.await_health(process, self._lab.fabric, self._lab.directory)

    @property
    def _process(self) -> ProcessRecord:
        return next(process for process in self._lab.record.processes if process.what == "etcd")


@pytest.mark.parametrize("blow", ["deaf", "dead"])
@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_lost_store_stops_nothing_that_runs(
    make_lab: MakeLab, capsys: pytest.CaptureFixture[str], blow: str, seconds: float
) -> None:
    lab = make_lab(2, datastore="etcd", routing="bird")
    first, second = (lab.add_workload(host) for host in lab.hosts)
    stranger, late, leaver = (lab.add_workload(lab.hosts[0]) for _ in range(3))
    for workload, network in ((first, "net1"), (second, "net1"), (leaver, "net1"), (stranger, "other")):
        workload.attach(network=network)
    assert probe_until(first, second, "tcp", is_reachable=True, within_s=20).is_reachable
    nodes = [host.node_pid for host in lab.hosts]
    rules = [kernel_state(host)["nft"] for host in lab.hosts]
    waits: list[float] = []
    with Store(lab, blow) as store, Stream(first, second, "udp", interval_s=0.002) as stream:
        store.lose()
        began, before = time.monotonic(), cpu_s(lab.hosts[1])
        until = time.monotonic() + seconds
        while not waits or time.monotonic() < until:
            waits.append(refused_attach(late))
            time.sleep(0.2)  # an orchestrator's pause, not a flood
        busy = (cpu_s(lab.hosts[1]) - before) / (time.monotonic() - began)  # nobody asks it for anything
        assert busy < _MOST_BUSY
        assert not probe(stranger, first, "tcp", timeout_s=0.3).is_reachable
        assert probe(first, leaver, "tcp").is_reachable
        assert [kernel_state(host)["nft"] for host in lab.hosts] == rules
        gone = leaver.call_cni("DEL", network="net1")
        assert json.loads(gone.stdout)["code"] == TRY_AGAIN if gone.returncode else True
        store.restore()
        healed_s = attach_again(late)
        report = stream.stop()
    assert report.lost == 0
    assert report.received > 100 * seconds
    assert [host.node_pid for host in lab.hosts] == nodes
    for source in (first, second):
        assert probe_until(source, late, "tcp", is_reachable=True, within_s=10).is_reachable
    lab.hosts[1].calicoctl("profile", "net1", "rule", "add", "inbound", "allow", "from", "tag", "other")
    for target in (first, second, late):
        assert probe_until(stranger, target, "tcp", is_reachable=True, within_s=10).is_reachable
    leaver.detach()
    used = json.loads(lab.hosts[0].calicoctl("ipam", "show", "-o", "json").stdout)
    assert sum(pool["used"] for pool in used) == 4
    with capsys.disabled():
        sys.stdout.write(
            f"\netcd {blow} for {seconds} s: {len(waits)} attaches refused, the slowest after {max(waits):.1f} s; "
            f"a node that waits took {busy:.1%} of a processor; "
            f"{report.received} of {report.sent} datagrams answered; "
            f"the next attach stood {healed_s:.2f} s after its return\n"
        )


def test_a_node_that_starts_without_its_store_changes_nothing_until_it_is_back(make_lab: MakeLab) -> None:
    lab = make_lab(1, datastore="etcd")
    host = lab.hosts[0]
    first, second, stranger = (lab.add_workload(host) for _ in range(3))
    for workload, network in ((first, "net1"), (second, "net1"), (stranger, "other")):
        workload.attach(network=network)
    assert probe_until(first, second, "tcp", is_reachable=True, within_s=10).is_reachable
    handles, routes = kernel_handles(host), kernel_state(host)["routes"]
    host.kill_node()
    with Store(lab, "dead") as store, ThreadPoolExecutor(1) as pool:
        store.lose()
        began = host.node_log.stat().st_size
        start = pool.submit(host.start_node, timeout_s=90)
        eventually(lambda: "datastore.waiting" in host.node_log.read_text()[began:], every_s=0.05)
        assert probe(first, second, "tcp").is_reachable
        assert not probe(stranger, first, "tcp", timeout_s=0.3).is_reachable
        assert (kernel_handles(host), kernel_state(host)["routes"]) == (handles, routes)
        assert not start.done()
        store.restore()
        start.result()
    assert kernel_handles(host) == handles
    host.calicoctl("profile", "net1", "rule", "add", "inbound", "allow", "from", "tag", "other")
    assert probe_until(stranger, first, "tcp", is_reachable=True, within_s=10).is_reachable


def cpu_s(host: LabHost) -> float:
    """What its node has had of processors. Source: proc_pid_stat(5), utime and stime."""
    fields = Path(f"/proc/{host.node_pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def refused_attach(workload: LabWorkload) -> float:
    """Seconds until the refusal, which says "try again" in time and names the store."""
    began = time.monotonic()
    done = workload.call_cni("ADD", network="net1", timeout_s=60)
    seconds = time.monotonic() - began
    assert done.returncode, done.stdout
    error = json.loads(done.stdout)
    assert error["code"] == TRY_AGAIN, error
    assert "datastore" in error["msg"] + error.get("details", ""), error
    assert seconds < ATTACH_DEADLINE_S, error
    return seconds


def attach_again(workload: LabWorkload) -> float:
    """Seconds until an attach went well, asked again and again as an orchestrator would."""
    began = time.monotonic()
    refused = ""
    while time.monotonic() - began < HEALED_WITHIN_S:
        try:
            workload.attach(network="net1")
            return time.monotonic() - began
        except ToolFailed as error:
            refused = error.stderr
        assert f"CNI code {TRY_AGAIN}" in refused
        time.sleep(0.1)
    pytest.fail(f"still refused: {refused}")
