"""Listening sockets that outlive a program: callers wait, and nothing else is inherited."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from calico_core.errors import InvalidSettings
from calico_core.interfaces.integration import Call, CallReply
from calico_core.listening import Inherited, Listener, Listeners, take_inherited
from calico_core.node.socket_api import SocketServer, call_node, encode_call, encode_reply
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 20.0
NODE_CALL = Call(program="node", environment={}, stdin=b"")

PROGRAM = """
import os, sys, threading
from calico_core.interfaces.integration import CallReply
from calico_core.listening import take_inherited
from calico_core.node.restart import become_anew, hold_signals, let_signals_in
from calico_core.node.socket_api import SocketServer

generation = int(os.environ.get("GENERATION", "1"))
ends, is_last = threading.Event(), threading.Event()

def answer(call):
    word = call.stdin.decode()
    if word == "fds":
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{number}") if int(number) > 2 else "")
            except FileNotFoundError:
                pass
        kinds = ("/dev/null", "anon_inode:[eventfd]")
        return CallReply(stdout=" ".join(str(found.count(kind)) for kind in kinds).encode())
    if word in ("again", "end"):
        (is_last.set if word == "end" else str)()
        ends.set()
    return CallReply(stdout=f"{generation} {os.getpid()} {'LISTEN_FDS' in os.environ}".encode())

listeners = take_inherited(os.environ)
let_signals_in()
leak = os.open("/dev/null", os.O_RDONLY)
os.set_inheritable(leak, True)
server = SocketServer(sys.argv[1], answer, listeners=listeners)
server.start()
listeners.close_unused()
ends.wait()
if not is_last.is_set():
    listeners.keep()
server.stop()
if not is_last.is_set():
    hold_signals()
    sys.executable = os.environ.get("NEXT", sys.executable)
    try:
        become_anew({"GENERATION": str(generation + 1), **listeners.hand_over()})
    except FileNotFoundError:
        ends.clear()
listeners.close()
sys.exit(0 if ends.is_set() else 7)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.sock"


@pytest.fixture
def run(tmp_path: Path, path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    if os.geteuid() != 0:
        pytest.skip("the socket speaks to root only")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    started: list[subprocess.Popen[bytes]] = []

    def start(*before: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*before, sys.executable, str(script), str(path)])
        started.append(process)
        eventually(lambda: listens(path), within_s=WAIT_S)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(path)) == 0


def ask(path: Path, word: str = "") -> list[str]:
    reply = call_node(str(path), Call(program="node", environment={}, stdin=word.encode()), timeout_s=WAIT_S)
    assert reply is not None
    return reply.stdout.decode().split()


# --- a program that becomes the next one -------------------------------------------------------------------------


def test_callers_of_a_restart_wait_and_all_are_answered(
    run: Callable[..., subprocess.Popen[bytes]], path: Path
) -> None:
    process = run()
    assert ask(path) == ["1", str(process.pid), "False"]
    inode = path.stat().st_ino
    with ThreadPoolExecutor(40) as pool:
        for generation in (2, 3):
            ask(path, "again")
            answers = list(pool.map(ask, [path] * 40))
            assert {pid for _, pid, _ in answers} == {str(process.pid)}
            assert {number for number, _, _ in answers} <= {str(generation - 1), str(generation)}
            eventually(lambda expected=str(generation): ask(path)[0] == expected, within_s=WAIT_S)
    assert path.stat().st_ino == inode
    ask(path, "end")
    assert process.wait(WAIT_S) == 0
    assert not path.exists()


def test_nothing_but_the_sockets_is_inherited(run: Callable[..., subprocess.Popen[bytes]], path: Path) -> None:
    process = run()
    assert ask(path, "fds") == ["1", "1"]
    for generation in ("2", "3", "4"):
        ask(path, "again")
        eventually(lambda expected=generation: ask(path)[0] == expected, within_s=WAIT_S)
    assert ask(path, "fds") == ["1", "1"]
    assert process.poll() is None


