"""A lock on a file, which every process that opens it may hold; it goes with the process. Source: flock(2)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from calico_core.errors import NotReady

MODE = 0o600
_PAUSE_S = 0.05


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float, reason: str) -> Iterator[None]:
    """Alone. The file is made where there is none.

    :raises NotReady: with ``reason``, when others hold it for longer; :raises OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
    try:
        deadline = time.monotonic() + timeout_s
        while not _try(descriptor):
            if time.monotonic() >= deadline:
                raise NotReady(reason)
            time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
