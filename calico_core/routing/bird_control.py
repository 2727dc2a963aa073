"""BIRD's control socket: one command a connection, numbered lines back.

A reply is lines of ``NNNN-text`` (more follow), `` text`` (same number again) and, last, ``NNNN text``. Numbers from
8000 are refusals. An answer takes about 0.1 ms. Source: BIRD 2.0.12, "Remote control" and ``doc/reply_codes``.
"""

from __future__ import annotations

import re
import socket
import time
from itertools import pairwise
from pathlib import Path

from calico_core.errors import ConfigRejected, DaemonDown, RoutingError
from calico_core.model.record import Value

GREETING = 1
RECONFIGURED, IN_PROGRESS, QUEUED = 3, 4, 5
PROTOCOL_HEADING, PROTOCOL_ROW = 2002, 1002
VERSION, FACTS, RECOVERY = 1000, 1011, 24
FIRST_REFUSAL, CONFIG_ERROR = 8000, 8002

REPLY_LIMIT_S = 2.0
_REPLY_LIMIT_BYTES = 16 << 20
_COLUMNS = ("Name", "Proto", "Table", "State", "Since", "Info")
_LINE = re.compile(r"(\d{4})([ -])(.*)")
_PLACE = re.compile(r":(\d+):(\d+)\s+(.*)", re.DOTALL)


class Line(Value, frozen=True):
    code: int
    text: str


class ProtocolRow(Value, frozen=True):
    """A row of ``show protocols``. ``state`` is up, start, down …; ``info`` of BGP begins with the session's state."""

    name: str
    proto: str
    table: str
    state: str
    since: str
    info: str


class DaemonStatus(Value, frozen=True):
    """``show status``. Times in the daemon's local time, as it writes them."""

    version: str
    router_id: str = ""
    last_reboot: str = ""
    last_reconfiguration: str = ""
    is_recovering: bool = False


class BirdControl:
    """Asks the daemon behind ``path``. Keeps no connection; any thread, any network namespace.

    Every call raises ``DaemonDown`` when nobody answers in full within the limit.
    """

    def __init__(self, path: Path, *, limit_s: float = REPLY_LIMIT_S) -> None:
        self.path = path
        self._limit_s = limit_s

    def ask(self, command: str) -> tuple[Line, ...]:
        """The reply's lines; the last one tells how it went. Raises ``RoutingError`` for a refusal."""
        lines = self._exchange(command)
        last = lines[-1]
        if last.code >= FIRST_REFUSAL and last.code != CONFIG_ERROR:
            raise RoutingError(f"routing daemon at {self.path}: {command!r} was refused: {last.text} ({last.code:04})")
        return lines

    def status(self) -> DaemonStatus:
        return parse_status(self.ask("show status"))

    def protocols(self) -> tuple[ProtocolRow, ...]:
        return parse_protocols(self.ask("show protocols"))

    def configure(self) -> None:
        """Re-read the file. Sessions whose own options did not change stay up. Done or under way on return.

        :raises ConfigRejected: the daemon goes on with what it had.
        """
        last = self.ask("configure")[-1]
        if last.code == CONFIG_ERROR:
            raise rejection(last.text)
        if last.code not in {RECONFIGURED, IN_PROGRESS, QUEUED}:
            raise DaemonDown(str(self.path), f"did not take the configuration: {last.text} ({last.code:04})")

    def _exchange(self, command: str) -> tuple[Line, ...]:
        deadline = time.monotonic() + self._limit_s
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
                connection.settimeout(self._limit_s)
                connection.connect(str(self.path))
                greeting, rest = self._read_reply(connection, b"", deadline)
                if greeting[-1].code != GREETING:
                    raise DaemonDown(str(self.path), f"greets with {greeting[-1].text!r}, not as BIRD does")
                connection.sendall(command.encode() + b"\n")
                lines, _ = self._read_reply(connection, rest, deadline)
                return lines
        except TimeoutError as error:
            raise DaemonDown(str(self.path), f"no complete answer within {self._limit_s:g} s") from error
        except OSError as error:
            raise DaemonDown(str(self.path), error.strerror or str(error)) from error

    def _read_reply(
        self, connection: socket.socket, received: bytes, deadline: float
    ) -> tuple[tuple[Line, ...], bytes]:
        """One reply, and the bytes after it. ``deadline`` is monotonic."""
        lines: list[Line] = []
        while True:
            raw, newline, rest = received.partition(b"\n")
            if not newline:
                received += self._receive(connection, deadline)
                if len(received) > _REPLY_LIMIT_BYTES:
                    raise DaemonDown(str(self.path), "the answer has no end")
                continue
            received = rest
            line, is_last = _parse_line(raw.decode(errors="replace"), lines[-1].code if lines else 0)
            if line is not None:
                lines.append(line)
            if is_last:
                return tuple(lines), received

    def _receive(self, connection: socket.socket, deadline: float) -> bytes:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        chunk = connection.recv(65536)
        if not chunk:
            raise DaemonDown(str(self.path), "the connection ended in the middle of an answer")
        return chunk


