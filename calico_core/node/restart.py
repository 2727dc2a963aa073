"""Whether the running node shall start itself anew: it was asked to, or settings have changed that it cannot follow.

The process stays, its program is loaded again (execve(2)): what was installed meanwhile takes over, and the sockets
that calls come in by stay open.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Final, Never

from calico_core.log import get_logger

log = get_logger(__name__)

_PAUSE_S = 2.0
"""Between a change of a setting and the start: changes come in groups."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""They wait while nobody handles them: the next program would die of one that comes before it is ready for it."""


class Restart:
    """:attr:`is_wanted` is read when ``stopping`` is set. ``prepare`` runs before that: every part hears it at once.
    ``must_wait``: whether a change of settings is not to be acted on yet; any thread."""

    def __init__(
        self,
        stopping: threading.Event,
        prepare: Callable[[], object],
        must_wait: Callable[[], bool] = lambda: False,
        *,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._stopping = stopping
        self._prepare = prepare
        self._must_wait = must_wait
        self._pause_s = pause_s
        self._timer: threading.Timer | None = None
        self.is_wanted = False

    def now(self) -> None:
        """Any thread."""
        log.info("node.restart_asked")
        self._begin()

    def later(self, differing: Callable[[], Collection[str]]) -> None:
        """Once for all changes of the pause, and of the time that it must wait; when no setting is differing any more
        by then, it costs nothing. Of one thread."""
        timer = self._timer
        if timer is not None and timer.is_alive():
            return
        timer = self._timer = threading.Timer(self._pause_s, self._judge, (differing,))
        timer.daemon = True
        timer.start()

    def cancel(self) -> None:
        timer = self._timer
        if timer is not None:
            timer.cancel()

    def _judge(self, differing: Callable[[], Collection[str]]) -> None:
        while differing() and self._must_wait():
            if self._stopping.wait(self._pause_s):
                return
        self._timer = None  # before the last look: what comes after it is judged anew
        settings = sorted(differing())
        if not settings or self._stopping.is_set():
            return
        log.error("node.restart_wanted", settings=settings)
        self._begin()

    def _begin(self) -> None:
        self._prepare()
        self.is_wanted = True
        self._stopping.set()


def hold_signals() -> None:
    """From here on they wait for the next program. Main thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def let_signals_in() -> None:
    """When they are handled. Main thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def become_anew(environment: Mapping[str, str]) -> Never:
    """This process with the program that is installed now and the arguments it was started with; ``environment`` is
    added to its own. Raises ``OSError``, and then nothing has changed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment})  # noqa: S606
