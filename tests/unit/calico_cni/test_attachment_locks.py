"""A DEL that comes while an ADD of the same attachment runs, on doubles, a real file and real programs."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from calico_cni import attachment_locks
from calico_cni.attachment_locks import AttachmentLocks
from calico_cni.environment import Invocation
from calico_core.errors import NotReady, Unavailable
from calico_core.interfaces.integration import CallReply
from calico_core.model.workloads import Attach, Attached
from tests.doubles.cni import CONTAINER, CniSetup, a_network, error_of, stdout_of
from tests.waiting import eventually

DEL = Invocation("DEL", "c1", "", "eth0")


@pytest.fixture
def setup(namespace_fd: int, tmp_path: Path) -> CniSetup:
    return CniSetup(namespace_fd, state=tmp_path / "state")


class SlowIpam:
    """An IPAM plugin whose ADD ends when it is told to."""

    def __init__(self, folder: Path) -> None:
        self._heard, self._end = folder / "heard", folder / "end"
        os.mkfifo(self._end)
        answer = """echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.9/24"}]}'"""
        program = folder / "slow-ipam"
        program.write_text(
            f"#!/bin/sh\ncat > /dev/null\necho $CNI_COMMAND >> {self._heard}\n"
            f"[ $CNI_COMMAND = ADD ] || exit 0\ncat {self._end}\n{answer}\n"
        )
        program.chmod(0o755)
        self.path = str(folder)

    @property
    def heard(self) -> list[str]:
        return self._heard.read_text().split() if self._heard.exists() else []

    def end(self) -> None:
        self._end.write_bytes(b"")


@pytest.fixture
def ipam(tmp_path: Path) -> SlowIpam:
    return SlowIpam(tmp_path)


def call(setup: CniSetup, ipam: SlowIpam, command: str, **options: Any) -> CallReply:
    return setup.call(command, a_network(ipam={"type": "slow-ipam"}), CNI_PATH=ipam.path, **options)


def test_del_waits_for_the_add_that_runs(setup: CniSetup, ipam: SlowIpam, log_text: io.StringIO) -> None:
    with ThreadPoolExecutor(2) as pool:
        adding = pool.submit(call, setup, ipam, "ADD")
        eventually(lambda: ipam.heard == ["ADD"])
        deleting = pool.submit(call, setup, ipam, "DEL")
        eventually(lambda: "attachment.busy" in log_text.getvalue() or deleting.done())
        ipam.end()
        stdout_of(adding.result())
        assert deleting.result() == CallReply()
    assert setup.workloads.attached == {}
    assert ipam.heard == ["ADD", "DEL"]


def test_a_del_that_waits_too_long_is_repeated(
    setup: CniSetup, ipam: SlowIpam, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(attachment_locks.TIMEOUTS_S, "DEL", 0.0)
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(call, setup, ipam, "ADD")
        eventually(lambda: ipam.heard == ["ADD"])
        error = error_of(call(setup, ipam, "DEL"))
        ipam.end()
        stdout_of(adding.result())
    assert (error["code"], "net1" in error["msg"]) == (11, True)
    assert (len(setup.workloads.attached), setup.workloads.detach_requests, ipam.heard) == (1, [], ["ADD"])
    assert not (tmp_path / "state" / "cni" / "deferred").exists()  # done later, it would find nothing to do
    assert call(setup, ipam, "DEL") == CallReply()
    assert setup.workloads.attached == {}


@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
@pytest.mark.parametrize("has_left", [True, False])
def test_an_add_whose_caller_left_while_it_waited_does_nothing(
    setup: CniSetup, log_text: io.StringIO, tmp_path: Path, *, program: str, has_left: bool
) -> None:
    """The DEL of its runtime may have been first."""
    locks = AttachmentLocks(tmp_path / "state" / "cni")
    with ThreadPoolExecutor(1) as pool:
        with locks.hold(program, "net1", Invocation("DEL", CONTAINER, "", "eth0")):
            adding = pool.submit(setup.call, "ADD", program=program, caller_left=lambda: has_left)
            eventually(lambda: "attachment.busy" in log_text.getvalue())
        reply = adding.result()
    if not has_left:
        stdout_of(reply)
        return
    error = error_of(reply)
    assert (error["code"], "left" in error["msg"]) == (11, True)
    assert (setup.workloads.attach_requests, setup.ipam.held) == ([], {})


def test_another_interface_or_network_does_not_wait(setup: CniSetup, ipam: SlowIpam) -> None:
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(call, setup, ipam, "ADD")
        eventually(lambda: ipam.heard == ["ADD"])
        try:
            stdout_of(setup.call("ADD", interface="eth1"))
            assert setup.call("DEL", interface="eth1") == CallReply()
            assert setup.call("DEL", a_network(name="net2")) == CallReply()
            assert setup.call("DEL", program="calico-ipam") == CallReply()  # as the plugin that runs may ask for
        finally:
            ipam.end()
        stdout_of(adding.result())


def of_pod(name: str) -> str:
    return f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}"


