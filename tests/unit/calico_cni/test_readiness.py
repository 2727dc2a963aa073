"""An ADD behind ``readiness_gates``, against a server on the loopback interface."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from calico_cni import readiness
from calico_cni.readiness import wait_for_gates
from calico_core.errors import NotReady
from tests.doubles.cni import CniSetup, a_network, error_of, stdout_of


class Gate:
    """Answers the statuses in turn, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.paths: list[str] = []
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                gate.paths.append(self.path)
                self.send_response(gate.statuses.pop(0) if len(gate.statuses) > 1 else gate.statuses[0])
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/ready?x=1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Time:
    """Passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def gates() -> Iterator[list[Gate]]:
    made: list[Gate] = []
    yield made
    for gate in made:
        gate.stop()


def test_add_begins_when_every_gate_answers(setup: CniSetup, gates: list[Gate]) -> None:
    gates += [Gate(200), Gate(302)]
    stdout_of(setup.call("ADD", a_network(readiness_gates=[gate.url for gate in gates])))
    assert [gate.paths for gate in gates] == [["/ready?x=1"]] * 2
    assert len(setup.workloads.attach_requests) == 1


def test_a_gate_is_asked_again_until_it_answers(gates: list[Gate]) -> None:
    gates.append(Gate(503, 404, 204))
    time = Time()
    wait_for_gates((gates[0].url,), clock=lambda: time.now, sleep=time.sleep)
    assert (len(gates[0].paths), time.now) == (3, 10.0)


def test_one_that_never_answers(gates: list[Gate]) -> None:
    gates.append(Gate(503))
    time = Time()
    with pytest.raises(NotReady, match="status 503"):
        wait_for_gates((gates[0].url,), clock=lambda: time.now, sleep=time.sleep)
    assert time.now == 30.0
    gates.pop().stop()


def test_nobody_is_there_and_nothing_is_left(
    setup: CniSetup, gates: list[Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "WITHIN_S", 0.0)
    gone = Gate(200)
    gone.stop()
    error = error_of(setup.call("ADD", a_network(readiness_gates=[gone.url])))
    assert (error["code"], gone.url in error["msg"]) == (11, True)
    assert setup.workloads.attach_requests == []
    assert setup.call("DEL", a_network(readiness_gates=[gone.url])).status == 0


@pytest.mark.parametrize("gate", ["", "here", "ftp://h/", "http://", "http://h:99999/", "http://h:0/"])
def test_what_is_no_address_is_refused_by_name(setup: CniSetup, gate: str) -> None:
    error = error_of(setup.call("ADD", a_network(readiness_gates=["http://127.0.0.1:1/", gate])))
    assert (error["code"], "readiness_gates[1]" in error["msg"]) == (7, True)