def test_a_program_that_is_gone_leaves_no_socket_behind(
    run: Callable[..., subprocess.Popen[bytes]], path: Path
) -> None:
    process = run("env", "NEXT=/does/not/exist")
    with socket.socket(socket.AF_UNIX) as caller:
        ask(path, "again")
        assert process.wait(WAIT_S) == 7
        assert not path.exists()
        with pytest.raises(FileNotFoundError):
            caller.connect(str(path))


def test_a_signal_that_comes_between_two_programs_waits(
    run: Callable[..., subprocess.Popen[bytes]], path: Path
) -> None:
    process = run()
    process.send_signal(signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        caller.sendall(encode_call(Call(program="node", environment={}, stdin=b"again")))
        process.send_signal(signal.SIGCONT)
        assert caller.recv(1) == b"R"
    eventually(lambda: ask(path)[0] == "2", within_s=WAIT_S)
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:"))
    assert mask == 0


# --- handed over by systemd --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--fdname=node"], []], ids=["by name", "by path"])
def test_a_socket_of_systemd_is_used_and_its_file_left(
    run: Callable[..., subprocess.Popen[bytes]], path: Path, options: list[str]
) -> None:
    tool = shutil.which("systemd-socket-activate")
    if tool is None:
        pytest.skip("systemd-socket-activate is not installed")
    process = run(tool, "-l", str(path), *options)
    inode = path.stat().st_ino
    assert ask(path) == ["1", str(process.pid), "False"]
    ask(path, "again")
    eventually(lambda: ask(path)[0] == "2", within_s=WAIT_S)
    ask(path, "end")
    assert process.wait(WAIT_S) == 0
    assert path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("handed", "variables", "reason"),
    [
        ("3</dev/null", {"LISTEN_FDS": "1"}, "LISTEN_FDS (from environment): descriptor 3 is not a socket"),
        ("", {"LISTEN_FDS": "one"}, "LISTEN_FDS (from environment): 'one' is not a number of descriptors"),
        ("", {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, "LISTEN_FDNAMES (from environment): 2 names for 1"),
    ],
)
def test_what_cannot_be_used_ends_the_node_and_is_named(handed: str, variables: dict[str, str], reason: str) -> None:
    line = f'export LISTEN_PID=$$; exec "{sys.executable}" -m calico_core.node.main run {handed}'
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_socket_that_does_not_listen_is_refused() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        line = f'export LISTEN_PID=$$; exec "{sys.executable}" -m calico_core.node.main run 3<&0'
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LISTEN_FDS": "1"},
            stdin=silent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert "descriptor 3 is not a listening UNIX stream socket" in done.stderr


def test_what_was_handed_to_another_process_is_not_ours_and_not_for_children() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "rubbish", "LISTEN_FDNAMES": "x", "HOME": "/"}
    assert not take_inherited(environment).is_inherited("x", Path("/x"))
    assert environment == {"HOME": "/"}


def test_a_count_without_a_process_is_nothing() -> None:
    with pytest.raises(InvalidSettings, match="LISTEN_FDNAMES"):
        take_inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0", "LISTEN_FDNAMES": "x"})
    take_inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""})


# --- one socket --------------------------------------------------------------------------------------------------


def a_socket(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen(8)
    return listening


def test_who_calls_while_it_rests_waits_and_is_reset_when_it_is_closed(path: Path) -> None:
    listener = Listeners().open("node", path)
    listener.rest()
    assert listener.accept() is None
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(0.2)
        caller.connect(str(path))
        caller.sendall(b"for nobody")
        with pytest.raises(TimeoutError):
            caller.recv(1)
        listener.close()
        with pytest.raises(ConnectionResetError):
            caller.recv(1)
    listener.close()
    assert not path.exists()


def test_rest_wakes_the_thread_that_accepts(path: Path) -> None:
    listener = Listeners().open("node", path)
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept)
        listener.rest()
        assert accepting.result(WAIT_S) is None
    listener.rest()
    listener.close()


