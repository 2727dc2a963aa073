"""Reference pages that are read off the code are what the code says now."""

from __future__ import annotations

import runpy
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from calico_core.setting_fields import FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_every_generated_page_is_committed_as_it_would_be_written(generator: dict[str, Any]) -> None:
    pages: Callable[[], dict[str, str]] = generator["pages"]
    for name, text in pages().items():
        committed = (ROOT / "docs" / "reference" / name).read_text()
        assert committed == text, f"docs/reference/{name} is out of date: run python docs/generate.py"


def test_every_setting_is_explained_and_nothing_else(generator: dict[str, Any]) -> None:
    assert set(generator["MEANINGS"]) == {field.name for field in FIELDS}


def test_tables_have_as_many_cells_in_each_row(generator: dict[str, Any]) -> None:
    for name, text in generator["pages"]().items():
        lines = text.splitlines()
        for above, line in pairwise(lines):
            if above.startswith("|") and line.startswith("|"):
                cells = [each.replace("\\|", "").count("|") for each in (above, line)]
                assert cells[0] == cells[1], f"{name}: {line}"
