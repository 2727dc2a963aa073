"""The file that runtimes execute as ``calico`` and ``calico-ipam``; ``install`` fills in the four constants.

Hands the call to the node's socket and its reply back. Runs with ``-IS`` on ``_socket`` alone, because a pod start
waits for it: no site, no json, no os. Frames: docs/reference/node-socket.md. When to run in process instead:
cni specification 7.3.
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
RELEASE = "0"

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
EARLY = VERSIONS[:4]  # they know no code 11
COMMANDS = "ADD, CHECK, DEL, GC, STATUS, VERSION"
MAX_INPUT = 8 << 20
CONNECT_S = 2
DEADLINES_S = {b"ADD": 45, b"DEL": 25}  # 5 more than the node's own
VERSION_INPUT_MS = 200


class Interrupted(BaseException):
    """SIGTERM or SIGINT."""


class Unsent(Exception):
    """Nothing was sent, or no node has read it to its end: nobody can have acted upon it."""


class Unknown(Exception):
    """The request was sent, and what became of it is not known."""


def main() -> int:
    fill_closed()
    program = sys.argv[0].rpartition("/")[2]
    environment = posix.environ
    option = sys.argv[1] if len(sys.argv) == 2 else ""
    command = environment.get(b"CNI_COMMAND", b"")
    if command in {b"TEST", b"UPGRADE"}:  # what options become below
        return fail(4, f"CNI_COMMAND: '{command.decode()}' is not one of {COMMANDS}", "")
    if option == "-t":  # would an ADD with this configuration be served?
        environment[b"CNI_COMMAND"] = b"TEST"
    if option in {"-upgrade", "--upgrade"}:  # here, where host-local's files are, and without input
        environment[b"CNI_COMMAND"] = b"UPGRADE"
        return run_in_process(program, environment, b"")
    command = environment.get(b"CNI_COMMAND", b"")
    is_about = option in {"-v", "--version"}
    if not command or is_about:
        about = f"Calico CNI plugin {RELEASE}; CNI protocol versions supported: {', '.join(VERSIONS)}\n"
        write(1 if is_about else 2, about.encode())
        return 0
    if command == b"VERSION":
        version = version_in(read_version_input()) or VERSIONS[-1]
        write(1, b'{"cniVersion":"%s","supportedVersions":["%s"]}' % (version.encode(), '","'.join(VERSIONS).encode()))
        return 0
    stdin = b""
    try:
        for number in (_signal.SIGTERM, _signal.SIGINT):
            _signal.signal(number, interrupt)
        try:
            stdin = read_all(0)
        except OSError as error:
            return fail(5, f"standard input cannot be read: {error.strerror}", "")
        if len(stdin) > MAX_INPUT:
            return fail(6, "standard input is longer than 8 MiB", "")
        return call(program, environment, command, stdin)
    except Interrupted:
        return fail(11, "interrupted before the node answered", asked_version(stdin))
    except BaseException as error:
        return fail(100, f"the plugin failed: {type(error).__name__}", asked_version(stdin))


def call(program: str, environment: dict[bytes, bytes], command: bytes, stdin: bytes) -> int:
    code = 50 if command == b"STATUS" else 11
    try:
        reply = ask(program, environment, command, stdin)
    except Unsent:
        if command in {b"GC", b"STATUS"}:
            return fail(code, f"the node does not answer at {SOCKET}", asked_version(stdin))
        reply = None
    except Unknown as error:
        # a detach is safe to repeat; of an attach nobody knows, and the runtime will detach
        if command != b"DEL":
            return fail(code, f"the node did not answer: {error}; try again", asked_version(stdin))
        reply = None
    if reply is None:
        return run_in_process(program, environment, stdin)
    status, stdout, stderr = reply
    write(2, stderr)
    write(1, stdout)
    return status


def ask(program: str, environment: dict[bytes, bytes], command: bytes, stdin: bytes) -> tuple[int, bytes, bytes] | None:
    """Status, stdout and stderr; None when the node says "in process"."""
    deadline = time.monotonic() + DEADLINES_S.get(command, 10)
    connection = connect()
    ancillary = []
    namespace = environment.get(b"CNI_NETNS")
    if namespace:
        try:
            descriptor = posix.open(namespace, posix.O_RDONLY | posix.O_CLOEXEC)
            ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))]
        except (OSError, ValueError):
            pass  # normal on DEL; on ADD the node refuses
    name = program.encode("utf-8", "replace")
    variables = b"\0".join(
        [b"%s=%s" % item for item in environment.items() if item[0][:4] == b"CNI_" or item[0] == b"CALICO_TRACE"]
    )
    lengths = b"".join([len(each).to_bytes(4, "big") for each in (name, variables, stdin)])
    request = b"CAL1" + lengths + name + variables + stdin
    sent = 0
    kind = b""
    try:
        sent = connection.sendmsg([request], ancillary)
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


def run_in_process(program: str, environment: dict[bytes, bytes], stdin: bytes) -> int:
    """Replaces this process; comes back only when that fails."""
    arguments = [PYTHON, "-I", "-m", "calico_core.node.oneshot", RUN_DIRECTORY, program]
    try:
        descriptor = posix.memfd_create("stdin", 0)
        left = memoryview(stdin)
        while left:
            left = left[posix.write(descriptor, left) :]
        posix.lseek(descriptor, 0, 0)
        posix.dup2(descriptor, 0)
        posix.execve(PYTHON, arguments, environment)
    except OSError as error:
        reason = f"the node does not answer at {SOCKET}, and {PYTHON} cannot be run: {error.strerror}"
        return fail(11, reason, asked_version(stdin))


def fail(code: int, message: str, version: str) -> int:
    if code == 11 and version in EARLY:
        code = 100
    text = "".join([c if " " <= c <= "~" and c not in '"\\' else "?" for c in message])
    write(1, f'{{"cniVersion":"{version or VERSIONS[-1]}","code":{code},"msg":"{text}"}}'.encode())
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


def read_version_input() -> bytes:
    """What comes within a moment: nobody has to write anything."""
    import select  # here only: the other commands do without

    found = b""
    try:
        if posix.isatty(0):
            return found
        poll = select.poll()
        poll.register(0, select.POLLIN)
        while len(found) <= MAX_INPUT and poll.poll(VERSION_INPUT_MS):
            chunk = posix.read(0, 1 << 16)
            found += chunk
            if not chunk or version_in(found):
                break
    except OSError:
        pass
    return found


def version_in(stdin: bytes) -> str:
    """``cniVersion`` in a JSON text, by eye; empty when there is none that looks like one."""
    _, found, rest = stdin.partition(b'"cniVersion"')
    rest = rest.lstrip()
    if not found or rest[:1] != b":":
        return ""
    text, end, _ = rest[1:].lstrip()[1:32].partition(b'"')
    is_version = end and text.replace(b".", b"").isdigit()
    return text.decode() if is_version else ""


def asked_version(stdin: bytes) -> str:
    """As :func:`version_in`; a configuration that names none asks for the first."""
    return version_in(stdin) if not stdin or b'"cniVersion"' in stdin else VERSIONS[0]


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
