"""One node a run directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from calico_core.errors import InvalidSettings

_FILE = "node.lock"


def open_lock(run_directory: str, origin: str = "default") -> IO[str]:
    """The lock file, not yet locked. For root alone: who may read it may lock it, and keep a node from starting.
    Raises ``InvalidSettings`` with the reason."""
    path = Path(run_directory, _FILE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+")
        os.fchmod(lock.fileno(), 0o600)  # one of an earlier version
    except OSError as error:
        raise InvalidSettings("run_directory", origin, f"{path} cannot be opened: {error.strerror}") from error
    return lock


def take_run_directory(run_directory: str, origin: str = "default") -> IO[str]:
    """The open lock file; the lock goes with the process. Raises ``InvalidSettings`` that names the holder."""
    lock = open_lock(run_directory, origin)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = lock.read().strip() or "another process"
        lock.close()
        reason = f"{run_directory} is in use by a running node ({holder})"
        raise InvalidSettings("run_directory", origin, reason) from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()}\n")
    lock.flush()
    return lock
