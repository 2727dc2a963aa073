"""What becomes of a denied packet, and what its log prefix stands for. Pure.

Kernel prefixes are short, the names of policies are not. A driver writes ``calico-denied:<digest>`` beside each drop
and keeps what the digest stands for. The digest depends on the origin alone, so a restarted node reads the prefixes of
the rules that it finds.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from calico_core.interfaces.dataplane import DataplaneOptions, DenialOrigin

PREFIX = "calico-denied:"
#: What a rule tells of at most; more would only be lost on the way.
DENIED_PACKETS_A_SECOND, DENIED_BURST = 100, 100
#: So much of a packet is told: the longest IPv4 header, or an IPv6 header with extensions, and the ports.
SNAPSHOT_BYTES = 128
_DIGEST_BYTES = 8
_SWITCHED_OFF = "POLICY IS SWITCHED OFF"


class Denial(NamedTuple):
    """In this order: written to the kernel's log, told to the group of those who listen, ended."""

    is_logged: bool
    is_told: bool
    verdict: Literal["accept", "drop", "reject"]

    def comment(self, note: str) -> str:
        """What the rule that ends it says to people."""
        if self.verdict != "accept":
            return note
        return f"{_SWITCHED_OFF}: {note}" if note else _SWITCHED_OFF


def denial(options: DataplaneOptions, *, is_reject: bool) -> Denial:
    """How the host's options want what policy denies. ``is_reject``: by a rule that answers the sender. With a
    ``drop_override`` that switches policy off it is no denial, and nobody is told of one."""
    is_off = options.drop_override.endswith("ACCEPT")
    answers = is_reject or options.deny_action == "REJECT"
    return Denial(
        is_logged=options.drop_override.startswith("LOG-"),
        is_told=bool(options.denied_group) and not is_off,
        verdict="accept" if is_off else "reject" if answers else "drop",
    )


class Marks(NamedTuple):
    """The bits of a packet's mark that policy sets: it is allowed, or passed on to the next tier."""

    accepted: int
    passed: int


def marks(mask: int) -> Marks:
    """The two lowest of the host's mask."""
    accepted = mask & -mask
    rest = mask ^ accepted
    return Marks(accepted, rest & -rest)


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
