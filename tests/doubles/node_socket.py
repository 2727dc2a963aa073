"""A node's socket that does as it is told: the real frames, without the node behind them and without its demand for
root."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from calico_core.errors import InvalidRequest
from calico_core.interfaces.integration import Call, CallReply
from calico_core.node.socket_api import encode_reply, read_call

Answer = Callable[[Call], CallReply | bytes | None]
"""A reply, None for "in process", or raw bytes after which the connection ends."""


class NodeSocket:
    """``calls`` are those that arrived whole; the inode of a namespace that came along is in ``namespaces``."""

    def __init__(self, path: Path, answer: Answer, *, backlog: int = 16) -> None:
        self.path = path
        self.calls: list[Call] = []
        self.namespaces: list[int | None] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(backlog)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._thread.is_alive():
            self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        with connection, contextlib.ExitStack() as stack:
            try:
                call = read_call(connection, descriptors)
            except InvalidRequest:
                return  # it hung up
            finally:
                for descriptor in descriptors:
                    stack.callback(os.close, descriptor)
            self.namespaces.append(os.fstat(descriptors[0]).st_ino if descriptors else None)
            self.calls.append(call)
            reply = self._answer(call)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(reply if isinstance(reply, bytes) else encode_reply(reply))


@contextlib.contextmanager
def serving(path: Path, answer: Answer) -> Iterator[NodeSocket]:
    server = NodeSocket(path, answer)
    server.start()
    try:
        yield server
    finally:
        server.stop()
