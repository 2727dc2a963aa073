"""What a denied packet's log prefix stands for: kernel prefixes are short, the names of policies are not.

A driver writes ``calico-denied:<digest>`` beside each drop and keeps what the digest stands for. The digest depends on
the origin alone, so a restarted node reads the prefixes of the rules that it finds.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from calico_core.interfaces.dataplane import DenialOrigin

PREFIX = "calico-denied:"
#: What a rule tells of at most; more would only be lost on the way.
DENIED_PACKETS_A_SECOND, DENIED_BURST = 100, 100
#: So much of a packet is told: the longest IPv4 header, or an IPv6 header with extensions, and the ports.
SNAPSHOT_BYTES = 128
_DIGEST_BYTES = 8


class Origins:
    """Written by the engine thread, read by any."""

    def __init__(self) -> None:
        self._by_prefix: dict[str, DenialOrigin] = {}

    def prefix(self, origin: DenialOrigin) -> str:
        """The prefix to log with, at most 30 characters; from now on :meth:`find` knows it."""
        digest = hashlib.blake2b(msgspec.json.encode(origin), digest_size=_DIGEST_BYTES).hexdigest()
        prefix = f"{PREFIX}{digest}"
        self._by_prefix[prefix] = origin
        return prefix

    def find(self, prefix: str) -> DenialOrigin | None:
        """None: not one of ours, or of a rule that is gone for long."""
        return self._by_prefix.get(prefix.strip().rstrip("\0"))
