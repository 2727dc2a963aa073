"""The table the kernel shall hold, whose its parts are, and what was touched since the last look. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calico_core.dataplane.reconcile import Chain, NamedSet, Table


class Desired:
    """One thread. ``owners``: the subject a chain or set belongs to, as reports name it; empty for the fixed part.
    ``dirty``: names to compare with the kernel; whoever hands them out empties it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.owners: dict[str, str] = {}
        self.dirty: set[str] = set()

    def put_chain(self, name: str, chain: Chain, subject: str = "") -> None:
        self.table.chains[name] = chain
        self.owners[name] = subject
        self.dirty.add(name)

    def drop_chain(self, name: str) -> None:
        self.table.chains.pop(name, None)
        self.owners.pop(name, None)
        self.dirty.add(name)

    def put_set(self, name: str, named_set: NamedSet, subject: str = "") -> None:
        self.table.sets[name] = named_set
        self.owners[name] = subject
        self.dirty.add(name)

    def drop_set(self, name: str) -> None:
        self.table.sets.pop(name, None)
        self.owners.pop(name, None)
        self.dirty.add(name)
