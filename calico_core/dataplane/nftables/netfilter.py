"""Our table by nfnetlink messages of our own: reading it, asking for the generation, changing what stands.

On one socket kept open a set element costs microseconds whatever the size of the table, and reading back needs
neither a process nor text. Layouts: linux/netfilter/nf_tables.h. A rule is known by the comment it carries
(:func:`names.tag`), so its expressions are not read; somebody who replaces a rule under its comment is not noticed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pyroaring import FrozenBitMap

from calico_core.dataplane.linux.netlink import (
    DEFAULT_TIMEOUT_S,
    HEADER,
    NETLINK_NETFILTER,
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NetlinkSocket,
    Request,
    attribute,
    nested,
    parse_attributes,
    parse_error,
    parse_messages,
    refused,
    text,
)
from calico_core.dataplane.nftables import rule_messages
from calico_core.dataplane.nftables.elements import (
    KINDS,
    NFT_SET_ANONYMOUS,
    NFT_SET_INTERVAL,
    NFT_SET_MAP,
    element_data,
    element_key,
    find_kind,
    parse_key,
)
from calico_core.dataplane.nftables.names import TABLE
from calico_core.dataplane.reconcile import Chain, NamedSet, Table
from calico_core.errors import KernelRefused
from calico_core.model.addresses import WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calico_core.dataplane.nftables.elements import Kind
    from calico_core.dataplane.reconcile import Plan

_SUBSYSTEM = 10 << 8
NEWTABLE, GETTABLE, GETCHAIN, GETRULE, GETSET = (_SUBSYSTEM | number for number in (0, 1, 4, 7, 10))
NEWSETELEM, GETSETELEM, DELSETELEM, NEWGEN, GETGEN = (_SUBSYSTEM | number for number in (12, 13, 14, 15, 16))
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NFPROTO_INET = 1
_NFPROTO = {4: 2, 6: 10}
_HEADER_INET = bytes((NFPROTO_INET, 0, 0, 0))  # nfgenmsg: family, version, resource id
_HEADER_ANY = bytes(4)
_HEADER_BATCH = struct.pack(">BBH", 0, 0, 10)
_U32 = struct.Struct(">I")
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_NF_ACCEPT = 1
_NFT_GOTO = 0xFFFFFFFC
_INTERVAL_END = 1
_LIST_ELEMENT = 1
_UDATA_COMMENT = 0
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_COUNTER_NAME = text(1, "counter")
# the name, and the nested pair of 64-bit numbers behind it
_COUNTER_LENGTH = len(_COUNTER_NAME) + 4 + 2 * 12
_TABLE_DORMANT = 1

# An attribute holds 64 KiB at most; an element takes up to 112 bytes.
_ELEMENTS_A_MESSAGE = 500
_READ_ATTEMPTS = 5
#: An address as an element: lengths and types of the attributes around it, and the address.
_PLAIN_V4 = struct.Struct("=HHHHHH4s")
_AROUND_V4 = (16, NLA_F_NESTED | _LIST_ELEMENT, 12, NLA_F_NESTED | 1, 8, 1)
_SO_SNDBUFFORCE = 32
_SEND_BUFFER_BYTES = 8 << 20


class NftSocket(NetlinkSocket):
    """An nfnetlink socket that speaks nf_tables, for our table."""

    def __init__(self, namespace_fd: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(NETLINK_NETFILTER, namespace_fd, timeout_s)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)

    def generation(self) -> int:
        """Counts the commits to the rules of this namespace, whoever made them."""
        wanted, operation = self.next_sequence(), "read nftables generation"
        # after each transaction, hence as short as can be: one message there, and the answer is one message
        self.send(HEADER.pack(20, GETGEN, NLM_F_REQUEST, wanted, 0) + _HEADER_ANY, operation)
        while True:
            answer = self.receive(operation)
            _, kind, flags, sequence, _ = HEADER.unpack_from(answer)
            if sequence != wanted:
                continue  # a late answer to what timed out before
            if kind == NEWGEN:
                return int(_U32.unpack(parse_attributes(answer, 20)[1])[0])
            if kind == NLMSG_ERROR:
                raise refused(operation, *parse_error(answer[16:], flags))
            raise KernelRefused(operation, errno.EPROTO, "no generation in the answer")

    def has_table(self) -> bool:
        """Whether our table stands and is awake."""
        request = Request("look up table", GETTABLE, 0, _HEADER_INET + text(1, TABLE))
        (outcome,) = self.attempt([request])
        if outcome.error is not None:
            if outcome.error.errno == errno.ENOENT:
                return False
            raise outcome.error
        flags = next((parse_attributes(body, 4).get(2) for kind, body in outcome.replies if kind == NEWTABLE), None)
        return not (flags and _U32.unpack(flags)[0] & _TABLE_DORMANT)

    def has_iptables_chain(self, family: int, name: str) -> bool:
        """Whether the filter table that iptables keeps in nf_tables has a chain of this name."""
        header = bytes((_NFPROTO[family], 0, 0, 0))
        request = Request("look up chain", GETCHAIN, 0, header + text(1, "filter") + text(3, name))
        (outcome,) = self.attempt([request])
        if outcome.error is not None and outcome.error.errno != errno.ENOENT:
            raise outcome.error
        return outcome.error is None

    def read(self) -> tuple[Table | None, int]:
        """The table as it stands (None: it does not), and the generation that was read."""
        before = self.generation()
        for _ in range(_READ_ATTEMPTS):
            with contextlib.suppress(_Vanished):
                table = self._read_table() if self.has_table() else None
                after = self.generation()
                if before == after:
                    return table, after
            before = self.generation()
        raise KernelRefused("read table", errno.EAGAIN, "it was changed while being read, every time")

    def counts(self) -> dict[str, list[tuple[int, int]]]:
        """Packets and bytes of every rule of each chain, in order; zeros where a rule does not count."""
        counts: dict[str, list[tuple[int, int]]] = {}
        for found in self._rules():
            counts.setdefault(_name(found[2]), []).append(_count(found.get(4, b"")))
        return counts

    def change(self, plan: Plan, desired: Table, observed: Table | None) -> bool:
        """Carry out the plan in one transaction; nothing is changed when it fails. False: it has something that is
        not written here, and nothing was sent."""
        before: list[rule_messages.Message] | None = []
        middle: list[rule_messages.Message] | None = []
        after: list[rule_messages.Message] | None = []
        if not plan.has_elements_alone:
            before, middle = rule_messages.before_elements(plan, desired), rule_messages.chains(plan, desired)
            after = rule_messages.after_elements(plan, observed)
        if observed is None or before is None or middle is None or after is None:
            return False
        removed = [
            (DELSETELEM, 0, body)
            for name, elements in plan.removed_elements.items()
            for body in _element_bodies(name, KINDS[observed.sets[name].kind], elements, is_removal=True)
        ]
        added = [
            (NEWSETELEM, NLM_F_CREATE, body)
            for name, elements in plan.added_elements.items()
            for body in _element_bodies(name, KINDS[desired.sets[name].kind], elements)
        ]
        self.commit([*before, *removed, *middle, *added, *after], "change chains and sets")
        return True

    def commit(self, messages: list[tuple[int, int, bytes]], operation: str) -> None:
        """A batch. Only its last message asks for an answer: kernels differ in whether they answer the frame."""
        first = self._sequence + 1
        self._sequence += len(messages) + 2
        last = first + len(messages)
        parts = [HEADER.pack(20, BATCH_BEGIN, NLM_F_REQUEST, first, 0), _HEADER_BATCH]
        for sequence, (kind, flags, body) in enumerate(messages, first + 1):
            wanted = flags | NLM_F_REQUEST | (NLM_F_ACK if sequence == last else 0)
            parts += (HEADER.pack(16 + len(body), kind, wanted, sequence, 0), body)
        parts += (HEADER.pack(20, BATCH_END, NLM_F_REQUEST, last + 1, 0), _HEADER_BATCH)
        self.send(b"".join(parts), operation)

        # the kernel worked during the send: what it has to say is queued, errors before the acknowledgement
        while True:
            for kind, flags, sequence, body in parse_messages(self.receive(operation)):
                if not first <= sequence <= last + 1 or kind != NLMSG_ERROR:
                    continue
                number, message = parse_error(body, flags)
                if number:
                    raise refused(operation, number, message)
                if sequence == last:
                    return

    # --- reading ----------------------------------------------------------------------------------

    def _read_table(self) -> Table:
        tags = self._tags()
        chains = {name: Chain(tags=tuple(tags.get(name, ())), hook=hook) for name, hook in self._hooks()}
        sets = {name: NamedSet(kind, self._elements(name, kind)) for name, kind in self._kinds()}
        return Table(chains, sets)

    def _hooks(self) -> Iterator[tuple[str, str]]:
        for body in self.dump(Request("list chains", GETCHAIN, 0, _HEADER_INET)):
            found = parse_attributes(body, 4)
            if _name(found[1]) == TABLE:
                yield _name(found[3]), _hook(found)

    def _tags(self) -> dict[str, list[str]]:
        """Tags of the rules of each chain, in order; a rule that is not ours has its handle instead."""
        tags: dict[str, list[str]] = {}
        for found in self._rules():
            handle = int.from_bytes(found[3], "big")
            tags.setdefault(_name(found[2]), []).append(_comment_tag(found.get(7, b"")) or f"foreign {handle}")
        return tags

    def _rules(self) -> Iterator[dict[int, bytes]]:
        try:
            bodies = self.dump(Request("list rules", GETRULE, 0, _HEADER_INET + text(1, TABLE)))
        except KernelRefused as error:
            if error.errno != errno.ENOENT:
                raise
            return
        for body in bodies:
            found = parse_attributes(body, 4)
            if _name(found[1]) == TABLE:
                yield found

    def _kinds(self) -> Iterator[tuple[str, str]]:
        request = Request("list sets", GETSET, 0, _HEADER_INET + text(1, TABLE))
        for body in self.dump(request):
            found = parse_attributes(body, 4)
            flags = _number(found.get(3))
            if _name(found[1]) == TABLE and not flags & NFT_SET_ANONYMOUS:
                yield _name(found[2]), find_kind(_number(found.get(4)), flags, _number(found.get(6)))

    def _elements(self, name: str, kind_name: str) -> Any:
        kind = KINDS.get(kind_name)
        if kind is None:
            return frozenset()
        request = Request(f"list set {name}", GETSETELEM, 0, _HEADER_INET + text(1, TABLE) + text(2, name))
        try:
            bodies = self.dump(request)
        except KernelRefused as error:
            if error.errno == errno.ENOENT:
                raise _Vanished from error
            raise
        lists = [parse_attributes(body, 4).get(3, b"") for body in bodies]
        if kind.name == "hosts4":
            return FrozenBitMap([value for data in lists for value in _plain_v4(data, kind)])
        if kind.flags & NFT_SET_INTERVAL:
            return _ranges(lists, kind)
        return frozenset(element for data in lists for element in _parse_elements(data, kind))


class _Vanished(Exception):
    """A set went while the table was read; control flow inside this module, no error."""


def _element_bodies(name: str, kind: Kind, elements: Any, *, is_removal: bool = False) -> Iterator[bytes]:
    head = _set_head(name)
    if kind.name == "hosts4":
        encoded = [_PLAIN_V4.pack(*_AROUND_V4, element.to_bytes(4, "big")) for element in elements]
    else:
        encoded = [part for element in elements for part in _encode(kind, element, is_removal=is_removal)]
    for start in range(0, len(encoded), _ELEMENTS_A_MESSAGE):
        yield head + nested(3, *encoded[start : start + _ELEMENTS_A_MESSAGE])


@lru_cache(maxsize=4096)
def _set_head(name: str) -> bytes:
    return _HEADER_INET + text(1, TABLE) + text(2, name)


def _encode(kind: Kind, element: Any, *, is_removal: bool) -> list[bytes]:
    if kind.flags & NFT_SET_INTERVAL:
        return _encode_range(kind, *element)
    key = nested(1, attribute(1, element_key(kind, element)))
    if not kind.flags & NFT_SET_MAP or is_removal:
        return [nested(_LIST_ELEMENT, key)]
    if kind.name != "verdict":
        return [nested(_LIST_ELEMENT, key, nested(2, attribute(1, element_data(kind, element))))]
    return [nested(_LIST_ELEMENT, key, _goto(element[1]))]


@lru_cache(maxsize=1024)
def _goto(chain: str) -> bytes:
    """What a map's element holds: many lead to one chain."""
    return nested(2, nested(2, attribute(1, _U32.pack(_NFT_GOTO)), text(2, chain)))


