"""The log by a real syslog daemon, busybox's, behind a /dev/log of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs_root

# In a mount namespace of its own: neither the daemon's socket nor the directory is seen by anybody else.
_SCRIPT = """
set -e
mkdir dev
mount -t tmpfs none dev
cp -a /dev/null /dev/urandom dev/
mount --bind dev /dev
busybox syslogd -n -O messages &
daemon=$!
trap 'kill $daemon' EXIT
tries=0
until [ -S /dev/log ]; do tries=$((tries + 1)); [ $tries -lt 200 ]; sleep 0.05; done
"$PYTHON" -c "$PROGRAM"
tries=0
until grep -q event.last messages; do tries=$((tries + 1)); [ $tries -lt 200 ]; sleep 0.05; done
"""
_PROGRAM = """
import os
from calico_core import log
from calico_core.node.log_targets import LogTargets
from calico_core.settings import load_settings
targets = LogTargets()
targets.follow(load_settings(os.environ))
events = log.get_logger("calico_core.test")
events.debug("event.unheard")
events.info("event.first", why="two words")
events.warning("event.second")
events.critical("event.last")
targets.close()
assert (targets.counts.errors, targets.counts.dropped) == (0, 0)
"""


@pytest.mark.skipif(shutil.which("busybox") is None, reason="there is no busybox, whose syslogd this needs")
def test_a_daemon_gets_what_the_settings_say_with_its_severity(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHON": sys.executable,
        "PROGRAM": _PROGRAM,
        "FELIX_LOGSEVERITYSYS": "info",
        "FELIX_LOGSEVERITYSCREEN": "none",
    }
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _SCRIPT],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = [line for line in (tmp_path / "messages").read_text().splitlines() if "calico-node[" in line]
    told = [(line.split(" calico-node[")[0].split()[-1], line.partition("]: ")[2]) for line in lines]
    assert told == [
        ("daemon.info", "info event.first why='two words'"),
        ("daemon.warn", "warning event.second"),
        ("daemon.crit", "critical event.last"),
    ]
