"""The libnetwork server on doubles, over real UNIX sockets: no engine, no kernel, no root."""

from __future__ import annotations

import http.client
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPNetwork

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.integration import IntegrationContext
from calico_core.model.keys import Key, PoolKey
from calico_core.model.pools import Pool
from calico_core.settings import Settings
from calico_libnetwork.integration import LibnetworkIntegration
from tests.doubles.ipam import DEFAULT_POOLS, MemoryIpam
from tests.doubles.workloads import MemoryWorkloads

HOST = "node1"
NETWORK = "a1" * 32
OTHER_NETWORK = "b2" * 32
ENDPOINT = "c3" * 32
OTHER_ENDPOINT = "d4" * 32
SANDBOX = "/var/run/docker/netns/0123456789ab"
CALICO_IPV4 = {"AddressSpace": "CalicoLocalAddressSpace", "Gateway": "0.0.0.0/0", "Pool": "0.0.0.0/0"}
CALICO_IPV6 = {"AddressSpace": "CalicoLocalAddressSpace", "Gateway": "::/0", "Pool": "::/0"}
FOREIGN = {"AddressSpace": "LocalDefault", "Gateway": "10.99.0.1/24", "Pool": "10.99.0.0/24"}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


class Setup:
    """The integration, serving, and what it stands on."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.ipam = MemoryIpam()
        self.records = TypedRecords(MemoryDatastore())
        for pool in DEFAULT_POOLS:
            self.records.put(PoolKey(pool), Pool(cidr=pool))
        self.workloads = MemoryWorkloads(self.ipam, self.records)
        self.context = IntegrationContext(
            workloads=self.workloads,
            ipam=self.ipam,
            records=self.records,
            settings=Settings(libnetwork_plugin_dir=str(directory), **settings),
            host=HOST,
        )
        self._stop = threading.Event()
        self.start()

    def start(self) -> None:
        self._stop = threading.Event()
        self.integration = LibnetworkIntegration()
        self.integration.prepare(self.context)
        self._thread = threading.Thread(target=self.integration.serve, args=(self._stop,))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.integration.close()

    def post(self, method: str, body: Any = None, *, name: str = "calico") -> tuple[int, Any]:
        connection = UnixConnection(self.directory / f"{name}.sock")
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        connection.request("POST", f"/{method}", body=data)
        response = connection.getresponse()
        answer = response.status, json.loads(response.read())
        connection.close()
        return answer

    def ask(self, method: str, body: Any = None, *, name: str = "calico") -> Any:
        """The reply of a call that succeeds."""
        status, reply = self.post(method, body, name=name)
        assert status == 200, reply
        assert not {"Err", "Error"} & set(reply)
        return reply

    def refused(self, method: str, body: Any = None, *, status: int | None = None) -> str:
        """The text of a call that fails; never with 200, and under both names."""
        got, reply = self.post(method, body)
        assert got >= 400
        assert status in {None, got}, reply
        assert set(reply) == {"Err", "Error"}
        assert reply["Err"] == reply["Error"]
        assert reply["Err"]
        return str(reply["Err"])

    def record(self, key: Key) -> Any:
        found = self.records.get(key)
        return None if found is None else found.record

    def paths(self, prefix: str = "/calico/") -> list[str]:
        return [entry.key for entry in self.records.store.list(prefix).entries]

    # --- calls with everything at a valid default ---

    def create_network(self, network: str = NETWORK, **changes: Any) -> Any:
        return self.ask("NetworkDriver.CreateNetwork", a_network(network, **changes))

    def create_endpoint(self, address: str = "10.65.0.5/32", network: str = NETWORK, endpoint: str = ENDPOINT) -> Any:
        return self.ask("NetworkDriver.CreateEndpoint", an_endpoint(address, network=network, endpoint=endpoint))

    def join(self, network: str = NETWORK, endpoint: str = ENDPOINT, sandbox: str = SANDBOX) -> Any:
        return self.ask("NetworkDriver.Join", {**ids(network, endpoint), "SandboxKey": sandbox, "Options": None})


def ids(network: str = NETWORK, endpoint: str = ENDPOINT) -> dict[str, str]:
    return {"NetworkID": network, "EndpointID": endpoint}


def a_network(network: str = NETWORK, *, v4: Any = (CALICO_IPV4,), v6: Any = (), **options: Any) -> dict[str, Any]:
    """``options``: of ``--opt``, with dashes and dots as the caller can write them in a dict."""
    generic = {"com.docker.network.generic": options} if options else {}
    return {
        "NetworkID": network,
        "Options": {"com.docker.network.enable_ipv6": False, **generic},
        "IPv4Data": list(v4),
        "IPv6Data": list(v6),
    }


def an_endpoint(
    address: str = "10.65.0.5/32", v6: str = "", mac: str = "", *, network: str = NETWORK, endpoint: str = ENDPOINT
) -> dict[str, Any]:
    return {
        **ids(network, endpoint),
        "Interface": {"Address": address, "AddressIPv6": v6, "MacAddress": mac},
        "Options": {"com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": []},
    }


def net(text: str) -> IPNetwork:
    return IPNetwork(text)


@pytest.fixture
def setup() -> Iterator[Setup]:
    with tempfile.TemporaryDirectory(prefix="ln") as folder:  # a socket's path must be short
        running = Setup(Path(folder) / "docker" / "plugins")
        yield running
        running.stop()
