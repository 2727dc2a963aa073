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
        #: By table and root: what was put last, and the rules of each chain, as they were put.
        self._inputs: dict[tuple[TableId, str], tuple[str, Mapping[str, str], Sequence[str]]] = {}
        self._standing: dict[tuple[TableId, str], dict[str, list[str]]] = {}

    def put(self, where: TableId, root: str, option: str, targets: Mapping[str, str], miss: Sequence[str]) -> None:
        """The caller leaves ``targets`` and ``miss`` as they are afterwards."""
        inputs = (option, targets, miss)
        if self._inputs.get((where, root)) == inputs:
            return
        self._inputs[where, root] = inputs
        chains = tree(root, option, targets, miss)
        standing = self._standing.get((where, root), {})
        for name, rules in chains.items():
            if standing.get(name) != rules:
                self._desired.put_chain(where, name, chain(rules))
        for name in standing.keys() - chains.keys():
            self._desired.drop_chain(where, name)
        self._standing[where, root] = chains

    def drop(self, where: TableId, root: str) -> None:
        self._inputs.pop((where, root), None)
        for name in self._standing.pop((where, root), {}):
            self._desired.drop_chain(where, name)
