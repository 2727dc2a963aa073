"""How much of the log was lost."""

from __future__ import annotations


class LogCounts:
    """What did not arrive since the start. Each is written under the lock of a handler, read by any thread."""

    def __init__(self) -> None:
        self.dropped = 0
        """The file or syslog was so slow that the queue was full."""
        self.errors = 0
        """It could not be written."""
