"""HTTP/1.1 over a UNIX socket for the engine: a thread a connection, bounded in number and in what it reads.

The engine keeps connections, sends an empty ``Host`` and no ``Content-Type``. Source: libnetwork specification 2.2, 6.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import stat
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from calico_core.errors import InvalidRequest, InvalidSettings
from calico_core.listening import Listener, Listeners
from calico_core.log import get_logger
from calico_libnetwork.application import CONTENT_TYPE, Answer, Application, refusal
from calico_libnetwork.errors import TooLarge, encode_error

MAX_BODY_BYTES = 1 << 20
MAX_CONNECTIONS = 128
MODE = 0o660

_IDLE_S = 600.0  # closing a kept connection under the engine's hands would cost it a call
_BODY_S = 10.0
_STOP_S = 10.0
_CROWDED_S = 0.2
_MAX_CHUNK_LINE = 1024

log = get_logger(__name__)


class PluginServer:
    """One socket. :meth:`listen` takes the place, :meth:`run` answers, :meth:`close` gives it back."""

    def __init__(
        self,
        path: Path,
        application: Application,
        *,
        name: str = "libnetwork",
        listeners: Listeners | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """``name``: of the socket, when it is handed over."""
        self._path = path
        self._name = name
        self._listeners = listeners or Listeners()
        self._application = application
        self._max_connections = max_connections
        self._free = threading.BoundedSemaphore(max_connections)
        self._listener: Listener | None = None
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def listen(self) -> None:
        """Raises ``InvalidSettings`` when the place cannot be had, or another process answers there."""
        try:
            if not self._listeners.is_inherited(self._name, self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._refuse_taken()
            self._listener = self._listeners.open(self._name, self._path, mode=MODE)
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        log.info("libnetwork.listening", socket=self._path)

    def run(self) -> None:
        """Answer until another thread calls :meth:`close`."""
        listener = self._listener
        while listener is not None and self._listener is listener:
            if not self._free.acquire(timeout=_CROWDED_S):
                continue
            try:
                connection = listener.accept()
            except OSError as error:
                self._free.release()
                log.warning("libnetwork.accept_failed", reason=error.strerror)
                time.sleep(_CROWDED_S)  # out of descriptors: it may pass
                continue
            if connection is None:
                self._free.release()
                return
            self._start(connection)

    def close(self) -> None:
        """Take the socket away, unless it is kept for the next process, and wait for running calls. Repeating it is
        fine."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.rest()
        listener.close()
        with self._guard:
            threads = tuple(self._threads)
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)  # idle ones end; a reply under way is still written
        for thread in threads:
            thread.join(_STOP_S)

    def _start(self, connection: socket.socket) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), name="libnetwork", daemon=True)
        with self._guard:
            self._connections.add(connection)
            self._threads.add(thread)
        thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                _Connection(connection, self)
        except OSError as error:
            log.debug("libnetwork.connection_lost", reason=str(error))
        except Exception:
            log.exception("libnetwork.connection_failed")
        finally:
            with self._guard:
                self._connections.discard(connection)
                self._threads.discard(threading.current_thread())
            self._free.release()

    @property
    def application(self) -> Application:
        return self._application

    @property
    def keeps_connections(self) -> bool:
        """Idle connections hold threads: when they become many, each is closed after its call."""
        return self._listener is not None and len(self._connections) <= self._max_connections // 2

    def _refuse_taken(self) -> None:
        """A socket on which nobody answers is a leftover, and the rename replaces it."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise self._unusable("something that is not a socket is there")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2.0)
            try:
                probe.connect(str(self._path))
            except (ConnectionRefusedError, FileNotFoundError):
                return
            except OSError as error:
                raise self._unusable(f"cannot tell whether another process answers there: {error}") from error
        raise self._unusable("another process answers there: stop it first")

    def _unusable(self, reason: str) -> InvalidSettings:
        return InvalidSettings("libnetwork_plugin_dir", str(self._path), reason)


class _Connection(http.server.BaseHTTPRequestHandler):
    """Everything between accept and close happens in the constructor of the base class."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S

    def __init__(self, connection: socket.socket, server: PluginServer) -> None:
        self._server = server
        super().__init__(connection, ("", 0), server)  # type: ignore[arg-type]

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.connection.settimeout(_BODY_S)
        try:
            body = self._read_body()
        except (InvalidRequest, TooLarge) as error:
            self.close_connection = True  # where the next request begins is not known
            self._send(refusal(error))
            return
        self._send(self._server.application.respond(self.command, self.path, body))
        self.connection.settimeout(_IDLE_S)

    def _read_body(self) -> bytes:
        encoding = self.headers.get("Transfer-Encoding", "").strip().lower()
        if encoding == "chunked":
            return self._read_chunks()
        if encoding:
            raise InvalidRequest("Transfer-Encoding", f"{encoding[:40]!r} is not chunked")
        text = self.headers.get("Content-Length", "0").strip()
        if not (text.isascii() and text.isdigit()):
            raise InvalidRequest("Content-Length", f"{text[:40]!r} is not a number")
        return self._read_exactly(_limited(int(text)))

    def _read_chunks(self) -> bytes:
        body = bytearray()
        while True:
            line = self.rfile.readline(_MAX_CHUNK_LINE)
            size = line.partition(b";")[0].strip()
            try:
                length = int(size, 16) if line.endswith(b"\n") and size.isalnum() else -1
            except ValueError:
                length = -1
            if length < 0:
                raise InvalidRequest("body", "is not chunked as announced")
            _limited(len(body) + length)
            body += self._read_exactly(length)
            if not length:
                break
            if self.rfile.readline(3).strip():
                raise InvalidRequest("body", "has a chunk of another length than announced")
        while self.rfile.readline(_MAX_CHUNK_LINE).strip():
            pass  # trailers
        return bytes(body)

    def _read_exactly(self, length: int) -> bytes:
        body = self.rfile.read(length)
        if len(body) < length:
            raise InvalidRequest("body", f"ended after {len(body)} of {length} bytes")
        return body

    def _send(self, answer: Answer) -> None:
        if not self._server.keeps_connections:
            self.close_connection = True
        self.send_response_only(answer.status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request line or its headers."""
        self.close_connection = True
        self.request_version = self.protocol_version  # a line without a version would get a reply without a head
        if code == HTTPStatus.NOT_IMPLEMENTED:
            code, message = (
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{self.command[:20]} is not a verb of this protocol: use POST",
            )
        self._send(Answer(HTTPStatus(code), encode_error(message or explain or HTTPStatus(code).phrase)))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class' name
        log.debug("libnetwork.http", text=format % args)


def _limited(length: int) -> int:
    if length > MAX_BODY_BYTES:
        raise TooLarge(f"The body is longer than {MAX_BODY_BYTES} bytes")
    return length
