"""A slice of the torture campaign; the long one is recorded in docs/reference/campaigns.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "options",
    [
        ("--store", "sqlite", "--operations", "4000", "--kill-one-in", "400", "--trouble-every-s", "0.5"),
        ("--store", "sqlite", "--operations", "1500", "--kill-one-in", "400", "--cooldown-s", "1"),
        ("--store", "etcd", "--operations", "3000", "--kill-one-in", "500", "--trouble-every-s", "1"),
    ],
    ids=["sqlite", "cooldown", "etcd"],
)
def test_no_address_is_given_twice_and_none_is_lost(options: tuple[str, ...]) -> None:
    """A process of its own: it forks writers, which a process that has used the etcd client must not."""
    if "etcd" in options and shutil.which("etcd") is None:
        pytest.skip("the etcd binary is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns.torture", "--seed", "5", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    asked = int(options[3])
    operations = int(lines[-1].split()[0])
    assert lines[-1] == f"{operations} operations, 0 duplicates, 0 leaks"
    assert operations >= asked
    assert json.loads(lines[-2])["writer_kills"] > 0, "nobody was killed: this slice shows nothing"
