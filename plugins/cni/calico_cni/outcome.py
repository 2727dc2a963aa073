"""What a command gives back to the integration."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    stdout: bytes = b""
    stderr: bytes = b""
