"""Small integers for keys, so that sets of them are bitmaps."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)


class DenseIds(Generic[KeyT]):
    """Hands out the integers from 0 up. One given back is used again only after :meth:`end_batch`: within a batch a
    number means one key, before and after."""

    def __init__(self) -> None:
        self._ids: dict[KeyT, int] = {}
        self._keys: list[KeyT | None] = []
        self._free: list[int] = []
        self._released: set[int] = set()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def released(self) -> set[int]:
        """Given back in this batch."""
        return self._released

    def find(self, key: KeyT) -> int | None:
        return self._ids.get(key)

    def key(self, number: int) -> KeyT:
        key = self._keys[number]
        assert key is not None
        return key

    def assign(self, key: KeyT) -> int:
        """The number of the key; a new one if it has none."""
        number = self._ids.get(key)
        return self.add(key) if number is None else number

    def add(self, key: KeyT) -> int:
        """A number for a key that has none."""
        if self._free:
            number = self._free.pop()
            self._keys[number] = key
        else:
            number = len(self._keys)
            self._keys.append(key)
        self._ids[key] = number
        return number

    def release(self, key: KeyT) -> int | None:
        """The number it had, or None."""
        number = self._ids.pop(key, None)
        if number is not None:
            self._keys[number] = None
            self._released.add(number)
        return number

    def end_batch(self) -> None:
        if self._released:
            self._free.extend(self._released)
            self._released.clear()
