"""Every benchmark is found in both ways to start it. What it measures is not asked here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted(path.relative_to(ROOT) for path in ROOT.glob("tests/benchmarks/bench_*.py"))


def test_they_are_there() -> None:
    assert len(FILES) >= 9


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_starts_as_a_module(file: Path) -> None:
    said = help_of(file, "-m", ".".join(file.with_suffix("").parts))
    assert f"usage: {file.name}" in said


def test_it_starts_as_a_file() -> None:
    """One stands for all: they import what they share by the same names."""
    said = help_of(FILES[0], str(FILES[0]))
    assert f"usage: {FILES[0].name}" in said


def help_of(file: Path, *how: str) -> str:
    done = subprocess.run([sys.executable, *how, "--help"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{file}: {done.stderr}"
    return done.stdout
