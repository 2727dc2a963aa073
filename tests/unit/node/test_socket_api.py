"""The node's socket: a call is answered, a bad one is refused, and nothing of either is left open."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from calico_core.interfaces.integration import Call, CallReply
from calico_core.node.socket_api import LIMITS, MAGIC, SocketServer, call_node, encode_call, encode_reply
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the socket speaks to root only")

WAIT_S = 10.0


class Handler:
    """Answers by program name."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.entered = threading.Event()
        self.may_go = threading.Event()

    def __call__(self, call: Call) -> CallReply | None:
        self.calls.append(call)
        match call.program:
            case "echo":
                environment = "".join(f"{name}={value};" for name, value in sorted(call.environment.items()))
                return CallReply(status=7, stdout=call.stdin, stderr=os.fsencode(environment))
            case "inode":
                assert call.namespace_fd is not None
                return CallReply(stdout=str(os.fstat(call.namespace_fd).st_ino).encode())
            case "inheritable":
                assert call.namespace_fd is not None
                return CallReply(stdout=str(os.get_inheritable(call.namespace_fd)).encode())
            case "shim":
                return None
            case "slow":
                self.entered.set()
                assert self.may_go.wait(WAIT_S)
                return CallReply(stdout=b"done")
            case "broken":
                raise RuntimeError("on purpose")
        return CallReply(status=1, stderr=f"no integration takes calls of {call.program!r}".encode())


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def path(tmp_path: Path, handler: Handler) -> Iterator[str]:
    server = SocketServer(str(tmp_path / "run" / "node.sock"), handler)
    server.start()
    yield str(tmp_path / "run" / "node.sock")
    handler.may_go.set()
    server.stop()


def a_call(program: str = "echo", stdin: bytes = b"", **environment: str) -> Call:
    return Call(program=program, environment=environment, stdin=stdin)


def test_a_call_is_answered(path: str, handler: Handler) -> None:
    reply = call_node(path, a_call(stdin=b"\0\xff in", CNI_COMMAND="ADD", EMPTY="", EQUALS="a=b"))
    assert reply == CallReply(status=7, stdout=b"\0\xff in", stderr=b"CNI_COMMAND=ADD;EMPTY=;EQUALS=a=b;")
    assert handler.calls[0].namespace_fd is None


def test_a_large_call_is_answered(path: str) -> None:
    stdin = os.urandom(4 << 20)
    reply = call_node(path, a_call(stdin=stdin))
    assert reply is not None
    assert reply.stdout == stdin


def test_an_environment_need_not_be_text(path: str, handler: Handler) -> None:
    call_node(path, a_call(NAME=os.fsdecode(b"\xff\xfe")))
    assert os.fsencode(handler.calls[0].environment["NAME"]) == b"\xff\xfe"


def test_the_answer_may_be_to_do_it_yourself(path: str) -> None:
    assert call_node(path, a_call("shim")) is None


def test_an_unknown_program_is_named(path: str) -> None:
    reply = call_node(path, a_call("nobody"))
    assert reply is not None
    assert reply.status == 1
    assert b"'nobody'" in reply.stderr


def test_a_descriptor_arrives_and_is_closed_after_the_reply(path: str, tmp_path: Path) -> None:
    for _ in range(5):
        with (tmp_path / "file").open("wb") as file:
            reply = _raw(path, encode_call(a_call("inode")), [file.fileno()])
            assert reply == encode_reply(CallReply(stdout=str(os.fstat(file.fileno()).st_ino).encode()))
    eventually(lambda: _descriptors_of(tmp_path / "file") == 0)


