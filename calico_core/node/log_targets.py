"""Where a node's log goes: standard error, a file and syslog, each from a level of its own. Source: felix
specification 2.2 and 9.

What may be slow, the file and syslog, is written by threads of their own (:mod:`log_behind`, imported when there is
one of them: most nodes have none). What finds no room there is dropped and counted.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from calico_core import log
from calico_core.errors import InvalidSettings
from calico_core.node.log_counts import LogCounts

if TYPE_CHECKING:
    from calico_core.node.log_behind import Behind
    from calico_core.settings import Settings

logger = log.get_logger(__name__)

SYSLOG = "/dev/log"


class LogPlaces(NamedTuple):
    """What the settings say, as far as a running node follows it."""

    screen_level: str
    file: str
    file_level: str
    syslog_level: str
    style: str
    silent_file: str = ""
    """One that is named and gets nothing."""

    @classmethod
    def of(cls, settings: Settings) -> LogPlaces:
        screen, system, style = settings.log_level, settings.log_syslog_level, settings.log_format
        if settings.log_file_level == "none" or not settings.log_file:
            return cls(screen, "", "none", system, style, silent_file=settings.log_file)
        return cls(screen, settings.log_file, settings.log_file_level, system, style)


class LogTargets:
    """``follow`` and ``reopen`` from any thread, one after the other."""

    def __init__(self, *, stream: TextIO | None = None, syslog: str = SYSLOG) -> None:
        self.counts = LogCounts()
        self._stream, self._syslog = stream, syslog
        self._lock = threading.Lock()
        self._now: LogPlaces | None = None
        self._file: Behind | None = None
        self._system: Behind | None = None

    def follow(self, settings: Settings) -> bool:
        """Whether anything is different now. Raises ``InvalidSettings`` for a file that cannot be written, and leaves
        all as it was."""
        wanted = LogPlaces.of(settings)
        with self._lock:
            before = self._now
            if wanted == before:
                return False
            leaving: list[Behind] = []
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
        if wanted.silent_file:
            origin = settings.origins.get("log_file_level", "default")
            logger.warning("log.file_without_level", file=wanted.silent_file, log_file_level="none", origin=origin)
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

    def _open_file(self, places: LogPlaces, settings: Settings) -> Behind:
        from calico_core.node.log_behind import Behind, File, FileFormatter

        try:
            with contextlib.suppress(FileExistsError):  # no directory: opening says so in better words
                Path(places.file).parent.mkdir(parents=True, exist_ok=True)
            handler = File(places.file, self.counts)
        except OSError as error:
            origin = settings.origins.get("log_file", "default")
            reason = f"{places.file} cannot be written: {error.strerror or error}; give another path, or none"
            raise InvalidSettings("log_file", origin, reason) from error
        handler.setFormatter(log.JsonFormatter() if places.style == "json" else FileFormatter())
        return Behind(handler, self.counts, name="log-file")

    def _open_syslog(self) -> Behind:
        """One that does not listen yet is tried again at each event."""
        from calico_core.node.log_behind import Behind, Syslog, SyslogFormatter

        handler = Syslog(self._syslog, self.counts)
        handler.setFormatter(SyslogFormatter())
        return Behind(handler, self.counts, name="log-syslog")
