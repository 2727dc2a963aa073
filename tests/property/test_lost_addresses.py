"""What a plan takes from interfaces, against the whole of what they had and shall have."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given

from calico_core.dataplane.nftables.builder import TableBuilder
from calico_core.dataplane.nftables.lost_addresses import lost_addresses
from calico_core.dataplane.reconcile import Table, rebuild, reconcile
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.hoststate import HostState
from tests.doubles.host_states import host_states
from tests.property.test_nftables_table import unhurried

OPTIONS = DataplaneOptions()


def _holdings(table: Table) -> Iterator[tuple[int, object, int]]:
    """Family, holder and address: of an interface its own, of an internal address a floating one."""
    for name, each in table.sets.items():
        family = 6 if name.endswith("6") else 4
        if name.startswith(("src_any", "src_mac")):
            yield from ((family, element[0], element[-1]) for element in each.elements)
        elif name in {"nat4", "nat6"}:
            yield from ((family, element[1], element[0]) for element in each.elements)


@unhurried
@given(host_states(), host_states())
def test_lost_is_what_was_held_and_is_not_to_be(before: HostState, after: HostState) -> None:
    observed = TableBuilder.of(OPTIONS, before).table
    wanted = TableBuilder.of(OPTIONS, after)
    gone = set(_holdings(observed)) - set(_holdings(wanted.table))
    expected = {(family, address) for family, _, address in gone}
    assert lost_addresses(reconcile(wanted.table, observed), wanted, observed) == expected
    assert lost_addresses(rebuild(wanted.table), wanted, observed) == expected
