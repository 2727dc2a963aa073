"""Rules from nft text straight to the kernel's instructions, for the shapes that policies and lists of them have.

libnftables lists every chain and set before it compiles one rule, which on a host of thousands costs more than the
rest of a change. What is not known here (anonymous sets, hooks, translation) gives None, and libnftables takes it.
"""

from __future__ import annotations

import re
import socket
import sys
from functools import lru_cache

from calico_core.dataplane.linux.netlink import attribute, nested
from calico_core.dataplane.nftables import expressions as ex

_TOKEN = re.compile(r'"[^"]*"|\S+')
_NFPROTO = {"ipv4": 2, "ipv6": 10, "ip": 2, "ip6": 10}
_SOCKET_FAMILY = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}
#: (offset in the network header, length)
_ADDRESSES = {("ip", "saddr"): (12, 4), ("ip", "daddr"): (16, 4), ("ip6", "saddr"): (8, 16), ("ip6", "daddr"): (24, 16)}
_PORTS = {"sport": 0, "dport": 2}
_ICMP_PROTOCOL = {"icmp": 1, "icmpv6": 58}
_ICMP_FIELDS = {"type": 0, "code": 1}
_VERDICTS = {"accept": ex.ACCEPT, "drop": ex.DROP, "return": ex.RETURN}
_LEADS = {"jump": ex.JUMP, "goto": ex.GOTO}
_LEVELS = {"notice": 5}
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_ADMIN_PROHIBITED = 3
_ALL_BITS = 0xFFFFFFFF
_LONGEST_COMMENT = 126
#: Rules whose bytes are kept: lists of policies name the same ones again and again. A few MB when full.
_KEPT = 8192
_RULE_EXPRESSIONS, _RULE_USERDATA = 4, 7


class _Unknown(Exception):
    """Not a shape of ours; control flow inside this module, no error."""


@lru_cache(maxsize=_KEPT)
def encode_rule(rule: str) -> bytes | None:
    """The expressions and the comment as attributes of a rule message. None: leave it to libnftables."""
    encoder = _Encoder(_TOKEN.findall(rule))
    try:
        return encoder.encode()
    except (_Unknown, ValueError, OSError, OverflowError):
        return None


