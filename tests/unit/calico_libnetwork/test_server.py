"""Transport: sockets, framing, bodies that are wrong, and that nothing of it stops the server."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from calico_core.errors import InvalidSettings
from calico_libnetwork.application import Application, Method
from calico_libnetwork.integration import LibnetworkIntegration
from calico_libnetwork.server import MAX_BODY_BYTES, PluginServer
from calico_libnetwork.wire import Nothing

from .conftest import NETWORK, Setup, UnixConnection, a_network, an_endpoint, ids

POOL = b'{"AddressSpace":"CalicoLocalAddressSpace","Pool":"","SubPool":"","Options":null,"V6":false}'


def raw(setup: Setup, request: bytes) -> tuple[bytes, object]:
    """Status line and decoded body of the one reply to ``request``, which says that it is the last."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(setup.directory / "calico.sock"))
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = reply.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], json.loads(body)


def test_both_sockets_say_what_they_are(setup: Setup) -> None:
    assert setup.ask("Plugin.Activate") == {"Implements": ["NetworkDriver", "IpamDriver"]}
    assert setup.ask("Plugin.Activate", name="calico-ipam") == {"Implements": ["IpamDriver"]}
    assert setup.ask("NetworkDriver.GetCapabilities") == {"Scope": "global", "ConnectivityScope": "global"}
    for name in ("calico", "calico-ipam"):
        assert setup.ask("IpamDriver.GetCapabilities", name=name) == {
            "RequiresMACAddress": False,
            "RequiresRequestReplay": False,
        }
        assert setup.ask("IpamDriver.GetDefaultAddressSpaces", name=name) == {
            "LocalDefaultAddressSpace": "CalicoLocalAddressSpace",
            "GlobalDefaultAddressSpace": "CalicoGlobalAddressSpace",
        }
    assert setup.post("NetworkDriver.GetCapabilities", name="calico-ipam")[0] == 404


def test_scope_local(tmp_path: Path) -> None:
    setup = Setup(tmp_path, libnetwork_scope="local")
    try:
        assert setup.ask("NetworkDriver.GetCapabilities") == {"Scope": "local", "ConnectivityScope": "global"}
    finally:
        setup.stop()


