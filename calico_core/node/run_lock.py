"""One node a run directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from calico_core.errors import InvalidSettings


def take_run_directory(run_directory: str) -> IO[str]:
    """The open lock file; the lock goes with the process. Raises ``InvalidSettings`` that names the holder."""
    directory = Path(run_directory)
    directory.mkdir(parents=True, exist_ok=True)
    lock: IO[str] = open(directory / "node.lock", "a+")  # noqa: SIM115 - held until the end
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise InvalidSettings("run_directory", "lock", f"{directory} is in use by a running node ({holder})") from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()}\n")
    lock.flush()
    return lock
