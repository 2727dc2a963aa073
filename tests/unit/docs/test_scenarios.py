"""The table of scenarios names tests that exist, for every row; and says of a row without one that it is open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "reference" / "scenarios.md"
ROWS = range(1, 68)
"""Of the specification of the host agent, chapter 13."""
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


def missing(name: str) -> str:
    """Empty: it exists. A test may be imported where it is named."""
    path, _, function = name.partition("::")
    file = ROOT / path
    if not file.is_file():
        return f"{path}: no such file"
    if function and not re.search(rf"^def {function}\(|^    {function},$", file.read_text(), re.MULTILINE):
        return f"{path}: no test {function}"
    return ""


def test_every_scenario_has_its_row() -> None:
    assert [row.number for row in rows(PAGE.read_text())] == list(ROWS)


@pytest.mark.parametrize("row", rows(PAGE.read_text()), ids=lambda row: str(row.number))
def test_what_a_row_names_exists(row: Row) -> None:
    assert [fault for name in row.tests if (fault := missing(name))] == []
    assert row.tests or row.remarks.startswith("open"), "a row without a test must say so"


def test_what_does_not_exist_is_found() -> None:
    assert missing("tests/unit/docs/test_scenarios.py::test_nothing_of_the_kind")
    assert missing("tests/unit/docs/test_nowhere.py")
    assert not missing("tests/unit/docs/test_scenarios.py::test_every_scenario_has_its_row")
