"""A thread that ends by an error says so in the log; one that the node cannot do without ends the node.

What goes round in a loop has its own edge and is watched by the runtime. This is for threads below it, of drivers and
monitors: without the one that hears of links the node would live on and see nothing. Source: felix specification 8.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from calico_core.log import get_logger

log = get_logger(__name__)

VITAL = frozenset({"link-monitor", "sqlite-doorbell", "etcd-watch", "signals"})
"""By their names. Others serve one request or one reader, and the node goes on without them."""


class ThreadDeaths:
    """Between :meth:`watch` and :meth:`stop` it has the process's hook for threads."""

    def __init__(self, on_vital: Callable[[], object]) -> None:
        self._on_vital = on_vital
        self._before = threading.excepthook

    def watch(self) -> None:
        self._before = threading.excepthook
        threading.excepthook = self._died

    def stop(self) -> None:
        threading.excepthook = self._before

    def _died(self, death: threading.ExceptHookArgs) -> None:
        name = death.thread.name if death.thread is not None else ""
        try:
            raise death.exc_value or death.exc_type()
        except BaseException:
            log.exception("thread.died", thread=name, is_vital=name in VITAL)
        if name in VITAL:
            self._on_vital()
