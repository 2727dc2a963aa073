"""The integration as the node's runtime sees it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.integration import IntegrationContext
from calico_core.model.keys import PolicyControllerKey
from calico_core.settings import Settings
from calico_kubernetes.integration import KubernetesIntegration
from tests.doubles.ipam import MemoryIpam
from tests.doubles.kubernetes_api import KubernetesApi
from tests.doubles.workloads import MemoryWorkloads
from tests.waiting import eventually


def a_context(kubeconfig: str) -> IntegrationContext:
    return IntegrationContext(
        workloads=MemoryWorkloads(),
        ipam=MemoryIpam(),
        records=TypedRecords(MemoryDatastore()),
        settings=Settings(kubeconfig=kubeconfig),
        host="n1",
    )


@contextmanager
def serving(context: IntegrationContext) -> Iterator[None]:
    integration = KubernetesIntegration()
    integration.prepare(context)
    stop = threading.Event()
    thread = threading.Thread(target=integration.serve, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def leader(context: IntegrationContext) -> str:
    """What stands at the controller's key."""
    found = context.records.get(PolicyControllerKey())
    return "" if found is None else str(found.record)


def test_without_a_kubeconfig_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes")
    made: list[object] = []
    monkeypatch.setattr("calico_kubernetes.controller.PolicyController", lambda *arguments: made.append(arguments))
    context = a_context("")
    before = set(threading.enumerate())
    with serving(context):
        pass
    assert set(threading.enumerate()) <= before  # nobody is left who could make one yet
    assert made == []
    assert leader(context) == ""


def test_a_kubeconfig_that_is_not_there_yet_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("kubernetes")
    api = KubernetesApi(tmp_path)
    context = a_context(str(tmp_path / "kubeconfig"))
    with serving(context):
        eventually(lambda: "controller.cannot_stand" in caplog.messages)
        assert leader(context) == ""
        api.kubeconfig()
        eventually(lambda: leader(context) == "n1")
    api.stop()


def test_loading_it_is_cheap() -> None:
    program = "import sys, calico_kubernetes.integration; print(*{'kubernetes', 'urllib3', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
