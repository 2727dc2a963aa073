"""Events with fields over stdlib logging.

``log = get_logger(__name__)`` and ``log.info("endpoint.attached", endpoint=…, address=…)``. An event is a name,
never a sentence with values glued in. Fields bound with :func:`bound` follow through context variables, so a
request's id is on every line its thread writes. Console format for people, JSON for collectors.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_fields: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("calico_log_fields", default={})  # noqa: B039 - never mutated

PACKAGES = ("calico_core", "calico_cni", "calico_libnetwork", "calico_mesos", "calico_kubernetes")
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "none": logging.CRITICAL + 1,
}
"""What a place for events takes at least."""


class Logger:
    """A thin front on a stdlib logger: event name first, fields as keywords."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: Any) -> None:
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        self._emit(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """As :meth:`error`, with the traceback of the exception being handled."""
        self._emit(logging.ERROR, event, fields, exc_info=True)

    def critical(self, event: str, /, **fields: Any) -> None:
        """The process ends."""
        self._emit(logging.CRITICAL, event, fields)

    def _emit(self, level: int, event: str, fields: dict[str, Any], *, exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            merged = {**_fields.get(), **fields}
            self._logger.log(level, event, extra={"calico_fields": merged}, exc_info=exc_info)


def get_logger(name: str) -> Logger:
    return Logger(logging.getLogger(name))


@contextlib.contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Add fields to every event of this thread (or task) inside the block."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class ConsoleFormatter(logging.Formatter):
    """``12:03:04.123 info  endpoint.attached endpoint=… address=…``."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{clock}.{int(record.msecs):03d} {record.levelname.lower():7} {self.text(record)}"

    def text(self, record: logging.LogRecord) -> str:
        """Event, fields and traceback."""
        fields = getattr(record, "calico_fields", {})
        line = record.getMessage() + "".join(f" {name}={_console_value(value)}" for name, value in fields.items())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``ts`` (seconds, UTC epoch), ``level``, ``event``, ``logger`` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "ts": round(record.created, 6),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        entry.update(getattr(record, "calico_fields", {}))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(*, level: str = "info", style: str = "console", stream: TextIO | None = None) -> None:
    """Set up logging for a process. ``level`` of :data:`LEVELS`; ``style`` is ``console`` or ``json``."""
    handler = screen(style=style, stream=stream)
    handler.setLevel(LEVELS[level])
    install([handler])


def screen(*, style: str = "console", stream: TextIO | None = None) -> logging.Handler:
    """To ``stream``, or to standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else ConsoleFormatter())
    return handler


def install(handlers: Sequence[logging.Handler]) -> None:
    """From now on events go to these, to each as its level says; any thread. Loggers of libraries stay at warnings."""
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)
    lowest = min((handler.level for handler in handlers), default=LEVELS["none"])
    for package in PACKAGES:
        logging.getLogger(package).setLevel(lowest)


def _console_value(value: Any) -> str:
    """Quoted where it could be taken for more than one value, for an end of line, or for a terminal's command."""
    text = str(value)
    return text if text and text.isprintable() and " " not in text else repr(text)
