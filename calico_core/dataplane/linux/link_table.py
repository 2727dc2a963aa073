"""The links of a namespace as their events have them: who asks here does not wait for the kernel's one lock over
interfaces, which whoever makes or deletes one holds for long.

It may lag behind the kernel by the moment that an event takes. Who acts on it must take "no such device" for an
answer, and be called again by the event.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from calico_core.dataplane.linux.link_messages import Link


class LinkTable:
    """Any thread. One that was never filled knows nothing: see :attr:`is_filled`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: dict[int, Link] = {}
        self._indexes: dict[str, int] = {}
        self._told: set[int] = set()  # indexes of events before it was filled
        self.is_filled = False

    def put(self, link: Link) -> None:
        """An event's: it came, or changed."""
        with self._lock:
            self._put(link)
            if not self.is_filled:
                self._told.add(link.index)

    def remove(self, index: int) -> None:
        """An event's: it went."""
        with self._lock:
            self._remove(index)
            if not self.is_filled:
                self._told.add(index)

    def lose(self) -> None:
        """Events were dropped: nothing is known until it is filled again."""
        with self._lock:
            self._links, self._indexes, self._told = {}, {}, set()
            self.is_filled = False

    def fill(self, links: Iterable[Link]) -> None:
        """A listing begun after the events were subscribed to. What events have told meanwhile is newer."""
        with self._lock:
            for link in links:
                if link.index not in self._told:
                    self._put(link)
            self._told.clear()
            self.is_filled = True

    def find(self, names: Iterable[str]) -> dict[str, Link]:
        """Those of these names that are there."""
        with self._lock:
            return {name: self._links[self._indexes[name]] for name in names if name in self._indexes}

    def name_of(self, index: int) -> str:
        """'' when no link of the index is known."""
        with self._lock:
            link = self._links.get(index)
            return link.name if link is not None else ""

    def _put(self, link: Link) -> None:
        self._remove(link.index)
        self._links[link.index] = link
        self._indexes[link.name] = link.index

    def _remove(self, index: int) -> None:
        before = self._links.pop(index, None)
        if before is not None and self._indexes.get(before.name) == index:
            del self._indexes[before.name]
