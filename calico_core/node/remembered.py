"""What this node had in force last, kept over a restart: workload interfaces, and how many records of lasting kinds.

A node that starts finds policy in the kernel and a datastore. When the store knows nothing of most interfaces that
stand and that it knew before, or has lost most records of a kind, it is suspect: it may be an empty one in the place of
the old. Then the first state waits, and the kernel goes on as it is. Source: felix specification 8, "Datastore
rebuilt".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from calico_core.log import get_logger

_SHARE = 0.5
_FEWEST = 4
_SAVE_EVERY_S = 10.0
_SAVE_LESS_EVERY_S = 1.0
"""Of records that were meant to go, the next start should not ask."""
_LOOK_EVERY_S = 1.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = get_logger(__name__)


class _Memory(msgspec.Struct, frozen=True, kw_only=True):
    """``boot``: which one of the host; after another the kernel has nothing to be kept. ``records``: by kind."""

    boot: str
    interfaces: frozenset[str]
    records: dict[str, int]


_NOTHING = _Memory(boot="", interfaces=frozenset(), records={})


class Remembered:
    """``memory`` None: nothing is kept. ``confirm_after_s``: as of ``RemovalGuard``. The engine thread owns it once the
    agent runs."""

    def __init__(self, memory: Path | None, *, confirm_after_s: float = 300.0, boot_id: Path = _BOOT_ID) -> None:
        self._memory, self._confirm_after_s = memory, confirm_after_s
        self._boot = _text(boot_id)
        self._before = _read(memory, self._boot)
        self._saved: _Memory | None = None
        self._saved_at = float("-inf")
        self._save_at: float | None = None
        self._is_waiting = False
        self.since = 0.0

    def missing(
        self, known: frozenset[str], records: Mapping[str, int], exists: Callable[[str], bool], now: float
    ) -> str:
        """Why the first state must wait, or ''. ``known``: interfaces of the store's endpoints of this host;
        ``records``: how many of each kind it has."""
        reason = self._missing_interfaces(known, exists) or self._missing_records(records)
        if not reason:
            self._is_waiting = False
            return ""
        if not self._is_waiting:
            self._is_waiting, self.since = True, now
        if self._confirm_after_s > 0 and now - self.since >= self._confirm_after_s:
            self.forget()
            return ""
        return reason

    def lost(self, endpoints: int, records: Mapping[str, int]) -> str:
        """What a store that is not ready lacks, be it ever so little; '' when it has half of all that was in force here
        at least. ``endpoints``: how many of this host it has."""
        if self._before.boot != self._boot:
            return ""
        had = {"local endpoints": len(self._before.interfaces), **self._before.records}
        has = {"local endpoints": endpoints, **records}
        lost = (noun for noun, count in had.items() if count - has.get(noun, 0) > _SHARE * count)
        return next((f"{has.get(noun, 0)} of {had[noun]} {noun} that were in force here" for noun in lost), "")

    def next_look(self, now: float) -> float | None:
        """When to ask, or to save, again."""
        at = [self._save_at] if self._save_at is not None else []
        at += [now + _LOOK_EVERY_S] if self._is_waiting else []
        return min(at, default=None)

    def forget(self) -> None:
        """What is missing is meant to be; the next life does not ask either, however soon this one ends."""
        self._before, self._is_waiting = _NOTHING, False
        self._saved, self._saved_at = None, float("-inf")
        if self._memory is None:
            return
        try:
            self._memory.unlink(missing_ok=True)
        except OSError as error:
            log.warning("remembered.not_forgotten", file=str(self._memory), reason=str(error))

    def save(
        self, interfaces: frozenset[str], records: Mapping[str, int], now: float, *, is_last: bool = False
    ) -> None:
        """At most once in a while, but ``is_last``; what a crash loses of it makes the next start a little more
        trusting."""
        self._save_at = None
        found = _Memory(boot=self._boot, interfaces=interfaces, records=dict(records))
        if self._memory is None or found == self._saved:
            return
        saved = self._saved or self._before
        has_less = any(found.records.get(noun, 0) < count for noun, count in saved.records.items())
        save_at = self._saved_at + (_SAVE_LESS_EVERY_S if has_less else _SAVE_EVERY_S)
        if now < save_at and not is_last:
            self._save_at = save_at
            return
        self._saved_at = now
        beside = self._memory.with_suffix(".new")
        try:
            beside.write_bytes(msgspec.json.encode(found))
            os.replace(beside, self._memory)  # noqa: PTH105 - says better that it replaces
        except OSError as error:
            log.warning("remembered.not_saved", file=str(self._memory), reason=str(error))
            return
        self._saved = found

    def _missing_interfaces(self, known: frozenset[str], exists: Callable[[str], bool]) -> str:
        names = self._before.interfaces
        standing = {name for name in names if exists(name)} if names else set()
        lost = standing - known
        if _is_suspect(len(lost), len(standing)):
            return f"the datastore knows nothing of {len(lost)} of {len(standing)} workload interfaces that stand here"
        return ""

    def _missing_records(self, records: Mapping[str, int]) -> str:
        if self._before.boot != self._boot:
            return ""
        for noun, had in self._before.records.items():
            if _is_suspect(lost := had - records.get(noun, 0), had):
                return f"the datastore lost {lost} of {had} {noun} that were in force here"
        return ""


def _is_suspect(lost: int, had: int) -> bool:
    return lost >= _FEWEST and lost > _SHARE * had


def _read(memory: Path | None, boot: str) -> _Memory:
    """Nothing when there is no file, or one that is not ours. Older versions kept the names of interfaces alone."""
    if memory is not None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found = msgspec.json.decode(memory.read_bytes(), type=_Memory | frozenset[str])
            if isinstance(found, _Memory):
                return found
            return _Memory(boot=boot, interfaces=found, records={})
    return _NOTHING


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""
