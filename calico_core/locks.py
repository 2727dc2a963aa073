"""One lock a name, made when first wanted and forgotten when nobody holds or awaits it.

For whoever answers several calls at once: the workload service (an endpoint), integrations (a network).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator

from calico_core.errors import NotReady


class NamedLocks:
    """Serialises work on one thing without holding up others. Any thread; not re-entrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, name: Hashable, *, timeout_s: float) -> Iterator[None]:
        """Raises ``NotReady`` when another call keeps the lock longer than ``timeout_s``."""
        with self._guard:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = (lock, users + 1)
        try:
            if not lock.acquire(timeout=timeout_s):
                raise NotReady(f"another call for {name} has not ended within {timeout_s:g} s")
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
