"""What the nftables driver counts for metrics. Source: felix specification 9."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.nftables.elements import KINDS, NFT_SET_MAP
from calico_core.interfaces.dataplane import Figure

if TYPE_CHECKING:
    from calico_core.dataplane.reconcile import Table


class NftCounts:
    """Written by the engine's thread, read by any. A transaction with elements of sets counts among ``sets`` too."""

    def __init__(self) -> None:
        self.calls = self.errors = 0
        self.list_calls = self.list_errors = 0
        self.set_calls = self.set_errors = 0

    def note(self, *, has_elements: bool) -> None:
        """A transaction."""
        self.calls += 1
        self.set_calls += has_elements

    def note_refusal(self, *, has_elements: bool) -> None:
        self.errors += 1
        self.set_errors += has_elements

    def figures(self, table: Table) -> tuple[Figure, ...]:
        """With the sizes of what is wanted. ``list`` copies at once what the engine may change meanwhile."""
        chains, sets = list(table.chains.values()), list(table.sets.values())
        maps = sum(bool(KINDS[each.kind].flags & NFT_SET_MAP) for each in sets if each.kind in KINDS)
        return (
            Figure("nft_calls", self.calls),
            Figure("nft_errors", self.errors),
            Figure("nft_list_calls", self.list_calls),
            Figure("nft_list_errors", self.list_errors),
            Figure("nft_set_calls", self.set_calls),
            Figure("nft_set_errors", self.set_errors),
            Figure("nft_chains", len(chains)),
            Figure("nft_rules", sum(len(each.tags) for each in chains)),
            Figure("nft_maps", maps),
            Figure("nft_sets", len(sets) - maps),
            Figure("ipsets_total", len(sets) - maps),
        )
