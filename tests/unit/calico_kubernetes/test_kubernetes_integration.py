"""The integration as the node's runtime sees it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.integration import IntegrationContext
from calico_core.model.keys import PolicyControllerKey
from calico_core.settings import Settings
from calico_kubernetes.integration import KubernetesIntegration
from tests.doubles.ipam import MemoryIpam
from tests.doubles.workloads import MemoryWorkloads


def a_context(kubeconfig: str) -> IntegrationContext:
    return IntegrationContext(
        workloads=MemoryWorkloads(),
        ipam=MemoryIpam(),
        records=TypedRecords(MemoryDatastore()),
        settings=Settings(kubeconfig=kubeconfig),
        host="n1",
    )


def served(context: IntegrationContext, *, until_elected: bool) -> str | None:
    """What stands at the controller's key while the integration serves."""
    integration = KubernetesIntegration()
    integration.prepare(context)
    stop = threading.Event()
    thread = threading.Thread(target=integration.serve, args=(stop,))
    thread.start()
    found = None
    for _ in range(500 if until_elected else 5):
        found = context.records.get(PolicyControllerKey())
        if found is not None:
            break
        stop.wait(0.02)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    return None if found is None else str(found.record)


def test_without_a_kubeconfig_it_does_nothing() -> None:
    assert served(a_context(""), until_elected=False) is None


def test_a_kubeconfig_that_is_not_there_yet_is_waited_for() -> None:
    pytest.importorskip("kubernetes")
    assert served(a_context("/nowhere/kubeconfig"), until_elected=True) == "n1"


def test_loading_it_is_cheap() -> None:
    program = "import sys, calico_kubernetes.integration; print(*{'kubernetes', 'urllib3', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
