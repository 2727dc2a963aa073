"""Ports of loopback for a daemon that a test starts."""

from __future__ import annotations

import random
import socket

# Below the range that the kernel takes ports of clients from: between the choice and the daemon's start, or while the
# daemon is down for a moment, no connection of anybody can come to stand on one of them.
_RANGE = range(20_000, 32_000)
_random = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Different ones, which nobody listens on now."""
    found: list[int] = []
    for port in _random.sample(_RANGE, len(_RANGE)):
        if len(found) == count:
            break
        if _is_free(port):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