class _Encoder:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._position = 0
        self._parts: list[bytes] = []
        self._family = 0
        self._protocol = -1
        # a comparison with the transport header that the next one may continue: where it starts, and its value
        self._open: tuple[int, bytes] | None = None

    def encode(self) -> bytes:
        comment = b""
        while self._position < len(self._tokens):
            match self._take():
                case "ip" | "ip6" as keyword:
                    self._address(keyword)
                case "meta":
                    self._meta()
                case "th":
                    offset = _PORTS[self._one_of(_PORTS)]
                    self._ports(offset)
                case "icmp" | "icmpv6" as keyword:
                    self._icmp(keyword)
                case "counter":
                    self._put(ex.counter())
                case "limit":
                    self._limit()
                case "log":
                    self._log()
                case "reject":
                    self._expect("with", "icmpx", "admin-prohibited")
                    self._put(ex.reject_icmpx(_ADMIN_PROHIBITED))
                case "jump" | "goto" as lead:
                    self._put(ex.verdict(_LEADS[lead], self._take()))
                case "accept" | "drop" | "return" as word:
                    self._put(ex.verdict(_VERDICTS[word]))
                case "comment":
                    comment = _comment(self._quoted())
                case _:
                    raise _Unknown
        self._close()
        return nested(_RULE_EXPRESSIONS, *self._parts) + comment

    # --- matches ----------------------------------------------------------------------------------

    def _address(self, keyword: str) -> None:
        side = self._take()
        if (keyword, side) not in _ADDRESSES:
            raise _Unknown
        offset, length = _ADDRESSES[keyword, side]
        self._depend_on_family(_NFPROTO[keyword])
        if self._accept("."):
            self._address_and_port(offset, length)
            return
        is_negated, value = self._accept("!="), self._take()
        if value.startswith("@"):
            self._put(ex.load_payload(ex.NETWORK_HEADER, offset, length))
            self._put(ex.lookup(value[1:], is_inverted=is_negated))
            return
        first, _, last = value.partition("-")
        family = _SOCKET_FAMILY[keyword]
        low = socket.inet_pton(family, first)
        self._range(ex.NETWORK_HEADER, offset, low, socket.inet_pton(family, last) if last else low, is_negated)

    def _address_and_port(self, offset: int, length: int) -> None:
        self._expect("meta", "l4proto", ".", "th")
        port = _PORTS[self._one_of(_PORTS)]
        is_negated, name = self._accept("!="), self._take()
        if not name.startswith("@"):
            raise _Unknown
        self._put(ex.load_payload(ex.NETWORK_HEADER, offset, length))
        self._put(ex.load_meta(ex.L4PROTO_KEY, ex.word_register(length)))
        self._put(ex.load_payload(ex.TRANSPORT_HEADER, port, 2, ex.word_register(length + 4)))
        self._put(ex.lookup(name[1:], is_inverted=is_negated))

    def _meta(self) -> None:
        match self._take():
            case "nfproto":
                # one that is said is written, also where an address has implied it
                self._match_family(_NFPROTO[self._one_of(_NFPROTO)])
            case "l4proto":
                is_negated, number = self._accept("!="), int(self._take())
                if not is_negated:
                    self._protocol = number
                self._put(ex.load_meta(ex.L4PROTO_KEY))
                self._put(ex.compare(ex.NOT_EQUAL if is_negated else ex.EQUAL, bytes((number,))))
            case "mark":
                self._mark()
            case _:
                raise _Unknown

    def _mark(self) -> None:
        if self._accept("set"):
            self._expect("meta", "mark")
            operator, bits = self._one_of(("|", "&")), int(self._take(), 16)
            self._put(ex.load_meta(ex.MARK_KEY))
            kept, flipped = (bits ^ _ALL_BITS, bits) if operator == "|" else (bits, 0)
            self._put(ex.mask(_host_u32(kept), _host_u32(flipped)))
            self._put(ex.store_mark())
            return
        self._expect("&")
        bits = int(self._take(), 16)
        operator = self._one_of(("==", "!="))
        self._expect("0")
        self._put(ex.load_meta(ex.MARK_KEY))
        self._put(ex.mask(_host_u32(bits), bytes(4)))
        self._put(ex.compare(ex.EQUAL if operator == "==" else ex.NOT_EQUAL, bytes(4)))

    def _ports(self, offset: int) -> None:
        is_negated = self._accept("!=")
        first, _, last = self._take().partition("-")
        low, high = (int(port).to_bytes(2, "big") for port in (first, last or first))
        if is_negated and last:
            self._put(ex.load_payload(ex.TRANSPORT_HEADER, offset, 2))
            self._put(ex.outside(low, high))
            return
        self._range(ex.TRANSPORT_HEADER, offset, low, high, is_negated)

    def _icmp(self, keyword: str) -> None:
        offset = _ICMP_FIELDS[self._one_of(_ICMP_FIELDS)]
        if self._protocol != _ICMP_PROTOCOL[keyword]:
            raise _Unknown
        is_negated, value = self._accept("!="), bytes((int(self._take()),))
        self._range(ex.TRANSPORT_HEADER, offset, value, value, is_negated)

    def _range(self, base: int, offset: int, low: bytes, high: bytes, is_negated: bool) -> None:
        if low == high and not is_negated and base == ex.TRANSPORT_HEADER:
            self._equal(offset, low)
            return
        self._put(ex.load_payload(base, offset, len(low)))
        if low == high:
            self._put(ex.compare(ex.NOT_EQUAL if is_negated else ex.EQUAL, low))
        elif is_negated:
            self._put(ex.outside(low, high))
        else:
            self._put(ex.compare(ex.AT_LEAST, low))
            self._put(ex.compare(ex.AT_MOST, high))

    def _equal(self, offset: int, value: bytes) -> None:
        """Fields of the transport header that lie side by side are compared at once, as libnftables does."""
        if self._open is not None:
            start, before = self._open
            if start + len(before) == offset:
                self._open = (start, before + value)
                return
            self._close()
        self._open = (offset, value)

    def _depend_on_family(self, family: int) -> None:
        if self._family != family:
            self._match_family(family)

    def _match_family(self, family: int) -> None:
        if self._family not in (0, family):
            raise _Unknown
        self._family = family
        self._put(ex.load_meta(ex.NFPROTO_KEY))
        self._put(ex.compare(ex.EQUAL, bytes((family,))))

    # --- statements -------------------------------------------------------------------------------

    def _limit(self) -> None:
        self._expect("rate")
        rate, _, unit = self._take().partition("/")
        self._expect("burst")
        burst = int(self._take())
        self._expect("packets")
        if unit not in _SECONDS:
            raise _Unknown
        self._put(ex.limit(int(rate), _SECONDS[unit], burst))

    def _log(self) -> None:
        self._expect("prefix")
        prefix = self._quoted()
        if self._accept("level"):
            self._put(ex.log_to_kernel(prefix, _LEVELS[self._one_of(_LEVELS)]))
            return
        self._expect("group")
        group = int(self._take())
        self._expect("snaplen")
        self._put(ex.log_to_group(prefix, group, int(self._take())))

    # --- tokens and parts -------------------------------------------------------------------------

    def _put(self, part: bytes) -> None:
        self._close()
        self._parts.append(part)

    def _close(self) -> None:
        if self._open is not None:
            offset, value = self._open
            self._open = None
            self._parts += (ex.load_payload(ex.TRANSPORT_HEADER, offset, len(value)), ex.compare(ex.EQUAL, value))

    def _take(self) -> str:
        if self._position >= len(self._tokens):
            raise _Unknown
        self._position += 1
        return self._tokens[self._position - 1]

    def _accept(self, word: str) -> bool:
        is_next = self._position < len(self._tokens) and self._tokens[self._position] == word
        self._position += is_next
        return is_next

    def _expect(self, *words: str) -> None:
        for word in words:
            if self._take() != word:
                raise _Unknown

    def _one_of(self, words: object) -> str:
        word = self._take()
        if word not in words:  # type: ignore[operator]
            raise _Unknown
        return word

    def _quoted(self) -> str:
        word = self._take()
        if len(word) < 2 or word[0] != '"' or word[-1] != '"':
            raise _Unknown
        return word[1:-1]


def _comment(words: str) -> bytes:
    """libnftnl's user data: type 0, length, the text with its closing zero."""
    value = words.encode() + b"\0"
    if len(value) > _LONGEST_COMMENT:
        raise _Unknown
    return attribute(_RULE_USERDATA, bytes((0, len(value))) + value)


def _host_u32(value: int) -> bytes:
    """Marks are kept in the host's byte order."""
    return value.to_bytes(4, sys.byteorder)
