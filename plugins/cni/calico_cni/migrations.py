"""Which networks of this host come from ``host-local``: what attaches must know while addresses move, and afterwards.

While a network's addresses move, nothing may be assigned on this host: what is not in our IPAM yet looks free there.
That holds until the move has ended, also after a crash in the middle: then it must be repeated. Afterwards
``host-local`` would give the same addresses once more, so the network is not served with it any longer.

Two files in the node's state directory: ``migrations.lock``, held by every attach, and ``migrations.json``, replaced
whole. A move writes down that it has begun and then waits for the attaches that did not see it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from calico_cni.file_lock import MODE, locked
from calico_core.errors import InvalidRequest, NotReady
from calico_core.files import replace_file
from calico_core.log import get_logger

HOST_LOCAL = "host-local"
_FILE = "migrations.json"

log = get_logger(__name__)


class _Move(msgspec.Struct, frozen=True):
    """``directory``: where ``host-local`` kept the network's addresses."""

    directory: str
    is_done: bool = False


class Migrations:
    """Of one host. Any thread, and any process."""

    def __init__(self, directory: Path) -> None:
        """A directory that cannot be written has no moves."""
        self._lock = directory / "migrations.lock"
        self._file = directory / _FILE
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE))

    @contextlib.contextmanager
    def admitted(self, network: str, ipam: str) -> Iterator[None]:
        """For an attach: no move begins meanwhile.

        :raises NotReady: one is under way; :raises InvalidRequest: ``ipam`` would give the network's addresses twice.
        """
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield
            return
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NotReady("addresses are being moved from host-local to calico-ipam") from None
            moves = self._moves()
            if moves:
                self._admit(moves, network, ipam)
            yield
        finally:
            os.close(descriptor)

    @property
    def is_under_way(self) -> bool:
        """Also when nobody can say: what waits for the end is not lost."""
        try:
            return any(not move.is_done for move in self._moves().values())
        except NotReady:
            return True

    @contextlib.contextmanager
    def moving(self, network: str, directory: Path, *, timeout_s: float) -> Iterator[None]:
        """Attaches are refused from here on, and those that ran have ended. They stay refused until :meth:`end`, also
        when the body fails.

        :raises NotReady: an attach does not end; :raises OSError: nothing can be written down.
        """
        self._write({**self._moves(), network: _Move(str(directory))})
        reason = f"an ADD that began before has not ended within {timeout_s:g} s"
        with locked(self._lock, timeout_s=timeout_s, reason=reason):
            pass
        yield

    def end(self, network: str, *, is_whole: bool) -> None:
        """Attaches are served again. ``is_whole``: nothing is left with ``host-local``."""
        moves = self._moves()
        move = moves.pop(network, None)
        if move is None:
            return
        if is_whole:
            moves[network] = _Move(move.directory, is_done=True)
        self._write(moves)

    def _admit(self, moves: dict[str, _Move], network: str, ipam: str) -> None:
        for name, move in moves.items():
            if not move.is_done:
                again = f"if nothing does so now, run calico-ipam -upgrade again ({move.directory})"
                raise NotReady(f"addresses of network {name} are being moved from host-local to calico-ipam; {again}")
        if ipam == HOST_LOCAL and network in moves:
            why = f"would give addresses twice: those of {network} are calico-ipam's since calico-ipam -upgrade"
            raise InvalidRequest("ipam.type", f"{ipam} {why} ({self._file} says so)")

    def _moves(self) -> dict[str, _Move]:
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return {}
        with open(descriptor, "rb") as file:
            text = file.read()
        try:
            return msgspec.json.decode(text, type=dict[str, _Move])
        except msgspec.DecodeError as error:
            raise NotReady(f"{self._file}: {error}") from error

    def _write(self, moves: dict[str, _Move]) -> None:
        replace_file(self._file, msgspec.json.encode(moves), MODE)
