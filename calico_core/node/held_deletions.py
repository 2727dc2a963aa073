"""Deletions for the parts of the node that follow the datastore beside the agent: they wait for the agent's word.

The agent alone judges whether the store has lost what it no longer has (see ``removal_guard``). Its news and those of
another part come by connections of their own, so a deletion waits for a moment first, in which the agent hears of the
same; and then for as long as the agent does not trust the store. New and changed records pass at once. One thread owns
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from calico_core.datastore.known_records import Update
from calico_core.model.keys import Key

_SETTLE_S = 1.0


class HeldDeletions:
    """``trusts_store``: the agent's word; of any thread."""

    def __init__(self, trusts_store: Callable[[], bool], *, settle_s: float = _SETTLE_S) -> None:
        self._trusts_store, self._settle_s = trusts_store, settle_s
        self._held: dict[Key, float] = {}  # since when, the oldest first

    def pass_on(self, updates: Iterable[Update], now: float) -> list[tuple[Key, object | None]]:
        """What is to be followed at once."""
        passed: list[tuple[Key, object | None]] = []
        for update in updates:
            if update.record is None:
                self._held.setdefault(update.key, now)
            else:
                self._held.pop(update.key, None)
                passed.append((update.key, update.record))
        return passed

    def look(self, now: float) -> list[tuple[Key, object | None]]:
        """The deletions that are followed now."""
        due = [key for key, since in self._held.items() if now - since >= self._settle_s]
        if not due:
            return []
        if not self._trusts_store():
            self._held = dict.fromkeys(self._held, now)  # and a moment more, once it does
            return []
        for key in due:
            del self._held[key]
        return [(key, None) for key in due]

    def next_look(self) -> float | None:
        """When to call :meth:`look` again; None: no need."""
        first = next(iter(self._held.values()), None)
        return first + self._settle_s if first is not None else None
