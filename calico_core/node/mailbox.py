"""Between threads: frozen values in, batches out."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Any thread posts, one thread takes everything that has gathered."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._items: list[T] = []
        self._is_closed = False

    def post(self, item: T) -> None:
        with self._condition:
            self._items.append(item)
            self._condition.notify()

    def take(self, timeout_s: float | None) -> list[T]:
        """What was posted since the last take; empty when the time is over or the box is closed."""
        with self._condition:
            if not self._items and not self._is_closed:
                self._condition.wait(timeout_s)
            items, self._items = self._items, []
            return items

    def close(self) -> None:
        """Wake the taker; later takes do not wait."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._is_closed


class LatestSlot(Generic[T]):
    """Holds the newest value only; an untaken older one is dropped."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._value: T | None = None
        self._is_closed = False

    def put(self, value: T) -> None:
        with self._condition:
            self._value = value
            self._condition.notify()

    def take(self, timeout_s: float | None) -> T | None:
        with self._condition:
            if self._value is None and not self._is_closed:
                self._condition.wait(timeout_s)
            value, self._value = self._value, None
            return value

    def close(self) -> None:
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
