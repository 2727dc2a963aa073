"""Health over real HTTP: codes, reasons, since when; and a server that is never in the way."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from http import HTTPStatus

import pytest

from calico_core.node.health import Answer, Component, Health, HttpServer

Get = Callable[[str], tuple[int, str]]


class Parts:
    def __init__(self) -> None:
        self.found = [Component("engine", "unready", "not started yet"), Component("socket", "ready")]
        self.now = 100.0
        self.health = Health(lambda: self.found, clock=lambda: self.now)


@pytest.fixture
def parts() -> Parts:
    return Parts()


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def get(parts: Parts) -> Iterator[Get]:
    def fail() -> Answer:
        raise ValueError("on purpose")

    server = HttpServer("127.0.0.1", 0, {**parts.health.pages(), "/broken": fail}, name="test-health")
    server.start()
    yield lambda path: ask(server.port, path)
    server.stop()
    server.stop()


def test_codes_follow_the_states(parts: Parts, get: Get) -> None:
    for state, live, ready in (
        ("unready", HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE),
        ("degraded", HTTPStatus.OK, HTTPStatus.OK),
        ("ready", HTTPStatus.OK, HTTPStatus.OK),
        ("dead", HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE),
    ):
        parts.found[0] = Component("engine", state, "why")  # type: ignore[arg-type]
        assert (get("/liveness")[0], get("/readiness")[0]) == (live, ready), state
    assert json.loads(get("/readiness?verbose")[1]) == {"is_ready": False, "because": {"engine": "why"}}


def test_health_tells_since_when(parts: Parts, get: Get) -> None:
    assert get("/health")[0] == 200
    parts.now = 150.0
    parts.found[0] = Component("engine", "degraded", "kernel is busy")
    get("/health")
    parts.now = 170.0
    found = json.loads(get("/health")[1])
    assert found == {
        "is_live": True,
        "is_ready": True,
        "is_degraded": True,
        "components": [
            {"name": "engine", "state": "degraded", "reason": "kernel is busy", "since": 150.0},
            {"name": "socket", "state": "ready", "reason": "", "since": 100.0},
        ],
    }


def test_other_pages_and_failures(get: Get) -> None:
    status, text = get("/")
    assert status == 404
    assert "/liveness" in text
    assert get("/broken")[0] == 500
    assert get("/liveness")[0] == 200


def test_head_has_no_body(parts: Parts) -> None:
    server = HttpServer("127.0.0.1", 0, parts.health.pages(), name="test-head")
    server.start()
    try:
        assert ask(server.port, "/readiness", "HEAD") == (503, "")
        with pytest.raises(OSError, match="in use"):
            HttpServer("127.0.0.1", server.port, {}, name="second")
    finally:
        server.stop()


def test_a_server_that_never_started_can_be_stopped() -> None:
    HttpServer("127.0.0.1", 0, {}, name="idle").stop()