def named_after_pods(**changes: Any) -> dict[str, Any]:
    return a_network(orchestrator="k8s", **changes)


@pytest.mark.parametrize("late", ["eth0", "net1"])
def test_the_containers_of_a_pod_wait_for_each_other(
    setup: CniSetup,
    log_text: io.StringIO,
    namespace_fd: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: str,
) -> None:
    """Their record and interface have one name: a late DEL of the last one, in a process that knows nothing of the
    ADD, would find the new one's. It may name another interface, where networks share one."""
    network = named_after_pods(interface_mode="single")
    beside = CniSetup(namespace_fd, is_resident=False, state=tmp_path / "state")
    attach = setup.workloads.attach
    deleting: list[Future[CallReply]] = []

    def slow(request: Attach) -> Attached:
        assert beside.call("DEL", network, container="old", CNI_ARGS=of_pod("other")) == CallReply()
        beside.workloads.detach_requests.clear()
        options = {"container": "old", "interface": late, "CNI_ARGS": of_pod("web")}
        deleting.append(pool.submit(beside.call, "DEL", network, **options))
        eventually(lambda: "attachment.busy" in log_text.getvalue() or deleting[0].done())
        assert beside.workloads.detach_requests == []
        return attach(request)

    monkeypatch.setattr(setup.workloads, "attach", slow)
    with ThreadPoolExecutor(1) as pool:
        stdout_of(setup.call("ADD", network, container="new", CNI_ARGS=of_pod("web")))
        assert deleting[0].result() == CallReply()
    assert beside.workloads.detach_requests


def test_the_container_before_goes_while_an_add_of_its_pod_asks_others(setup: CniSetup, ipam: SlowIpam) -> None:
    """An IPAM plugin, a gate or the API may take longer than a DEL has time."""
    network = named_after_pods(ipam={"type": "slow-ipam"})
    stdout_of(setup.call("ADD", named_after_pods(), container="old", CNI_ARGS=of_pod("web")))
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(setup.call, "ADD", network, container="new", CNI_PATH=ipam.path, CNI_ARGS=of_pod("web"))
        eventually(lambda: ipam.heard == ["ADD"])
        try:
            assert setup.call("DEL", named_after_pods(), container="old", CNI_ARGS=of_pod("web")) == CallReply()
            assert setup.workloads.attached == {}
        finally:
            ipam.end()
        stdout_of(adding.result())
    assert [each.endpoint.container_id for each in setup.workloads.attached.values()] == ["new"]


def test_an_add_that_is_left_does_not_take_the_place_of_the_next_container(setup: CniSetup, ipam: SlowIpam) -> None:
    """It asked others for so long that its runtime gave up, and has made another one by now."""
    network = named_after_pods(ipam={"type": "slow-ipam"})
    left = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(
            setup.call,
            "ADD",
            network,
            container="old",
            caller_left=left.is_set,
            CNI_PATH=ipam.path,
            CNI_ARGS=of_pod("web"),
        )
        eventually(lambda: ipam.heard == ["ADD"])
        try:
            left.set()
            stdout_of(setup.call("ADD", named_after_pods(), container="new", CNI_ARGS=of_pod("web")))
        finally:
            ipam.end()
        error = error_of(adding.result())
    assert (error["code"], "left" in error["msg"]) == (11, True)
    assert [each.endpoint.container_id for each in setup.workloads.attached.values()] == ["new"]
    assert ipam.heard == ["ADD", "DEL"]  # its address was given back


