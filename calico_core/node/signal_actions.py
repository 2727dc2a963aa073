"""What a signal asks of a running node: SIGTERM and SIGINT to end, SIGHUP to open its log again, SIGUSR1 to tell its
figures in it.

Python runs a signal's handler in the main thread between two of its steps. These may hold any lock, and a main thread
that waits for one may not come to its next step for as long as it waits. So the handler does nothing: the interpreter
writes the signal's number to a pipe at once, and a thread that reads there does what was asked.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping

from calico_core.log import get_logger

log = get_logger(__name__)


class SignalActions:
    """Made, started and stopped by the main thread; one at a time."""

    def __init__(self, actions: Mapping[signal.Signals, Callable[[], object]]) -> None:
        self._actions = dict(actions)
        self._asked, self._noted = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._noted, False)  # as set_wakeup_fd demands
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def start(self) -> None:
        self._thread.start()
        signal.set_wakeup_fd(self._noted, warn_on_full_buffer=False)
        for number in self._actions:
            self._before[number] = signal.signal(number, _do_nothing)

    def stop(self) -> None:
        """From now on the signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        signal.set_wakeup_fd(-1)
        os.close(self._noted)
        self._thread.join(5)
        os.close(self._asked)

    def _run(self) -> None:
        while numbers := os.read(self._asked, 64):
            for number in numbers:
                self._act(number)

    def _act(self, number: int) -> None:
        action = next((action for each, action in self._actions.items() if each == number), None)
        if action is None:
            return  # somebody else's handler, of which the pipe hears too
        try:
            action()
        except Exception:
            log.exception("signal.failed", signal=signal.Signals(number).name)


def _do_nothing(_number: int, _frame: object) -> None:
    """Handled, unlike ignored, so that the interpreter notes it; and not inherited by other programs."""
