"""The node starts again while containers come and go: whoever calls waits, and is served by the next process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple, Self

import pytest

from calico_cni.compiler import COMPILER
from calico_core.lab.host import LabHost
from tests.doubles.systemd import Systemd, is_installed
from tests.e2e.cni.containers import Container, assert_settles, containers, finish, whole_state
from tests.e2e.observing import MakeLab
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root

AT_ONCE = 64
WAIT_S = 60.0


class Ledger:
    """The interpreter that the shims run when they run a call in process; it notes each."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "in-process"
        self._file.touch()
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\necho "$CNI_COMMAND" >> {self._file}\nexec {sys.executable} "$@"\n')
        self.python.chmod(0o755)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self._file.read_text().split())


class Call(NamedTuple):
    command: str
    container_id: str
    status: int
    reply: Any
    seconds: float


class Crowd:
    """Everybody attaches and detaches, again and again, until told to end; whoever is attached then is detached."""

    def __init__(self, members: list[Container]) -> None:
        self._members = members
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(len(members))
        self._rounds: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._work = [self._pool.submit(self._live, each) for each in self._members]
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._pool.shutdown()

    def await_calls(self, count: int) -> None:
        """Until that many more have been answered."""
        goal = self._rounds.total() + count
        eventually(lambda: self._rounds.total() >= goal, within_s=WAIT_S)

    def end(self) -> list[Call]:
        self._is_over.set()
        return [call for work in self._work for call in work.result(2 * WAIT_S)]

    def _live(self, member: Container) -> list[Call]:
        done: list[Call] = []
        while not self._is_over.is_set():
            container_id = f"{member.id}-{len(done)}"  # no runtime gives one twice
            for command in ("ADD", "DEL"):
                began = time.monotonic()
                status, reply = finish(member.start(command, container_id=container_id))
                done.append(Call(command, container_id, status, reply, time.monotonic() - began))
                self._rounds[member.id] += 1
        return done


def longest(calls: list[Call], command: str) -> float:
    return max(call.seconds for call in calls if call.command == command)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def install(host: LabHost, ledger: Ledger, shim: str) -> None:
    directories = ("--bin-dir", str(host.cni_bin_directory), "--conf-dir", str(host.cni_conf_directory))
    host.calicoctl("cni", "install", *directories, "--python", str(ledger.python), "--shim", shim)


def serves(host: LabHost) -> bool:
    return host.calicoctl("status", check=False).returncode == 0


def wait_until_it_serves(host: LabHost) -> None:
    deadline = time.monotonic() + WAIT_S
    while not serves(host):
        assert time.monotonic() < deadline, host.node_log.read_text()[-4000:]


