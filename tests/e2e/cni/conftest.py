"""One node for all the cases that leave nothing behind anyway."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from tests.e2e.cni.containers import Container, containers


@pytest.fixture(scope="module")
def shared_host() -> Iterator[LabHost]:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    lab = Laboratory.create(f"ec{os.getpid() % 100000}", 1, routing="none")
    lab.up()
    try:
        host = lab.hosts[0]
        # it compares nothing with the kernel by itself: what a case breaks on purpose stays broken
        host.start_node(environment={"FELIX_IPTABLESREFRESHINTERVAL": "0"})
        host.install_cni()
        yield host
    finally:
        lab.down()


@pytest.fixture(scope="module")
def shared_container(shared_host: LabHost) -> Iterator[Container]:
    with containers(shared_host, 1, prefix="s") as (only,):
        yield only


@pytest.fixture
def stop_etcd() -> Iterator[Callable[[Laboratory], Callable[[], None]]]:
    """Makes the laboratory's etcd deaf, as when its machine hangs; gives what wakes it."""
    stopped: list[int] = []

    def stop(lab: Laboratory) -> Callable[[], None]:
        pid = next(process.pid for process in lab.record.processes if process.what == "etcd")
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

        def resume() -> None:
            os.kill(pid, signal.SIGCONT)
            stopped.remove(pid)

        return resume

    yield stop
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
