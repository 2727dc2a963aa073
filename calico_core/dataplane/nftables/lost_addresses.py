"""Whose connections a plan ends: addresses that stop being somebody's. Pure.

What a plan takes out is judged by itself, so that the cost is that of the change and not of the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from calico_core.dataplane.nftables.builder import TableBuilder
    from calico_core.dataplane.reconcile import Plan, Table

#: Who has which address: an interface its own, an internal address a floating one.
_ADDRESS_SETS = {
    "src_any4": "source4", "src_mac4": "source_mac4", "nat4": "nat4",
    "src_any6": "source6", "src_mac6": "source_mac6", "nat6": "nat6",
}  # fmt: skip


def lost_addresses(plan: Plan, builder: TableBuilder, observed: Table | None) -> frozenset[tuple[int, int]]:
    """Addresses that an interface may no longer send from, or that no longer lead to it: their connections are to be
    cut."""
    if observed is None:
        return frozenset()
    lost: set[tuple[int, int]] = set()
    for name in _ADDRESS_SETS if plan.is_rebuild else (*plan.removed_sets, *plan.removed_elements):
        kind, found = _ADDRESS_SETS.get(name), observed.sets.get(name)
        if found is None or found.kind != kind:
            continue
        is_gone = plan.is_rebuild or name in plan.removed_sets
        elements: Iterable[Any] = found.elements if is_gone else plan.removed_elements.get(name, ())
        for element in elements:
            if not builder.keeps(name, element):
                lost.add((6 if name.endswith("6") else 4, element[0 if name.startswith("nat") else -1]))
    return frozenset(lost)
