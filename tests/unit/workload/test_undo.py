"""Undo runs newest first, all of it, and never hides the error that caused it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from calico_core.workload.undo import UndoStack

if TYPE_CHECKING:
    from collections.abc import Callable


def _failing(*steps: tuple[str, Callable[[], object]]) -> None:
    with UndoStack() as undo:
        for name, step in steps:
            undo.push(name, step)
        raise KeyError("cause")


def test_undo_runs_newest_first() -> None:
    done: list[str] = []
    with pytest.raises(KeyError, match="cause"):
        _failing(("first", lambda: done.append("first")), ("second", lambda: done.append("second")))
    assert done == ["second", "first"]


def test_commit_forgets_the_steps() -> None:
    done: list[str] = []
    with UndoStack() as undo:
        undo.push("step", lambda: done.append("step"))
        undo.commit()
    assert done == []


def test_leaving_without_commit_undoes_even_without_an_error() -> None:
    done: list[str] = []
    with UndoStack() as undo:
        undo.push("step", lambda: done.append("step"))
    assert done == ["step"]


def test_steps_after_a_commit_are_undone() -> None:
    done: list[str] = []
    with UndoStack() as undo:
        undo.push("kept", lambda: done.append("kept"))
        undo.commit()
        undo.push("later", lambda: done.append("later"))
    assert done == ["later"]


def test_a_failing_undo_stops_neither_the_others_nor_the_error() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("undo itself")

    with pytest.raises(KeyError, match="cause"):
        _failing(("first", lambda: done.append("first")), ("failing", fail), ("last", lambda: done.append("last")))
    assert done == ["last", "first"]