@pytest.mark.parametrize(
    "shim",
    [
        pytest.param("compiled", marks=pytest.mark.skipif(not which(COMPILER), reason="no C compiler is installed")),
        "python",
    ],
)
def test_in_place_no_call_fails_and_none_runs_in_process(
    make_lab: MakeLab, ledger: Ledger, shim: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = make_lab(1, nodes=False)
    host = lab.hosts[0]
    host.start_node()
    install(host, ledger, shim)
    pid = host.node_pid
    sockets = {each: each.stat().st_ino for each in (host.socket, *host.plugin_directory.iterdir())}
    assert len(sockets) == 3
    with containers(host, AT_ONCE) as members:
        members[0].call("ADD")
        members[0].call("DEL")
        before = whole_state(host)
        with Crowd(members) as crowd:
            crowd.await_calls(AT_ONCE)
            host.calicoctl("node", "restart", timeout_s=2 * WAIT_S)
            crowd.await_calls(AT_ONCE)
            calls = crowd.end()
        assert [call for call in calls if call.status] == []
        assert ledger.counts == {}
        assert host.node_pid == pid
        assert host.node_log.read_text().count("socket.inherited") == 3
        assert {each: each.stat().st_ino for each in sockets} == sockets
        assert_settles(host, before)
    host.stop_node()
    assert not any(each.exists() for each in sockets)
    with capsys.disabled():
        print(f"\nin place, {shim} shim: {len(calls)} calls, longest ADD {longest(calls, 'ADD'):.2f} s, "
              f"longest DEL {longest(calls, 'DEL'):.2f} s")  # fmt: skip


@pytest.fixture
def activated(make_lab: MakeLab, ledger: Ledger, tmp_path: Path) -> Iterator[tuple[LabHost, Systemd]]:
    """The node under systemd with the units that we ship."""
    if not is_installed():
        pytest.skip("systemd is not installed")
    host = make_lab(1, nodes=False).hosts[0]
    systemd = Systemd(host, tmp_path)
    with systemd.running():
        install(host, ledger, "auto")
        yield host, systemd


def test_under_systemd_no_call_fails_and_none_runs_in_process(
    activated: tuple[LabHost, Systemd], ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    host, systemd = activated
    with containers(host, AT_ONCE) as members:
        members[0].call("ADD")  # nobody has started the node: this does
        members[0].call("DEL")
        wait_until_it_serves(host)
        before = whole_state(host)
        pid = systemd.main_pid
        with Crowd(members) as crowd:
            crowd.await_calls(AT_ONCE)
            systemd.control("restart", f"{systemd.name}.service")
            crowd.await_calls(AT_ONCE)
            calls = crowd.end()
        assert [call for call in calls if call.status] == []
        assert ledger.counts == {}
        assert systemd.main_pid != pid
        assert_settles(host, before)
    with capsys.disabled():
        print(f"\nsystemctl restart: {len(calls)} calls, longest ADD {longest(calls, 'ADD'):.2f} s, "
              f"longest DEL {longest(calls, 'DEL'):.2f} s")  # fmt: skip


def test_a_killed_node_under_systemd_leaves_calls_of_unknown_outcome_and_nothing_else(
    activated: tuple[LabHost, Systemd], ledger: Ledger
) -> None:
    """An attach that was being served says "try again"; those that waited are served by the next process."""
    host, systemd = activated
    with containers(host, AT_ONCE) as members:
        members[0].call("ADD")
        members[0].call("DEL")
        wait_until_it_serves(host)
        before = whole_state(host)
        with Crowd(members) as crowd:
            crowd.await_calls(AT_ONCE)
            os.kill(systemd.main_pid, signal.SIGKILL)
            crowd.await_calls(2 * AT_ONCE)
            calls = crowd.end()
        failed = [call for call in calls if call.status]
        assert {(call.command, call.reply["code"]) for call in failed} <= {("ADD", 11)}
        assert len(failed) <= AT_ONCE
        assert ledger.counts.total() <= AT_ONCE
        for call in failed:  # as a runtime does
            finish(members[0].start("DEL", container_id=call.container_id))
        assert_settles(host, before)


def test_a_node_that_cannot_start_again_keeps_nobody_waiting(
    activated: tuple[LabHost, Systemd], ledger: Ledger
) -> None:
    """systemd gives up on it, closes its socket, and the callers are reset."""
    host, systemd = activated
    with containers(host, 4) as members:
        members[0].call("ADD")
        members[0].call("DEL")
        wait_until_it_serves(host)
        before = whole_state(host)
        with systemd.variables.open("a") as file:
            file.write("CALICO_MTU=big\n")
        systemd.control("restart", f"{systemd.name}.service")
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            for command in ("ADD", "DEL"):
                list(pool.map(lambda member, command=command: member.call(command), members))
        assert ledger.counts == {"ADD": 4, "DEL": 4}
        assert time.monotonic() - began < WAIT_S / 2
        assert_settles(host, before)


def test_a_killed_node_without_systemd_is_done_without_as_ever(make_lab: MakeLab, ledger: Ledger) -> None:
    lab = make_lab(1, nodes=False)
    host = lab.hosts[0]
    host.start_node()
    install(host, ledger, "auto")
    with containers(host, 4) as members:
        members[0].call("ADD")
        members[0].call("DEL")
        before = whole_state(host)
        host.kill_node()
        assert host.socket.is_socket()
        for member in members:
            member.call("ADD")
        assert ledger.counts == {"ADD": 4}
        host.start_node()
        for member in members:
            member.call("DEL")
        assert ledger.counts == {"ADD": 4}
        assert_settles(host, before)


def test_a_node_that_waits_for_its_datastore_sends_callers_into_their_own_process(
    make_lab: MakeLab, ledger: Ledger
) -> None:
    lab = make_lab(1, nodes=False, datastore="etcd")
    host = lab.hosts[0]
    host.start_node()
    install(host, ledger, "auto")
    with containers(host, 1) as (only,):
        only.call("ADD")
        etcd = next(process.pid for process in lab.record.processes if process.what == "etcd")
        offset = len(host.node_log.read_text())
        with ThreadPoolExecutor(1) as pool:
            os.kill(etcd, signal.SIGSTOP)
            try:
                restarting = pool.submit(host.calicoctl, "node", "restart", check=False, timeout_s=2 * WAIT_S)
                wait_for_text(host, "node.restart_asked", offset)
                only.call("DEL")
            finally:
                os.kill(etcd, signal.SIGCONT)
            assert ledger.counts == {"DEL": 1}
            assert restarting.result(2 * WAIT_S).returncode == 0, host.node_log.read_text()[offset:]
        only.call("ADD")
        only.call("DEL")
        assert ledger.counts == {"DEL": 1}


SLOW = """
import os, time
from calico_core.interfaces.integration import Integration, IntegrationInfo

class Slow(Integration):
    info = IntegrationInfo(name="slow", api_version=1)

    def prepare(self, context):
        while not os.path.exists(os.environ["GO_AHEAD"]):
            time.sleep(0.05)
"""


def test_a_start_that_takes_its_time_sends_callers_into_their_own_process(
    make_lab: MakeLab, ledger: Ledger, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    about = site / "slow-1.dist-info"
    about.mkdir(parents=True)
    (site / "slow_integration.py").write_text(SLOW)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[calico.integrations]\nslow = slow_integration:Slow\n")
    go_ahead = tmp_path / "go"
    go_ahead.touch()
    lab = make_lab(1, nodes=False)
    host = lab.hosts[0]
    host.start_node(environment={"PYTHONPATH": str(site), "GO_AHEAD": str(go_ahead)})
    install(host, ledger, "auto")
    with containers(host, 1) as (only,):
        go_ahead.unlink()
        with ThreadPoolExecutor(1) as pool:
            restarting = pool.submit(host.calicoctl, "node", "restart", check=False, timeout_s=2 * WAIT_S)
            wait_for_text(host, "node.restart_asked", 0)
            only.call("ADD")
            assert ledger.counts == {"ADD": 1}
            status = host.calicoctl("status", check=False)
            assert "the node is starting" in status.stdout + status.stderr
            go_ahead.touch()
            assert restarting.result(2 * WAIT_S).returncode == 0
        only.call("DEL")
        assert ledger.counts == {"ADD": 1}


def wait_for_text(host: LabHost, text: str, offset: int) -> None:
    eventually(lambda: text in host.node_log.read_text()[offset:], within_s=WAIT_S)