def test_what_was_put_off_waits_for_an_add_that_runs(
    setup: CniSetup, namespace_fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that starts does it while a process of its own still makes the pod's next container. Others are done."""
    for container, pod in (("old", "web"), ("gone", "other")):
        setup.workloads.failure = Unavailable("127.0.0.1:2379", "refused")
        assert setup.call("DEL", named_after_pods(), container=container, CNI_ARGS=of_pod(pod)) == CallReply()
    setup.workloads.detach_requests.clear()
    beside = CniSetup(namespace_fd, is_resident=False, state=tmp_path / "state")
    attach = beside.workloads.attach
    done: list[int] = []

    def meanwhile(request: Attach) -> Attached:
        done.append(setup.integration.replay())
        return attach(request)

    monkeypatch.setattr(beside.workloads, "attach", meanwhile)
    stdout_of(beside.call("ADD", named_after_pods(), container="new", CNI_ARGS=of_pod("web")))
    assert (done, {each.container_id for each in setup.workloads.detach_requests}) == ([1], {"gone"})
    assert setup.integration.replay() == 1
    assert {each.container_id for each in setup.workloads.detach_requests} == {"gone", "old"}
    assert setup.integration.replay() == 0


def test_the_same_add_twice_at_once(setup: CniSetup, ipam: SlowIpam, log_text: io.StringIO) -> None:
    """The second finds what the first has made: nobody is asked for an address twice."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, setup, ipam, "ADD")
        eventually(lambda: ipam.heard == ["ADD"])
        second = pool.submit(call, setup, ipam, "ADD")
        eventually(lambda: "attachment.busy" in log_text.getvalue() or len(ipam.heard) > 1)
        ipam.end()
        assert second.result() == first.result()
    stdout_of(first.result())
    assert ipam.heard == ["ADD"]


def test_del_during_the_readiness_gates(setup: CniSetup, log_text: io.StringIO) -> None:
    deletes: list[Future[CallReply]] = []

    class Gate(BaseHTTPRequestHandler):
        """Answers when a DEL waits for the ADD that asks, and that may ask again."""

        def do_GET(self) -> None:
            if not deletes:
                deletes.append(pool.submit(setup.call, "DEL", configuration))
            eventually(lambda: "attachment.busy" in log_text.getvalue() or deletes[0].done())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadPoolExecutor(2) as pool, ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server:
        configuration = a_network(readiness_gates=[f"http://127.0.0.1:{server.server_address[1]}/"])
        pool.submit(server.serve_forever, 0.02)
        try:
            stdout_of(setup.call("ADD", configuration))
        finally:
            server.shutdown()
    assert [each.result() for each in deletes] == [CallReply()]
    assert (setup.workloads.attached, setup.ipam.held) == ({}, {})


def test_calico_ipam_too(setup: CniSetup, log_text: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool:
        assign = setup.ipam.auto_assign

        def slow(*arguments: Any) -> Any:
            deleting.append(pool.submit(setup.call, "DEL", program="calico-ipam"))
            eventually(lambda: "attachment.busy" in log_text.getvalue() or deleting[0].done())
            return assign(*arguments)

        deleting: list[Any] = []
        monkeypatch.setattr(setup.ipam, "auto_assign", slow)
        stdout_of(setup.call("ADD", program="calico-ipam"))
        assert deleting[0].result() == CallReply()
    assert setup.ipam.held == {}


HOLDER = """
import sys
from pathlib import Path
from calico_cni.attachment_locks import AttachmentLocks
from calico_cni.environment import Invocation
with AttachmentLocks(Path(sys.argv[1])).hold("calico", "net1", Invocation("ADD", "c1", "", "eth0")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", [lambda process: process.stdin.close(), lambda process: process.kill()])
def test_another_process_is_waited_for_and_leaves_nothing(
    tmp_path: Path, end: Callable[[subprocess.Popen[bytes]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = AttachmentLocks(tmp_path / "cni")
    argv = [sys.executable, "-c", HOLDER, str(tmp_path / "cni")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        monkeypatch.setitem(attachment_locks.TIMEOUTS_S, "DEL", 0.0)
        with pytest.raises(NotReady, match="calico:net1:c1:eth0"), locks.hold("calico", "net1", DEL):
            pass
        end(process)
        process.wait()
    with locks.hold("calico", "net1", DEL):
        pass
    (left,) = (tmp_path / "cni").iterdir()
    assert left.stat().st_size == 0


def test_a_file_system_without_locks(
    setup: CniSetup, monkeypatch: pytest.MonkeyPatch, log_text: io.StringIO, tmp_path: Path
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    stdout_of(setup.call("ADD"))
    assert setup.call("DEL") == CallReply()
    assert setup.workloads.attached == {}
    (told,) = [line for line in log_text.getvalue().splitlines() if "attachment.no_locks" in line]
    assert str(tmp_path / "state" / "cni" / "attachments.lock") in told


def test_a_directory_that_cannot_be_written(log_text: io.StringIO) -> None:
    locks = AttachmentLocks(Path("/dev/null/state"))
    for _ in range(2):
        with locks.hold("calico", "net1", DEL), locks.hold("calico", "net1", DEL):
            pass
    assert log_text.getvalue().count("attachment.no_locks") == 1
