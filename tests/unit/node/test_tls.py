"""The metrics page over TLS: real handshakes, with and without certificates of clients."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from calico_core.errors import InvalidSettings
from calico_core.node.health import Answer, HttpServer
from calico_core.node.tls import RenewedTls, metrics_tls
from calico_core.settings import Settings, load_settings
from tests.doubles.certificates import Authority, Pair

PAGES = {"/metrics": lambda: Answer(HTTPStatus.OK, "text/plain", b"x 1\n")}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("node", is_server=True)


def settings_of(pair: Pair, **more: str) -> Settings:
    given = {"FELIX_PROMETHEUSMETRICSCERTFILE": str(pair.certificate), "FELIX_PROMETHEUSMETRICSKEYFILE": str(pair.key)}
    return load_settings({**given, **{f"FELIX_PROMETHEUSMETRICS{name.upper()}": text for name, text in more.items()}})


def served(settings: Settings) -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1", 0, PAGES, name="test-tls", tls=RenewedTls(settings).context)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def strict(authority: Authority, pair: Pair) -> Iterator[HttpServer]:
    yield from served(settings_of(pair, CAFile=str(authority.certificate)))


@pytest.fixture
def lenient(pair: Pair) -> Iterator[HttpServer]:
    yield from served(settings_of(pair, ClientAuth="noclientcert"))


def ask(server: HttpServer, authority: Authority, client: Pair | None = None) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=5, context=context)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_client_needs_a_certificate_of_the_authority(
    strict: HttpServer, authority: Authority, tmp_path: Path
) -> None:
    assert ask(strict, authority, authority.issue("prometheus")) == (200, b"x 1\n")
    stranger = Authority(tmp_path / "stranger").issue("prometheus")
    for client in (None, stranger):
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(strict, authority, client)
    assert ask(strict, authority, authority.issue("prometheus"))[0] == 200


def test_no_certificate_is_needed_when_the_settings_say_so(lenient: HttpServer, authority: Authority) -> None:
    assert ask(lenient, authority) == (200, b"x 1\n")
    plain = http.client.HTTPConnection("127.0.0.1", lenient.port, timeout=5)
    plain.request("GET", "/metrics")
    with pytest.raises((OSError, http.client.HTTPException)):
        plain.getresponse()


def test_who_connects_and_says_nothing_holds_up_nobody(lenient: HttpServer, authority: Authority) -> None:
    with socket.create_connection(("127.0.0.1", lenient.port)):
        assert ask(lenient, authority) == (200, b"x 1\n")


def serial(server: HttpServer) -> str:
    return hashlib.sha256(ssl.get_server_certificate(("127.0.0.1", server.port), timeout=5).encode()).hexdigest()


def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("node", is_server=True)
    for server in served(settings_of(pair, ClientAuth="NoClientCert")):
        first = serial(server)
        assert serial(server) == first
        authority.issue("node", is_server=True)
        second = serial(server)
        assert second != first
        pair.certificate.write_text("nonsense")
        assert serial(server) == second
        assert "metrics.certificates_not_renewed" in caplog.text
        pair.certificate.unlink()
        assert ask(server, authority) == (200, b"x 1\n")


def test_nothing_given_is_plain() -> None:
    assert metrics_tls(Settings()) is None


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"KeyFile": "none"}, "metrics_cert_file.*give metrics_key_file too"),
        ({"CertFile": "none"}, "metrics_key_file.*give metrics_cert_file too"),
        ({"CertFile": "none", "KeyFile": "none", "CAFile": "/x"}, "metrics_ca_file.*needs metrics_cert_file"),
        ({"ClientAuth": "RequireAndVerifyClientCert"}, "metrics_client_auth.*needs metrics_ca_file"),
        ({"CAFile": "/nowhere/ca.pem"}, "metrics_ca_file.*/nowhere/ca.pem cannot be used: No such file"),
        ({"CertFile": "/nowhere/node.pem"}, "metrics_cert_file.*/nowhere/node.pem .*: No such file"),
    ],
)
def test_what_cannot_be_is_named(pair: Pair, more: dict[str, str], names: str) -> None:
    with pytest.raises(InvalidSettings, match=names):
        metrics_tls(settings_of(pair, **more))
