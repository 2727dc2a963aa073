"""The executables themselves, as processes, against a socket that does as it is told."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from calico_cni.compiler import COMPILER, compile_shim
from calico_cni.install import base_interpreter, shim_text
from calico_cni.versions import VERSIONS
from calico_core import __version__
from calico_core.interfaces.integration import Call, CallReply
from tests.doubles.cni import CniSetup, a_network
from tests.doubles.node_socket import NodeSocket, serving

STAND_IN = """#!/bin/sh
# in place of the interpreter that would run the call in process
printf '%s|' "$@"
printf 'command=%s|' "$CNI_COMMAND"
cat
"""
CONFIGURATION = b'{"cniVersion": "1.0.0", "name": "net1"}'
WAIT_S = 30.0


class Shim:
    """The installed pair in a folder of its own, with the socket beside it. ``kind``: ``compiled``, ``python``, or
    ``text`` for the Python shim in an interpreter that its own compiled form is not for."""

    def __init__(self, folder: Path, kind: str, program: bytes = b"") -> None:
        self.folder = folder
        self.kind = kind
        self.socket = folder / "node.sock"
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self._started: list[subprocess.Popen[bytes]] = []
        self.install(program or self.build())

    def build(self, **macros: str) -> bytes:
        where = {"socket": str(self.socket), "python": str(self.python)}
        if self.kind == "compiled":
            return compile_shim(**where, macros=macros)
        text = shim_text(**where)
        return another_interpreters(text) if self.kind == "text" else text

    def install(self, text: bytes) -> None:
        for program in ("calico", "calico-ipam"):
            path = self.folder / program
            path.write_bytes(text)
            path.chmod(0o755)

    def start(self, command: str, program: str = "calico", **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(self.folder / program)],
            env={"CNI_COMMAND": command, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        """Processes that a failed test has left."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
                process.communicate()

    def run(
        self, command: str, stdin: bytes = CONFIGURATION, program: str = "calico", **environment: str
    ) -> tuple[int, bytes, bytes]:
        process = self.start(command, program, **environment)
        stdout, stderr = process.communicate(stdin, timeout=WAIT_S)
        return process.returncode, stdout, stderr


def another_interpreters(text: bytes) -> bytes:
    assert text.count(b'"MAGIC_NUMBER"') == 1
    return text.replace(b'"MAGIC_NUMBER"', b'"ANOTHER_NUMBER"')


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    """Built once: its folder is compiled in."""
    if shutil.which(COMPILER) is None:
        pytest.skip("no C compiler is installed")
    return Shim(tmp_path_factory.mktemp("shim"), "compiled")


@pytest.fixture(params=["python", "text", "compiled"])
def shim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shim]:
    if request.param == "compiled":
        built: Shim = request.getfixturevalue("compiled")
        built.socket.unlink(missing_ok=True)
        made = Shim(built.folder, "compiled", (built.folder / "calico").read_bytes())
    else:
        made = Shim(tmp_path, request.param)
    yield made
    made.end()


@pytest.fixture
def python_shim(tmp_path: Path) -> Iterator[Shim]:
    made = Shim(tmp_path, "python")
    yield made
    made.end()


def replaying(reply: CallReply | bytes | None) -> Any:
    return lambda _: reply


def in_process_text(shim: Shim, command: str, program: str = "calico") -> bytes:
    arguments = f"-I|-m|calico_core.node.oneshot|{shim.folder}|{program}|command={command}|"
    return arguments.encode() + CONFIGURATION


# --- with a node -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        CallReply(stdout=b'{"cniVersion":"1.0.0"}'),
        CallReply(),
        CallReply(status=1, stdout=b'{"code":7}', stderr=b"a word\n"),
        CallReply(stdout=b"x" * 3_000_000),
    ],
)
def test_the_reply_is_copied_byte_for_byte(shim: Shim, reply: CallReply) -> None:
    with serving(shim.socket, replaying(reply)):
        assert shim.run("ADD") == (reply.status, reply.stdout, reply.stderr)


@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
def test_the_request_holds_name_input_and_cni_variables_only(shim: Shim, program: str) -> None:
    with serving(shim.socket, replaying(CallReply())) as node:
        shim.run("DEL", program=program, CNI_ARGS="A=1;B=ä", CALICO_TRACE="1", HOME="/root", SECRET="x")
    (call,) = node.calls
    assert (call.program, call.stdin) == (program, CONFIGURATION)
    assert call.environment == {"CNI_COMMAND": "DEL", "CNI_ARGS": "A=1;B=ä", "CALICO_TRACE": "1"}


