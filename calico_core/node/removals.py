"""Which deletions of the datastore reach the calculation: what the guard lets pass, and whether the first state may
take away what an earlier life of the node left in the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from calico_core.datastore.known_records import Update
from calico_core.datastore.syncer import SyncBatch
from calico_core.log import get_logger
from calico_core.node.remembered import Remembered
from calico_core.node.removal_guard import RemovalFreeze, RemovalGuard

log = get_logger(__name__)


class Removals:
    """The engine thread's. ``exists``: whether a host interface is there. ``freeze``: what people are told of that
    waits; read by any thread."""

    def __init__(self, guard: RemovalGuard, remembered: Remembered, exists: Callable[[str], bool]) -> None:
        self._guard, self._remembered, self._exists = guard, remembered, exists
        self._has_begun = False
        self.freeze: RemovalFreeze | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether anything does, told to people or not yet. Any thread."""
        return self._guard.is_waiting or self.freeze is not None

    def pass_on(self, batch: SyncBatch) -> list[Update]:
        return self._guard.pass_on(batch, time.monotonic())

    def confirm(self) -> list[Update]:
        """A person says that all of it is meant."""
        self._remembered.forget()
        return self._guard.confirm()

    def look(self, gone: Iterable[str], *, is_in_sync: bool) -> list[Update]:
        """What is let go now. ``gone``: interfaces that have ended. ``is_in_sync``: as of ``RemovalGuard.look``."""
        released = [update for name in gone for update in self._guard.interface_gone(name)]
        now = time.monotonic()
        released += self._guard.look(now, is_in_sync=is_in_sync)
        if self._has_begun:
            self._note(self._guard.freeze(now))
        return released

    def may_begin(self) -> bool:
        """Asked when the store is in sync, until it says yes: whether the first state may be applied."""
        guard = self._guard
        reason = self._remembered.missing(guard.interfaces, guard.records, self._exists, time.monotonic())
        self._note(RemovalFreeze(reason=reason, since=self._remembered.since, waiting=0) if reason else None)
        self._has_begun = not reason
        return self._has_begun

    def save(self, *, is_last: bool = False) -> None:
        """For the next life of the node, once the first state was applied."""
        self._remembered.save(self._guard.interfaces, self._guard.records, time.monotonic(), is_last=is_last)

    def times(self, now: float) -> list[float]:
        """When to look again without a change."""
        return [at for at in (self._guard.next_look(now), self._remembered.next_look(now)) if at is not None]

    def _note(self, freeze: RemovalFreeze | None) -> None:
        before, self.freeze = self.freeze, freeze
        if freeze is not None and before is None:
            log.error("removals.frozen", reason=freeze.reason, waiting=freeze.waiting)
        elif freeze is None and before is not None:
            log.warning("removals.released", reason=before.reason)