def test_a_descriptor_is_not_inherited_by_children(path: str, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert _raw(path, encode_call(a_call("inheritable")), [file.fileno()]).endswith(b"False")


def test_descriptors_of_a_refused_call_are_closed_too(path: str, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        for _ in range(5):
            assert _raw(path, b"NOPE" + bytes(12), [file.fileno(), file.fileno()]) == b""
    eventually(lambda: _descriptors_of(tmp_path / "file") == 0)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"CAL9" + bytes(12), id="wrong magic"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(struct.pack(">4sIII", MAGIC, LIMITS["program"] + 1, 0, 0), id="program too long"),
        pytest.param(struct.pack(">4sIII", MAGIC, 1, LIMITS["environment"] + 1, 0), id="environment too long"),
        pytest.param(struct.pack(">4sIII", MAGIC, 1, 0, LIMITS["standard input"] + 1), id="input too long"),
        pytest.param(struct.pack(">4sIII", MAGIC, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), id="everything too long"),
        pytest.param(b"CA", id="half a header"),
        pytest.param(b"", id="nothing"),
        pytest.param(encode_call(Call(program="echo", environment={}, stdin=b"12345"))[:-1], id="half a frame"),
        pytest.param(struct.pack(">4sIII", MAGIC, 2, 0, 0) + b"\xff\xfe", id="program is no text"),
        pytest.param(encode_call(Call(program="broken", environment={}, stdin=b"")), id="handler raises"),
    ],
)
def test_what_cannot_be_answered_is_hung_up_on(path: str, sent: bytes) -> None:
    assert _raw(path, sent) == b""
    reply = call_node(path, a_call(stdin=b"still alive"))
    assert reply is not None
    assert reply.stdout == b"still alive"


def test_a_caller_learns_that_the_node_hung_up(path: str) -> None:
    with pytest.raises(ConnectionError, match="no answer"):
        call_node(path, a_call("broken"))


def test_a_caller_that_leaves_early_hurts_nobody(path: str, handler: Handler) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(encode_call(a_call("slow")))
        assert handler.entered.wait(WAIT_S)
    handler.may_go.set()
    assert call_node(path, a_call()) is not None


def test_a_call_whose_caller_left_before_its_turn_is_not_begun(tmp_path: Path, handler: Handler) -> None:
    path = str(tmp_path / "narrow.sock")
    server = SocketServer(path, handler, workers=1)
    server.start()
    with socket.socket(socket.AF_UNIX) as occupant, socket.socket(socket.AF_UNIX) as patient:
        occupant.connect(path)
        occupant.sendall(encode_call(a_call("slow")))
        assert handler.entered.wait(WAIT_S)
        with socket.socket(socket.AF_UNIX) as leaving:
            leaving.connect(path)
            leaving.sendall(encode_call(a_call("gone")))
        patient.connect(path)
        patient.sendall(encode_call(a_call("half-closed")))
        patient.shutdown(socket.SHUT_WR)
        handler.may_go.set()
        patient.settimeout(WAIT_S)
        assert patient.recv(1) == b"R"
    server.stop()
    assert [call.program for call in handler.calls] == ["slow", "half-closed"]


def test_many_calls_at_once(path: str) -> None:
    def ask(number: int) -> bytes:
        reply = call_node(path, a_call(stdin=str(number).encode() * 1000))
        assert reply is not None
        return reply.stdout

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(100)))
    assert answers == [str(number).encode() * 1000 for number in range(100)]


def test_a_slow_call_does_not_hold_up_others(path: str, handler: Handler) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(call_node, path, a_call("slow"))
        assert handler.entered.wait(WAIT_S)
        assert call_node(path, a_call(stdin=b"quick")) is not None
        assert not slow.done()
        handler.may_go.set()
        assert slow.result(WAIT_S) == CallReply(stdout=b"done")


def test_stop_finishes_running_calls_and_takes_no_more(tmp_path: Path, handler: Handler) -> None:
    path = tmp_path / "node.sock"
    server = SocketServer(str(path), handler)
    server.start()
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(call_node, str(path), a_call("slow"))
        assert handler.entered.wait(WAIT_S)
        stopped = pool.submit(server.stop)
        eventually(lambda: not path.exists())
        with pytest.raises(OSError, match="No such file"):
            call_node(str(path), a_call())
        assert not stopped.done()
        handler.may_go.set()
        assert slow.result(WAIT_S) == CallReply(stdout=b"done")
        stopped.result(WAIT_S)
    server.stop()


def test_only_root_may_open_it_and_a_leftover_is_replaced(tmp_path: Path, handler: Handler) -> None:
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
    server = SocketServer(str(path), handler)
    server.start()
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert call_node(str(path), a_call()) is not None
        assert [entry.name for entry in tmp_path.iterdir()] == ["node.sock"]
    finally:
        server.stop()


