"""The tables of scenarios name tests that exist, for every row; and say of a row without one that it is open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROWS = {"scenarios.md": 67, "scenarios-cni.md": 64}
"""Of the specifications of the host agent, chapter 13, and of CNI, chapter 9."""
_TEST = re.compile(r"`(tests/[^`]+)`")


class Row(NamedTuple):
    number: int
    tests: list[str]
    remarks: str


def rows(text: str) -> list[Row]:
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdigit():
            found.append(Row(int(cells[0]), _TEST.findall(cells[2]), cells[3]))
    return found


def page(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text()


def missing(name: str) -> str:
    """Empty: it exists. A test may be imported where it is named."""
    path, _, function = name.partition("::")
    file = ROOT / path
    if not file.is_file():
        return f"{path}: no such file"
    if function and not re.search(rf"^def {function}\(|^    {function},$", file.read_text(), re.MULTILINE):
        return f"{path}: no test {function}"
    return ""


@pytest.mark.parametrize("name", ROWS)
def test_every_scenario_has_its_row(name: str) -> None:
    assert [row.number for row in rows(page(name))] == list(range(1, ROWS[name] + 1))


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{name}-{row.number}") for name in ROWS for row in rows(page(name))]
)
def test_what_a_row_names_exists(row: Row) -> None:
    assert [fault for name in row.tests if (fault := missing(name))] == []
    assert row.tests or row.remarks.startswith("open"), "a row without a test must say so"


def test_what_does_not_exist_is_found() -> None:
    assert missing("tests/unit/docs/test_scenarios.py::test_nothing_of_the_kind")
    assert missing("tests/unit/docs/test_nowhere.py")
    assert not missing("tests/unit/docs/test_scenarios.py::test_every_scenario_has_its_row")
