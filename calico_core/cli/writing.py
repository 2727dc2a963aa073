"""One record, written as a transaction that compares what was read: a lost race is tried again with all checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from calico_core.cli.context import CliContext
from calico_core.errors import Conflict, InvalidRecord
from calico_core.interfaces.datastore import Compare, Delete, Operation, Precondition, Put
from calico_core.model import codec
from calico_core.model.keys import Key

_ATTEMPTS = 3


def persist(attempt: Callable[[], bool | None], path: str) -> bool:
    """Try again while the race is lost (``attempt`` gives None). Raises ``Conflict``."""
    for _ in range(_ATTEMPTS):
        result = attempt()
        if result is not None:
            return result
    raise Conflict(path, None)


def commit(context: CliContext, preconditions: Sequence[Precondition], operations: Sequence[Operation]) -> bool | None:
    return True if context.records.store.transact(list(preconditions), list(operations)).committed else None


def decoded(key: Key, value: bytes) -> Any:
    """None for what does not decode: it is to be replaced."""
    try:
        return codec.decode(key, value)
    except InvalidRecord:
        return None


def put_record(context: CliContext, key: Key, wanted: Any) -> str:
    """``created``, ``updated`` or ``unchanged``."""
    context.may_create = True
    done = ""

    def attempt() -> bool | None:
        nonlocal done
        entry = context.records.store.get(key.path)
        if entry is not None and decoded(key, entry.value) == wanted:
            done = "unchanged"
            return True
        done = "created" if entry is None else "updated"
        revision = 0 if entry is None else entry.mod_revision
        return commit(context, [Compare(key.path, revision)], [Put(key.path, codec.encode(wanted))])

    persist(attempt, key.path)
    return done


def remove_record(context: CliContext, key: Key) -> bool:
    """False: there was none."""

    def attempt() -> bool | None:
        entry = context.records.store.get(key.path)
        if entry is None:
            return False
        return commit(context, [Compare(key.path, entry.mod_revision)], [Delete(key.path)])

    return persist(attempt, key.path)
