"""The workload interfaces that this node had last, kept over a restart.

A node that starts finds policy in the kernel and a datastore. When the store knows nothing of most interfaces that
stand and that it knew before, the store is suspect: it may be an empty one in the place of the old. Then the first
state waits, and the kernel goes on as it is. Source: felix specification 8, "Datastore rebuilt".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from calico_core.log import get_logger

_SHARE = 0.5
_FEWEST = 4
_SAVE_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0

log = get_logger(__name__)


class RememberedInterfaces:
    """``memory`` None: nothing is kept. ``confirm_after_s``: as of ``RemovalGuard``. The engine thread owns it."""

    def __init__(self, memory: Path | None, *, confirm_after_s: float = 300.0) -> None:
        self._memory, self._confirm_after_s = memory, confirm_after_s
        self._names = _read(memory)
        self._saved: frozenset[str] | None = None
        self._save_at = 0.0
        self._is_waiting = False
        self.since = 0.0

    def missing(self, known: frozenset[str], exists: Callable[[str], bool], now: float) -> str:
        """Why the first state must wait, or ''. ``known``: interfaces of the store's endpoints of this host."""
        standing = {name for name in self._names if exists(name)} if self._names else set()
        lost = standing - known
        if len(lost) < _FEWEST or len(lost) <= _SHARE * len(standing):
            self._is_waiting = False
            return ""
        if not self._is_waiting:
            self._is_waiting, self.since = True, now
        if self._confirm_after_s > 0 and now - self.since >= self._confirm_after_s:
            self.forget()
            return ""
        return f"the datastore knows nothing of {len(lost)} of {len(standing)} workload interfaces that stand here"

    def next_look(self, now: float) -> float | None:
        return now + _LOOK_EVERY_S if self._is_waiting else None

    def forget(self) -> None:
        """What is missing is meant to be."""
        self._names, self._is_waiting = frozenset(), False

    def save(self, names: frozenset[str], now: float) -> None:
        """At most once in a while; what a crash loses of it makes the next start a little more trusting."""
        if self._memory is None or names == self._saved or now < self._save_at:
            return
        self._save_at = now + _SAVE_EVERY_S
        beside = self._memory.with_suffix(".new")
        try:
            beside.write_bytes(msgspec.json.encode(sorted(names)))
            os.replace(beside, self._memory)  # noqa: PTH105 - says better that it replaces
        except OSError as error:
            log.warning("remembered.not_saved", file=str(self._memory), reason=str(error))
            return
        self._saved = names


def _read(memory: Path | None) -> frozenset[str]:
    """Nothing when there is no file, or one that is not ours."""
    if memory is not None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(memory.read_bytes(), type=frozenset[str])
    return frozenset()
