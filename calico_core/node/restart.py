"""Whether the running node shall end to be started anew, because of settings that it cannot follow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from calico_core.log import get_logger

log = get_logger(__name__)

_PAUSE_S = 2.0
"""Between a change of a setting and the end: supervisors give up on what ends too often."""


class Restart:
    """:attr:`is_wanted` is read when ``stopping`` is set."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._timer: threading.Timer | None = None
        self.is_wanted = False

    def later(self, differing: Callable[[], Collection[str]]) -> None:
        """Once for all changes of the pause; when no setting is differing any more by then, it costs nothing. Of one
        thread."""
        if self._timer is not None and self._timer.is_alive():
            return
        self._timer = threading.Timer(_PAUSE_S, self._judge, (differing,))
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _judge(self, differing: Callable[[], Collection[str]]) -> None:
        settings = sorted(differing())
        if not settings or self._stopping.is_set():
            return
        log.error("node.restart_wanted", settings=settings)
        self.is_wanted = True
        self._stopping.set()
