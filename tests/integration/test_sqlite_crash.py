"""A slice of the campaign in ``tests/campaigns/sqlite_crash.py``: every kind of write, killed in the middle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).parents[1] / "campaigns" / "sqlite_crash.py"
KILLS = 36
"""Three of each kind."""


def test_a_slice(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--kills", str(KILLS), "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{KILLS} kills, 0 torn, 0 lost, 0 extra"
    in_flight = sum(int(line.split()[4].rstrip(",")) for line in lines if "killed in flight" in line)
    assert in_flight > KILLS // 2, done.stdout  # else it tested nothing
    assert list(tmp_path.iterdir()) == []
