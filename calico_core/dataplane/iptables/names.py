"""Names in the kernel, derived from ids: legal, short, the same after every restart.

A chain's name has at most 28 characters (XT_EXTENSION_MAXNAMELEN), a set's 31 (IPSET_MAXNAMELEN). All of ours start
with ``calico-``; nothing else of ours is in the kernel but rules that jump to such chains.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

PREFIX = "calico-"
FILTER, RAW, MANGLE, NAT = "filter", "raw", "mangle", "nat"
CHAIN_LENGTH, SET_LENGTH = 28, 31
#: In place of a set while it is written anew.
SCRATCH = "calico-tmp-"
#: Chains of what an interface may send from.
SOURCE_CHAIN = "calico-sp-"
#: From floating addresses to those of workloads.
FLOATING_CHAIN = "calico-fip-dnat"

_ILLEGAL = re.compile(r"[^A-Za-z0-9]+")
_LEGAL = re.compile(r"[A-Za-z0-9_-]+")
_DIGITS = 12


def digest(text: str | bytes, digits: int = _DIGITS) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return blake2b(raw, digest_size=digits // 2).hexdigest()


@lru_cache(maxsize=65536)
def rules_chain_name(rules_id: str, direction: str) -> str:
    """``direction`` is ``inbound`` (towards the endpoint) or ``outbound``."""
    return _hashed("calico-pi-" if direction == "inbound" else "calico-po-", rules_id, CHAIN_LENGTH)


def list_chain_name(content: bytes, letters: str) -> str:
    """``letters`` tell what the list is for; equal lists for the same are one chain."""
    return f"{PREFIX}{letters}-{digest(content, 16)}"


def source_chain_name(interface: str) -> str:
    """What the interface may send from."""
    return SOURCE_CHAIN + interface


def set_prefix(kind: str) -> str:
    return f"{PREFIX}{kind[-1]}{kind[0]}-"


@lru_cache(maxsize=65536)
def set_name(kind: str, identity: str) -> str:
    """``kind`` as of :mod:`ipsets`: ``hosts4``, ``nets6`` …"""
    prefix = set_prefix(kind)
    if len(prefix) + len(identity) <= SET_LENGTH and _LEGAL.fullmatch(identity):
        return prefix + identity
    return _hashed(prefix, identity, SET_LENGTH)


def scratch_name(name: str) -> str:
    return SCRATCH + digest(name)


def readable(text: str, length: int) -> str:
    """What of a text may stand in a name or a comment."""
    return _ILLEGAL.sub("_", text)[:length].strip("_")


@lru_cache(maxsize=65536)
def tag(rule: str) -> str:
    """What tells a rule from another: a hash of its text, kept in the kernel in the rule's comment."""
    return digest(rule)


def _hashed(prefix: str, identity: str, length: int) -> str:
    """A readable piece of the identity's last part and a hash of all of it."""
    room = length - len(prefix) - _DIGITS - 1
    return f"{prefix}{readable(identity.rpartition('/')[2], room)}_{digest(identity)}"
