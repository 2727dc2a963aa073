"""What the kernel shall hold: chains by family and table, and sets; whose each is, and what was touched. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.reconcile import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calico_core.dataplane.reconcile import Chain, NamedSet

    TableId = tuple[int, str]


class Touched(msgspec.Struct, frozen=True):
    """Names to compare: chains by family and table, and sets."""

    chains: Mapping[TableId, frozenset[str]]
    sets: frozenset[str]


class Desired:
    """One thread."""

    def __init__(self) -> None:
        self.tables: dict[TableId, Table] = {}
        self.sets = Table()
        self._owners: dict[str, str] = {}
        self._dirty: defaultdict[TableId, set[str]] = defaultdict(set)
        self._dirty_sets: set[str] = set()

    def put_chain(self, where: TableId, name: str, chain: Chain, subject: str = "") -> None:
        self.tables[where].chains[name] = chain
        self._owners[name] = subject
        self._dirty[where].add(name)

    def drop_chain(self, where: TableId, name: str) -> None:
        self.tables[where].chains.pop(name, None)
        self._owners.pop(name, None)
        self._dirty[where].add(name)

    def put_set(self, name: str, wanted: NamedSet, subject: str) -> None:
        self.sets.sets[name] = wanted
        self._owners[name] = subject
        self._dirty_sets.add(name)

    def drop_set(self, name: str) -> None:
        self.sets.sets.pop(name, None)
        self._owners.pop(name, None)
        self._dirty_sets.add(name)

    def take_touched(self) -> Touched:
        """What was touched since the last time."""
        chains = {where: frozenset(names) for where, names in self._dirty.items()}
        touched = Touched(chains, frozenset(self._dirty_sets))
        self._dirty.clear()
        self._dirty_sets.clear()
        return touched

    def subject_of(self, name: str) -> str:
        """What a chain or a set belongs to; empty for the fixed part."""
        return self._owners.get(name, "")
