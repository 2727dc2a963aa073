"""What a command gives back to the integration."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """``steps``: name and milliseconds, for the log line and the trace."""

    stdout: bytes = b""
    stderr: bytes = b""
    steps: tuple[tuple[str, float], ...] = ()
