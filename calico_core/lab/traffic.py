"""The thread under a stream or a flood: its own sockets in two namespaces, from start to stop."""

from __future__ import annotations

import os
import threading
from typing import Self

from calico_core.errors import DataplaneError, NotReady

_START_WAIT_S = 20.0
_STOP_WAIT_S = 10.0


class TrafficThread:
    """Start, stop and the thread between them; a context manager."""

    def __init__(self, name: str) -> None:
        self._stop_fd = -1
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def start(self) -> Self:
        """Returns when the sockets are open. Errors of opening them are raised here."""
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread.start()
        if not self._ready.wait(_START_WAIT_S):
            self._end()
            raise NotReady(f"thread {self._thread.name} does not begin")
        if self._error is not None:
            self._close()
            raise self._error
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        """Stop the thread. Safe to repeat. What it failed on is raised once."""
        if self._stop_fd < 0:
            return
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join(_STOP_WAIT_S)
        if self._thread.is_alive():
            raise NotReady(f"thread {self._thread.name} does not end")
        self._close()
        if self._error is not None:
            raise self._error

    def _close(self) -> None:
        os.close(self._stop_fd)
        self._stop_fd = -1

    def _run(self) -> None:
        try:
            self._serve()
        except (OSError, DataplaneError) as error:
            self._error = error
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._ready.set()

    def _serve(self) -> None:
        raise NotImplementedError
