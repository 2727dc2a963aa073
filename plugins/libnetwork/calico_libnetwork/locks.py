"""One lock a name, kept while somebody holds or wants it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from calico_core.errors import NotReady


class NamedLocks:
    """Any thread. Not re-entrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, name: str, *, timeout_s: float) -> Iterator[None]:
        """Raises ``NotReady`` when the time is over."""
        with self._guard:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = (lock, users + 1)
        try:
            if not lock.acquire(timeout=timeout_s):
                raise NotReady(f"another call for {name[:12]} did not end within {timeout_s:g} s")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, users = self._locks[name]
                if users == 1:
                    del self._locks[name]
                else:
                    self._locks[name] = (lock, users - 1)
