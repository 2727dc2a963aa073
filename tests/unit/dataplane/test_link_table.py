"""Links as their events have them: what is newer wins, whichever way it came."""

from __future__ import annotations

import pytest

from calico_core.dataplane.linux.link_messages import IFF_UP, Link
from calico_core.dataplane.linux.link_table import LinkTable


def link(index: int, name: str, *, is_up: bool = False) -> Link:
    return Link(index=index, name=name, flags=IFF_UP if is_up else 0)


@pytest.fixture
def table() -> LinkTable:
    return LinkTable()


def test_what_events_told_is_newer_than_a_listing_that_began_after_them(table: LinkTable) -> None:
    table.put(link(3, "cali3", is_up=True))
    table.put(link(4, "cali4"))
    table.remove(4)
    assert not table.is_filled
    table.fill([link(2, "eth0"), link(3, "cali3"), link(4, "cali4")])
    assert table.is_filled
    assert table.find(["eth0", "cali3", "cali4"]) == {"eth0": link(2, "eth0"), "cali3": link(3, "cali3", is_up=True)}


def test_a_name_goes_with_its_link_or_to_another(table: LinkTable) -> None:
    table.fill([link(3, "cali3"), link(4, "cali4")])
    table.put(link(3, "old3"))
    table.put(link(5, "cali3"))
    table.remove(3)
    table.remove(4)
    table.remove(9)
    assert table.find(["cali3", "old3", "cali4"]) == {"cali3": link(5, "cali3")}


def test_a_name_given_anew_stays_when_the_one_before_is_told_to_go(table: LinkTable) -> None:
    table.fill([link(3, "cali3")])
    table.put(link(7, "cali3"))
    table.remove(3)
    assert table.find(["cali3"]) == {"cali3": link(7, "cali3")}


def test_nothing_is_known_after_a_loss_until_it_is_filled_again(table: LinkTable) -> None:
    table.fill([link(3, "cali3")])
    table.lose()
    table.remove(3)
    assert not table.is_filled
    table.fill([link(3, "cali3"), link(4, "cali4")])
    assert table.find(["cali3", "cali4"]) == {"cali4": link(4, "cali4")}
