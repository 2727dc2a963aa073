"""Is the node alive, is it ready? Asked over HTTP by kubelet, systemd's watchers and people.

``/liveness`` and ``/readiness`` answer 200 or 503; ``/health`` tells of every component, its state, since when and why.
Readiness does not follow the datastore after the first sync: an outage there must not take every host out of service;
it is *degraded*, as is a broken integration. Sources: felix specification 9, node specification 10.3.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple

from calico_core.log import get_logger

log = get_logger(__name__)

Tls = Callable[[], ssl.SSLContext | None]
State = Literal["ready", "degraded", "unready", "dead"]
_REQUEST_TIMEOUT_S = 5.0
_JSON = "application/json"


class Component(NamedTuple):
    """``degraded``: works in part, the node stays ready. ``unready``: not yet, or no longer. ``dead``: only a restart
    of the process helps."""

    name: str
    state: State
    reason: str = ""


class Answer(NamedTuple):
    status: HTTPStatus
    content_type: str
    body: bytes


class Health:
    """Remembers since when each component is as it is. Any thread."""

    def __init__(self, look: Callable[[], Iterable[Component]], *, clock: Callable[[], float] = time.time) -> None:
        self._look = look
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[str, tuple[State, float]] = {}

    def components(self) -> list[dict[str, object]]:
        """Name, state, ``since`` (seconds since the epoch, of the first look that found it so) and reason."""
        found = list(self._look())
        with self._lock:
            now = self._clock()
            for each in found:
                before = self._since.get(each.name)
                if before is None or before[0] != each.state:
                    self._since[each.name] = (each.state, now)
            return [{**each._asdict(), "since": round(self._since[each.name][1], 3)} for each in found]

    def liveness(self) -> Answer:
        return self._answer({"dead"}, "is_live")

    def readiness(self) -> Answer:
        return self._answer({"dead", "unready"}, "is_ready")

    def health(self) -> Answer:
        components = self.components()
        states = {each["state"] for each in components}
        found = {
            "is_live": "dead" not in states,
            "is_ready": states.isdisjoint({"dead", "unready"}),
            "is_degraded": "degraded" in states,
            "components": components,
        }
        return Answer(HTTPStatus.OK, _JSON, json.dumps(found, indent=2).encode() + b"\n")

    def _answer(self, bad: set[str], name: str) -> Answer:
        causes = {each["name"]: each["reason"] for each in self.components() if each["state"] in bad}
        status = HTTPStatus.SERVICE_UNAVAILABLE if causes else HTTPStatus.OK
        return Answer(status, _JSON, json.dumps({name: not causes, "because": causes}).encode() + b"\n")

    def pages(self) -> dict[str, Callable[[], Answer]]:
        return {"/liveness": self.liveness, "/readiness": self.readiness, "/health": self.health}


class HttpServer:
    """Answers GET and HEAD of a few pages, each request in a thread of its own."""

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, Callable[[], Answer]],
        *,
        name: str,
        tls: Tls | None = None,
    ) -> None:
        """Binds; raises ``OSError``. ``port`` 0: any free one, see :attr:`port`. ``tls`` is asked for each connection;
        None, or when it gives None: plain HTTP."""
        self.place = (host, port)
        kind = _ServerV6 if ":" in host else _Server
        self._server = kind((host, port), _handler(dict(pages)))
        self._server.tls = tls
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_stopping = False

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping = True
        if self._thread.is_alive():
            self._wake()
            self._thread.join(5)
        self._server.server_close()

    def _run(self) -> None:
        """Not ``serve_forever``: that looks several times a second whether it is to end."""
        while not self._is_stopping:
            self._server.handle_request()

    def _wake(self) -> None:
        """A socket that is shut down has nobody to accept, which ends the wait."""
        with contextlib.suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    tls: Tls | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        """The thread of the request greets: one who does not answer holds up nobody else."""
        connection, address = super().get_request()
        context = self.tls() if self.tls is not None else None
        if context is None:
            return connection, address
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def server_bind(self) -> None:
        # not HTTPServer's own: it asks the resolver for our name, and may wait long for that
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        log.debug("http.broken", client=client_address)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


def _handler(pages: Mapping[str, Callable[[], Answer]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_TIMEOUT_S
        server_version = "calico-node"
        sys_version = ""

        def do_GET(self) -> None:
            answer = self._answer()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_HEAD = do_GET  # noqa: N815 - as the base class looks it up

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
            log.debug("http.asked", what=format % args)

        def _answer(self) -> Answer:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                return Answer(HTTPStatus.NOT_FOUND, "text/plain", f"known: {', '.join(pages)}\n".encode())
            try:
                return page()
            except Exception:
                log.exception("http.failed", path=self.path)
                return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"failed; see the log\n")

    return Handler
