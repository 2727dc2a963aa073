"""Names in the kernel, derived from ids: legal, short, the same after every restart.

nft takes letters, digits and ``_``; set names stay within the 31 characters of older kernels.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

TABLE = "calico"
FAMILY = "inet"

_ILLEGAL = re.compile(r"[^A-Za-z0-9]+")
_SET_ID = re.compile(r"[a-z]{3}-[0-9a-f]{16}")
_READABLE = 12


def digest(text: bytes, size: int = 5) -> str:
    return blake2b(text, digest_size=size).hexdigest()


@lru_cache(maxsize=65536)
def kernel_name(prefix: str, identity: str) -> str:
    """``prefix`` and the id itself when it is of the usual form of set ids; else a readable piece of its last part
    and a hash of all of it."""
    if _SET_ID.fullmatch(identity):
        return f"{prefix}_{identity.replace('-', '_')}"
    return f"{prefix}_{readable(identity.rpartition('/')[2], _READABLE)}_{digest(identity.encode())}"


def readable(text: str, length: int) -> str:
    """What of a text may stand in a name or a comment."""
    return _ILLEGAL.sub("_", text)[:length].strip("_")


def tag(rule: str) -> str:
    """What tells a rule from another: a hash of its text, kept in the kernel as the rule's comment."""
    return digest(rule.encode(), 6)