def parse_protocols(lines: tuple[Line, ...]) -> tuple[ProtocolRow, ...]:
    """The rows of ``show protocols``, by the columns of its heading.

    A cell wider than its column pushes the rest of its row to the right; a date is two words, an info many.
    """
    starts: list[int] = []
    rows: list[ProtocolRow] = []
    for line in lines:
        if line.code == PROTOCOL_HEADING:
            starts = [line.text.find(column) for column in _COLUMNS]
            if starts != sorted(starts) or starts[0] != 0:
                raise RoutingError(f"show protocols: the heading {line.text!r} does not name {', '.join(_COLUMNS)}")
        elif line.code == PROTOCOL_ROW and line.text:
            if not starts:
                raise RoutingError("show protocols: a row came before the heading")
            rows.append(ProtocolRow(**dict(zip(map(str.lower, _COLUMNS), _cells(line.text, starts), strict=True))))
    return tuple(rows)


def parse_status(lines: tuple[Line, ...]) -> DaemonStatus:
    facts = {"version": "", "router_id": "", "last_reboot": "", "last_reconfiguration": ""}
    openings = {"Router ID is ": "router_id", "Last reboot on ": "last_reboot"}
    openings["Last reconfiguration on "] = "last_reconfiguration"
    for line in lines:
        if line.code == VERSION:
            facts["version"] = line.text.removeprefix("BIRD").strip()
        for opening, fact in openings.items():
            if line.code == FACTS and line.text.startswith(opening):
                facts[fact] = line.text.removeprefix(opening)
    return DaemonStatus(**facts, is_recovering=any(line.code == RECOVERY for line in lines))


def rejection(text: str) -> ConfigRejected:
    """From ``FILE:LINE:COLUMN reason`` as ``configure`` and ``bird -p`` write it; line 0 when there is none."""
    place = _PLACE.search(text)
    if place is None:
        return ConfigRejected(0, text.strip())
    return ConfigRejected(int(place[1]), f"{place[3].strip()} (column {place[2]})")


def _parse_line(text: str, code: int) -> tuple[Line | None, bool]:
    """A line, and whether it ends the reply. None for a log line in between (``+``), which nobody asked for."""
    if text.startswith(" "):
        return Line(code=code, text=text[1:].rstrip()), False
    match = _LINE.fullmatch(text)
    if match is None:
        return None, False
    return Line(code=int(match[1]), text=match[3].rstrip()), match[2] == " "


def _cells(text: str, starts: list[int]) -> list[str]:
    cells: list[str] = []
    rest = text
    for start, following in pairwise(starts):
        end = rest.find(" ", following - start - 1)
        end = len(rest) if end < 0 else end
        cells.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*cells, rest.rstrip()]
