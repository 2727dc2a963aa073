"""The kernel's instructions of an nftables rule, as attributes. Source: linux/netfilter/nf_tables.h.

Only those that :mod:`rule_messages` needs, written the way libnftables writes them: the same rule by either reads
back as the same bytes.
"""

from __future__ import annotations

import struct

from calico_core.dataplane.linux.netlink import attribute, nested, text

NFPROTO_KEY, L4PROTO_KEY, MARK_KEY = 15, 16, 3
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
EQUAL, NOT_EQUAL, AT_MOST, AT_LEAST = 0, 1, 3, 5
DROP, ACCEPT, JUMP, GOTO, RETURN = 0, 1, 0xFFFFFFFD, 0xFFFFFFFC, 0xFFFFFFFB

#: The register that holds a whole key; its second and later words are registers of their own.
REGISTER = 1
_FIRST_WORD = 8
_VERDICT_REGISTER = 0
_LOOKUP_INVERTED = 1
_REJECT_ICMPX = 2
_LIST_ELEMENT = 1
_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")


def word_register(offset_bytes: int) -> int:
    """The register for the part of a key that starts there."""
    return _FIRST_WORD + offset_bytes // 4 if offset_bytes else REGISTER


def load_meta(key: int, register: int = REGISTER) -> bytes:
    return _expression("meta", _u32(2, key), _u32(1, register))


def store_mark() -> bytes:
    return _expression("meta", _u32(2, MARK_KEY), _u32(3, REGISTER))


def load_payload(base: int, offset: int, length: int, register: int = REGISTER) -> bytes:
    return _expression("payload", _u32(1, register), _u32(2, base), _u32(3, offset), _u32(4, length))


def compare(operator: int, value: bytes) -> bytes:
    return _expression("cmp", _u32(1, REGISTER), _u32(2, operator), _value(3, value))


def outside(first: bytes, last: bytes) -> bytes:
    return _expression("range", _u32(1, REGISTER), _u32(2, NOT_EQUAL), _value(3, first), _value(4, last))


def lookup(name: str, *, is_inverted: bool) -> bytes:
    flags = _LOOKUP_INVERTED if is_inverted else 0
    return _expression("lookup", text(1, name), _u32(2, REGISTER), _u32(5, flags))


def mask(kept: bytes, flipped: bytes) -> bytes:
    """Register AND ``kept``, XOR ``flipped``."""
    parts = (_u32(1, REGISTER), _u32(2, REGISTER), _u32(3, len(kept)), _u32(6, 0))
    return _expression("bitwise", *parts, _value(4, kept), _value(5, flipped))


def counter() -> bytes:
    return _expression("counter", attribute(1, bytes(8)), attribute(2, bytes(8)))


def verdict(code: int, chain: str = "") -> bytes:
    parts = (_u32(1, code), text(2, chain)) if chain else (_u32(1, code),)
    return _expression("immediate", _u32(1, _VERDICT_REGISTER), nested(2, nested(2, *parts)))


def limit(packets: int, seconds: int, burst: int) -> bytes:
    """So many packets in so many seconds."""
    rate = (attribute(1, _U64.pack(packets)), attribute(2, _U64.pack(seconds)))
    return _expression("limit", *rate, _u32(3, burst), _u32(4, 0), _u32(5, 0))


def log_to_kernel(prefix: str, level: int) -> bytes:
    return _expression("log", text(2, prefix), _u32(5, level))


def log_to_group(prefix: str, group: int, snaplen_bytes: int) -> bytes:
    return _expression("log", text(2, prefix), attribute(1, _U16.pack(group)), _u32(3, snaplen_bytes))


def reject_icmpx(code: int) -> bytes:
    return _expression("reject", _u32(1, _REJECT_ICMPX), attribute(2, bytes((code,))))


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(_LIST_ELEMENT, text(1, name), nested(2, *parts))


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(1, value))


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))
