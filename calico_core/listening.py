"""The sockets that calls come in by, and how they outlive a process: a restart then is a delay and not a failure.

A socket is made here, or inherited: from systemd (``calico-node.socket``), or from this very process before it started
itself anew. Both hand over as sd_listen_fds(3) says: ``LISTEN_PID``, ``LISTEN_FDS``, ``LISTEN_FDNAMES``, descriptors
from 3 on. While nobody accepts, the kernel keeps callers in the backlog. What was weighed: docs/adr/0012.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final, NamedTuple

from calico_core.errors import InvalidSettings
from calico_core.log import get_logger

log = get_logger(__name__)

_FIRST: Final = 3
_BACKLOG: Final = 1024
_OWN: Final = "CALICO_OWN_SOCKETS"
"""Those of the inherited whose files are the node's own to take away, a line each: ``NAME=PATH``."""


class Listener:
    """A listening socket. One thread accepts, any other may end that."""

    def __init__(self, name: str, path: Path, listening: socket.socket, *, is_own: bool) -> None:
        """``is_own``: its file goes with it."""
        self.name, self.path, self.is_own = name, path, is_own
        self.is_kept = False
        """Another process will accept: :meth:`close` does nothing."""
        self._socket = listening
        self._identity = _identity(path) if is_own else None
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_resting = False
        self._poll = select.poll()
        for each in (listening.fileno(), self._bell):
            self._poll.register(each, select.POLLIN)
        # the socket is shared: a caller whom another process took must not leave this one waiting in accept
        listening.setblocking(False)

    @property
    def is_open(self) -> bool:
        return self._socket.fileno() >= 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next caller; None once it rests. Raises ``OSError``: out of descriptors, say."""
        while not self._is_resting:
            self._poll.poll()
            if self._is_resting:
                break
            try:
                return self._socket.accept()[0]
            except BlockingIOError:
                continue
            except OSError:
                if not self._is_resting:  # it may have been closed since
                    raise
        return None

    def rest(self) -> None:
        """Accept no more: who calls now waits. Repeating it is fine."""
        if not self._is_resting:
            self._is_resting = True
            os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Once it rests. Who still waits is reset, unless somebody else has the socket too; a file that somebody else
        put in the place of ours stays."""
        if self.is_kept or not self.is_open:
            return
        if self.is_own and _identity(self.path) == self._identity:
            self.path.unlink(missing_ok=True)
        self._socket.close()
        os.close(self._bell)


class Inherited(NamedTuple):
    """``own_file``: where it is, if it goes with the socket."""

    name: str
    listening: socket.socket
    own_file: Path | None = None


class Listeners:
    """All of a process, by name. ``open`` belongs to the part that starts, the rest to the main thread."""

    def __init__(self, inherited: tuple[Inherited, ...] = ()) -> None:
        self._inherited = list(inherited)
        self._opened: list[Listener] = []
        self._is_keeping = False
        self._guard = threading.Lock()

    def is_inherited(self, name: str, path: Path) -> bool:
        return self._find(name, path) is not None

    def open(self, name: str, path: Path, *, mode: int = 0o600) -> Listener:
        """The inherited one that is bound to that path, or has that name; else a new one there. Raises ``OSError``."""
        found = self._find(name, path)
        if found is not None:
            self._inherited.remove(found)
            if path.is_socket():
                listener = Listener(name, path, found.listening, is_own=found.own_file is not None)
                log.info("socket.inherited", name=name, socket=path)
            else:
                log.warning("socket.file_gone", name=name, socket=path)
                found.listening.close()
                found = None
        if found is None:
            listener = Listener(name, path, _bind(path, mode), is_own=True)
        with self._guard:
            listener.is_kept = self._is_keeping
            self._opened.append(listener)
        return listener

    def close_unused(self) -> None:
        """Inherited sockets that no part has opened: callers would wait there for nobody."""
        for each in self._inherited:
            log.warning("socket.for_nobody", name=each.name, socket=each.listening.getsockname())
            if each.own_file is not None:
                each.own_file.unlink(missing_ok=True)
            each.listening.close()
        self._inherited.clear()

    def keep(self) -> None:
        """For :meth:`hand_over`: from now on none is closed by its part. Any thread, before the parts are told to
        stop."""
        with self._guard:
            self._is_keeping = True
            for each in self._opened:
                each.is_kept = True

    def hand_over(self) -> dict[str, str]:
        """Put those that were kept where the program that this process is about to become looks for them, and let it
        inherit nothing else; gives what its environment must say."""
        kept = [each for each in self._opened if each.is_kept and each.is_open]
        first_free = _FIRST + len(kept)
        copies = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, first_free) for each in kept]
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - libraries in C leave theirs inheritable
            with contextlib.suppress(OSError):  # of the listing itself
                if int(name) >= _FIRST:
                    os.set_inheritable(int(name), False)
        for number, copy in enumerate(copies, _FIRST):
            os.dup2(copy, number)
        return {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(kept)),
            "LISTEN_FDNAMES": ":".join(each.name for each in kept),
            _OWN: "\n".join(f"{each.name}={each.path}" for each in kept if each.is_own),
        }

    def close(self) -> None:
        """Also what was kept: nobody came after."""
        for each in self._opened:
            each.is_kept = False
            each.close()
        self.close_unused()

    def _find(self, name: str, path: Path) -> Inherited | None:
        """By its path first: the sockets of one unit of systemd have one name."""
        by_path = (each for each in self._inherited if each.listening.getsockname() == str(path))
        by_name = (each for each in self._inherited if each.name == name)
        return next(by_path, None) or next(by_name, None)


def take_inherited(environment: MutableMapping[str, str]) -> Listeners:
    """What the environment says was handed to this process, and takes it out of there: it is not for children. Raises
    ``InvalidSettings``."""
    given = {name: environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", _OWN)}
    if given["LISTEN_PID"] != str(os.getpid()):
        return Listeners()
    try:
        count = int(given["LISTEN_FDS"])
    except ValueError:
        raise _bad("LISTEN_FDS", f"{given['LISTEN_FDS']!r} is not a number of descriptors") from None
    names = given["LISTEN_FDNAMES"].split(":") if given["LISTEN_FDNAMES"] else [""] * count
    if len(names) != count:
        raise _bad("LISTEN_FDNAMES", f"{len(names)} names for {count} descriptors: one each, or none")
    own = {name: Path(path) for name, _, path in (line.partition("=") for line in given[_OWN].splitlines())}
    return Listeners(tuple(Inherited(name, _adopt(number), own.get(name)) for number, name in enumerate(names, _FIRST)))


def _adopt(number: int) -> socket.socket:
    try:
        found = socket.socket(fileno=number)
    except OSError as error:
        raise _bad("LISTEN_FDS", f"descriptor {number} is not a socket: {error.strerror}") from error
    found.set_inheritable(False)
    is_listening = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if (found.family, found.type, is_listening) != (socket.AF_UNIX, socket.SOCK_STREAM, True):
        raise _bad("LISTEN_FDS", f"descriptor {number} is not a listening UNIX stream socket: ListenStream=PATH")
    return found


def _bind(path: Path, mode: int) -> socket.socket:
    """Under a temporary name, renamed when it listens: nobody finds a socket without a listener."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.bind(str(temporary))
        temporary.chmod(mode)
        listening.listen(_BACKLOG)
        temporary.rename(path)
    except BaseException:
        listening.close()
        raise
    return listening


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _bad(variable: str, reason: str) -> InvalidSettings:
    return InvalidSettings(variable, "environment", reason)
