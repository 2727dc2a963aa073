"""The file that the agent's network module executes; ``install`` fills in the three constants.

Hands standard input to the node's socket and the reply back. Runs with ``-IS`` on ``_socket`` alone, because the agent
starts no container meanwhile: no site, no json, no os. The module reads one JSON object from standard output and looks
at nothing else, so every failure is one too. Frames: docs/reference/node-socket.md.
"""

# annotations are evaluated here: __future__ would be one more file to load
import _signal  # type: ignore[import-not-found]  # typeshed knows only its public front
import _socket
import posix
import sys
import time

SOCKET = "/run/calico/node.sock"
PYTHON = "/usr/bin/python3"
RUN_DIRECTORY = "/run/calico"

ABOUT = "Calico for Mesos: one JSON request on standard input, one JSON reply on standard output\n"
PROGRAM = "calico-mesos"  # whatever the file is called
MAX_INPUT = 8 << 20
CONNECT_S = 2
DEADLINE_S = 10


class Interrupted(BaseException):
    """SIGTERM or SIGINT."""


class Unsent(Exception):
    """Nothing was sent, or no node has read it to its end: nobody can have acted upon it."""


class Unknown(Exception):
    """The request was sent, and what became of it is not known."""


def main() -> int:
    fill_closed()
    if len(sys.argv) > 1:
        write(1, ABOUT.encode())
        return 0
    try:
        for number in (_signal.SIGTERM, _signal.SIGINT):
            _signal.signal(number, interrupt)
        try:
            stdin = read_all(0)
        except OSError as error:
            return fail(f"Standard input cannot be read: {error.strerror}.")
        if len(stdin) > MAX_INPUT:
            return fail("The request is longer than 8 MiB.")
        return call(stdin)
    except Interrupted:
        return fail("Interrupted before the node answered.")
    except BaseException as error:
        return fail(f"Unhandled error {type(error).__name__} in the program that calls the node.")


def call(stdin: bytes) -> int:
    try:
        reply = ask(stdin)
    except Unsent:
        reply = None
    except Unknown as error:
        return fail(f"The node took the request and did not answer: {error}. Whether it was served is not known.")
    if reply is None:
        return run_in_process(stdin)
    status, stdout, stderr = reply
    write(2, stderr)
    if not stdout:
        text = stderr.decode("utf-8", "replace").strip()
        return fail(text or "The node answered with nothing.")
    write(1, stdout)
    return status


def ask(stdin: bytes) -> tuple[int, bytes, bytes] | None:
    """Status, stdout and stderr; None when the node says "in process"."""
    deadline = time.monotonic() + DEADLINE_S
    connection = connect()
    name = PROGRAM.encode()
    trace = posix.environ.get(b"CALICO_TRACE")
    variables = b"" if trace is None else b"CALICO_TRACE=" + trace
    lengths = b"".join([len(each).to_bytes(4, "big") for each in (name, variables, stdin)])
    request = b"CAL1" + lengths + name + variables + stdin
    sent = 0
    kind = b""
    try:
        while sent < len(request):
            connection.settimeout(remaining(deadline))
            sent += connection.send(memoryview(request)[sent:])
        kind = receive(connection, 1, deadline)
        if kind == b"F":
            return None
        if kind != b"R":
            raise Unknown("unknown reply")
        head = receive(connection, 12, deadline)
        status, stdout, stderr = [int.from_bytes(head[i : i + 4], "big") for i in (0, 4, 8)]
        body = receive(connection, stdout + stderr, deadline)
    except OSError as error:
        # a reset is the kernel's word that bytes of the request were left unread; after the last one it is an end
        if not sent or (not kind and isinstance(error, (ConnectionResetError, BrokenPipeError))):
            raise Unsent from None
        raise Unknown(error.strerror or "time is up") from None
    return status & 255, body[:stdout], body[stdout:]


def connect() -> _socket.socket:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(CONNECT_S)
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            connection.connect(SOCKET)
            return connection
        except BlockingIOError:  # its backlog is full
            if time.monotonic() > deadline:
                raise Unsent from None
            time.sleep(0.01)
        except OSError:
            raise Unsent from None


def receive(connection: _socket.socket, length: int, deadline: float) -> bytes:
    chunks = []
    while length:
        connection.settimeout(remaining(deadline))
        chunk = connection.recv(min(length, 1 << 16))
        if not chunk:
            raise Unknown("the connection ended")
        chunks.append(chunk)
        length -= len(chunk)
    return b"".join(chunks)


def remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Unknown("time is up")
    return left


def run_in_process(stdin: bytes) -> int:
    """Replaces this process; comes back only when that fails."""
    arguments = [PYTHON, "-I", "-m", "calico_core.node.oneshot", RUN_DIRECTORY, PROGRAM]
    try:
        descriptor = posix.memfd_create("stdin", 0)
        left = memoryview(stdin)
        while left:
            left = left[posix.write(descriptor, left) :]
        posix.lseek(descriptor, 0, 0)
        posix.dup2(descriptor, 0)
        posix.execve(PYTHON, arguments, posix.environ)
    except OSError as error:
        return fail(f"The node does not answer at {SOCKET}, and {PYTHON} cannot be run: {error.strerror}.")


def fail(message: str) -> int:
    text = "".join([c if " " <= c <= "~" and c not in '"\\' else "?" for c in message])
    write(1, f'{{"error":"{text}"}}'.encode())
    return 1


def read_all(descriptor: int) -> bytes:
    chunks = []
    length = 0
    while length <= MAX_INPUT:
        chunk = posix.read(descriptor, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
        length += len(chunk)
    return b"".join(chunks)


def fill_closed() -> None:
    """A closed standard stream's number would go to the socket, and texts meant for it too."""
    for descriptor in (0, 1, 2):
        try:
            posix.fstat(descriptor)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)


def write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[posix.write(descriptor, left) :]
        except OSError:
            return  # nobody listens


def interrupt(*_: object) -> None:
    raise Interrupted


if __name__ == "__main__":
    posix._exit(main())  # noqa: SLF001 - nothing is left to be cleaned up
