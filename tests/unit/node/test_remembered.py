"""A node that starts and finds a datastore which knows nothing of what stands here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.node.remembered import RememberedInterfaces

if TYPE_CHECKING:
    from pathlib import Path

NAMES = frozenset(f"cali{number}" for number in range(10))


def remember(path: Path, names: frozenset[str] = NAMES) -> RememberedInterfaces:
    RememberedInterfaces(path).save(names, 100.0)
    return RememberedInterfaces(path, confirm_after_s=300)


def test_a_store_without_what_stands_here_waits(tmp_path: Path) -> None:
    remembered = remember(tmp_path / "interfaces.json")
    reason = remembered.missing(frozenset(), NAMES.__contains__, 200.0)
    assert reason == "the datastore knows nothing of 10 of 10 workload interfaces that stand here"
    assert remembered.next_look(200.0) is not None
    assert remembered.missing(NAMES, NAMES.__contains__, 201.0) == ""
    assert remembered.next_look(201.0) is None


def test_interfaces_that_are_gone_are_no_loss(tmp_path: Path) -> None:
    assert remember(tmp_path / "interfaces.json").missing(frozenset(), frozenset().__contains__, 200.0) == ""


def test_a_few_may_have_gone_meanwhile(tmp_path: Path) -> None:
    remembered = remember(tmp_path / "interfaces.json")
    assert remembered.missing(frozenset(sorted(NAMES)[5:]), NAMES.__contains__, 200.0) == ""


def test_time_and_people_end_the_wait(tmp_path: Path) -> None:
    remembered = remember(tmp_path / "interfaces.json")
    assert remembered.missing(frozenset(), NAMES.__contains__, 200.0) != ""
    assert remembered.missing(frozenset(), NAMES.__contains__, 499.0) != ""
    assert remembered.missing(frozenset(), NAMES.__contains__, 500.0) == ""
    remembered = RememberedInterfaces(tmp_path / "interfaces.json")
    assert remembered.missing(frozenset(), NAMES.__contains__, 200.0) != ""
    remembered.forget()
    assert remembered.missing(frozenset(), NAMES.__contains__, 200.0) == ""


def test_what_is_no_memory_of_ours_is_none(tmp_path: Path) -> None:
    for content in (b"", b"{}", b"[1]", b"\xff"):
        (tmp_path / "interfaces.json").write_bytes(content)
        assert RememberedInterfaces(tmp_path / "interfaces.json").missing(frozenset(), lambda _: True, 0.0) == ""


def test_it_is_not_written_at_every_change(tmp_path: Path) -> None:
    path = tmp_path / "interfaces.json"
    remembered = RememberedInterfaces(path)
    remembered.save(NAMES, 100.0)
    first = path.read_bytes()
    remembered.save(frozenset({"cali99"}), 101.0)
    assert path.read_bytes() == first
    remembered.save(frozenset({"cali99"}), 111.0)
    assert path.read_bytes() == b'["cali99"]'
