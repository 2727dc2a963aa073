"""Where a node's log goes: standard error, a file and syslog, each from a level of its own. Source: felix
specification 2.2 and 9.

What may be slow, the file and syslog, is written by a thread of its own behind a bounded queue: a full disk or a
syslog daemon that hangs must not hold up the engine. What finds no room is dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from logging.handlers import QueueHandler, QueueListener, SysLogHandler, WatchedFileHandler
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, NamedTuple, TextIO

from calico_core import log
from calico_core.errors import InvalidSettings

if TYPE_CHECKING:
    from calico_core.settings import Settings

_ROOM = 10_000
_LAST_WORDS_S = 2.0
SYSLOG = "/dev/log"


class LogCounts:
    """What did not arrive since the start. Each is written under the lock of a handler, read by any thread."""

    def __init__(self) -> None:
        self.dropped = 0
        """The file or syslog was so slow that the queue was full."""
        self.errors = 0
        """It could not be written."""


class LogPlaces(NamedTuple):
    """What the settings say, as far as a running node follows it."""

    screen_level: str
    file: str
    file_level: str
    syslog_level: str
    style: str

    @classmethod
    def of(cls, settings: Settings) -> LogPlaces:
        file = settings.log_file if settings.log_file_level != "none" else ""
        level = settings.log_file_level if file else "none"
        return cls(settings.log_level, file, level, settings.log_syslog_level, settings.log_format)


class LogTargets:
    """``follow`` and ``reopen`` from any thread, one after the other."""

    def __init__(self, *, stream: TextIO | None = None, syslog: str = SYSLOG) -> None:
        self.counts = LogCounts()
        self._stream, self._syslog = stream, syslog
        self._lock = threading.Lock()
        self._now: LogPlaces | None = None
        self._file: _Behind | None = None
        self._system: _Behind | None = None

    def follow(self, settings: Settings) -> bool:
        """Whether anything is different now. Raises ``InvalidSettings`` for a file that cannot be written, and leaves
        all as it was."""
        wanted = LogPlaces.of(settings)
        with self._lock:
            before = self._now
            if wanted == before:
                return False
            leaving: list[_Behind] = []
            if before is None or (wanted.file, wanted.style) != (before.file, before.style):
                file = self._open_file(wanted, settings) if wanted.file else None
                leaving += [self._file] if self._file is not None else []
                self._file = file
            if before is None or (wanted.syslog_level == "none") != (before.syslog_level == "none"):
                leaving += [self._system] if self._system is not None else []
                self._system = self._open_syslog() if wanted.syslog_level != "none" else None
            self._now = wanted
            self._install(wanted)
        for each in leaving:
            each.close()
        return True

    def reopen(self) -> None:
        """The file, which may have been moved away; what was written meanwhile is in the old one."""
        with self._lock:
            if self._file is not None:
                self._file.reopen()

    def close(self) -> None:
        """Write what waits; later events go to standard error alone."""
        with self._lock:
            leaving = [each for each in (self._file, self._system) if each is not None]
            self._file = self._system = None
            if self._now is not None:
                self._now = self._now._replace(file="", file_level="none", syslog_level="none")
                self._install(self._now)
        for each in leaving:
            each.close()

    def _install(self, places: LogPlaces) -> None:
        screen = log.screen(style=places.style, stream=self._stream)
        screen.setLevel(log.LEVELS[places.screen_level])
        handlers = [screen]
        for target, level in ((self._file, places.file_level), (self._system, places.syslog_level)):
            if target is not None:
                target.setLevel(log.LEVELS[level])
                handlers.append(target)
        log.install(handlers)

    def _open_file(self, places: LogPlaces, settings: Settings) -> _Behind:
        try:
            with contextlib.suppress(FileExistsError):  # no directory: opening says so in better words
                Path(places.file).parent.mkdir(parents=True, exist_ok=True)
            handler = _File(places.file, self.counts)
        except OSError as error:
            origin = settings.origins.get("log_file", "default")
            reason = f"{places.file} cannot be written: {error.strerror or error}; give another path, or none"
            raise InvalidSettings("log_file", origin, reason) from error
        handler.setFormatter(log.JsonFormatter() if places.style == "json" else _FileFormatter())
        return _Behind(handler, self.counts, name="log-file")

    def _open_syslog(self) -> _Behind:
        """One that does not listen yet is tried again at each event."""
        handler = _Syslog(self._syslog, self.counts)
        handler.setFormatter(_SyslogFormatter())
        return _Behind(handler, self.counts, name="log-syslog")


class _Behind(QueueHandler):
    """A handler behind a queue, and the thread that empties it."""

    def __init__(self, target: logging.Handler, counts: LogCounts, *, name: str) -> None:
        room: Queue[logging.LogRecord | None] = Queue(_ROOM)
        super().__init__(room)
        self._target, self._counts, self._name = target, counts, name
        self._listener = _Listener(room, target)
        self._listener.start()
        self._is_closed = False

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """As it is: it stays in the process."""
        return record

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the base class' name
        self._counts.dropped += 1

    def reopen(self) -> None:
        if isinstance(self._target, _File):
            self._target.reopen()

    def close(self) -> None:
        """Waits for a while until all is written. Safe to repeat."""
        if self._is_closed:
            return
        self._is_closed = True
        ending = threading.Thread(target=self._listener.stop, name=f"{self._name}-end", daemon=True)
        ending.start()
        ending.join(_LAST_WORDS_S)
        if not ending.is_alive():
            with contextlib.suppress(OSError):  # of the disk, which each event has told
                self._target.close()
        super().close()


class _Listener(QueueListener):
    def __init__(self, room: Queue[logging.LogRecord | None], target: logging.Handler) -> None:
        super().__init__(room, target)
        self._room = room

    def enqueue_sentinel(self) -> None:
        """Waits for room, where the base class gives up."""
        self._room.put(None)


class _File(WatchedFileHandler):
    """Raises ``OSError`` when it cannot be opened at first."""

    def __init__(self, path: str, counts: LogCounts) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._counts = counts

    def emit(self, record: logging.LogRecord) -> None:
        """The base class lets an error of opening again through, which would end the thread."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the base class' name
        self._counts.errors += 1

    def reopen(self) -> None:
        self.acquire()
        try:
            if self.stream is not None:  # None: it could not be opened the last time
                self.stream.close()
            self.stream = None  # the next event opens it
        finally:
            self.release()


class _Syslog(SysLogHandler):
    def __init__(self, address: str, counts: LogCounts) -> None:
        super().__init__(address, facility=SysLogHandler.LOG_DAEMON)
        self.ident = f"calico-node[{os.getpid()}]: "
        self._counts = counts

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the base class' name
        self._counts.errors += 1


class _FileFormatter(log.ConsoleFormatter):
    """``2026-05-04 12:03:04.123 info    [71/engine] endpoint.attached endpoint=…``, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        where = f"[{record.process}/{record.threadName}]"
        return f"{clock}.{int(record.msecs):03d} {record.levelname.lower():7} {where} {self.text(record)}"


class _SyslogFormatter(log.ConsoleFormatter):
    """The daemon adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()} {self.text(record)}"
