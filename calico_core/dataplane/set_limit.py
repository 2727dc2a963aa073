"""Sets with more members than the settings allow.

Such a set does not stand at all, and the rules that name it deny until it has shrunk: a part of it, or what it held
before, would let pass what a rule denies (ADR 11). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.log import get_logger

if TYPE_CHECKING:
    from calico_core.model.hoststate import SetId

log = get_logger(__name__)


class SetLimit:
    """One thread. ``problems``: reasons by subject, shared with the caller."""

    def __init__(self, most: int, problems: dict[str, str]) -> None:
        self._most, self._problems = most, problems
        self._beyond: set[SetId] = set()

    def __contains__(self, set_id: SetId) -> bool:
        """Whether the set is beyond the limit."""
        return set_id in self._beyond

    def note(self, set_id: SetId, size: int) -> bool:
        """How many members it has now (:mod:`calico_core.model.set_size`); whether it has become usable or unusable."""
        was_beyond = set_id in self._beyond
        if size <= self._most:
            self.forget(set_id)
            return was_beyond
        if not was_beyond:
            log.warning("set.too_large", set=set_id, size=size, limit=self._most)
        self._beyond.add(set_id)
        self._problems[set_id] = f"more than {self._most} members; rules that name it deny until it has shrunk"
        return not was_beyond

    def forget(self, set_id: SetId) -> None:
        """It is gone, or has shrunk."""
        if set_id in self._beyond:
            log.info("set.within_limit", set=set_id, limit=self._most)
            self._beyond.discard(set_id)
            self._problems.pop(set_id, None)