def test_as_the_engine_sends_it(setup: Setup) -> None:
    """Empty Host, no Content-Type, several requests on one connection, one of them in chunks."""
    connection = UnixConnection(setup.directory / "calico.sock")
    for body in (POOL, iter([POOL[:10], POOL[10:]])):
        connection.putrequest("POST", "/IpamDriver.RequestPool", skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", "")
        connection.putheader("User-Agent", "Go-http-client/1.1")
        connection.putheader("Accept", "application/vnd.docker.plugins.v1.2+json")
        is_whole = isinstance(body, bytes)
        if is_whole:
            connection.putheader("Content-Length", str(len(POOL)))
        else:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(body, encode_chunked=not is_whole)
        response = connection.getresponse()
        assert response.status == 200
        assert response.getheader("Content-Type") == "application/vnd.docker.plugins.v1.1+json"
        assert json.loads(response.read())["PoolID"] == "CalicoPoolIPv4"
    connection.close()


def test_get_for_calls_without_arguments(setup: Setup) -> None:
    connection = UnixConnection(setup.directory / "calico.sock")
    for path, status in (
        ("/NetworkDriver.GetCapabilities", 200),
        ("/Plugin.Activate", 200),
        ("/IpamDriver.RequestPool", 405),
        ("/", 404),
    ):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


@pytest.mark.parametrize(
    ("method", "body", "status", "text"),
    [
        ("", b"", 404, "There is no method"),
        ("NetworkDriver.Fly", b"{}", 404, "There is no method"),
        ("NetworkDriver.CreateNetwork", b"", 400, "body: is empty"),
        ("NetworkDriver.CreateNetwork", b"  \n", 400, "body: is empty"),
        ("NetworkDriver.CreateNetwork", b"{", 400, "body: is not JSON"),
        ("NetworkDriver.CreateNetwork", b"\xff\xfe", 400, "body: is not JSON"),
        ("NetworkDriver.CreateNetwork", b"\x00" * (1 << 19), 400, "body: is not JSON"),
        ("NetworkDriver.CreateNetwork", b"[" * 100_000, 400, "body: is not JSON"),
        ("NetworkDriver.CreateNetwork", b"[]", 400, "body: is not a JSON object"),
        ("NetworkDriver.CreateNetwork", b"null", 400, "body: is not a JSON object"),
        ("NetworkDriver.CreateNetwork", b"{}", 400, "NetworkID"),
        ("NetworkDriver.CreateNetwork", b'{"NetworkID":7}', 400, "NetworkID"),
        ("NetworkDriver.CreateNetwork", b'{"NetworkID":""}', 400, "NetworkID"),
        ("NetworkDriver.CreateNetwork", b'{"NetworkID":"n","Options":[]}', 400, "Options"),
        ("NetworkDriver.CreateNetwork", b'{"NetworkID":"n","IPv4Data":{}}', 400, "IPv4Data"),
        ("NetworkDriver.CreateNetwork", b'{"NetworkID":"n","IPv4Data":[{"Pool":"x"}]}', 400, "IPv4Data[0].Pool"),
        ("NetworkDriver.CreateEndpoint", b'{"NetworkID":"n"}', 400, "EndpointID"),
        (
            "NetworkDriver.CreateEndpoint",
            b'{"NetworkID":"n","EndpointID":"e","Interface":{"MacAddress":"zz"}}',
            400,
            "Interface.MacAddress",
        ),
        (
            "NetworkDriver.CreateEndpoint",
            b'{"NetworkID":"n","EndpointID":"../../x","Interface":{"Address":"10.65.0.5/32"}}',
            400,
            "EndpointID",
        ),
        (
            "NetworkDriver.CreateEndpoint",
            b'{"NetworkID":"a/b","EndpointID":"e","Interface":{"Address":"10.65.0.5/32"}}',
            400,
            "NetworkID",
        ),
        ("NetworkDriver.Join", b'{"NetworkID":"n","EndpointID":null}', 400, "EndpointID"),
        ("IpamDriver.RequestAddress", b"{}", 400, "PoolID"),
        ("IpamDriver.RequestAddress", b'{"PoolID":"x"}', 400, "PoolID"),
        ("IpamDriver.RequestAddress", b'{"PoolID":"CalicoPoolIPv4","Address":"10.65"}', 400, "Address"),
        ("IpamDriver.RequestPool", b'{"Pool":"10.0.0.0/99"}', 400, "Pool"),
        ("IpamDriver.RequestPool", b'{"V6":"yes"}', 400, "V6"),
    ],
)  # fmt: skip
def test_malformed(setup: Setup, method: str, body: bytes, status: int, text: str) -> None:
    before = setup.paths()
    assert text in setup.refused(method, body, status=status)
    assert setup.paths() == before
    assert not setup.ipam.held
    setup.ask("Plugin.Activate")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"PUT /Plugin.Activate HTTP/1.1\r\nHost:\r\n\r\n", b"405"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}", b"400"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), b"413"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", b"400"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", b"400"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n", b"400"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", b"413"),
        (b"POST /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (b"complete nonsense\r\n\r\n", b"400"),
        (b"POST /Plugin.Activate HTTP/1.1\r\nConnection: close\r\n\r\n", b"200"),
    ],
)
def test_framing(setup: Setup, request_: bytes, status: bytes) -> None:
    line, body = raw(setup, request_)
    assert status in line
    assert isinstance(body, dict)
    assert ("Err" in body) == (status != b"200")
    setup.ask("Plugin.Activate")


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("NetworkDriver.CreateNetwork", {**a_network(), "Surprise": {"a": None}, "IPv6Data": None}),
        ("NetworkDriver.AllocateNetwork", {"NetworkID": NETWORK, "Options": None, "IPv4Data": None}),
        ("NetworkDriver.FreeNetwork", {"NetworkID": NETWORK}),
        ("NetworkDriver.DeleteNetwork", {"NetworkID": NETWORK, "Options": None}),
        ("NetworkDriver.CreateEndpoint", {**an_endpoint(), "Options": None}),
        ("NetworkDriver.EndpointOperInfo", ids()),
        ("NetworkDriver.Leave", ids()),
        ("NetworkDriver.DeleteEndpoint", ids()),
        ("NetworkDriver.ProgramExternalConnectivity", {**ids(), "Options": None}),
        ("NetworkDriver.RevokeExternalConnectivity", ids()),
        ("NetworkDriver.DiscoverNew", {"DiscoveryType": 1, "DiscoveryData": {"Address": "10.0.0.1", "Self": True}}),
        ("NetworkDriver.DiscoverDelete", {"DiscoveryType": 1, "DiscoveryData": None}),
        ("IpamDriver.RequestPool", {"Options": None, "Pool": None}),
        ("IpamDriver.ReleasePool", {"PoolID": "10.65.0.0/24"}),
        ("IpamDriver.ReleaseAddress", {"PoolID": None, "Address": None}),
    ],
)
def test_null_and_unknown_fields(setup: Setup, method: str, body: object) -> None:
    setup.ask(method, body)


