"""What a signal asks of a running node: SIGHUP to open its log again, SIGUSR1 to tell its figures in it.

Python runs a signal's handler in the main thread between two of its steps, which may hold any lock. So the handler
only says what was asked, and a thread that waits for that does it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from calico_core.log import get_logger

log = get_logger(__name__)


class SignalActions:
    """Made, started and stopped by the main thread."""

    def __init__(self, actions: Mapping[signal.Signals, Callable[[], object]]) -> None:
        self._actions = dict(actions)
        # its put may be called from a handler that interrupts another: the library's documentation says so
        self._asked: SimpleQueue[signal.Signals | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def start(self) -> None:
        self._thread.start()
        for number in self._actions:
            self._before[number] = signal.signal(number, lambda given, _frame: self._asked.put(signal.Signals(given)))

    def stop(self) -> None:
        """From now on the signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        self._asked.put(None)
        self._thread.join(5)

    def _run(self) -> None:
        while (number := self._asked.get()) is not None:
            try:
                self._actions[number]()
            except Exception:
                log.exception("signal.failed", signal=number.name)
