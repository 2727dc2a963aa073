"""Host ends of interfaces on their way out of the kernel, which takes tens of milliseconds for each.

A detach frees the addresses meanwhile, and where few are left the next attach gets one of them while its route still
belongs to the interface that leaves. Whoever meets one waits for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

_WORKERS = 64
_REMEMBERED = 1024
"""Also for a while after they have left: who met one asks a moment later."""


class LeavingLinks:
    def __init__(self, remove: Callable[[str], None]) -> None:
        self._remove = remove
        self._pool = ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="links")
        self._leaving: OrderedDict[str, Future[None]] = OrderedDict()
        self._guard = threading.Lock()

    def submit(self, interface: str) -> Future[None]:
        removal = self._pool.submit(self._remove, interface)
        with self._guard:
            self._leaving[interface] = removal
            self._leaving.move_to_end(interface)
            if len(self._leaving) > _REMEMBERED:
                self._leaving.popitem(last=False)
        return removal

    def await_gone(self, interface: str, *, timeout_s: float) -> bool:
        """Whether it was leaving and its removal has ended, well or not."""
        with self._guard:
            removal = self._leaving.get(interface)
        return removal is not None and bool(wait([removal], timeout_s).done)

    def close(self) -> None:
        self._pool.shutdown(wait=True)
