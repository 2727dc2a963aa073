"""A node that starts and finds a datastore which knows nothing of what stands here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from calico_core.node.remembered import Remembered

if TYPE_CHECKING:
    from pathlib import Path

NAMES = frozenset(f"cali{number}" for number in range(10))
RECORDS = {"policies": 20, "host endpoints": 1}


def remember(path: Path, names: frozenset[str] = NAMES, records: dict[str, int] = RECORDS) -> Remembered:
    Remembered(path).save(names, records, 100.0)
    return Remembered(path, confirm_after_s=300)


def test_a_store_without_what_stands_here_waits(tmp_path: Path) -> None:
    remembered = remember(tmp_path / "interfaces.json")
    reason = remembered.missing(frozenset(), RECORDS, NAMES.__contains__, 200.0)
    assert reason == "the datastore knows nothing of 10 of 10 workload interfaces that stand here"
    assert remembered.next_look(200.0) is not None
    assert remembered.missing(NAMES, RECORDS, NAMES.__contains__, 201.0) == ""
    assert remembered.next_look(201.0) is None


def test_interfaces_that_are_gone_are_no_loss(tmp_path: Path) -> None:
    remembered = remember(tmp_path / "interfaces.json")
    assert remembered.missing(frozenset(), RECORDS, frozenset().__contains__, 200.0) == ""


def test_a_few_may_have_gone_meanwhile(tmp_path: Path) -> None:
    remembered = remember(tmp_path / "interfaces.json")
    known = frozenset(sorted(NAMES)[5:])
    assert remembered.missing(known, {"policies": 10}, NAMES.__contains__, 200.0) == ""


def test_a_store_that_lost_most_records_of_a_kind_waits(tmp_path: Path) -> None:
    remembered = remember(tmp_path / "interfaces.json")
    reason = remembered.missing(NAMES, {"policies": 9, "pools": 30}, NAMES.__contains__, 200.0)
    assert reason == "the datastore lost 11 of 20 policies that were in force here"
    assert remembered.missing(NAMES, {"policies": 10}, NAMES.__contains__, 201.0) == ""


def test_after_a_boot_the_kernel_has_nothing_to_keep(tmp_path: Path) -> None:
    remember(tmp_path / "interfaces.json")
    (tmp_path / "boot_id").write_text("another")
    remembered = Remembered(tmp_path / "interfaces.json", boot_id=tmp_path / "boot_id")
    assert remembered.missing(frozenset(), {}, frozenset().__contains__, 200.0) == ""
    assert remembered.lost(0, {}) == ""


def test_time_and_people_end_the_wait(tmp_path: Path) -> None:
    for known in (frozenset[str](), NAMES):
        remembered = remember(tmp_path / "interfaces.json")
        assert remembered.missing(known, {}, NAMES.__contains__, 200.0) != ""
        assert remembered.missing(known, {}, NAMES.__contains__, 499.0) != ""
        assert remembered.missing(known, {}, NAMES.__contains__, 500.0) == ""
        remembered = remember(tmp_path / "interfaces.json")
        assert remembered.missing(known, {}, NAMES.__contains__, 200.0) != ""
        remembered.forget()
        assert remembered.missing(known, {}, NAMES.__contains__, 200.0) == ""


def test_what_was_confirmed_is_not_asked_again_in_the_next_life(tmp_path: Path) -> None:
    """This one may end before it has saved anything, as for settings that it is to start anew for."""
    path = tmp_path / "interfaces.json"
    remembered = remember(path)
    assert remembered.missing(frozenset(), {}, NAMES.__contains__, 200.0) != ""
    remembered.forget()
    remembered.forget()
    assert Remembered(path).missing(frozenset(), {}, NAMES.__contains__, 201.0) == ""
    remembered = remember(path)
    assert remembered.missing(frozenset(), {}, NAMES.__contains__, 200.0) != ""
    assert remembered.missing(frozenset(), {}, NAMES.__contains__, 500.0) == ""
    assert Remembered(path).missing(frozenset(), {}, NAMES.__contains__, 501.0) == ""


def test_what_is_in_force_is_remembered_at_once_after_a_confirmation(tmp_path: Path) -> None:
    path = tmp_path / "interfaces.json"
    remembered = Remembered(path)
    remembered.save(NAMES, RECORDS, 100.0)
    remembered.forget()
    remembered.save(NAMES, RECORDS, 100.1)
    assert saved(path) == (sorted(NAMES), RECORDS)


def test_a_memory_that_cannot_be_removed_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "interfaces.json"
    path.mkdir()
    Remembered(path).forget()
    assert "remembered.not_forgotten" in caplog.messages


def test_of_a_store_that_is_not_ready_the_smallest_loss_counts(tmp_path: Path) -> None:
    assert Remembered(tmp_path / "interfaces.json").lost(0, {}) == ""
    remembered = remember(tmp_path / "interfaces.json", frozenset({"cali1"}), {"policies": 2})
    assert remembered.lost(0, {}) == "0 of 1 local endpoints that were in force here"
    assert remembered.lost(1, {}) == "0 of 2 policies that were in force here"
    assert remembered.lost(1, {"policies": 1}) == ""


def test_what_is_no_memory_of_ours_is_none(tmp_path: Path) -> None:
    for content in (b"", b"{}", b"[1]", b"\xff"):
        (tmp_path / "interfaces.json").write_bytes(content)
        assert Remembered(tmp_path / "interfaces.json").missing(frozenset(), {}, lambda _: True, 0.0) == ""


def test_the_memory_of_an_older_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "interfaces.json").write_bytes(b'["cali1","cali2","cali3","cali4"]')
    assert "4 of 4" in Remembered(tmp_path / "interfaces.json").missing(frozenset(), {}, lambda _: True, 0.0)


def saved(path: Path) -> tuple[list[str], dict[str, int]]:
    found = json.loads(path.read_bytes())
    return sorted(found["interfaces"]), found["records"]


def test_it_is_not_written_at_every_change(tmp_path: Path) -> None:
    path = tmp_path / "interfaces.json"
    remembered = Remembered(path)
    remembered.save(NAMES, RECORDS, 100.0)
    first = path.read_bytes()
    remembered.save(frozenset({"cali99"}), RECORDS, 101.0)
    assert path.read_bytes() == first
    assert remembered.next_look(101.0) == 110.0
    remembered.save(frozenset({"cali99"}), RECORDS, 111.0)
    assert saved(path) == (["cali99"], RECORDS)
    assert remembered.next_look(111.0) is None


def test_what_was_meant_to_go_is_forgotten_soon(tmp_path: Path) -> None:
    """A start shortly afterwards does not ask."""
    path = tmp_path / "interfaces.json"
    remembered = Remembered(path)
    remembered.save(NAMES, RECORDS, 100.0)
    remembered.save(NAMES, {"policies": 2}, 100.5)
    assert remembered.next_look(100.5) == 101.0
    remembered.save(NAMES, {"policies": 2}, 101.0)
    assert saved(path)[1] == {"policies": 2}
    remembered.save(NAMES, {"policies": 1}, 101.1, is_last=True)
    assert saved(path)[1] == {"policies": 1}
