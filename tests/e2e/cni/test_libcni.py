"""The library that runtimes call plugins through, by its own tool ``cnitool``: what it caches, and what it makes of GC.

``go install github.com/containernetworking/cni/cnitool@v1.3.0`` makes the tool; the variable CNITOOL names it where it
is not in PATH. Source: cni specification 9, scenarios 49 and 62.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import Container, a_network, assert_settles, containers, records, whole_state
from tests.e2e.cni.test_garbage import age

TOOL = os.environ.get("CNITOOL") or shutil.which("cnitool") or ""
CACHE = Path("/var/lib/cni/results")

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(not TOOL, reason="cnitool is not in PATH (it is a Go module)"),
]


class Libcni:
    """On one host, for a network of its own name: the cache is the machine's."""

    def __init__(self, host: LabHost) -> None:
        self.host = host
        self.network = f"n{uuid.uuid4().hex[:8]}"

    def install(self, **keys: Any) -> None:
        self.host.calicoctl("cni", "install", *self._directories(), "--network", self.network, "--cni-version", "1.1.0")
        if keys:
            path = self.host.cni_conf_directory / "10-calico.conflist"
            path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    def uninstall(self) -> None:
        self.host.calicoctl("cni", "uninstall", *self._directories())

    def __call__(self, command: str, container: Container, check: bool = True) -> str:
        done = self.host.run(
            [TOOL, command, self.network, str(container.namespace)],
            environment={
                "NETCONFPATH": str(self.host.cni_conf_directory),
                "CNI_PATH": str(self.host.cni_bin_directory),
                "CNI_IFNAME": "eth0",
            },
            check=False,
        )
        assert (done.returncode == 0) == check, done.stdout + done.stderr
        return done.stdout if check else done.stderr

    def cached(self) -> list[str]:
        return sorted(path.name for path in CACHE.glob(f"{self.network}-*"))

    def _directories(self) -> tuple[str, ...]:
        return ("--bin-dir", str(self.host.cni_bin_directory), "--conf-dir", str(self.host.cni_conf_directory))


@pytest.fixture
def libcni(shared_host: LabHost) -> Iterator[Libcni]:
    made = Libcni(shared_host)
    made.install()
    yield made
    for path in CACHE.glob(f"{made.network}-*"):
        path.unlink()
    shared_host.install_cni()


def test_an_attachment_from_add_to_del(libcni: Libcni) -> None:
    """Two whose ids the tool begins alike; and a network that is there as long as it is installed."""
    host = libcni.host
    before = whole_state(host)
    with containers(host, 2, prefix="l") as (first, second):
        libcni("status", first)
        results = [json.loads(libcni("add", each)) for each in (first, second)]
        addresses = {result["ips"][0]["address"].partition("/")[0] for result in results}
        assert len(addresses) == len(libcni.cached()) == 2
        for address in addresses:
            host.run(["ping", "-c", "1", "-W", "10", address])
        for each in (first, second):
            libcni("check", each)
        first.ip("route", "delete", "default")
        assert "0.0.0.0/0 is missing" in libcni("check", first, check=False)
        for _ in range(2):
            libcni("del", first)
            libcni("del", second)
        assert libcni.cached() == []
        assert_settles(host, before)
        libcni.uninstall()
        assert "no net configurations found" in libcni("add", first, check=False)


@pytest.mark.parametrize("is_disabled", [False, True])
def test_attachments_that_nobody_ended(libcni: Libcni, is_disabled: bool) -> None:
    """One that the library remembers gets a DEL, and the plugin GC, for those that it forgot; neither with
    ``disableGC`` in the list. The tool names no valid attachments, as runtimes do: that is not an empty list."""
    host = libcni.host
    before = whole_state(host)
    libcni.install(**({"disableGC": True} if is_disabled else {}))
    with containers(host, 2, prefix=f"g{is_disabled:d}") as (remembered, forgotten):
        libcni("add", forgotten)
        (forgotten_id,) = ids(host)
        (name,) = libcni.cached()
        (CACHE / name).unlink()
        age(host, Container(host, forgotten_id))
        libcni("add", remembered)
        if is_disabled:
            libcni("gc", remembered)
            assert len(ids(host)) == len(libcni.cached()) + 1 == 2
            libcni.install()
        assert "cni.dev/valid-attachments: is required" in libcni("gc", remembered, check=False)
        assert (libcni.cached(), ids(host)) == ([], [forgotten_id])
        nothing = {"cniVersion": "1.1.0", "name": libcni.network, "cni.dev/valid-attachments": None}
        forgotten.call("GC", a_network(**nothing) | nothing)
        assert_settles(host, before)


def ids(host: LabHost) -> list[str]:
    """Of containers with an endpoint: the tool makes them of the namespace's path."""
    return [json.loads(value)["container_id"] for key, value in records(host).items() if "/endpoint/" in key]
