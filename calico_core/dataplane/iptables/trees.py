"""Trees of dispatch among the desired chains: written anew as a whole, touched where they differ. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.iptables.dispatch import tree
from calico_core.dataplane.iptables.layout import chain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calico_core.dataplane.iptables.desired import Desired

    TableId = tuple[int, str]


class Trees:
    """One thread."""

    def __init__(self, desired: Desired) -> None:
        self._desired = desired
        self._standing: dict[tuple[TableId, str], frozenset[str]] = {}

    def put(self, where: TableId, root: str, option: str, targets: Mapping[str, str], miss: Sequence[str]) -> None:
        chains = tree(root, option, targets, miss)
        standing = self._desired.tables[where].chains
        for name, rules in chains.items():
            wanted = chain(rules)
            if standing.get(name) != wanted:
                self._desired.put_chain(where, name, wanted)
        for name in self._standing.get((where, root), frozenset()) - chains.keys():
            self._desired.drop_chain(where, name)
        self._standing[where, root] = frozenset(chains)

    def drop(self, where: TableId, root: str) -> None:
        for name in self._standing.pop((where, root), frozenset()):
            self._desired.drop_chain(where, name)
