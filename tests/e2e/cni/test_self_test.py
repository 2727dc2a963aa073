"""``calico -t``: would an ADD with this configuration be served? Source: cni specification 1 and 9, scenario 61."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from tests.e2e.cni.containers import a_network
from tests.e2e.cni.test_garbage import on_store
from tests.e2e.observing import MakeLab

pytestmark = pytest.mark.needs_root

LIMIT_S = 2.0
START_S = 10.0  # of a process that has to import everything, on a busy machine


def tried(host: LabHost, program: str = "calico", **changes: Any) -> tuple[int, Any, float]:
    """Status, error object if there is one, and how long it took."""
    argv = ["nsenter", f"--net={host.namespace}", "--", str(host.cni_bin_directory / program), "-t"]
    began = time.monotonic()
    done = subprocess.run(
        argv, input=json.dumps(a_network(**changes)).encode(), env=host.environment, capture_output=True, check=False
    )
    took_s = time.monotonic() - began
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout) if done.stdout else None, took_s


@pytest.mark.parametrize("is_node_up", [True, False])
def test_the_datastore(
    make_lab: MakeLab, stop_etcd: Callable[[Laboratory], Callable[[], None]], is_node_up: bool
) -> None:
    lab = make_lab(1, datastore="etcd")
    host: LabHost = lab.hosts[0]
    if not is_node_up:
        host.kill_node()
    usual_s = 0.0
    for program in ("calico", "calico-ipam"):
        status, error, took_s = tried(host, program)
        assert (status, error) == (0, None)
        usual_s = max(usual_s, took_s)
    status, error, _ = tried(host, mtu=-1)
    assert (status, error["code"], "mtu" in error["msg"]) == (1, 7, True)
    on_store(host, "store.put('/calico/v1/Ready', b'false')")
    for program in ("calico", "calico-ipam"):
        status, error, _ = tried(host, program)
        assert (status, error["code"], "not ready" in error["msg"]) == (1, 50, True)
    on_store(host, "store.put('/calico/v1/Ready', b'true')")
    resume = stop_etcd(lab)
    for program in ("calico", "calico-ipam"):
        status, error, took_s = tried(host, program)
        assert (status, error["code"]) == (1, 50), error
        assert took_s < LIMIT_S + 2 * usual_s + 1, "as long as the store's own limit would be"
    resume()
    deadline = time.monotonic() + 30
    while tried(host)[0]:
        assert time.monotonic() < deadline


def test_the_kubernetes_api_and_nothing_left(make_lab: MakeLab) -> None:
    host: LabHost = make_lab(1).hosts[0]
    policy = {"type": "k8s", "k8s_api_root": "http://127.0.0.1:1/api/v1/"}
    status, error, took_s = tried(host, policy=policy)
    assert (status, error["code"]) == (1, 50), error
    assert took_s < LIMIT_S + START_S


def test_an_installer_that_asks(make_lab: MakeLab, stop_etcd: Callable[[Laboratory], Callable[[], None]]) -> None:
    """No list, and so no container, before the datastore answers; or a list and a word."""
    lab = make_lab(1, datastore="etcd")
    host: LabHost = lab.hosts[0]
    written = host.cni_conf_directory / "10-calico.conflist"

    def install(test: str) -> subprocess.CompletedProcess[str]:
        written.unlink(missing_ok=True)
        directories = ("--bin-dir", str(host.cni_bin_directory), "--conf-dir", str(host.cni_conf_directory))
        return host.calicoctl("cni", "install", *directories, "--test", test, "--test-wait", "0", check=False)

    done = install("require")
    assert (done.returncode, done.stderr, written.exists()) == (0, "", True)
    resume = stop_etcd(lab)
    done = install("require")
    assert (done.returncode, written.exists()) == (3, False)
    assert re.search(r"calico -t: .*datastore.*; the list is not written", done.stderr)
    done = install("warn")
    assert (done.returncode, written.exists()) == (0, True)
    assert re.search(r"warning: no container would be attached now: calico -t: .*datastore", done.stderr)
    resume()
