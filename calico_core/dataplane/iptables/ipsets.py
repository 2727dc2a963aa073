"""The kinds of address sets, their elements as values and as text, and what ``ipset`` reads and writes.

``hosts`` are single addresses (hash:ip), elements are integers; ``nets`` may hold networks (hash:net), elements are
(first address, prefix length); ``ports`` are named ports (hash:ip,port), elements are (address, protocol, port).
Neither takes everything: a hash:ip and a hash:ip,port refuse the address zero, a hash:net refuses /0, which is written
as its two halves. Source: ipset(8). Pure.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

import msgspec
from pyroaring import FrozenBitMap

from calico_core.dataplane.iptables.names import PREFIX, digest, scratch_name, set_name, set_prefix
from calico_core.dataplane.reconcile import NamedSet
from calico_core.model.addresses import WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from netaddr import IPNetwork

    from calico_core.dataplane.reconcile import Plan, Table
    from calico_core.model.hoststate import AddressSet, PortMember

#: A change of more elements than this, and of more than half the set, writes it anew: its users see one step.
_REWRITE_FROM = 256

#: What ipset gives a set that asks for nothing.
_LEAST_ROOM = 65536

_TYPES = {"hosts4": "hash:ip family inet", "hosts6": "hash:ip family inet6",
          "nets4": "hash:net family inet", "nets6": "hash:net family inet6",
          "ports4": "hash:ip,port family inet", "ports6": "hash:ip,port family inet6"}  # fmt: skip
#: Protocols whose ports such a set can hold, by the name ``ipset save`` gives them.
PORT_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 136: "udplite"}
"""Whose ports the kernel finds in a packet that it looks for in a set; DCCP's it does not."""
_PROTOCOL_NUMBERS = {name: number for number, name in PORT_PROTOCOLS.items()}
_KINDS = {tuple(text.split()): kind for kind, text in _TYPES.items()}


def room(max_set_size: int) -> int:
    """How many elements the kernel is to allow in a set of ours. Those of policy are held to ``max_set_size`` before;
    others, as that of the pools or one of networks inside a rule, are not bounded by it."""
    return max(max_set_size, _LEAST_ROOM)


class Command(msgspec.Struct, frozen=True):
    """One line for ``ipset restore``, and the set it is about."""

    text: str
    set_name: str


def family_of(kind: str) -> int:
    return int(kind[-1])


def kind_for(members: AddressSet, family: int) -> str:
    is_plain = not members.nets and 0 not in members.v4 and 0 not in members.v6
    return f"{'hosts' if is_plain else 'nets'}{family}"


def elements_for(members: AddressSet, kind: str) -> Any:
    """What of the members a set of this kind holds."""
    family = family_of(kind)
    hosts: Any = members.v4 if family == 4 else members.v6
    if kind.startswith("hosts"):
        return hosts
    width = WIDTH[family]
    return frozenset({(value, width) for value in hosts} | net_elements(members.nets, family))


def port_elements(members: Iterable[PortMember], family: int) -> frozenset[tuple[int, int, int]]:
    """Without those no packet can match: address zero, protocols whose ports the kernel does not look at there."""
    return frozenset(
        (each.address, each.protocol, each.port)
        for each in members
        if each.version == family and each.address and each.protocol in PORT_PROTOCOLS
    )


def net_elements(nets: Iterable[IPNetwork], family: int) -> set[tuple[int, int]]:
    """The networks of the family as elements of a ``nets`` set."""
    found: set[tuple[int, int]] = set()
    for net in nets:
        if net.version != family:
            continue
        if net.prefixlen:
            found.add((net.first, net.prefixlen))
        else:
            found |= {(0, 1), (1 << (WIDTH[family] - 1), 1)}
    return found


def nets_set(nets: Iterable[IPNetwork], family: int) -> tuple[str, NamedSet]:
    """A set named by its content, for a list of networks inside a rule."""
    kind = f"nets{family}"
    elements = frozenset(net_elements(nets, family))
    return set_name(kind, f"in-{digest(repr(sorted(elements)), 16)}"), NamedSet(kind, elements)


def address_text(value: int, family: int) -> str:
    if family == 4:
        return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
    return str(IPv6Address(value))


def net_text(net: IPNetwork) -> str:
    return f"{address_text(net.first, net.version)}/{net.prefixlen}"


def _element_text(kind: str, element: Any) -> str:
    family = family_of(kind)
    if kind.startswith("hosts"):
        return address_text(element, family)
    if kind.startswith("ports"):
        address, protocol, port = element
        return f"{address_text(address, family)},{PORT_PROTOCOLS[protocol]}:{port}"
    first, length = element
    return f"{address_text(first, family)}/{length}"


# --- to the kernel --------------------------------------------------------------------------------


