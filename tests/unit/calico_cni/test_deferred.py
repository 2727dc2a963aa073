"""Detaches while the datastore is away, on doubles and a real folder."""

from __future__ import annotations

import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from calico_cni import deferred
from calico_cni.deferred import DeferredDetach, DeferredDetaches
from calico_cni.environment import Invocation
from calico_core.errors import NoPools, NotReady, Unavailable
from calico_core.interfaces.integration import CallReply
from calico_core.model.keys import ReadyKey
from tests.doubles.cni import CONTAINER, CniSetup, a_network, error_of, stdout_of

AWAY = Unavailable("127.0.0.1:2379", "refused")


@pytest.fixture
def setup(namespace_fd: int, tmp_path: Path) -> CniSetup:
    return CniSetup(namespace_fd, state=tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cni" / "deferred"


def test_del_succeeds_and_the_rest_is_done_later(setup: CniSetup, folder: Path) -> None:
    stdout_of(setup.call("ADD"))
    setup.workloads.failure = AWAY
    configuration = a_network(policy={"k8s_auth_token": "hunter2"})
    assert setup.call("DEL", configuration, CNI_ARGS="K8S_POD_NAME=web;SECRET=hunter2") == CallReply()
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "hunter2" not in path.read_text()
    assert json.loads(path.read_text())["arguments"] == {"K8S_POD_NAME": "web"}
    assert len(setup.workloads.attached) == 1
    setup.workloads.failure = AWAY
    assert setup.integration.replay() == 0
    assert setup.integration.replay() == 1
    assert (setup.workloads.attached, setup.ipam.held, list(folder.iterdir())) == ({}, {}, [])
    assert setup.integration.replay() == 0


def test_what_belongs_to_another_by_then_is_left_alone(setup: CniSetup) -> None:
    result = stdout_of(setup.call("ADD"))
    setup.workloads.failure = AWAY
    assert setup.call("DEL") == CallReply()
    (key,) = setup.workloads.attached
    setup.records.delete(key)  # somebody tidied up meanwhile
    setup.workloads.attached.clear()
    setup.ipam.held.clear()
    again = stdout_of(setup.call("ADD", container="another"))
    assert again["ips"] == result["ips"]
    held = dict(setup.ipam.held)
    assert setup.integration.replay() == 1
    assert setup.ipam.held == held
    assert [key.workload for key in setup.workloads.attached] == ["another"]


def test_a_repeated_del_is_put_off_once(setup: CniSetup, folder: Path) -> None:
    for _ in range(3):
        setup.workloads.failure = AWAY
        assert setup.call("DEL") == CallReply()
    assert len(list(folder.iterdir())) == 1


def test_an_add_of_the_same_attachment_cancels_it(setup: CniSetup, folder: Path) -> None:
    stdout_of(setup.call("ADD"))
    setup.workloads.failure = AWAY
    setup.call("DEL")
    stdout_of(setup.call("ADD", container="another"))
    assert len(list(folder.iterdir())) == 1
    stdout_of(setup.call("ADD"))
    assert list(folder.iterdir()) == []
    assert setup.integration.replay() == 0
    assert len(setup.workloads.attached) == 2


@pytest.mark.parametrize(("program", "cause"), [("calico", "namespace"), ("calico", "pools"), ("calico-ipam", "pools")])
def test_an_add_that_fails_cancels_nothing(setup: CniSetup, folder: Path, program: str, cause: str) -> None:
    stdout_of(setup.call("ADD", program=program))
    setup.workloads.failure = setup.ipam.failure = AWAY
    setup.call("DEL", program=program)
    setup.workloads.failure = setup.ipam.failure = None
    (before,) = [path.read_bytes() for path in folder.iterdir()]
    if cause == "pools":
        setup.workloads.failure = NoPools(4)
        setup.ipam.pools = ()
    dual = a_network(ipam={"type": "calico-ipam", "assign_ipv6": "true"})
    error_of(setup.call("ADD", dual, program=program, namespace_fd=None if cause == "namespace" else -1))
    setup.workloads.failure = None
    assert [path.read_bytes() for path in folder.iterdir()] == [before]
    assert setup.integration.replay() == 1
    assert setup.ipam.held == {}


def test_a_mode_of_policy_only_is_remembered(setup: CniSetup) -> None:
    """The addresses are another plugin's, now and later."""
    under_bridge = a_network(type="bridge")
    stdout_of(setup.call("ADD", under_bridge, program="calico-ipam"))
    setup.workloads.failure = AWAY
    assert setup.call("DEL", a_network(mode="policy-only", ipam=None)) == CallReply()
    assert setup.integration.replay() == 1
    assert len(setup.ipam.held) == 1


def test_gc_forgets_those_that_live(setup: CniSetup, folder: Path) -> None:
    setup.workloads.failure = AWAY
    setup.call("DEL")
    valid = [{"containerID": CONTAINER, "ifname": "eth0"}]
    assert setup.call("GC", a_network(cniVersion="1.1.0", **{"cni.dev/valid-attachments": valid})) == CallReply()
    assert list(folder.iterdir()) == []


def test_too_many_are_no_success(setup: CniSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "LIMIT", 2)
    for container in ("a", "b"):
        setup.workloads.failure = AWAY
        assert setup.call("DEL", container=container) == CallReply()
    setup.workloads.failure = AWAY
    assert error_of(setup.call("DEL", container="c"))["code"] == 11


def test_a_folder_that_cannot_be_written(namespace_fd: int) -> None:
    setup = CniSetup(namespace_fd)
    setup.workloads.failure = AWAY
    assert error_of(setup.call("DEL"))["code"] == 11


def test_rubbish_in_the_folder_is_left_alone(setup: CniSetup, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("rubbish")
    (folder / "note").write_text("by hand")
    setup.workloads.failure = AWAY
    setup.call("DEL")
    assert setup.integration.replay() == 1
    assert sorted(path.name for path in folder.iterdir()) == ["note", "x.json"]


def test_one_that_can_never_be_done_holds_up_nobody(folder: Path) -> None:
    detaches = DeferredDetaches(folder)
    for container in ("a", "b"):
        detaches.put(DeferredDetach.of("calico", "net1", Invocation("DEL", container, "", "eth0")))

    def run(detach: DeferredDetach) -> None:
        if detach.container_id == "a":
            raise NotReady("for ever")

    assert detaches.replay(run) == 2
    assert detaches.all() == ()


def test_the_node_does_it_by_itself(setup: CniSetup, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calico_cni.integration.REPLAY_INTERVAL_S", 0.01)
    setup.workloads.failure = AWAY
    setup.call("DEL")
    assert setup.integration.is_server
    stop = threading.Event()
    thread = threading.Thread(target=setup.integration.serve, args=(stop,))
    thread.start()
    for _ in range(1000):
        if not list(folder.iterdir()):
            break
        stop.wait(0.01)
    stop.set()
    thread.join(10)
    assert list(folder.iterdir()) == []


def test_calico_ipam_too(setup: CniSetup, folder: Path) -> None:
    stdout_of(setup.call("ADD", program="calico-ipam"))
    setup.ipam.failure = AWAY
    assert setup.call("DEL", program="calico-ipam") == CallReply()
    assert len(list(folder.iterdir())) == 1
    assert setup.integration.replay() == 1
    assert setup.ipam.held == {}


@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
@pytest.mark.parametrize("ready", ["false", None])
def test_a_datastore_that_is_not_ready(namespace_fd: int, tmp_path: Path, program: str, ready: str | None) -> None:
    """Nobody writes to one that is filled or moved. Source: cni specification 6 and 9, scenario 25."""
    setup = CniSetup(namespace_fd, state=tmp_path)
    stdout_of(setup.call("ADD", program=program))
    held = dict(setup.ipam.held)
    setup.records.delete(ReadyKey())
    if ready is not None:
        setup.records.put(ReadyKey(), ready)
    if program == "calico-ipam":  # of the other program the service sees to it
        assert error_of(setup.call("ADD", program=program, container="c2"))["code"] == 11
    for _ in range(2):
        assert setup.call("DEL", program=program) == CallReply()
    assert (
        error_of(setup.call("GC", a_network(**{"cniVersion": "1.1.0", "cni.dev/valid-attachments": []})))["code"] == 11
    )
    assert setup.integration.replay() == 0
    assert setup.ipam.held == held
    setup.records.put(ReadyKey(), "true")
    assert setup.integration.replay() == 1
    assert setup.ipam.held == {}
    assert setup.workloads.attached == {}


def test_an_add_while_another_process_does_what_was_put_off(setup: CniSetup, folder: Path) -> None:
    """Its replay or GC takes the file that the ADD is about to forget. A pipe in its place tells when it is read."""
    folder.mkdir(parents=True)
    detach = DeferredDetach.of("calico", "net1", Invocation("DEL", CONTAINER, "", "eth0"))
    path = folder / detach.file_name
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(setup.call, "ADD")
        with path.open("wb") as file:
            path.unlink()
            file.write(b"{}")
        stdout_of(adding.result())
    assert list(folder.iterdir()) == []