def test_another_user_is_hung_up_on_even_if_the_file_lets_him_in(handler: Handler) -> None:
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1])\n"
        "try: s.sendall(sys.stdin.buffer.read()); print(len(s.recv(100)))\n"
        "except OSError: print(0)"
    )
    call = encode_call(a_call(stdin=b"x"))
    interpreter = os.path.realpath(sys.executable)
    if not _can_start(interpreter, 65534):
        pytest.skip("another user cannot start this interpreter (it is below /root, say)")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        path = Path(folder, "node.sock")
        server = SocketServer(str(path), handler)
        server.start()
        try:
            Path(folder).chmod(0o755)
            path.chmod(0o666)
            for user, is_answered in ((0, True), (65534, False)):
                argv = [interpreter, "-I", "-S", "-c", script, str(path)]
                done = subprocess.run(argv, input=call, capture_output=True, check=True, user=user, timeout=60)
                assert (int(done.stdout) > 0) == is_answered
        finally:
            server.stop()
    assert len(handler.calls) == 1


def test_nobody_listening_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        call_node(str(tmp_path / "absent.sock"), a_call())


def _can_start(interpreter: str, user: int) -> bool:
    argv = [interpreter, "-I", "-S", "-c", "import socket"]
    try:
        return subprocess.run(argv, capture_output=True, check=False, user=user, timeout=60).returncode == 0
    except PermissionError:
        return False


def _raw(path: str, sent: bytes, descriptors: list[int] | None = None) -> bytes:
    """Send bytes as they are; everything the server says until it hangs up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(path)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        if sent:
            connection.sendmsg([sent], rights)
        connection.shutdown(socket.SHUT_WR)
        answer = bytearray()
        try:
            while data := connection.recv(1 << 16):
                answer += data
        except ConnectionResetError:  # it hung up with our bytes unread
            pass
        return bytes(answer)


def _descriptors_of(path: Path) -> int:
    """How many of this process lead to the file: those the server was sent among them."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found += entry.readlink() == path
    return found


def test_a_caller_on_another_host_does_its_own_work(tmp_path: Path) -> None:
    """Wiring what a nested runtime asks for into this host would be worse than slow."""
    path = str(tmp_path / "node.sock")
    handler = Handler()
    server = SocketServer(path, handler)
    server.start()
    script = (
        "import sys; from calico_core.interfaces.integration import Call\n"
        "from calico_core.node.socket_api import call_node\n"
        "reply = call_node(sys.argv[1], Call(program=sys.argv[2], environment={}, stdin=b'x'))\n"
        "print(reply.status if reply else 'in process')"
    )
    try:
        for program, elsewhere in (("echo", "in process"), ("node", "1")):
            argv = [sys.executable, "-c", script, path, program]
            for prefix, expected in ((["unshare", "--net"], elsewhere), ([], "7" if program == "echo" else "1")):
                done = subprocess.run([*prefix, *argv], capture_output=True, text=True, check=True, timeout=60)
                assert done.stdout.strip() == expected, (program, prefix)
    finally:
        server.stop()
    assert len(handler.calls) == 3


@pytest.mark.needs_root
def test_the_file_system_of_a_caller_that_has_its_own(tmp_path: Path) -> None:
    path = str(tmp_path / "node.sock")
    seen: list[bool] = []
    descriptors: list[int] = []

    def handler(call: Call) -> CallReply:
        own = Path("/proc/self/ns/mnt").stat().st_ino
        descriptors.extend([call.mounts_fd] if call.mounts_fd is not None else [])
        seen.append(call.mounts_fd is not None and os.fstat(call.mounts_fd).st_ino != own)
        return CallReply()

    server = SocketServer(path, handler)
    server.start()
    script = (
        "import sys; from calico_core.interfaces.integration import Call\n"
        "from calico_core.node.socket_api import call_node\n"
        "assert call_node(sys.argv[1], Call(program='echo', environment={}, stdin=b'')).status == 0"
    )
    try:
        for prefix in ([], ["unshare", "--mount"]):
            subprocess.run([*prefix, sys.executable, "-c", script, path], check=True, timeout=60)
        eventually(lambda: not any(_is_open(descriptor) for descriptor in descriptors))
    finally:
        server.stop()
    assert seen == [False, True]


def _is_open(descriptor: int) -> bool:
    """As a mount namespace; the number may be another file's by now."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("mnt:")
    except FileNotFoundError:
        return False