def write_commands(
    plan: Plan, desired: Table, observed: Table, *, max_elements: int, in_the_way: Container[str] = ()
) -> list[Command]:
    """What must happen before rules are written: new sets, members. ``in_the_way``: names that stand, but not as a
    set of ours would."""
    commands: list[Command] = []
    for name in plan.new_sets:
        wanted = desired.sets[name]
        if name in in_the_way:
            commands += _rewrite(name, wanted, max_elements)
            continue
        # one that the kernel did not let go yet may stand with old members
        commands += [Command(_create(name, wanted.kind, max_elements), name), Command(f"flush {name}", name)]
        commands += _each("add", name, wanted, wanted.elements)
    for name in sorted({*plan.added_elements, *plan.removed_elements} - {*plan.new_sets}):
        wanted = desired.sets[name]
        added, removed = plan.added_elements.get(name, ()), plan.removed_elements.get(name, ())
        count = len(added) + len(removed)
        if count >= _REWRITE_FROM and 2 * count >= len(observed.sets[name].elements):
            commands += _rewrite(name, wanted, max_elements)
            continue
        coming, going = _each("add", name, wanted, added), _each("del", name, wanted, removed)
        # new members first, so that one that only changes its shape is never missing; if there is room for both
        has_room = len(observed.sets[name].elements) + len(added) <= max_elements
        commands += [*coming, *going] if has_room else [*going, *coming]
    return commands


def _rewrite(name: str, wanted: NamedSet, max_elements: int) -> list[Command]:
    """Its users see one step."""
    scratch = scratch_name(name)
    # it may stand from a run that was cut short
    commands = [Command(_create(scratch, wanted.kind, max_elements), name), Command(f"flush {scratch}", name)]
    commands += _each("add", scratch, wanted, wanted.elements, subject=name)
    return [*commands, Command(f"swap {scratch} {name}", name), Command(f"destroy {scratch}", name)]


def _create(name: str, kind: str, max_elements: int) -> str:
    return f"create {name} {_TYPES[kind]} maxelem {max_elements}"


def _each(verb: str, name: str, of: NamedSet, elements: Any, subject: str = "") -> list[Command]:
    return [Command(f"{verb} {name} {_element_text(of.kind, each)}", subject or name) for each in elements]


# --- from the kernel ------------------------------------------------------------------------------


def parse_saved(text: str, max_elements: int) -> dict[str, NamedSet]:
    """Our sets in the output of ``ipset save``. A leftover of a rewrite, or a set of a kind, of a size or with an
    element that we do not make, has an empty kind and no elements."""
    kinds: dict[str, str] = {}
    found: dict[str, list[Any]] = {}
    parsers: dict[str, Callable[[str], Any]] = {}
    for line in text.splitlines():
        verb, _, rest = line.partition(" ")
        name, _, value = rest.partition(" ")
        if not name.startswith(PREFIX):
            continue
        if verb == "create":
            kind = _KINDS.get(tuple(value.split()[:3]), "")
            if not kind or not name.startswith(set_prefix(kind)) or f" maxelem {max_elements} " not in f"{value} ":
                kind = ""
            kinds[name], found[name] = kind, []
            parsers[name] = _PARSERS.get(kind, str)
        elif verb == "add" and kinds.get(name):
            try:
                found[name].append(parsers[name](value))
            except ValueError:
                # somebody's element of a shape we never write: the set is filled anew
                kinds[name], found[name] = "", []
    return {name: NamedSet(kind, _frozen(kind, found[name])) for name, kind in kinds.items()}


def _frozen(kind: str, elements: list[Any]) -> Any:
    return FrozenBitMap(elements) if kind == "hosts4" else frozenset(elements)


def _parse_v4(text: str) -> int:
    a, b, c, d = text.split(".")
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)


def _parse_v6(text: str) -> int:
    return int(IPv6Address(text))


def _parse_net4(text: str) -> tuple[int, int]:
    base, slash, length = text.partition("/")
    return _parse_v4(base), int(length) if slash else 32


def _parse_net6(text: str) -> tuple[int, int]:
    base, slash, length = text.partition("/")
    return _parse_v6(base), int(length) if slash else 128


def _parse_port4(text: str) -> tuple[int, int, int]:
    address, _, port = text.partition(",")
    return (_parse_v4(address), *_parse_port(port))


def _parse_port6(text: str) -> tuple[int, int, int]:
    address, _, port = text.partition(",")
    return (_parse_v6(address), *_parse_port(port))


def _parse_port(text: str) -> tuple[int, int]:
    protocol, _, port = text.partition(":")
    if protocol not in _PROTOCOL_NUMBERS:
        raise ValueError(text)
    return _PROTOCOL_NUMBERS[protocol], int(port)


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "hosts4": _parse_v4, "hosts6": _parse_v6, "nets4": _parse_net4, "nets6": _parse_net6,
    "ports4": _parse_port4, "ports6": _parse_port6,
}  # fmt: skip
