"""The file and syslog as targets of a node's log, each written by a thread of its own behind a bounded queue: a full
disk or a syslog daemon that hangs must not hold up the engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from logging.handlers import QueueHandler, QueueListener, SysLogHandler, WatchedFileHandler
from queue import Queue
from typing import TYPE_CHECKING

from calico_core import log

if TYPE_CHECKING:
    from calico_core.node.log_counts import LogCounts

_ROOM = 10_000
_LAST_WORDS_S = 2.0


class Behind(QueueHandler):
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
        if isinstance(self._target, File):
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


class File(WatchedFileHandler):
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


class Syslog(SysLogHandler):
    def __init__(self, address: str, counts: LogCounts) -> None:
        super().__init__(address, facility=SysLogHandler.LOG_DAEMON)
        self.ident = f"calico-node[{os.getpid()}]: "
        self._counts = counts

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the base class' name
        self._counts.errors += 1


class FileFormatter(log.ConsoleFormatter):
    """``2026-05-04 12:03:04.123 info    [71/engine] endpoint.attached endpoint=…``, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        where = f"[{record.process}/{record.threadName}]"
        return f"{clock}.{int(record.msecs):03d} {record.levelname.lower():7} {where} {self.text(record)}"


class SyslogFormatter(log.ConsoleFormatter):
    """The daemon adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()} {self.text(record)}"
