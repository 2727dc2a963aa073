"""The node's UNIX socket: one connection, one call. Format: docs/reference/node-socket.md.

Answers shims and calicoctl. Only root may speak (SO_PEERCRED). Each call runs in a thread of a bounded pool.
"""

from __future__ import annotations

import array
import functools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from calico_core.errors import InvalidRequest
from calico_core.interfaces.integration import Call, CallReply
from calico_core.listening import Listener, Listeners
from calico_core.log import bound, get_logger

log = get_logger(__name__)

MAGIC: Final = b"CAL1"
LIMITS: Final = {"program": 256, "environment": 64 << 10, "standard input": 8 << 20}
ABOUT_THE_NODE: Final = "node"
"""The program name of calls that wire nothing."""
SOCKET_NAME: Final = "node"
"""Of the listening socket, when it is handed over."""
REPLY: Final = b"R"
IN_PROCESS: Final = b"F"
_HEADER: Final = struct.Struct(">4sIII")
_CREDENTIALS: Final = struct.Struct("iII")
_READ_TIMEOUT_S: Final = 10.0
_ACCEPT_RETRY_S: Final = 0.1

Handler = Callable[[Call], CallReply | None]
"""Answers a call; None means that the shim should run it in process."""


class SocketServer:
    """Listens in a thread of its own and answers with a pool."""

    def __init__(self, path: str, handler: Handler, *, workers: int = 128, listeners: Listeners | None = None) -> None:
        self._path = Path(path)
        self._handler = handler
        self._listeners = listeners or Listeners()
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="call")
        self._guard = threading.Lock()
        self._is_started = False
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Answer those who wait and those who come. Once; a second time does nothing."""
        with self._guard:
            if self._is_started:
                return
            self._is_started = True
            self._listener = self._listeners.open(SOCKET_NAME, self._path)
            self._thread = threading.Thread(target=self._accept, args=(self._listener,), name="socket", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Take no more calls, finish those that run. Who has called and was not taken waits for the next process, if
        the socket is kept for one; else the reset tells."""
        with self._guard:
            self._is_started = True
        if self._listener is not None:
            self._listener.rest()
        if self._thread is not None:
            self._thread.join(5)
        if self._listener is not None:
            self._listener.close()
        self._pool.shutdown(wait=True)

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                connection = listener.accept()
            except OSError as error:  # out of descriptors, say: the node must not go deaf over it
                log.error("socket.accept_failed", reason=str(error))
                time.sleep(_ACCEPT_RETRY_S)
                continue
            if connection is None:
                return
            self._pool.submit(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        with connection:
            try:
                connection.settimeout(_READ_TIMEOUT_S)
                pid, uid = _peer(connection)
                if uid != 0:
                    raise InvalidRequest("peer", f"uid {uid} may not speak to the node, only root may")
                call = read_call(connection, descriptors)
                if _has_left(connection):
                    # it waited in vain for its turn and will not undo what it does not know of: an attach that begins
                    # after its own detach would stay for ever
                    log.warning("call.abandoned", program=call.program)
                    return
                mounts_fd, root_fd = _other_mounts(pid, descriptors)
                call = msgspec.structs.replace(
                    call, mounts_fd=mounts_fd, root_fd=root_fd, caller_left=functools.partial(_has_left, connection)
                )
                with bound(program=call.program):
                    reply = self._answer(call, pid)
                connection.settimeout(_READ_TIMEOUT_S)
                connection.sendall(encode_reply(reply))
            except InvalidRequest as error:
                log.warning("call.refused", reason=str(error))
            except (OSError, ValueError) as error:
                log.warning("call.broken", reason=str(error))
            except Exception:
                log.exception("call.failed")
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _answer(self, call: Call, pid: int) -> CallReply | None:
        """A caller that stands on another host than this node, seen from the network, is not ours to wire: its own
        process does that where it stands. Nested and rootless runtimes share a file system, and so the socket."""
        if call.program != ABOUT_THE_NODE and _is_elsewhere(pid):
            log.info("call.elsewhere", pid=pid)
            return None
        return self._handler(call)


def read_call(connection: socket.socket, descriptors: list[int]) -> Call:
    """Read one request; received descriptors are appended to ``descriptors``, which the caller closes."""
    header = _receive(connection, _HEADER.size, descriptors)
    magic, *lengths = _HEADER.unpack(header)
    if magic != MAGIC:
        raise InvalidRequest("magic", f"{magic!r} is not {MAGIC!r}")
    for (name, limit), length in zip(LIMITS.items(), lengths, strict=True):
        if length > limit:
            raise InvalidRequest(name, f"{length} bytes are more than {limit}")
    program, environment, stdin = (_receive(connection, length, descriptors) for length in lengths)
    pairs = (entry.partition(b"=") for entry in environment.split(b"\0") if entry)
    return Call(
        program=program.decode(),
        environment={os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs},
        stdin=stdin,
        namespace_fd=descriptors[0] if descriptors else None,
    )


def encode_call(call: Call) -> bytes:
    environment = b"\0".join(os.fsencode(f"{name}={value}") for name, value in call.environment.items())
    program = call.program.encode()
    return _HEADER.pack(MAGIC, len(program), len(environment), len(call.stdin)) + program + environment + call.stdin


def encode_reply(reply: CallReply | None) -> bytes:
    if reply is None:
        return IN_PROCESS
    lengths = struct.pack(">III", reply.status, len(reply.stdout), len(reply.stderr))
    return REPLY + lengths + reply.stdout + reply.stderr


def call_node(path: str, call: Call, *, timeout_s: float = 30.0) -> CallReply | None:
    """Ask a running node; None when it answers "in process". Raises ``OSError`` when nobody listens, or when the node
    hangs up without an answer."""
    try:
        return _call(path, call, timeout_s)
    except InvalidRequest as error:
        raise ConnectionError(f"the node gave no answer ({error})") from error


def _call(path: str, call: Call, timeout_s: float) -> CallReply | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        connection.sendall(encode_call(call))
        kind = _receive(connection, 1, [])
        if kind == IN_PROCESS:
            return None
        status, out_length, err_length = struct.unpack(">III", _receive(connection, 12, []))
        stdout = _receive(connection, out_length, [])
        return CallReply(status=status, stdout=stdout, stderr=_receive(connection, err_length, []))


def _receive(connection: socket.socket, length: int, descriptors: list[int]) -> bytes:
    chunks = bytearray()
    while len(chunks) < length:
        data, ancillary, _flags, _address = connection.recvmsg(
            min(length - len(chunks), 1 << 16), 256, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                descriptors.extend(received)
        if not data:
            raise InvalidRequest("request", f"ended after {len(chunks)} of {length} bytes")
        chunks += data
    return bytes(chunks)


def _has_left(connection: socket.socket) -> bool:
    """Closed by the peer, not only for writing. Source: poll(2), POLLHUP."""
    poller = select.poll()
    poller.register(connection, 0)
    return any(events & select.POLLHUP for _, events in poller.poll(0))


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return pid, uid


def _is_elsewhere(pid: int) -> bool:
    """In another network or user namespace than this process. Of one that cannot be looked at, nobody can say."""
    try:
        return any(_differs(pid, kind) for kind in ("net", "user"))
    except OSError:
        return False


def _other_mounts(pid: int, descriptors: list[int]) -> tuple[int, int] | tuple[None, None]:
    """The peer's mount namespace and its root there, where that is another namespace than this process's and can be
    looked at; added to ``descriptors``. To enter the namespace alone would be to stand at *its* root."""
    try:
        if not _differs(pid, "mnt"):
            return None, None
        mounts_fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        descriptors.append(mounts_fd)
        root_fd = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        descriptors.append(root_fd)
    except OSError:
        return None, None
    return mounts_fd, root_fd


def _differs(pid: int, kind: str) -> bool:
    theirs, ours = os.stat(f"/proc/{pid}/ns/{kind}"), os.stat(f"/proc/self/ns/{kind}")  # noqa: PTH116
    return (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)