def test_a_large_configuration_arrives_whole(shim: Shim) -> None:
    stdin = b'{"a": "' + os.urandom(2_000_000).hex().encode() + b'"}'
    with serving(shim.socket, replaying(CallReply())) as node:
        assert shim.run("ADD", stdin)[0] == 0
    assert node.calls[0].stdin == stdin


def test_a_configuration_that_no_node_takes_is_refused_here(shim: Shim) -> None:
    with serving(shim.socket, replaying(CallReply())) as node:
        status, stdout, _ = shim.run("ADD", b" " * (9 << 20))
    assert (status, json.loads(stdout)["code"]) == (1, 6)
    assert node.calls == []


def test_the_namespace_goes_along_as_a_descriptor(shim: Shim) -> None:
    with serving(shim.socket, replaying(CallReply())) as node:
        for path in ("/proc/self/ns/net", "/does/not/exist", ""):
            assert shim.run("DEL", CNI_NETNS=path)[0] == 0
    assert node.namespaces == [Path("/proc/self/ns/net").stat().st_ino, None, None]


def test_a_full_backlog_is_waited_for(shim: Shim) -> None:
    node = NodeSocket(shim.socket, replaying(CallReply(stdout=b"in time")), backlog=0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as occupant:
        occupant.connect(str(shim.socket))
        process = shim.start("ADD")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    node.start()
    assert process.communicate(CONFIGURATION, timeout=WAIT_S)[0] == b"in time"
    node.stop()


def test_a_whole_call_through_the_real_integration(shim: Shim, namespace_fd: int) -> None:
    setup = CniSetup(namespace_fd)
    stdin = json.dumps(a_network()).encode()
    variables = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/proc/self/ns/uts"}
    with serving(shim.socket, setup.integration.handle):
        status, stdout, stderr = shim.run("ADD", stdin, **variables)
        assert (status, stderr) == (0, b"")
        assert json.loads(stdout)["ips"] == [{"address": "10.65.0.1/32", "interface": 1}]
        assert shim.run("DEL", stdin, **variables) == (0, b"", b"")
    assert setup.ipam.held == {}


# --- without a node --------------------------------------------------------------------------------------------


def leave_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize("is_stale", [False, True])
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize("program", ["calico", "calico-ipam"])
def test_nobody_listens_then_in_process(shim: Shim, program: str, command: str, is_stale: bool) -> None:
    if is_stale:
        leave_stale_socket(shim.socket)
    assert shim.run(command, program=program) == (0, in_process_text(shim, command, program), b"")


def test_the_node_says_in_process(shim: Shim) -> None:
    with serving(shim.socket, replaying(None)):
        assert shim.run("ADD") == (0, in_process_text(shim, "ADD"), b"")


@pytest.mark.parametrize(("command", "code"), [("GC", 11), ("STATUS", 50)])
def test_what_makes_no_sense_without_a_node(shim: Shim, command: str, code: int) -> None:
    status, stdout, _ = shim.run(command)
    assert (status, json.loads(stdout)["code"]) == (1, code)


@pytest.mark.parametrize(
    "broken", [b"", b"R", b"R" + bytes(6), b"R" + bytes(4) + b"\0\0\0\x09" + bytes(4) + b"half", b"?"]
)
def test_after_sending_an_attach_is_never_repeated_and_a_detach_is(shim: Shim, broken: bytes) -> None:
    with serving(shim.socket, replaying(broken)) as node:
        for command, code in (("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)):
            status, stdout, _ = shim.run(command)
            error = json.loads(stdout)
            assert (status, error["code"], error["cniVersion"]) == (1, code, "1.0.0")
        assert shim.run("DEL") == (0, in_process_text(shim, "DEL"), b"")
    assert len(node.calls) == 5


class Listening:
    """A node that stops short: the connection is there, and what becomes of it the test says."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)

    def has_one_waiting(self) -> bool:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        return bool(poll.poll(WAIT_S * 1000))

    def take(self) -> socket.socket:
        self._listener.settimeout(WAIT_S)
        connection, _ = self._listener.accept()
        connection.settimeout(WAIT_S)
        return connection

    def close(self) -> None:
        self._listener.close()


def sent_whole(process: subprocess.Popen[bytes]) -> None:
    """Until the shim waits for its answer: poll(2), whichever way it is called."""
    assert process.stdin is not None
    process.stdin.write(CONFIGURATION)
    process.stdin.close()
    process.stdin = None
    waiting = Path(f"/proc/{process.pid}/wchan")
    deadline = time.monotonic() + WAIT_S
    while "poll" not in waiting.read_text():
        assert time.monotonic() < deadline, waiting.read_text()
        time.sleep(0.001)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize("read", [None, 0, 1, 20, -1])
def test_what_no_node_read_to_its_end_runs_in_process(shim: Shim, command: str, read: int | None) -> None:
    """``read``: None, it was never taken from the backlog; else how many bytes were, -1 being all but one."""
    node = Listening(shim.socket)
    process = shim.start(command)
    sent_whole(process)
    assert node.has_one_waiting()
    if read is None:
        node.close()
    else:
        connection = node.take()
        length = len(connection.recv(1 << 16, socket.MSG_PEEK))
        assert length > 20
        wanted = read if read >= 0 else length - 1
        if wanted:
            assert len(connection.recv(wanted)) == wanted
        connection.close()
        node.close()
    assert process.communicate(timeout=WAIT_S) == (in_process_text(shim, command), b"")


def test_a_large_request_that_is_broken_off_while_it_is_sent_runs_in_process(shim: Shim) -> None:
    node = Listening(shim.socket)
    process = shim.start("ADD")
    stdin = b'{"cniVersion": "1.0.0", "a": "' + b"x" * (2 << 20) + b'"}'
    with ThreadPoolExecutor(1) as pool:
        talk = pool.submit(process.communicate, stdin, WAIT_S)
        connection = node.take()
        assert connection.recv(1000)
        connection.close()
        node.close()
        stdout, _ = talk.result(WAIT_S)
    assert stdout.endswith(stdin)
    assert b"oneshot" in stdout


def test_what_was_read_to_its_end_is_not_repeated_when_the_listener_goes_too(shim: Shim) -> None:
    node = Listening(shim.socket)
    process = shim.start("ADD")
    sent_whole(process)
    connection = node.take()
    assert connection.recv(1 << 16)
    connection.close()
    node.close()
    stdout, _ = process.communicate(timeout=WAIT_S)
    assert json.loads(stdout)["code"] == 11


def test_early_versions_do_not_know_try_again(shim: Shim) -> None:
    with serving(shim.socket, replaying(b"")):
        error = json.loads(shim.run("ADD", b'{"cniVersion": "0.3.1"}')[1])
        unnamed = json.loads(shim.run("ADD", b'{"name": "net1"}')[1])
    assert (error["code"], error["cniVersion"]) == (100, "0.3.1")
    assert (unnamed["code"], unnamed["cniVersion"]) == (100, "0.1.0")


@pytest.fixture
def hasty(shim: Shim) -> Iterator[Shim]:
    """It waits 0.3 s for an answer."""
    patient = (shim.folder / "calico").read_bytes()
    if shim.kind == "compiled":
        shim.install(shim.build(ADD_MS="300", DEL_MS="300"))
    else:
        assert patient.count(b'{b"ADD": 45, b"DEL": 25}') == 1
        changed = patient.replace(b'{b"ADD": 45, b"DEL": 25}', b'{b"ADD": 0.3, b"DEL": 0.3}')
        shim.install(another_interpreters(changed) if shim.kind == "python" else changed)
    yield shim
    shim.install(patient)


def test_a_node_that_never_answers(hasty: Shim) -> None:
    over = threading.Event()

    def wait(_: Call) -> CallReply:
        over.wait(WAIT_S)
        return CallReply()

    with serving(hasty.socket, wait):
        assert json.loads(hasty.run("ADD")[1])["code"] == 11
        assert hasty.run("DEL")[1] == in_process_text(hasty, "DEL")
        over.set()


def test_a_node_that_never_comes_back(hasty: Shim) -> None:
    """Its socket is held for it, by systemd say. Whoever takes it later finds both callers gone."""
    node = Listening(hasty.socket)
    assert json.loads(hasty.run("ADD")[1])["code"] == 11
    assert hasty.run("DEL")[1] == in_process_text(hasty, "DEL")
    for _ in range(2):
        with node.take() as connection:
            poll = select.poll()
            poll.register(connection, 0)
            assert [events & select.POLLHUP for _, events in poll.poll(0)] == [select.POLLHUP]
    node.close()


def test_no_node_and_no_interpreter(shim: Shim) -> None:
    shim.python.unlink()
    status, stdout, _ = shim.run("ADD")
    error = json.loads(stdout)
    assert (status, error["code"]) == (1, 11)
    assert str(shim.python) in error["msg"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_an_error_object(shim: Shim, number: signal.Signals) -> None:
    arrived, over = threading.Event(), threading.Event()

    def wait(_: Call) -> CallReply:
        arrived.set()
        over.wait(WAIT_S)
        return CallReply()

    with serving(shim.socket, wait):
        process = shim.start("ADD")
        assert process.stdin is not None
        process.stdin.write(CONFIGURATION)
        process.stdin.close()
        process.stdin = None
        assert arrived.wait(WAIT_S)
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=WAIT_S)
        over.set()
    assert (process.returncode, json.loads(stdout)["code"]) == (1, 11)


# --- what it says by itself ------------------------------------------------------------------------------------


def test_version_from_standard_input(shim: Shim) -> None:
    status, stdout, stderr = shim.run("VERSION", b'{ "cniVersion" : "0.4.0" }')
    assert (status, stderr) == (0, b"")
    assert json.loads(stdout) == {"cniVersion": "0.4.0", "supportedVersions": list(VERSIONS)}


@pytest.mark.parametrize(
    "stdin", [b"", b"rubbish", b'{"cniVersion": "<script>"}', b'{"cniVersion": 5}', b'{"cniVersion']
)
def test_version_without_a_usable_one(shim: Shim, stdin: bytes) -> None:
    assert json.loads(shim.run("VERSION", stdin)[1])["cniVersion"] == VERSIONS[-1]


def test_version_with_an_input_that_nobody_writes(shim: Shim) -> None:
    process = shim.start("VERSION")
    assert process.stdout is not None
    assert process.wait(WAIT_S) == 0
    assert json.loads(process.stdout.read())["supportedVersions"] == list(VERSIONS)
    process.communicate()


def test_without_a_command_it_introduces_itself(shim: Shim) -> None:
    status, stdout, stderr = shim.run("")
    assert (status, stdout) == (0, b"")
    assert VERSIONS[-1].encode() in stderr


@pytest.mark.parametrize("option", ["-v", "--version"])
def test_its_version(shim: Shim, option: str) -> None:
    done = subprocess.run([str(shim.folder / "calico"), option], env={}, capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout == (
        f"Calico CNI plugin {__version__}; CNI protocol versions supported: {', '.join(VERSIONS)}\n".encode()
    )


@pytest.mark.parametrize("command", ["", "ADD"])
def test_a_configuration_is_tried_out_by_the_node(shim: Shim, command: str) -> None:
    environment = {"CNI_COMMAND": command} if command else {}
    argv = [str(shim.folder / "calico"), "-t"]
    with serving(shim.socket, replaying(CallReply(status=1, stdout=b"{}"))) as node:
        done = subprocess.run(argv, env=environment, input=CONFIGURATION, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"{}", b"")
    (call,) = node.calls
    assert (call.environment, call.stdin) == ({"CNI_COMMAND": "TEST"}, CONFIGURATION)
    shim.socket.unlink(missing_ok=True)
    done = subprocess.run(argv, env=environment, input=CONFIGURATION, capture_output=True, check=True)
    assert done.stdout == in_process_text(shim, "TEST")


@pytest.mark.parametrize("option", ["-upgrade", "--upgrade"])
def test_addresses_are_moved_in_the_callers_place(shim: Shim, option: str) -> None:
    """Not by the node, which may see other files, and without waiting for input."""
    reading, writing = os.pipe()
    with serving(shim.socket, replaying(CallReply())) as node, open(reading), open(writing, "wb"):
        argv = [str(shim.folder / "calico-ipam"), option]
        done = subprocess.run(argv, env={}, stdin=reading, capture_output=True, timeout=WAIT_S, check=True)
    assert node.calls == []
    assert done.stdout == in_process_text(shim, "UPGRADE", "calico-ipam").removesuffix(CONFIGURATION)


@pytest.mark.parametrize("command", ["TEST", "UPGRADE"])
@pytest.mark.parametrize("is_node_up", [True, False])
def test_what_options_become_is_no_command(shim: Shim, command: str, is_node_up: bool) -> None:
    """A runtime's variable tries nothing out and moves nothing."""
    with serving(shim.socket, replaying(CallReply())) if is_node_up else contextlib.nullcontext() as node:
        status, stdout, stderr = shim.run(command, program="calico-ipam")
    error = json.loads(stdout)
    assert (status, error["code"], stderr) == (1, 4, b"")
    assert error["msg"] == f"CNI_COMMAND: '{command}' is not one of ADD, CHECK, DEL, GC, STATUS, VERSION"
    assert node is None or node.calls == []


# --- where it is started ---------------------------------------------------------------------------------------


def test_a_hostile_surrounding(shim: Shim, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    for module in ("_socket", "select", "posix", "time", "site", "sitecustomize", "usercustomize", "encodings"):
        (trap / f"{module}.py").write_text("raise SystemExit('trapped')\n")
    gone = tmp_path / "gone"
    gone.mkdir()
    with serving(shim.socket, replaying(CallReply(stdout=b"fine"))):
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"cd {gone} && rmdir {gone} && exec {shim.folder}/calico"],
            env={"CNI_COMMAND": "ADD", "PYTHONPATH": str(trap), "PYTHONHOME": str(trap), "PYTHONSTARTUP": "/x"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.communicate(timeout=WAIT_S) == (b"fine", b"")


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "<&- 2>&-"])
def test_closed_standard_streams(shim: Shim, closed: str) -> None:
    reply = CallReply(stdout=b"fine", stderr=b"not for the socket")
    with serving(shim.socket, replaying(reply)) as node:
        done = subprocess.run(
            ["/bin/sh", "-c", f"exec {shim.folder}/calico {closed}"],
            env={"CNI_COMMAND": "ADD", "CNI_NETNS": "/proc/self/ns/net"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            timeout=WAIT_S,
        )
    assert done.stdout == b"fine"
    assert node.calls[0].stdin == b""


def test_standard_input_that_cannot_be_read(shim: Shim) -> None:
    descriptor = os.open("/dev/null", os.O_WRONLY)
    done = subprocess.run(
        [str(shim.folder / "calico")],
        env={"CNI_COMMAND": "ADD"},
        stdin=descriptor,
        stdout=subprocess.PIPE,
        check=False,
        timeout=WAIT_S,
    )
    os.close(descriptor)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 5)


def test_it_imports_nothing_but_the_socket_module(python_shim: Shim) -> None:
    script = (
        "import sys; before = set(sys.modules); name = sys.argv[1]\n"
        "exec(compile(open(name).read(), name, 'exec'), {'__name__': 'shim'})\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [base_interpreter(), "-IS", "-c", script, str(python_shim.folder / "calico")],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
    )
    assert set(done.stdout.split()) <= {"_socket", "_signal", "posix", "time"}


def test_how_long_it_takes(shim: Shim, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged: another machine, or this one under load, has other figures."""
    empty = shim.folder / "empty.py"
    empty.write_text("")
    bare = [base_interpreter(), "-IS", str(empty)]
    with serving(shim.socket, replaying(CallReply(stdout=b"{}"))) as node:
        times: dict[str, list[float]] = {"bare interpreter": [], f"whole call, {shim.kind}": []}
        for _ in range(20):
            for name, argv in (("bare interpreter", bare), (f"whole call, {shim.kind}", [str(shim.folder / "calico")])):
                started = time.perf_counter()
                subprocess.run(argv, env={"CNI_COMMAND": "ADD"}, input=CONFIGURATION, capture_output=True, check=True)
                times[name].append((time.perf_counter() - started) * 1000)
    assert len(node.calls) == 20
    with capsys.disabled():
        print(*(f"\n{name}: {statistics.median(taken):.1f} ms" for name, taken in times.items()))


def test_it_runs_where_only_the_standard_library_is(python_shim: Shim) -> None:
    assert shutil.which(base_interpreter())
    first_line = (python_shim.folder / "calico").read_bytes().partition(b"\n")[0].decode()
    assert first_line == f"#!{base_interpreter()} -IS"
    assert Path(base_interpreter()).resolve() == Path(base_interpreter())
