"""Steps with undo: each step registers how to take it back before the next one begins."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from calico_core.log import get_logger

log = get_logger(__name__)


class UndoStack:
    """``with UndoStack() as undo: …; undo.push("veth", remove); …; undo.commit()``.

    Leaving without :meth:`commit` runs what was pushed, newest first. A failing undo is logged and does not stop the
    others; the caller sees the original error.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def push(self, name: str, undo: Callable[[], object]) -> None:
        self._steps.append((name, undo))

    def commit(self) -> None:
        self._steps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._steps:
            name, undo = self._steps.pop()
            try:
                undo()
            except Exception:
                log.exception("undo.failed", step=name)