def test_a_kept_socket_stays_open_until_nobody_came_after(path: Path) -> None:
    listeners = Listeners()
    listener = listeners.open("node", path)
    listeners.keep()
    listener.rest()
    listener.close()
    assert listener.is_open
    assert path.is_socket()
    listeners.close()
    assert not listener.is_open
    assert not path.exists()


def test_an_inherited_socket_whose_file_is_gone_is_replaced(path: Path) -> None:
    lost = a_socket(path)
    path.unlink()
    listeners = Listeners((Inherited("node", lost),))
    listener = listeners.open("node", path)
    assert path.is_socket()
    assert listener.is_own
    assert lost.fileno() == -1
    listeners.close()


def test_a_socket_for_nobody_is_closed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stray = a_socket(path)
    Listeners((Inherited("nod", stray, path),)).close_unused()
    assert stray.fileno() == -1
    assert not path.exists()
    assert "socket.for_nobody" in caplog.text


def test_sockets_of_one_unit_have_one_name_and_are_told_by_their_paths(tmp_path: Path) -> None:
    sockets = {name: a_socket(tmp_path / name) for name in ("calico.sock", "node.sock", "calico-ipam.sock")}
    listeners = Listeners(tuple(Inherited("node", each) for each in sockets.values()))
    for name, path in (("node", "node.sock"), ("libnetwork", "calico.sock"), ("libnetwork-ipam", "calico-ipam.sock")):
        assert listeners.open(name, tmp_path / path).fileno() == sockets[path].fileno()
    listeners.close()
    assert {each.name for each in tmp_path.iterdir()} == set(sockets)


def test_a_file_that_somebody_else_put_there_stays(path: Path) -> None:
    listener = Listeners().open("node", path)
    path.unlink()
    path.write_text("somebody else's")
    listener.rest()
    listener.close()
    assert path.read_text() == "somebody else's"


@pytest.mark.skipif(os.geteuid() != 0, reason="the socket speaks to root only")
def test_a_call_that_left_the_backlog_before_its_node_came_is_not_begun(path: Path) -> None:
    listening = a_socket(path)
    with socket.socket(socket.AF_UNIX) as leaving:
        leaving.connect(str(path))
        leaving.sendall(encode_call(Call(program="left", environment={}, stdin=b"")))
    seen: list[str] = []

    def answer(call: Call) -> CallReply:
        seen.append(call.program)
        return CallReply()

    with socket.socket(socket.AF_UNIX) as patient:
        patient.settimeout(WAIT_S)
        patient.connect(str(path))
        patient.sendall(encode_call(NODE_CALL))
        server = SocketServer(str(path), answer, listeners=Listeners((Inherited("node", listening),)))
        server.start()
        assert patient.recv(100) == encode_reply(CallReply())
    server.stop()
    assert seen == ["node"]
    assert path.exists()


def test_two_who_accept_from_one_socket_share_the_callers_and_none_hangs(path: Path) -> None:
    listening = a_socket(path)
    copy = socket.socket(fileno=os.dup(listening.fileno()))
    both = [Listener("node", path, each, is_own=False) for each in (listening, copy)]

    def take(listener: Listener) -> int:
        found = 0
        while (connection := listener.accept()) is not None:
            connection.sendall(b"x")
            connection.close()
            found += 1
        return found

    with ThreadPoolExecutor(2) as pool:
        taking = [pool.submit(take, each) for each in both]
        for _ in range(300):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.settimeout(WAIT_S)
                caller.connect(str(path))
                assert caller.recv(1) == b"x"
        for each in both:
            each.rest()
        assert sum(each.result(WAIT_S) for each in taking) == 300
    for each in both:
        each.close()