def test_handler_that_fails_says_so(tmp_path: Path) -> None:
    def fail(_: object) -> Nothing:
        raise KeyError("boom")

    application = Application({"Fail": Method(Nothing, fail)})
    answer = application.respond("POST", "/Fail", b"")
    assert answer.status == 500
    assert json.loads(answer.body)["Err"] == "Calico failed (KeyError): the log of calico-node says more"


def test_socket_is_taken_over_from_the_dead_only(setup: Setup, tmp_path: Path) -> None:
    path = setup.directory / "calico.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with pytest.raises(InvalidSettings, match="another process answers"):
        LibnetworkIntegration().prepare(setup.context)
    assert {each.name for each in setup.directory.iterdir()} == {"calico.sock", "calico-ipam.sock"}
    setup.ask("Plugin.Activate")

    setup.stop()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    setup.start()
    setup.ask("Plugin.Activate")


@pytest.mark.parametrize("kind", ["file", "long"])
def test_place_that_cannot_be_had(setup: Setup, tmp_path: Path, kind: str) -> None:
    directory = tmp_path / ("x" * 120 if kind == "long" else "plain")
    directory.mkdir()
    if kind == "file":
        (directory / "calico.sock").write_text("somebody's")
    with pytest.raises(InvalidSettings, match="libnetwork_plugin_dir"):
        PluginServer(directory / "calico.sock", Application({})).listen()
    assert [each.name for each in directory.iterdir()] == (["calico.sock"] if kind == "file" else [])


def test_stop_finishes_what_runs_and_ends_idle_connections(tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(_: object) -> Nothing:
        entered.set()
        assert go_on.wait(10)
        return Nothing()

    application = Application({"Slow": Method(Nothing, slow), "Quick": Method(Nothing, lambda _: Nothing())})
    server = PluginServer(tmp_path / "s.sock", application)
    server.listen()
    runner = threading.Thread(target=server.run)
    runner.start()
    idle, busy = UnixConnection(tmp_path / "s.sock"), UnixConnection(tmp_path / "s.sock")
    idle.request("POST", "/Quick")
    assert idle.getresponse().read() == b"{}"
    busy.request("POST", "/Slow")
    assert entered.wait(10)
    closer = threading.Thread(target=server.close)
    closer.start()
    deadline = time.monotonic() + 10
    while (tmp_path / "s.sock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go_on.set()
    assert busy.getresponse().read() == b"{}"
    closer.join(10)
    runner.join(10)
    assert not closer.is_alive()
    assert not runner.is_alive()
    assert idle.sock.recv(1) == b""
    idle.close()
    busy.close()


def test_more_connections_than_it_takes(tmp_path: Path) -> None:
    """Those beyond the limit wait; connections are not kept when they are many."""
    server = PluginServer(
        tmp_path / "s.sock", Application({"Q": Method(Nothing, lambda _: Nothing())}), max_connections=4
    )
    server.listen()
    runner = threading.Thread(target=server.run)
    runner.start()
    connections = [UnixConnection(tmp_path / "s.sock") for _ in range(12)]
    for connection in connections:
        connection.connect()
    for connection in connections:
        connection.request("POST", "/Q")
    assert [connection.getresponse().read() for connection in connections] == [b"{}"] * 12
    for connection in connections:
        connection.close()
    server.close()
    runner.join(10)
    assert not runner.is_alive()
    assert not list(tmp_path.iterdir())
