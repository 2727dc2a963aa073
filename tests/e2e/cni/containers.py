"""Containers as a runtime has them: a network namespace each, and the CNI executables called for it as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calico_core.dataplane.linux import netns
from calico_core.lab.host import LabHost
from tests.e2e.observing import kernel_state

REFERENCE = Path("/usr/lib/cni")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
WAIT_S = 60.0


def a_network(**changes: Any) -> dict[str, Any]:
    """A minimal configuration; a change to None removes the key."""
    whole = {"cniVersion": "1.0.0", "name": "net1", "type": "calico", "ipam": {"type": "calico-ipam"}, **changes}
    return {key: value for key, value in whole.items() if value is not None}


class Container:
    """A namespace and an id. The namespace is the machine's, as a runtime's would be."""

    def __init__(self, host: LabHost, name: str) -> None:
        self.host = host
        self.id = name
        self.namespace = netns.NAMED / name

    def start(
        self,
        command: str,
        configuration: Mapping[str, Any] | bytes | None = None,
        *,
        program: str = "calico",
        container_id: str = "",
        interface: str = "eth0",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """One execution, its input written."""
        ours = self.host.cni_bin_directory
        executable = ours / program if (ours / program).exists() else REFERENCE / program
        text = configuration if isinstance(configuration, bytes) else json.dumps(configuration or a_network()).encode()
        process = subprocess.Popen(
            ["nsenter", f"--net={self.host.namespace}", "--", str(executable)],
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": container_id or self.id,
                "CNI_NETNS": str(self.namespace),
                "CNI_IFNAME": interface,
                "CNI_PATH": f"{ours}:{REFERENCE}",
                "PATH": os.environ["PATH"],
                **(environment or {}),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        return process

    def call(self, command: str, configuration: Mapping[str, Any] | bytes | None = None, **options: Any) -> Any:
        """The reply's object, or None when there is none. Raises ``AssertionError`` when it failed."""
        status, shape = finish(self.start(command, configuration, **options))
        assert status == 0, shape
        return shape

    def refused(self, command: str, configuration: Mapping[str, Any] | bytes | None = None, **options: Any) -> Any:
        """The error object."""
        status, shape = finish(self.start(command, configuration, **options))
        assert status == 1, shape
        assert isinstance(shape["code"], int)
        return shape

    def ip(self, *arguments: str) -> str:
        """``ip`` inside the container."""
        done = subprocess.run(
            ["nsenter", f"--net={self.namespace}", "--", "ip", *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout


def finish(process: subprocess.Popen[bytes]) -> tuple[int, Any]:
    stdout, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode in {0, 1}, (process.returncode, stdout, stderr)
    return process.returncode, json.loads(stdout) if stdout else None


def chain(container: Container, command: str, plugins: Sequence[Mapping[str, Any]], **common: Any) -> Any:
    """A list of plugins as libcni runs it: each with the result before it, DEL from the end. ADD gives the last
    result; the others take it as ``prevResult`` in ``common``."""
    result = common.pop("prevResult", None)
    for plugin in reversed(plugins) if command == "DEL" else plugins:
        configuration = {"cniVersion": "1.0.0", "name": "net1", **common, **plugin}
        if result is not None:
            configuration["prevResult"] = result
        reply = container.call(command, configuration, program=plugin["type"])
        if command == "ADD":
            result = reply
    return result


@contextmanager
def containers(host: LabHost, count: int, prefix: str = "c") -> Iterator[list[Container]]:
    """Namespaces made and removed."""
    made = [Container(host, f"{host.namespace.name}-{prefix}{number}") for number in range(count)]
    try:
        for container in made:
            netns.create_namespace(container.id)
        yield made
    finally:
        for container in made:
            netns.delete_namespace(container.id)


def whole_state(host: LabHost) -> dict[str, Any]:
    """Kernel and datastore, without what lives by itself: blocks a host keeps, status, liveness, profiles."""
    return {"kernel": kernel_state(host), "store": records(host)}


def assert_settles(host: LabHost, expected: dict[str, Any], *, within_s: float = 30.0) -> None:
    """The agent follows the datastore: what was removed there leaves the kernel a moment later."""
    deadline = time.monotonic() + within_s
    while (found := whole_state(host)) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == expected


def records(host: LabHost) -> dict[str, Any]:
    """Endpoints, handles, and the addresses in use of each block."""
    dump = json.loads(host.run([*store_dump(host)]).stdout)
    return {key: value for key, value in dump.items() if _is_of_workloads(key)} | {
        "in use": sorted(
            f"{key} {ordinal}"
            for key, value in dump.items()
            if "/assignment/" in key
            for ordinal, holder in enumerate(json.loads(value)["allocations"])
            if holder is not None
        )
    }


def store_dump(host: LabHost) -> tuple[str, ...]:
    """A program that prints every key of the host's datastore, as another process would read it."""
    return (sys.executable, str(Path(__file__).with_name("dump_store.py")), host.environment["CALICO_DATASTORE"])


def _is_of_workloads(key: str) -> bool:
    return (key.startswith("/calico/v1/host/") and "/workload/" in key) or "/handle/" in key
