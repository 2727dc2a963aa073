"""Numbers in texts that anybody may have written."""

from __future__ import annotations

_MOST_DIGITS = 10


def decimal(text: str) -> int | None:
    """What up to ten ASCII digits say; None for anything else. ``int`` takes other alphabets' digits too, and refuses
    thousands of digits with an error that nobody expects."""
    return int(text) if len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit() else None
