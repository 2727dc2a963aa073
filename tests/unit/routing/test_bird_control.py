"""BIRD's control protocol against a small server that speaks the daemon's own bytes (BIRD 2.0.12)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calico_core.errors import ConfigRejected, DaemonDown, RoutingError
from calico_core.routing.bird_control import BirdControl, ProtocolRow, rejection

GREETING = b"0001 BIRD 2.0.12 ready.\n"
PROTOCOLS = b"""\
2002-Name       Proto      Table      State  Since         Info
1002-calico_blocks_v4 Static     master4    up     2026-11-24 02:23:52  \x20
 device1    Device     ---        up     2026-11-24 02:23:52  \x20
 Mesh_10_0_0_2 BGP        ---        up     2026-11-24 02:23:52  Established  \x20
 Mesh_10_0_0_3 BGP        ---        start  2026-11-24 02:23:52  Passive      \x20
 Global_10_0_0_254 BGP        ---        start  02:23:52.952  Active        Socket: Connection refused
 Node_1     BGP        a_table_with_a_long_name start  2026-11-24 02:23:52  Idle          BGP Error: Bad peer AS
 off        BGP        ---        down   2026-11-24 02:23:52  \x20
0000\x20
"""
STATUS = b"""\
1000-BIRD 2.0.12
1011-Router ID is 10.0.0.1
 Hostname is vm
 Current server time is 2026-11-24 02:23:54.477
 Last reboot on 2026-11-24 02:23:52.952
 Last reconfiguration on 2026-11-24 02:23:53.100
0024-Graceful restart recovery in progress
   Waiting for 1 channels to recover
   Wait timer is 52.100/60
0013 Daemon is up and running
"""
READING = b"0002-Reading configuration from /run/calico/bird.conf\n"


class Daemon:
    """Answers each command by ``answers`` in pieces of ``piece`` bytes; an unknown command gets no answer."""

    def __init__(
        self, path: Path, answers: dict[str, bytes], *, greeting: bytes = GREETING, piece: int = 65536
    ) -> None:
        self._answers, self._greeting, self._piece = answers, greeting, piece
        self._is_ending = False
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._is_ending:
            connection, _ = self._server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(self._greeting)
                command = connection.recv(1000).decode().strip()
                answer = self._answers.get(command, b"")
                for start in range(0, len(answer), self._piece):
                    connection.sendall(answer[start : start + self._piece])
                if not answer.endswith(b"CUT"):
                    connection.recv(1)  # until the client is done

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            self._is_ending = True
            last.connect(self._server.getsockname())
        self._thread.join(5)
        self._server.close()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Callable[..., BirdControl]]:
    with contextlib.ExitStack() as stack:

        def make(answers: dict[str, bytes], *, limit_s: float = 20.0, **options: object) -> BirdControl:
            daemon = Daemon(tmp_path / "bird.ctl", answers, **options)  # type: ignore[arg-type]
            stack.callback(daemon.close)
            return BirdControl(tmp_path / "bird.ctl", limit_s=limit_s)

        yield make


@pytest.mark.parametrize("piece", [65536, 7, 1])
def test_protocols_by_the_columns_of_the_heading(control: Callable[..., BirdControl], piece: int) -> None:
    rows = control({"show protocols": PROTOCOLS}, piece=piece).protocols()
    date = "2026-11-24 02:23:52"
    assert [(row.name, row.proto, row.table, row.state, row.since, row.info) for row in rows] == [
        ("calico_blocks_v4", "Static", "master4", "up", date, ""),
        ("device1", "Device", "---", "up", date, ""),
        ("Mesh_10_0_0_2", "BGP", "---", "up", date, "Established"),
        ("Mesh_10_0_0_3", "BGP", "---", "start", date, "Passive"),
        ("Global_10_0_0_254", "BGP", "---", "start", "02:23:52.952", "Active        Socket: Connection refused"),
        ("Node_1", "BGP", "a_table_with_a_long_name", "start", date, "Idle          BGP Error: Bad peer AS"),
        ("off", "BGP", "---", "down", date, ""),
    ]
    assert all(isinstance(row, ProtocolRow) for row in rows)


def test_a_foreign_heading_is_refused(control: Callable[..., BirdControl]) -> None:
    with pytest.raises(RoutingError, match="heading 'Name Since'"):
        control({"show protocols": b"2002-Name Since\n0000 \n"}).protocols()


def test_status(control: Callable[..., BirdControl]) -> None:
    status = control({"show status": STATUS}).status()
    assert (status.version, status.router_id) == ("2.0.12", "10.0.0.1")
    assert status.last_reboot == "2026-11-24 02:23:52.952"
    assert status.last_reconfiguration == "2026-11-24 02:23:53.100"
    assert status.is_recovering


@pytest.mark.parametrize("last", [b"0003 Reconfigured\n", b"0004 Reconfiguration in progress\n"])
def test_configure_done_or_under_way(control: Callable[..., BirdControl], last: bytes) -> None:
    control({"configure": READING + last}).configure()


def test_configure_refused_with_its_place(control: Callable[..., BirdControl]) -> None:
    refusal = b"8002 /run/calico/bird.conf:25:58 syntax error, unexpected CF_SYM_UNDEFINED\n"
    with pytest.raises(ConfigRejected) as caught:
        control({"configure": READING + refusal}).configure()
    assert (caught.value.line, caught.value.reason) == (25, "syntax error, unexpected CF_SYM_UNDEFINED (column 58)")


def test_configure_while_it_shuts_down_is_not_done(control: Callable[..., BirdControl]) -> None:
    with pytest.raises(DaemonDown, match="0006"):
        control({"configure": READING + b"0006 Reconfiguration ignored, shutting down\n"}).configure()


def test_a_refused_command_names_itself(control: Callable[..., BirdControl]) -> None:
    with pytest.raises(RoutingError, match="'bogus' was refused: syntax error"):
        control({"bogus": b"9001 syntax error\n"}).ask("bogus")


@pytest.mark.parametrize(
    ("answers", "options", "reason"),
    [
        ({}, {}, "no complete answer within 0.3 s"),
        ({"show status": STATUS[:100]}, {}, "no complete answer"),
        ({"show status": STATUS[:100] + b"CUT"}, {}, "ended in the middle"),
        ({"show status": STATUS}, {"greeting": b"220 mail.example ESMTP\n"}, "no complete answer"),
        ({"show status": STATUS}, {"greeting": b"0023 something\n"}, "greets with 'something'"),
    ],
)
def test_half_an_answer_is_a_daemon_that_is_down(
    control: Callable[..., BirdControl], answers: dict[str, bytes], options: dict[str, bytes], reason: str
) -> None:
    started = time.monotonic()
    limit_s = 0.3 if reason.startswith("no complete answer") else 20.0
    asked = control(answers, limit_s=limit_s, **options)
    with pytest.raises(DaemonDown, match=reason):
        asked.status()
    assert time.monotonic() - started < 10


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DaemonDown, match="No such file"):
        BirdControl(tmp_path / "bird.ctl").status()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.ctl"))
    with pytest.raises(DaemonDown, match="Connection refused"):
        BirdControl(tmp_path / "dead.ctl").status()


def test_a_refusal_without_a_place_keeps_its_text() -> None:
    refused = rejection("bird: Unable to open configuration file x: No such file or directory\n")
    assert refused.line == 0
    assert "Unable to open" in refused.reason