def _encode_range(kind: Kind, first: int, last: int) -> list[bytes]:
    """Two elements: the first address, and an end behind the last one; a range up to the last address has no end."""
    width = WIDTH[kind.family]
    parts = [nested(_LIST_ELEMENT, nested(1, attribute(1, first.to_bytes(width // 8, "big"))))]
    if last + 1 < 1 << width:
        end = nested(1, attribute(1, (last + 1).to_bytes(width // 8, "big")))
        parts.append(nested(_LIST_ELEMENT, end, attribute(3, _U32.pack(_INTERVAL_END))))
    return parts


def _parse_elements(data: bytes, kind: Kind) -> Iterator[Any]:
    for element in _walk(data):
        found = parse_attributes(element)
        value = parse_key(kind, parse_attributes(found[1])[1])
        if not kind.flags & NFT_SET_MAP:
            yield value
            continue
        if kind.name != "verdict":
            yield value, int.from_bytes(parse_attributes(found.get(2, b"")).get(1, b""), "big")
            continue
        verdict = parse_attributes(parse_attributes(found.get(2, b"")).get(2, b""))
        is_goto = _number(verdict.get(1)) == _NFT_GOTO
        yield value, _name(verdict.get(2, b"")) if is_goto else "foreign"


def _plain_v4(data: bytes, kind: Kind) -> list[int]:
    """In bulk when every element is a bare key, as ours are."""
    if len(data) % _PLAIN_V4.size == 0:
        fields = list(_PLAIN_V4.iter_unpack(data))
        if all(each[0] == _PLAIN_V4.size for each in fields):
            return [int.from_bytes(each[6], "big") for each in fields]
    return list(_parse_elements(data, kind))


def _ranges(lists: list[bytes], kind: Kind) -> frozenset[tuple[int, int]]:
    marks: list[tuple[int, bool]] = []
    for data in lists:
        for element in _walk(data):
            found = parse_attributes(element)
            is_end = bool(_number(found.get(3)) & _INTERVAL_END)
            marks.append((int.from_bytes(parse_attributes(found[1])[1], "big"), not is_end))
    # an end sorts before a beginning at the same address
    marks.sort()
    ranges: list[tuple[int, int]] = []
    first: int | None = None
    for value, is_first in marks:
        if first is not None:
            ranges.append((first, value - 1))
        first = value if is_first else None
    if first is not None:
        ranges.append((first, (1 << WIDTH[kind.family]) - 1))
    return frozenset(ranges)


def _walk(data: bytes) -> Iterator[bytes]:
    """The parts of a list of attributes of one type."""
    position, end = 0, len(data)
    while position + 4 <= end:
        length = int.from_bytes(data[position : position + 2], "little" if _IS_LITTLE else "big")
        if length < 4:
            return
        yield data[position + 4 : position + length]
        position += (length + 3) & ~3


_IS_LITTLE = struct.pack("=H", 1) == b"\1\0"


def _hook(found: dict[int, bytes]) -> str:
    """As :mod:`layout` writes it: type, hook, priority; empty for an ordinary chain."""
    if 4 not in found:
        return ""
    where = parse_attributes(found[4])
    number, (priority,) = _number(where.get(1)), struct.unpack(">i", where[2])
    hook = f"{_name(found.get(7, b''))} {_HOOKS[number]} {priority}"
    return hook if _number(found.get(5)) == _NF_ACCEPT else f"{hook} policy drop"


def _count(expressions: bytes) -> tuple[int, int]:
    """What the first counter of a rule says. It is found by its name, without parsing what stands before it."""
    at = expressions.find(_COUNTER_NAME)
    if at < 0:
        return 0, 0
    values = parse_attributes(parse_attributes(expressions[at : at + _COUNTER_LENGTH])[2])
    return int.from_bytes(values[_COUNTER_PACKETS], "big"), int.from_bytes(values[_COUNTER_BYTES], "big")


def _comment_tag(data: bytes) -> str:
    """The first word of a rule's comment (libnftnl's user data: type, length, value)."""
    position = 0
    while position + 2 <= len(data):
        kind, length = data[position], data[position + 1]
        if kind == _UDATA_COMMENT:
            comment = data[position + 2 : position + 2 + length].rstrip(b"\0").decode(errors="replace")
            return comment.partition(" ")[0]
        position += 2 + length
    return ""


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes | None) -> int:
    return int(_U32.unpack(value)[0]) if value else 0
